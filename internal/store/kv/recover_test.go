package kv

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"
)

// written makes a directory with a snapshot and a log of records behind it,
// and says where each record ends and what the store then is.
func written(t testing.TB, records int) (dir, log string, ends []int64, states []string) {
	t.Helper()
	dir = t.TempDir()
	db, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		put(t, db, fmt.Sprintf("/old/%02d", i), strings.Repeat("o", 10*i))
	}
	db.rotate(db.Revision())
	waitFor(t, func() bool { n, _ := readNames(dir); return len(n.snapshots) == 1 && len(n.logs) == 1 })
	for i := range records {
		if i%4 == 3 {
			remove(t, db, fmt.Sprintf("/old/%02d", i))
		} else {
			put(t, db, fmt.Sprintf("/new/%02d", i%7), strings.Repeat("n", 30*i))
		}
		ends = append(ends, db.disk.size)
		states = append(states, dump(t, db, "/", 0))
	}
	log = db.disk.f.Name()
	shut(t, db)
	return dir, log, ends, states
}

func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for range 5000 {
		if ok() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("it never came to be")
}

// clone copies a directory's files, so that a test can damage them.
func clone(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestTorn cuts the log at every byte, as a power cut may, with and without
// something else behind: every whole record is there, nothing of the torn one,
// and the store can be written to.
func TestTorn(t *testing.T) {
	dir, log, ends, states := written(t, 5)
	whole, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	garbage := make([]byte, 5000)
	for i := range garbage {
		garbage[i] = byte(rnd.Uint32())
	}
	snapshot := ""
	for cut := range len(whole) + 1 {
		for _, tail := range [][]byte{nil, garbage[:rnd.IntN(len(garbage))], make([]byte, rnd.IntN(100))} {
			content := append(bytes.Clone(whole[:cut]), tail...)
			intact := 0 // more than cut when what is behind happens to be what was there
			for intact < min(len(content), len(whole)) && content[intact] == whole[intact] {
				intact++
			}
			at := clone(t, dir)
			if err := os.WriteFile(filepath.Join(at, filepath.Base(log)), content, 0o600); err != nil {
				t.Fatal(err)
			}
			db, err := Open(Config{Dir: at})
			if intact < headerSize && len(content) >= headerSize {
				// No crash leaves this: the header is synced before anything follows.
				if !isDamage(err) {
					t.Fatalf("a header cut at %d: %v", cut, err)
				}
				continue
			}
			if err != nil {
				t.Fatalf("cut at %d with %d bytes behind: %v", cut, len(tail), err)
			}
			want := snapshot
			for i, end := range ends {
				if int64(intact) >= end {
					want = states[i]
				}
			}
			got := dump(t, db, "/", 0)
			if want == "" { // the first that is none of the log's
				snapshot, want = got, got
			}
			if got != want {
				t.Fatalf("cut at %d with %d bytes behind:\n%swant\n%s", cut, len(tail), got, want)
			}
			rev := db.Revision()
			if put(t, db, "/after", "x") != rev+1 {
				t.Fatal("a revision was left out")
			}
			want = dump(t, db, "/", 0)
			shut(t, db)
			if db, err = Open(Config{Dir: at}); err != nil {
				t.Fatal(err)
			}
			if got := dump(t, db, "/", 0); got != want {
				t.Fatal("another state after it was opened again")
			}
			shut(t, db)
		}
	}
}

func isDamage(err error) bool {
	var d *DamageError
	return errors.As(err, &d) && d.File != "" && strings.Contains(err.Error(), d.File) && strings.Contains(err.Error(), fmt.Sprintf("offset %d", d.Offset))
}

// TestDamage flips every byte before the last record, of the log and of the
// snapshot: it is refused, and the error names the file and the place.
func TestDamage(t *testing.T) {
	dir, log, ends, states := written(t, 5)
	n, err := readNames(dir)
	if err != nil {
		t.Fatal(err)
	}
	snapshot := filepath.Join(dir, fileName(snapshotPrefix, n.snapshots[0]))
	for _, path := range []string{log, snapshot} {
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		at := clone(t, dir)
		for i := range whole {
			bad := bytes.Clone(whole)
			bad[i] ^= 0x41
			file := filepath.Join(at, filepath.Base(path))
			if err := os.WriteFile(file, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			db, err := Open(Config{Dir: at})
			if path == log && int64(i) >= ends[len(ends)-2] {
				// The last record can't be told from one that was torn.
				if err != nil || dump(t, db, "/", 0) != states[len(states)-2] {
					t.Fatalf("byte %d of the last record: %v", i, err)
				}
				shut(t, db)
				continue
			}
			if !isDamage(err) || !strings.Contains(err.Error(), file) {
				t.Fatalf("byte %d of %s: %v", i, file, err)
			}
			if is, err := os.ReadFile(file); err != nil || !bytes.Equal(is, bad) {
				t.Fatal("a damaged file was changed")
			}
		}
	}
}

// TestMissing: files that are gone are missed.
func TestMissing(t *testing.T) {
	dir, log, _, _ := written(t, 3)
	n, _ := readNames(dir)
	snapshot := fileName(snapshotPrefix, n.snapshots[0])
	for name, break_ := range map[string]func(at string) error{
		"the snapshot": func(at string) error { return os.Remove(filepath.Join(at, snapshot)) },
		"a log between": func(at string) error {
			return os.Rename(filepath.Join(at, filepath.Base(log)), filepath.Join(at, fileName(logPrefix, n.logs[0]+1)))
		},
		"the snapshot's end": func(at string) error {
			return os.Truncate(filepath.Join(at, snapshot), 200)
		},
	} {
		at := clone(t, dir)
		if err := break_(at); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(Config{Dir: at}); !isDamage(err) {
			t.Errorf("without %s: %v", name, err)
		}
	}
}

// TestUnfinished: what a crash leaves of a snapshot or a new log is removed.
func TestUnfinished(t *testing.T) {
	dir, log, _, states := written(t, 3)
	n, _ := readNames(dir)
	last := states[len(states)-1]
	rev := n.logs[0] + 3
	leave := map[string][]byte{
		fileName(snapshotPrefix, rev) + tempSuffix: []byte("half"),
		fileName(logPrefix, rev):                   newHeader(kindLog, rev).encode()[:20],
	}
	for name, content := range leave {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A crash between a snapshot and the removal of what it replaces.
	at := clone(t, dir)
	db := open(t, Config{Dir: dir})
	if got := dump(t, db, "/", 0); got != last {
		t.Fatalf("%swant\n%s", got, last)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, ok := leave[e.Name()]; ok && strings.HasSuffix(e.Name(), tempSuffix) {
			t.Errorf("%s is still there", e.Name())
		}
		if info, _ := e.Info(); info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", e.Name(), info.Mode())
		}
	}
	f, err := os.OpenFile(filepath.Join(at, fileName(snapshotPrefix, rev)), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeSnapshot(f, rev, func(yield func(*Entry) bool) { db.state.index.Ascend(yield) }); err != nil {
		t.Fatal(err)
	}
	f.Close()
	db = open(t, Config{Dir: at})
	if got := dump(t, db, "/", 0); got != last {
		t.Fatalf("%swant\n%s", got, last)
	}
	if _, err := os.Stat(filepath.Join(at, filepath.Base(log))); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the log that the snapshot replaced is still there")
	}
}

// TestAbandoned: a log whose making failed is no part of the store, whatever
// remains of it.
func TestAbandoned(t *testing.T) {
	for cut := range headerSize + 2 {
		dir, _, _, states := written(t, 4)
		n, _ := readNames(dir)
		rev := n.logs[0] + 2
		path := filepath.Join(dir, fileName(logPrefix, rev))
		if err := os.WriteFile(path, append(newHeader(kindLog, rev).encode(), 0)[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := Open(Config{Dir: dir})
		if cut > headerSize {
			if !isDamage(err) {
				t.Errorf("two logs of the same revisions: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := dump(t, db, "/", 0); got != states[len(states)-1] {
			t.Errorf("%d bytes:\n%s", cut, got)
		}
		put(t, db, "/more", "x")
		shut(t, db)
		shut(t, open(t, Config{Dir: dir}))
	}
	// The log before it may be torn behind it, and must not be before it.
	dir, log, ends, states := written(t, 4)
	n, _ := readNames(dir)
	for behind := range 4 {
		at := clone(t, dir)
		rev := n.logs[0] + int64(behind)
		if behind > 0 {
			if err := os.WriteFile(filepath.Join(at, fileName(logPrefix, rev)), newHeader(kindLog, rev).encode(), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		torn := filepath.Join(at, filepath.Base(log))
		if err := os.Truncate(torn, ends[1]+5); err != nil {
			t.Fatal(err)
		}
		db, err := Open(Config{Dir: at})
		if behind > 2 {
			if info, _ := os.Stat(torn); !isDamage(err) || info.Size() != ends[1]+5 {
				t.Errorf("a log continues what was torn: %v", err)
			}
			continue
		}
		if err != nil || dump(t, db, "/", 0) != states[1] {
			t.Fatalf("%d: %v", behind, err)
		}
		put(t, db, "/more", "x")
		shut(t, db)
		shut(t, open(t, Config{Dir: at}))
	}
}

// FuzzRecover gives recovery a log with a valid beginning and anything behind,
// and files of anything. It must never panic, and never lose what is valid.
func FuzzRecover(f *testing.F) {
	f.Add(uint8(3), uint16(0), []byte("tail"), []byte(nil))
	f.Add(uint8(2), uint16(7), []byte{}, []byte("unipodkv"))
	f.Add(uint8(0), uint16(40), newHeader(kindLog, 1).encode(), newHeader(kindSnapshot, 1).encode())
	var snap bytes.Buffer
	if err := writeSnapshot(&snap, 9, func(yield func(*Entry) bool) {
		_ = yield(&Entry{Key: "/a", Value: []byte("x"), Revision: 3}) && yield(&Entry{Key: "/b", Revision: 9, Expires: 5})
	}); err != nil {
		f.Fatal(err)
	}
	f.Add(uint8(1), uint16(1), []byte("x"), snap.Bytes())
	f.Fuzz(func(t *testing.T, records uint8, cut uint16, tail, raw []byte) {
		dir := t.TempDir()
		file, h, err := createLog(dir, 1)
		if err != nil {
			t.Fatal(err)
		}
		d := &disk{dir: dir, f: file, h: h, base: 1, size: headerSize}
		ends := []int64{headerSize}
		for i := range int(records % 8) {
			batch := []*write{{op: operation{key: fmt.Sprint("/", i), value: bytes.Repeat([]byte("v"), i*9)}}}
			if err := d.append(batch, int64(2+i)); err != nil {
				t.Fatal(err)
			}
			ends = append(ends, d.size)
		}
		at := max(headerSize, d.size-int64(cut%64))
		if err := file.Truncate(at); err != nil {
			t.Fatal(err)
		}
		if _, err := file.WriteAt(tail, at); err != nil {
			t.Fatal(err)
		}
		file.Close()
		want := 0
		for want+1 < len(ends) && ends[want+1] <= at {
			want++
		}
		db, err := Open(Config{Dir: dir})
		if err != nil {
			t.Fatalf("a valid log with %d bytes behind: %v", len(tail), err)
		}
		if p, err := db.List("/", "", 0, 0); err != nil || len(p.Entries) != want {
			t.Fatalf("%d of %d records: %v", len(p.Entries), want, err)
		}
		put(t, db, "/more", "x")
		shut(t, db)

		for _, name := range []string{fileName(logPrefix, 1), fileName(snapshotPrefix, 1), fileName(logPrefix, 9), fileName(snapshotPrefix, 9)} {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
				t.Fatal(err)
			}
			// Nothing has expired at the beginning of time.
			cfg := Config{Dir: dir, Clock: clocktesting.NewFakeClock(time.Unix(0, 0))}
			db, err := Open(cfg)
			if err != nil {
				continue
			}
			put(t, db, "/more", "x")
			state := dump(t, db, "/", 0)
			shut(t, db)
			db = open(t, cfg)
			if got := dump(t, db, "/", 0); got != state {
				t.Fatalf("opened again:\n%swant\n%s", got, state)
			}
			shut(t, db)
		}
		_, _ = Restore(bytes.NewReader(raw), t.TempDir())
		// What has a right checksum and yet no sense.
		_, _ = frame{count: int(records), revision: 1, payload: raw}.operations()
		_ = frame{count: int(records), revision: 1, payload: raw}.entries(func(*Entry) error { return nil })
	})
}

// TestSecondProcess: another process is refused, and told who has the store.
func TestSecondProcess(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir, childFrom+"="+strings.TrimSuffix(strings.Repeat("0,", writers), ","))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	if _, err := io.ReadFull(out, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	_, err = Open(Config{Dir: dir})
	var locked *LockedError
	if !errors.As(err, &locked) || !strings.Contains(err.Error(), fmt.Sprintf("PID %d: %s", cmd.Process.Pid, os.Args[0])) {
		t.Errorf("opened twice: %v", err)
	}
	var backup bytes.Buffer
	if err := writeSnapshot(&backup, 5, func(func(*Entry) bool) {}); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(&backup, dir); !errors.As(err, &locked) {
		t.Errorf("restored below a running process: %v", err)
	}
}
