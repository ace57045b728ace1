package scenario

import (
	"path/filepath"

	"unipod.dev/unipod/test/containerd"
)

// startContainerd starts a containerd of the test's own, with a network made by
// CNI's reference plugins, and gives it the image.
func (m *machine) startContainerd(archive string) {
	m.T.Helper()
	if what := containerd.Missing(true); what != "" {
		m.T.Fatal("needs " + what)
	}
	_, m.Endpoint = containerd.Start(m.T, containerd.Config{Dir: filepath.Join(m.Dir, "containerd"), Image: imageName, Archive: archive, Network: true})
}
