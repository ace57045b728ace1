package security

import (
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
)

// TestPathsAreContainerds finds out when containerd's defaults move on.
func TestPathsAreContainerds(t *testing.T) {
	spec, err := oci.GenerateSpec(namespaces.WithNamespace(t.Context(), "x"), nil, &containers.Container{ID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	same := func(name string, ours, theirs []string) {
		ours, theirs = slices.Sorted(slices.Values(ours)), slices.Sorted(slices.Values(theirs))
		if !slices.Equal(ours, theirs) {
			t.Errorf("%s: %v, containerd has %v", name, ours, theirs)
		}
	}
	same("masked paths", MaskedPaths(), spec.Linux.MaskedPaths)
	same("read-only paths", ReadonlyPaths(), spec.Linux.ReadonlyPaths)
	MaskedPaths()[0] = "changed"
	if slices.Contains(MaskedPaths(), "changed") {
		t.Error("a caller can change the defaults")
	}
}
