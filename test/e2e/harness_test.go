// Package e2e runs unipod as its users do: the real command line, the real
// kernel, images without a registry.
//
// Everything happens in a network namespace of its own and in directories of
// its own, so that it disturbs nobody and can say for sure what was left
// behind. Floor: none; nothing imports it.
package e2e

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"unipod.dev/unipod/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m, unix.CLONE_NEWNET) }

// node is a machine with the demo's image.
type node struct{ *harness.Machine }

// newNode makes one. When the test is over, nothing may be left of it.
func newNode(t testing.TB) *node {
	t.Helper()
	n := &node{harness.New(t, t.TempDir())}
	n.LoadDemo()
	t.Cleanup(n.nothingLeft)
	return n
}

// get is Get, which must succeed.
func (n *node) get(v any, args ...string) {
	n.T.Helper()
	if err := n.Get(v, args...); err != nil {
		n.T.Fatal(err)
	}
}

// file writes a manifest. IMAGE in it stands for the test image.
func (n *node) file(name, text string) string {
	n.T.Helper()
	return n.File(name, strings.ReplaceAll(text, "IMAGE", harness.DemoImage+"\n    imagePullPolicy: Never"))
}

// nothingLeft fails the test when anything of its pods is left on the machine.
func (n *node) nothingLeft() {
	if n.T.Failed() {
		return // it had no chance to clean up
	}
	t := n.T
	n.NothingMounted()
	for _, pattern := range []string{"/sandboxes/*", "/containers/*"} {
		left, err := filepath.Glob(n.Run + pattern)
		if err != nil || len(left) > 0 {
			t.Errorf("records are left: %q %v", left, err)
		}
	}
	for _, pattern := range []string{"/containers/*", "/play/[^.]*", "/pods/*"} {
		left, err := filepath.Glob(n.Root + pattern)
		if err != nil || len(left) > 0 {
			t.Errorf("directories are left: %q %v", left, err)
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Type() == "veth" || l.Type() == "bridge" {
			t.Errorf("a link is left: %s", l.Attrs().Name)
		}
	}
	tables, err := (&nftables.Conn{}).ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		t.Errorf("a table is left: %s", table.Name)
	}
}

// groupsOf lists the control groups that carry a pod's UID.
func groupsOf(t *testing.T, uid string) []string {
	t.Helper()
	var found []string
	for _, depth := range []string{"*", "*/*", "*/*/*", "*/*/*/*"} {
		all, err := filepath.Glob("/sys/fs/cgroup/" + depth)
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range all {
			if strings.Contains(filepath.Base(dir), uid) {
				found = append(found, dir)
			}
		}
	}
	return slices.Compact(found)
}
