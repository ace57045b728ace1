package kv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
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
// sentence, reads go on, what is there can be changed and deleted for a while,
// and when there is room again all is well, in the same process.
func TestDiskFull(t *testing.T) {
	fs := tmpfs(t, "4m")
	dir := filepath.Join(fs, "api")
	cfg := Config{Dir: dir, LogBytes: 100 << 10}
	db := open(t, cfg)
	first := put(t, db, "/first", "x")
	var failure error
	n := 0
	for ; failure == nil && n < 1000; n++ {
		_, _, _, failure = db.Put(t.Context(), fmt.Sprintf("/fill/%03d", n), bytes.Repeat([]byte("f"), 10_000), 0, 0)
	}
	n--
	full := func(err error) {
		t.Helper()
		var w *WriteError
		if !errors.As(err, &w) || !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), dir) {
			t.Fatalf("after %d writes: %v", n, err)
		}
	}
	full(failure)
	// A small one may find room yet.
	failure = nil
	for i := 0; failure == nil && i < 1000; i++ {
		_, _, _, failure = db.Put(t.Context(), fmt.Sprintf("/small/%03d", i), bytes.Repeat([]byte("s"), 100), 0, 0)
	}
	full(failure)
	rev := db.Revision()
	for range 20 {
		_, _, _, err := db.Put(t.Context(), "/new", bytes.Repeat([]byte("s"), 100), 0, 0)
		full(err)
	}
	if e, _ := db.Get("/new"); e != nil || db.Revision() != rev {
		t.Fatal("a failed write did something")
	}
	// What makes nothing new still goes, also beside what does.
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			if _, _, _, err := db.Put(t.Context(), fmt.Sprintf("/new/%d", i), bytes.Repeat([]byte("s"), 200), 0, 0); err == nil {
				t.Error("something new on a full disk")
			}
		})
		wg.Go(func() { remove(t, db, fmt.Sprintf("/fill/%03d", i)) })
	}
	wg.Wait()
	if db.Revision() != rev+10 {
		t.Errorf("%d revisions for 10 deletions", db.Revision()-rev)
	}
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		var next int64
		if next, _, _, err = db.Put(t.Context(), "/first", bytes.Repeat([]byte("y"), 10_000), 0, first); err == nil {
			first = next
		}
	}
	full(err)
	if e, _ := db.Get("/first"); e == nil || e.Revision != first {
		t.Fatalf("reads don't go on: %+v", e)
	}
	p, err := db.List("/fill/", "", 0, 0)
	if err != nil || len(p.Entries) != n-10 {
		t.Fatalf("%d of %d: %v", len(p.Entries), n-10, err)
	}
	if err := unix.Mount("", fs, "", unix.MS_REMOUNT, "size=16m,mode=0700"); err != nil {
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
	fs := tmpfs(t, "4m")
	dir := filepath.Join(fs, "api")
	db := open(t, Config{Dir: dir})
	put(t, db, "/first", "x")
	shut(t, db)
	if err := os.WriteFile(filepath.Join(fs, "other"), make([]byte, 8<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	db = open(t, Config{Dir: dir})
	if e, _ := db.Get("/first"); e == nil {
		t.Error("nothing is there")
	}
	for i := range 200 { // more than the last process reserved
		if _, _, _, err := db.Put(t.Context(), fmt.Sprint("/second/", i), make([]byte, 8000), 0, 0); errors.Is(err, unix.ENOSPC) {
			break
		} else if err != nil || i == 199 {
			t.Fatal(err)
		}
	}
	// What it reserved is reserved still.
	put(t, db, "/first", "y")
	if err := os.Remove(filepath.Join(fs, "other")); err != nil {
		t.Fatal(err)
	}
	put(t, db, "/second", "x")
	shut(t, db)
}
