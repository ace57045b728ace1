package store

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/store/kv"
)

// diskError is a write that failed, in the API's words.
type diskError struct {
	err  error
	code int32
}

func (e *diskError) Error() string { return e.err.Error() }
func (e *diskError) Unwrap() error { return e.err }

// Status makes it an apierrors.APIStatus: what the client sees.
func (e *diskError) Status() metav1.Status {
	return metav1.Status{
		Status:  metav1.StatusFailure,
		Code:    e.code,
		Reason:  metav1.StatusReasonInternalError,
		Message: e.err.Error(),
		Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Message: e.err.Error()}}},
	}
}

// writeError turns kv's error of a write into the API's.
func writeError(err error) error {
	var w *kv.WriteError
	switch {
	case errors.As(err, &w) && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)):
		return &diskError{fmt.Errorf("the object can't be stored: %w", err), http.StatusInsufficientStorage}
	case errors.As(err, &w):
		return &diskError{fmt.Errorf("the object can't be stored: %w", err), http.StatusInternalServerError}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return apierrors.NewTimeoutError(err.Error(), 0)
	case errors.Is(err, kv.ErrClosed):
		return apierrors.NewServiceUnavailable("the node is shutting down")
	}
	return storage.NewInternalError(err)
}

const (
	tooOld         = "The resourceVersion for the provided list is too old."
	watchTooOld    = "The resourceVersion for the provided watch is too old."
	continueTooOld = "The provided continue parameter is too old to display a consistent list result. You can start a new list without " +
		"the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the " +
		"provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk " +
		"was returned and now may show up in the list."
)

// listError turns kv's error of a read into the API's.
func listError(err error, rev, now int64, continued bool, from, prefix string) error {
	switch {
	case errors.Is(err, kv.ErrFuture):
		return storage.NewTooLargeResourceVersionError(uint64(rev), uint64(now), 0)
	case errors.Is(err, kv.ErrCompacted) && continued:
		// Revision -1 asks for the rest as it is now.
		token, err := storage.EncodeContinue(from, prefix, -1)
		if err != nil {
			return apierrors.NewResourceExpired(tooOld)
		}
		expired := apierrors.NewResourceExpired(continueTooOld)
		expired.ErrStatus.ListMeta.Continue = token
		return expired
	case errors.Is(err, kv.ErrCompacted):
		return apierrors.NewResourceExpired(tooOld)
	}
	return err
}

// watchError turns an error into what a watch ends with.
func watchError(err error) apierrors.APIStatus {
	var deleted *deletedCorrupt
	var status apierrors.APIStatus
	switch {
	case errors.Is(err, kv.ErrCompacted):
		return apierrors.NewResourceExpired(watchTooOld)
	case errors.As(err, &deleted):
		return &apierrors.StatusError{ErrStatus: metav1.Status{
			Status:  metav1.StatusFailure,
			Code:    http.StatusInternalServerError,
			Reason:  metav1.StatusReasonStoreReadError,
			Message: err.Error(),
		}}
	case errors.As(err, &status):
		return status
	}
	return apierrors.NewInternalError(err)
}

// deletedCorrupt says that an object was deleted that nobody can read.
type deletedCorrupt struct{ err error }

func (e *deletedCorrupt) Error() string {
	return fmt.Sprintf("saw a DELETED event, but object data is corrupt - %v", e.err)
}
func (e *deletedCorrupt) Unwrap() error { return e.err }

// corruptError says that an object can't be read, so that it may be deleted
// without being read.
type corruptError struct {
	what string
	rev  int64
	err  error
}

func corrupt(what string, rev int64, err error) error { return &corruptError{what, rev, err} }

func (e *corruptError) Error() string {
	return fmt.Sprintf("%s revision=%d: %v", e.what, e.rev, e.err)
}
func (e *corruptError) Unwrap() error { return e.err }

func isCorrupt(err error) bool {
	var c *corruptError
	return errors.As(err, &c)
}

// maxCorrupt bounds how many unreadable objects a list names.
const maxCorrupt = 100

// corruptList collects a list's unreadable objects, by key.
type corruptList struct {
	keys []string
	errs []error
}

// add says whether the list goes on.
func (c *corruptList) add(key string, err error) bool {
	c.keys = append(c.keys, key)
	c.errs = append(c.errs, err)
	return len(c.errs) < maxCorrupt
}

// status is the list's error; stopped is what ended it before its end.
func (c *corruptList) status(gr schema.GroupResource, stopped error) error {
	if len(c.errs) == 0 {
		return stopped
	}
	var causes []metav1.StatusCause
	var first error
	for i, err := range c.errs {
		err = storage.NewCorruptObjError(c.keys[i], err)
		if first == nil {
			first = err
		}
		causes = append(causes, metav1.StatusCause{Type: metav1.CauseTypeUnexpectedServerResponse, Field: c.keys[i], Message: err.Error()})
	}
	if stopped != nil {
		causes = append(causes, metav1.StatusCause{Type: metav1.CauseTypeUnexpectedServerResponse, Message: stopped.Error()})
	} else if len(c.errs) == maxCorrupt {
		causes = append(causes, metav1.StatusCause{Type: metav1.CauseTypeTooMany, Message: "too many errors, the list is truncated"})
	}
	message := fmt.Sprintf("failed to read one or more %s from the storage: %v", gr, first)
	if len(c.errs) > 1 {
		message = fmt.Sprintf("%s (and %d more)", message, len(c.errs)-1)
	}
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status:  metav1.StatusFailure,
		Code:    http.StatusInternalServerError,
		Reason:  metav1.StatusReasonStoreReadError,
		Message: message,
		Details: &metav1.StatusDetails{Group: gr.Group, Kind: gr.Resource, Name: "list", Causes: causes},
	}}
}
