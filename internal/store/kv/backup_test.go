package kv

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestBackup makes backups while writers write pairs of keys, and restores
// them: each is the state of one revision.
func TestBackup(t *testing.T) {
	db := open(t, Config{Dir: t.TempDir(), HistoryBytes: 64 << 20})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				put(t, db, fmt.Sprintf("/%d/%d", w, i%50), strings.Repeat("v", i%300))
			}
		})
	}
	for range 10 {
		var backup bytes.Buffer
		rev, err := db.Backup(&backup)
		if err != nil {
			t.Fatal(err)
		}
		want := dump(t, db, "/", rev)
		dir := t.TempDir()
		restored, err := Restore(bytes.NewReader(backup.Bytes()), dir)
		if err != nil || restored <= rev {
			t.Fatalf("restored as revision %d of %d: %v", restored, rev, err)
		}
		other := open(t, Config{Dir: dir})
		if got := dump(t, other, "/", 0); got != want {
			t.Fatalf("%swant\n%s", got, want)
		}
		if other.Revision() != restored || other.Compacted() != restored {
			t.Errorf("revision %d, compacted %d, restored %d", other.Revision(), other.Compacted(), restored)
		}
		put(t, other, "/more", "x")
		shut(t, other)
	}
	close(stop)
	wg.Wait()
}

// TestRestoreOver: a restore replaces what was, damaged or not, and the
// revision goes on behind it; what isn't whole replaces nothing.
func TestRestoreOver(t *testing.T) {
	from := open(t, Config{})
	put(t, from, "/restored", "x")
	var backup bytes.Buffer
	if _, err := from.Backup(&backup); err != nil {
		t.Fatal(err)
	}
	dir, log, _, states := written(t, 9)
	was := states[len(states)-1]
	for cut := range backup.Len() {
		if _, err := Restore(bytes.NewReader(backup.Bytes()[:cut]), dir); err == nil {
			t.Fatalf("%d of %d bytes were restored", cut, backup.Len())
		}
	}
	if _, err := Restore(strings.NewReader(backup.String()+"x"), dir); err == nil {
		t.Fatal("a backup with something behind was restored")
	}
	db := open(t, Config{Dir: dir})
	if got := dump(t, db, "/", 0); got != was {
		t.Fatal("a backup that was refused changed something")
	}
	before := db.Revision()
	shut(t, db)
	damaged, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	damaged[headerSize+3] ^= 1
	if err := os.WriteFile(log, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: dir}); !isDamage(err) {
		t.Fatal(err)
	}
	rev, err := Restore(&backup, dir)
	if err != nil || rev <= before {
		t.Fatalf("revision %d after %d: %v", rev, before, err)
	}
	db = open(t, Config{Dir: dir})
	if got := dump(t, db, "/", 0); !strings.HasPrefix(got, "/restored=x@") || strings.Count(got, "\n") != 1 {
		t.Errorf("restored:\n%s", got)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 3 {
		t.Errorf("left: %v", left)
	}
}
