package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// pullError is what users of Kubernetes are used to read, with a kind that
// says what to do about it.
func pullError(named reference.Named, err error) error {
	return &Error{text: fmt.Sprintf("failed to pull and unpack image %q: %v", named, err), kind: kindOf(err), err: err}
}

// Error is an error of a registry, an archive or the disk. It has one of
// errdefs' kinds besides the errors it wraps.
type Error struct {
	text string
	kind error
	err  error
}

func (e *Error) Error() string { return e.text }

// Unwrap gives the kind first: it is the verdict.
func (e *Error) Unwrap() []error { return []error{e.kind, e.err} }

// kindOf sorts what may go wrong into errdefs' kinds.
func kindOf(err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	switch {
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return context.DeadlineExceeded
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return errdefs.ErrResourceExhausted
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return errdefs.ErrUnauthenticated
	case errors.As(err, &status):
		return kindOfStatus(status.StatusCode)
	case errdefs.IsNotFound(err):
		return errdefs.ErrNotFound
	}
	for _, kind := range []error{
		errdefs.ErrDataLoss, errdefs.ErrInvalidArgument, errdefs.ErrPermissionDenied, errdefs.ErrFailedPrecondition,
		errdefs.ErrUnauthenticated, errdefs.ErrResourceExhausted, errdefs.ErrUnavailable,
	} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	if isNetwork(err) {
		return errdefs.ErrUnavailable
	}
	return errdefs.ErrUnknown
}

// isNetwork cannot ask for a net.Error: every errno is one.
func isNetwork(err error) bool {
	var op *net.OpError
	var dns *net.DNSError
	return errors.As(err, &op) || errors.As(err, &dns)
}

func kindOfStatus(code int) error {
	switch code {
	case http.StatusUnauthorized:
		return errdefs.ErrUnauthenticated
	case http.StatusForbidden:
		return errdefs.ErrPermissionDenied
	case http.StatusNotFound:
		return errdefs.ErrNotFound
	case http.StatusTooManyRequests:
		return errdefs.ErrResourceExhausted
	case http.StatusRequestTimeout, http.StatusGatewayTimeout:
		return context.DeadlineExceeded
	}
	if code >= 500 {
		return errdefs.ErrUnavailable
	}
	return errdefs.ErrUnknown
}
