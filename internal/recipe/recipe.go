// Package recipe describes how a process becomes a container, as data: a flat
// list of system calls whose arguments are integers, bytes, descriptors that
// travel with the recipe, or results of earlier steps. pause's children carry
// recipes out; nothing here makes a system call.
//
// It owns the wire format's writing side ([Recipe.Encode]), the form people
// read ([Recipe.String]) and the sentence a failed step becomes
// ([Recipe.Explain]). On top of the [Builder] stand the three compositions:
// [Sandbox], carried out by pause itself, [Container] and [Exec], carried out
// by the children it clones. They are where a container's security is decided,
// so every rule a CVE taught is cited at its line.
//
// A recipe is immutable: all its methods may be called concurrently. Building
// is deterministic: the same input gives the same bytes and the same text.
// The printed form never holds the value of an environment variable.
//
// Floor 1: it imports nothing of unipod.
package recipe

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Recipe is a finished list of steps. It is made by [Builder.Recipe].
type Recipe struct {
	steps []step
	fds   []received
	// chunks are the bytes that arguments point to, with their offsets in the
	// blob; size is the whole blob's.
	chunks []*chunk
	relocs int
	size   uint32
}

// step is one system call.
type step struct {
	why      string
	nr       uintptr
	args     [6]arg
	nargs    int
	tolerate [4]uint16 // errnos; 0 is unused
	// explain, when set, makes the whole sentence of a failure.
	explain func(unix.Errno) string
}

// received is a descriptor that travels with the recipe.
type received struct {
	name string
	file *os.File
}

// Files returns the descriptors that travel with the recipe, in the order the
// blob numbers them. The recipe doesn't own them: they must stay open until it
// has been sent.
func (r *Recipe) Files() []*os.File {
	files := make([]*os.File, len(r.fds))
	for i, fd := range r.fds {
		files[i] = fd.file
	}
	return files
}

// Len returns the number of steps.
func (r *Recipe) Len() int { return len(r.steps) }

// NoStep is the step index by which pause reports that the recipe itself was
// refused, before any step was carried out.
const NoStep = 0xffffffff

// StepError is a recipe that stopped at a step the kernel refused.
type StepError struct {
	// Step is the step's index in the printed recipe; NoStep if the recipe
	// was refused as a whole.
	Step int
	// Why is what the step was for: "mounting volume cache at /data".
	Why string
	// Call is the printed system call.
	Call string
	// Errno is the kernel's answer; errors.Is sees it.
	Errno unix.Errno

	sentence string
}

// Error says what was being done and the kernel's answer, in a sentence fit
// for a pod's status: "mounting volume cache at /data: permission denied".
func (e *StepError) Error() string { return e.sentence }

// Unwrap returns the errno.
func (e *StepError) Unwrap() error { return e.Errno }

// Explain turns the report of a failed step into a [*StepError].
func (r *Recipe) Explain(index int, errno unix.Errno) error {
	if index < 0 || index >= len(r.steps) {
		const why = "reading the recipe"
		return &StepError{Step: NoStep, Why: why, Errno: errno, sentence: fmt.Sprintf("%s: %v", why, errno)}
	}
	s := &r.steps[index]
	e := &StepError{Step: index, Why: s.why, Call: r.call(s), Errno: errno}
	if s.explain != nil {
		e.sentence = s.explain(errno)
	} else {
		e.sentence = fmt.Sprintf("%s: %v", s.why, errno)
	}
	return e
}
