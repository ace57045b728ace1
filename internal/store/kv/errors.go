package kv

import (
	"errors"
	"fmt"
)

var (
	// ErrCompacted says that a revision is older than what is remembered.
	ErrCompacted = errors.New("the revision has been compacted")
	// ErrFuture says that a revision has not happened yet.
	ErrFuture = errors.New("the revision is in the future")
	// ErrClosed says that the store was closed.
	ErrClosed = errors.New("the store is closed")
)

// DamageError says that a file holds something this package did not write,
// where no crash could have left it.
type DamageError struct {
	File   string
	Offset int64
	Reason string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("%s is damaged at offset %d: %s; restore a backup", e.File, e.Offset, e.Reason)
}

// LockedError says that another process has the store's directory open.
type LockedError struct {
	Dir    string
	Holder string // its PID and command line, "" when unknown
}

func (e *LockedError) Error() string {
	msg := fmt.Sprintf("%s is in use by another process", e.Dir)
	if e.Holder != "" {
		msg += " (" + e.Holder + ")"
	}
	return msg
}

// WriteError says that a write was not made durable. It is not visible, but
// may be found after a crash when the disk kept it nevertheless.
type WriteError struct {
	File string
	Err  error
}

func (e *WriteError) Error() string {
	return fmt.Sprintf("writing %s: %v; nothing was changed, reads go on and writes will when it is possible again", e.File, e.Err)
}

func (e *WriteError) Unwrap() error { return e.Err }
