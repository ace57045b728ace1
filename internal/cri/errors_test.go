package cri

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestToGRPC(t *testing.T) {
	unknownHost := &net.DNSError{Err: "no such host", Name: "nowhere.invalid"} // wraps nothing
	for _, tc := range []struct {
		err  error
		code codes.Code
	}{
		{fmt.Errorf("pulling: %w", errors.Join(&net.OpError{Op: "dial", Err: unknownHost}, errdefs.ErrUnavailable)), codes.Unavailable},
		{unknownHost, codes.Unknown},
		{fmt.Errorf("image: %w", errdefs.ErrNotFound), codes.NotFound},
		{fmt.Errorf("waiting: %w", context.DeadlineExceeded), codes.DeadlineExceeded},
		{status.Error(codes.Aborted, "it was"), codes.Aborted},
		{errors.New("anything"), codes.Unknown},
	} {
		got := ToGRPC(tc.err)
		if s, ok := status.FromError(got); !ok || s.Code() != tc.code {
			t.Errorf("%v: %v", tc.err, got)
		}
	}
	if ToGRPC(nil) != nil {
		t.Error("nil became an error")
	}
}
