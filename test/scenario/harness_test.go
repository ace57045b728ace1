// Package scenario runs whole pods and compares their lives with the story
// that Kubernetes promises: testdata/NAME.yaml is the manifest, NAME.story
// what must become of it (see parseStory for the grammar).
//
// All scenarios run at the same time, through the real command line, on the
// real kernel, with an image made here. With
// UNIPOD_SCENARIO_RUNTIME=containerd the same scenarios run on a containerd
// started here: the engine's only tie to a runtime is the CRI.
//
// Floor: none; nothing imports it.
package scenario

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m, unix.CLONE_NEWNET) }

// machine is a place where scenarios run.
type machine struct{ *harness.Machine }

func newMachine(t *testing.T) *machine {
	t.Helper()
	return &machine{harness.New(t, t.TempDir())}
}

// runtime makes ready what shall run the pods, with the image in it, and names
// it.
func (m *machine) runtime(archive string) string {
	m.T.Helper()
	if os.Getenv("UNIPOD_SCENARIO_RUNTIME") == "containerd" {
		m.startContainerd(archive)
		return "containerd"
	}
	if code, out := m.Do("image", "load", archive); code != 0 {
		m.T.Fatalf("image load: code %d\n%s", code, out)
	}
	return "unipod"
}
