package cluster

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/cri/fakecri"
	"unipod.dev/unipod/internal/klogs"
)

func TestMain(m *testing.M) {
	klogs.Install(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

// The key of the authority is among the files of a run only while there is one
// that signs: a killed one's goes at the next start, and the last with its
// cluster.
func TestSigningKeys(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	root, run := t.TempDir(), t.TempDir()
	left := filepath.Join(run, "signing", ".ca.key.123")
	if err := errors.Join(os.Mkdir(filepath.Dir(left), 0o700), os.WriteFile(left, []byte("half"), 0o600)); err != nil {
		t.Fatal(err)
	}
	runtime := fakecri.New(clock.RealClock{})
	defer runtime.Close()
	c, err := Start(t.Context(), Config{
		CRI: runtime, Root: root, Run: run, Memory: true, NodeName: "here", Log: log,
		API: []string{"127.0.0.1:0"}, Kubelet: "127.0.0.1:0",
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what a killed one left: %v", err)
	}
	key := filepath.Join(run, "signing", "ca.key")
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", info, err)
	}
	if err := c.Close(); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(key)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the cluster's end: %v", err)
	}
}
