// Package heap lets the heap grow while the program starts: initialising
// Kubernetes' packages and putting an API server together allocates 60 MB, and
// collecting garbage on the way the usual way is a quarter of the processor
// time of a node's start (215 ms to 160). Not collecting at all would be 20 ms
// less, but what stays is scattered then: 4 MB more for good.
//
// It has to be initialised before Kubernetes' packages; see package early for
// how. What goes on for long must call [Started], or its heap grows half as
// big again. $GOGC goes first.
package heap

import (
	"os"
	"runtime/debug"
)

// In percent of what is in use, how much may be allocated before garbage is
// collected. A factor and no fixed size: a node with much data to read must
// not take all memory there is.
const (
	starting = 200
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
