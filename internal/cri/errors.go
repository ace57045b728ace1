package cri

import (
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/status"
)

// ToGRPC gives the error of a call its gRPC status: the code of its kind, and
// its words. What it wraps stays behind: errgrpc would go through all of it,
// and panics at an error that can wrap another and doesn't, such as that of a
// host name which isn't known.
func ToGRPC(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return errgrpc.ToGRPC(&plainError{err.Error(), errdefs.Resolve(err)})
}

// plainError is an error's words and its kind.
type plainError struct {
	text string
	kind error
}

func (e *plainError) Error() string { return e.text }
func (e *plainError) Unwrap() error { return e.kind }
