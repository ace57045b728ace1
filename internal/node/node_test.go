package node

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestLockNamesItsHolder(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = lock(dir)
	var locked *LockedError
	if !errors.As(err, &locked) || !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), "PID ") {
		t.Errorf("a second node: %v", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	unlock, err = lock(dir)
	if err != nil {
		t.Fatalf("after the first ended: %v", err)
	}
	unlock()
}

func TestVoidAfterReboot(t *testing.T) {
	run := t.TempDir()
	record := filepath.Join(run, "sandboxes", "x", "record.json")
	make := func() {
		os.MkdirAll(filepath.Dir(record), 0o700)
		os.WriteFile(record, nil, 0o600)
	}
	exists := func() bool { _, err := os.Stat(record); return err == nil }
	make()
	for _, step := range []struct {
		name   string
		before func()
		want   bool
	}{
		{"no boot recorded yet", func() {}, true},
		{"the same boot", func() {}, true},
		{"another boot", func() { os.WriteFile(filepath.Join(run, "boot-id"), []byte("earlier"), 0o600) }, false},
		{"and then the same", make, true},
	} {
		step.before()
		if err := voidAfterReboot(run); err != nil {
			t.Fatal(err)
		}
		if exists() != step.want {
			t.Errorf("%s: the record is there: %v", step.name, exists())
		}
	}
}
