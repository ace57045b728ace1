// Package heap lets the heap grow while the program starts. Most of what is
// allocated then stays: initialising Kubernetes' packages and putting an API
// server together is 70 MB of which 45 are kept, and collecting garbage on the
// way is a quarter of the processor time of a node's start (230 ms to 165).
//
// It has to be initialised before Kubernetes' packages; see package early for
// how. What goes on for long must call [Started], or its heap stays twice as
// big. $GOGC goes first.
package heap

import (
	"os"
	"runtime/debug"
)

// In percent of what is in use, how much may be allocated before garbage is
// collected. A factor and no fixed size: a node with much data to read must
// not take all memory there is.
const (
	starting = 400
	usual    = 100
)

func init() { set(starting) }

// Started says that the program has what it needs.
func Started() { set(usual) }

func set(percent int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}
