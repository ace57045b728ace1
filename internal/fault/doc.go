// Package fault kills the process at named points, to prove that a kill -9
// between any two steps is harmless. It does so only in builds with the tag
// "faults"; in others [Point] is an empty function that the compiler drops.
//
// Floor: the ground. It imports nothing of unipod.
package fault
