package unpack

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// archiveError is the archive's fault: errdefs.ErrInvalidArgument.
type archiveError struct{ error }

func (e archiveError) Unwrap() []error { return []error{e.error, errdefs.ErrInvalidArgument} }

func invalid(format string, args ...any) error {
	return archiveError{fmt.Errorf(format, args...)}
}

// blame finds the archive guilty of the errors of system calls that only its
// contents can cause; others are the machine's.
func blame(err error) error {
	for _, errno := range []error{
		unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EPERM, unix.ENAMETOOLONG, unix.EXDEV, unix.EINVAL, unix.EMLINK,
	} {
		if errors.Is(err, errno) {
			return archiveError{err}
		}
	}
	return err
}
