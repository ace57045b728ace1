// Package early keeps kubectl from loading its translations when the program
// starts: packing and parsing them takes 10 ms and 4 MB of every command, and
// of the node. kubectl's texts are English then, as ours are.
//
// kubectl's packages translate while they are initialised, so this one has to
// be initialised before them. Go does that in the order of import paths, which
// is why this package is a module with a name before k8s.io: it can't be one
// of unipod.dev.
package early

import "k8s.io/kubectl/pkg/util/i18n"

func init() {
	// It fails when they have been loaded already: late, but no harm.
	_ = i18n.SetLoadTranslationsFunc(func() error { return nil })
}
