package kv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tmpfs mounts a small file system, which only root may.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size+",mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestDiskFull fills the disk in the middle of writes: they fail with a
// sentence, reads go on, and when there is room again so do writes, of the
// same process.
func TestDiskFull(t *testing.T) {
	fs := tmpfs(t, "1m")
	dir := filepath.Join(fs, "api")
	cfg := Config{Dir: dir, LogBytes: 100 << 10}
	db := open(t, cfg)
	put(t, db, "/first", "x")
	var failure error
	n := 0
	for ; failure == nil && n < 1000; n++ {
		_, _, _, failure = db.Put(t.Context(), fmt.Sprintf("/fill/%03d", n), bytes.Repeat([]byte("f"), 10_000), 0, 0)
	}
	n--
	var w *WriteError
	if !errors.As(failure, &w) || !errors.Is(failure, unix.ENOSPC) || !strings.Contains(failure.Error(), dir) {
		t.Fatalf("after %d writes: %v", n, failure)
	}
	// Small writes may still find room; large ones don't, again and again.
	for range 20 {
		if _, _, _, err := db.Put(t.Context(), "/large", make([]byte, 1<<20), 0, 0); !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	if e, _ := db.Get("/large"); e != nil {
		t.Fatal("a failed write can be read")
	}
	if e, _ := db.Get("/first"); e == nil || string(e.Value) != "x" {
		t.Fatalf("reads don't go on: %+v", e)
	}
	p, err := db.List("/fill/", "", 0, 0)
	if err != nil || len(p.Entries) != n {
		t.Fatalf("%d of %d: %v", len(p.Entries), n, err)
	}
	if err := unix.Mount("", fs, "", unix.MS_REMOUNT, "size=8m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		put(t, db, fmt.Sprintf("/after/%d", i%10), strings.Repeat("a", 5000))
	}
	want := dump(t, db, "/", 0)
	shut(t, db)
	db = open(t, cfg)
	if got := dump(t, db, "/", 0); got != want {
		t.Error("another state after it was opened again")
	}
	shut(t, db)
}

// TestOpenOnFullDisk: a node starts on a full disk, to be read from.
func TestOpenOnFullDisk(t *testing.T) {
	fs := tmpfs(t, "256k")
	dir := filepath.Join(fs, "api")
	db := open(t, Config{Dir: dir})
	put(t, db, "/first", "x")
	shut(t, db)
	if err := os.WriteFile(filepath.Join(fs, "other"), make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	db = open(t, Config{Dir: dir})
	if e, _ := db.Get("/first"); e == nil {
		t.Error("nothing is there")
	}
	if _, _, _, err := db.Put(t.Context(), "/second", make([]byte, 8000), 0, 0); !errors.Is(err, unix.ENOSPC) {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(fs, "other")); err != nil {
		t.Fatal(err)
	}
	put(t, db, "/second", "x")
	shut(t, db)
}
