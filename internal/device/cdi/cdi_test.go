package cdi

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"unipod.dev/unipod/internal/device"
)

func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const gpu = `
cdiVersion: "0.6.0"
kind: acme.com/gpu
devices:
- name: zero
  containerEdits:
    deviceNodes:
    - {path: /dev/acme0, hostPath: /dev/zero, permissions: rw}
    - {path: /opt/full, hostPath: /dev/full, uid: 7, gid: 8, fileMode: 384}
    env: [ACME=zero]
- name: hooked
  containerEdits:
    hooks:
    - {hookName: createContainer, path: /usr/bin/acme}
- name: gone
  containerEdits:
    deviceNodes:
    - {path: /dev/acme-is-not-here}
containerEdits:
  env: [ACME_ALL=1]
  mounts:
  - {hostPath: /usr/lib/acme, containerPath: /usr/lib/acme, options: [ro, nosuid, rbind]}
`

func TestResolve(t *testing.T) {
	dir := write(t, map[string]string{"acme.yaml": gpu})
	got, err := Resolve([]string{dir}, []string{"acme.com/gpu=zero"}, 1000, 1001)
	if err != nil {
		t.Fatal(err)
	}
	want := &Edits{
		Env: []string{"ACME_ALL=1", "ACME=zero"},
		Nodes: []device.Node{
			{Path: "/dev/acme0", HostPath: "/dev/zero", Type: 'c', Major: 1, Minor: 5, Mode: 0o666, UID: 1000, GID: 1001, Access: "rw"},
			{Path: "/opt/full", HostPath: "/dev/full", Type: 'c', Major: 1, Minor: 7, Mode: 0o600, UID: 7, GID: 8, Access: "rwm"},
		},
		Mounts: []Mount{{"/usr/lib/acme", "/usr/lib/acme", []string{"ro", "nosuid"}}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got, err := Resolve(nil, nil, 0, 0); err != nil || len(got.Nodes) != 0 {
		t.Errorf("no names: %+v, %v", got, err)
	}
}

func TestErrors(t *testing.T) {
	dir := write(t, map[string]string{"acme.yaml": gpu, "broken.yaml": "cdiVersion: [\n"})
	for name, tt := range map[string]struct {
		is    func(error) bool
		words string
	}{
		"acme.com/gpu=other":  {errdefs.IsNotFound, "acme.com/gpu=other: not in " + dir},
		"other.com/gpu=zero":  {errdefs.IsNotFound, "broken.yaml"},
		"zero":                {errdefs.IsInvalidArgument, `CDI device "zero"`},
		"acme.com/gpu=hooked": {errdefs.IsNotImplemented, "hooks"},
		"acme.com/gpu=gone":   {func(err error) bool { return err != nil }, "acme-is-not-here"},
	} {
		_, err := Resolve([]string{dir}, []string{name}, 0, 0)
		if !tt.is(err) || !strings.Contains(err.Error(), tt.words) {
			t.Errorf("%s: %v, want %q", name, err, tt.words)
		}
	}
}
