// Package version knows which unipod this is.
//
// Floor: the ground. It imports nothing of unipod.
package version

// Version is set by the linker: -X unipod.dev/unipod/internal/version.Version=…
var Version = "0.0.0-dev"
