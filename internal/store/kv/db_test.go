package kv

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	clocktesting "k8s.io/utils/clock/testing"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

func open(t testing.TB, cfg Config) *DB {
	t.Helper()
	db, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shut(t, db) })
	return db
}

func shut(t testing.TB, db *DB) {
	t.Helper()
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

// put writes a key whatever it is.
func put(t testing.TB, db *DB, key, value string) int64 {
	t.Helper()
	e, _ := db.Get(key)
	var was int64
	if e != nil {
		was = e.Revision
	}
	rev, _, ok, err := db.Put(t.Context(), key, []byte(value), 0, was)
	if err != nil || !ok {
		t.Fatalf("put %s: %v, %v", key, ok, err)
	}
	return rev
}

func remove(t testing.TB, db *DB, key string) int64 {
	t.Helper()
	e, _ := db.Get(key)
	rev, _, ok, err := db.Delete(t.Context(), key, e.Revision)
	if err != nil || !ok {
		t.Fatalf("delete %s: %v, %v", key, ok, err)
	}
	return rev
}

// dump is a store's content as text.
func dump(t testing.TB, db *DB, prefix string, rev int64) string {
	t.Helper()
	p, err := db.List(prefix, "", 0, rev)
	if err != nil {
		t.Fatal(err)
	}
	return text(p.Entries)
}

func text(entries []*Entry) string {
	var b strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&b, "%s=%s@%d\n", e.Key, e.Value, e.Revision)
	}
	return b.String()
}

func TestCompareAndSet(t *testing.T) {
	for _, dir := range []string{"", t.TempDir()} {
		db := open(t, Config{Dir: dir})
		ctx := t.Context()
		rev, now, ok, err := db.Put(ctx, "/a", []byte("1"), 0, 7)
		if ok || now != nil || err != nil {
			t.Fatalf("written over revision 7 of nothing: %d, %v, %v", rev, now, err)
		}
		first := put(t, db, "/a", "1")
		if _, now, ok, err = db.Put(ctx, "/a", []byte("2"), 0, 0); ok || err != nil || now == nil || now.Revision != first || string(now.Value) != "1" {
			t.Fatalf("created twice: %+v, %v", now, err)
		}
		if _, now, ok, err = db.Delete(ctx, "/a", first+1); ok || err != nil || now == nil {
			t.Fatalf("deleted at another revision: %+v, %v", now, err)
		}
		second, _, ok, err := db.Put(ctx, "/a", []byte("2"), 0, first)
		if !ok || err != nil || second != first+1 {
			t.Fatalf("revision %d follows %d: %v, %v", second, first, ok, err)
		}
		third, _, ok, err := db.Delete(ctx, "/a", second)
		if !ok || err != nil || third != second+1 || db.Revision() != third {
			t.Fatal(third, ok, err)
		}
		if e, rev := db.Get("/a"); e != nil || rev != third {
			t.Fatalf("%+v at %d", e, rev)
		}
		if _, _, _, err := db.Put(ctx, "/big", make([]byte, MaxValue+1), 0, 0); err == nil {
			t.Error("a value that is too large was written")
		}
	}
}

// TestModel compares a store, now and at every revision that is known, with
// what a list of its writes says, and again after it was opened anew.
func TestModel(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			testModel(t, rand.New(rand.NewPCG(seed, 1)))
		})
	}
}

func testModel(t *testing.T, rnd *rand.Rand) {
	cfg := Config{Dir: t.TempDir(), HistoryBytes: 40 << 10, LogBytes: 30 << 10}
	db := open(t, cfg)
	// states[i] is the state at revision i+1.
	states := []map[string]Entry{{}}
	for round := range 6 {
		for range 150 {
			key := fmt.Sprintf("/%c/%c", 'a'+rnd.IntN(3), 'a'+rnd.IntN(8))
			next := map[string]Entry{}
			for k, e := range states[len(states)-1] {
				next[k] = e
			}
			if _, there := next[key]; there && rnd.IntN(3) == 0 {
				remove(t, db, key)
				delete(next, key)
			} else {
				value := strings.Repeat("x", rnd.IntN(400))
				rev := put(t, db, key, value)
				next[key] = Entry{Key: key, Value: []byte(value), Revision: rev}
			}
			states = append(states, next)
		}
		if db.Revision() != int64(len(states)) {
			t.Fatalf("revision %d after %d writes", db.Revision(), len(states)-1)
		}
		for rev := db.Compacted(); rev <= db.Revision(); rev++ {
			if rev == 0 {
				continue
			}
			for _, prefix := range []string{"/", "/b/"} {
				var want []*Entry
				for k, e := range states[rev-1] {
					if strings.HasPrefix(k, prefix) {
						want = append(want, &e)
					}
				}
				slices.SortFunc(want, func(a, b *Entry) int { return strings.Compare(a.Key, b.Key) })
				if got := dump(t, db, prefix, rev); got != text(want) {
					t.Fatalf("round %d, %s at revision %d:\n%swant\n%s", round, prefix, rev, got, text(want))
				}
				testPages(t, db, prefix, rev, text(want))
			}
			key := fmt.Sprintf("/%c/%c", 'a'+rnd.IntN(3), 'a'+rnd.IntN(8))
			e, err := db.GetAt(key, rev)
			want, there := states[rev-1][key]
			if err != nil || (e != nil) != there || there && (e.Revision != want.Revision || !bytes.Equal(e.Value, want.Value)) {
				t.Fatalf("%s at %d: %+v, %v; want %+v", key, rev, e, err, want)
			}
		}
		if _, err := db.List("/", "", 0, db.Revision()+1); !errors.Is(err, ErrFuture) {
			t.Error("a list of the future: ", err)
		}
		if c := db.Compacted(); c > 1 {
			if _, err := db.List("/", "", 0, c-1); !errors.Is(err, ErrCompacted) {
				t.Error("a list of the forgotten past: ", err)
			}
		}
		shut(t, db)
		db = open(t, cfg)
	}
	if n, _ := readNames(cfg.Dir); len(n.snapshots) == 0 {
		t.Error("no snapshot was ever made")
	}
}

// testPages reads a list in pages.
func testPages(t *testing.T, db *DB, prefix string, rev int64, want string) {
	t.Helper()
	var all []*Entry
	from := ""
	for {
		p, err := db.List(prefix, from, 3, rev)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p.Entries...)
		if p.Rest == 0 {
			break
		}
		if len(p.Entries) != 3 {
			t.Fatalf("a page of %d entries and %d to come", len(p.Entries), p.Rest)
		}
		from = p.Entries[2].Key + "\x00"
	}
	if text(all) != want {
		t.Fatalf("in pages at revision %d:\n%swant\n%s", rev, text(all), want)
	}
}

// TestGroupCommit: writers at the same time each get a revision of their own,
// and of those that race for a key one wins.
func TestGroupCommit(t *testing.T) {
	cfg := Config{Dir: t.TempDir()}
	db := open(t, cfg)
	const writers, each = 16, 40
	var mu sync.Mutex
	seen := map[int64]bool{}
	won := 0
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				rev, _, ok, err := db.Put(t.Context(), fmt.Sprintf("/own/%d/%d", w, i), []byte("x"), 0, 0)
				if err != nil || !ok {
					t.Error(ok, err)
				}
				_, _, raced, err := db.Put(t.Context(), fmt.Sprintf("/raced/%d", i), []byte("x"), 0, 0)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				if seen[rev] {
					t.Errorf("revision %d was given twice", rev)
				}
				seen[rev] = true
				if raced {
					won++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if won != each {
		t.Errorf("%d creations of %d keys", won, each)
	}
	want := dump(t, db, "/", 0)
	shut(t, db)
	if got := dump(t, open(t, cfg), "/", 0); got != want {
		t.Error("another state after it was opened again")
	}
}

func TestWatch(t *testing.T) {
	db := open(t, Config{})
	start := db.Revision()
	all, err := db.Watch("/a/", true, start)
	if err != nil {
		t.Fatal(err)
	}
	one, err := db.Watch("/a/1", false, start)
	if err != nil {
		t.Fatal(err)
	}
	take := func(w *Watch, most int) (got string, upTo int64) {
		t.Helper()
		events, upTo, err := w.Take(most)
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range events {
			kind := "+"
			if ev.New == nil {
				kind = "-"
			} else if ev.Old != nil {
				kind = "*"
			}
			got += fmt.Sprintf("%s%s@%d ", kind, ev.Key, ev.Revision-start)
		}
		return got, upTo - start
	}
	expect := func(w *Watch, most int, want string, wantUpTo int64) {
		t.Helper()
		if got, upTo := take(w, most); got != want || upTo != wantUpTo {
			t.Errorf("%q up to %d, want %q up to %d", got, upTo, want, wantUpTo)
		}
	}
	expect(all, 10, "", 0)
	put(t, db, "/a/1", "x")
	put(t, db, "/b/1", "x")
	put(t, db, "/a/1", "y")
	put(t, db, "/a/10", "y")
	<-all.Ready()
	expect(all, 1, "+/a/1@1 ", 1)
	<-all.Ready() // there is more
	expect(all, 10, "*/a/1@3 +/a/10@4 ", 4)
	<-one.Ready()
	expect(one, 10, "+/a/1@1 */a/1@3 ", 4)
	remove(t, db, "/a/1")
	put(t, db, "/b/1", "z")
	expect(one, 10, "-/a/1@5 ", 6)
	expect(all, 10, "-/a/1@5 ", 6)
	late, err := db.Watch("/", true, start+2)
	if err != nil {
		t.Fatal(err)
	}
	expect(late, 10, "*/a/1@3 +/a/10@4 -/a/1@5 */b/1@6 ", 6)
	future, err := db.Watch("/a/", true, start+8)
	if err != nil {
		t.Fatal(err)
	}
	put(t, db, "/a/2", "x") // 7
	put(t, db, "/a/2", "y")
	put(t, db, "/a/2", "z")
	expect(future, 10, "*/a/2@9 ", 9)
	// Who has seen everything loses nothing when the past is forgotten; who
	// has not does.
	_, _ = take(late, 10)
	db.Compact(db.Revision())
	expect(late, 10, "", 9)
	if _, _, err := all.Take(10); !errors.Is(err, ErrCompacted) {
		t.Errorf("a watch that was too slow: %v", err)
	}
	if _, err := db.Watch("/", true, start); !errors.Is(err, ErrCompacted) {
		t.Errorf("a watch of the forgotten past: %v", err)
	}
	for _, w := range []*Watch{all, one, late, future} {
		w.Close()
	}
	if len(db.watches) != 0 {
		t.Errorf("%d targets are still watched", len(db.watches))
	}
	w, err := db.Watch("/", true, db.Revision())
	if err != nil {
		t.Fatal(err)
	}
	shut(t, db)
	<-w.Ready()
	if _, _, err := w.Take(1); !errors.Is(err, ErrClosed) {
		t.Errorf("a watch of a closed store: %v", err)
	}
}

func TestExpiry(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Unix(1_000_000, 0))
	cfg := Config{Dir: t.TempDir(), Clock: clock}
	db := open(t, cfg)
	ends := func(in time.Duration) int64 { return clock.Now().Add(in).UnixMilli() }
	ctx := t.Context()
	for key, in := range map[string]time.Duration{"/soon": 10 * time.Second, "/late": time.Hour, "/changed": 10 * time.Second} {
		if _, _, ok, err := db.Put(ctx, key, []byte("x"), ends(in), 0); err != nil || !ok {
			t.Fatal(ok, err)
		}
	}
	put(t, db, "/changed", "for ever")
	put(t, db, "/ever", "x")
	w, err := db.Watch("/", true, db.Revision())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	step(t, db, clock, 11*time.Second)
	<-w.Ready()
	if events, _, err := w.Take(10); err != nil || len(events) != 1 || events[0].Key != "/soon" || events[0].New != nil {
		t.Fatalf("%+v, %v", events, err)
	}
	shut(t, db)
	// What expired while nobody looked goes when the store is opened.
	clock.Step(2 * time.Hour)
	db = open(t, cfg)
	for i := 0; ; i++ {
		if e, _ := db.Get("/late"); e == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if got := dump(t, db, "/", 0); !strings.HasPrefix(got, "/changed=") || !strings.Contains(got, "/ever=") || strings.Count(got, "\n") != 2 {
		t.Errorf("what is left:\n%s", got)
	}
}

// TestClockJumps: time is nothing to what doesn't expire.
func TestClockJumps(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Unix(1_000_000_000, 0))
	cfg := Config{Dir: t.TempDir(), Clock: clock}
	db := open(t, cfg)
	if _, _, ok, err := db.Put(t.Context(), "/ends", []byte("x"), clock.Now().Add(time.Hour).UnixMilli(), 0); !ok || err != nil {
		t.Fatal(ok, err)
	}
	rev := db.Revision()
	for i, to := range []time.Duration{-30 * 365 * 24 * time.Hour, 59 * time.Minute, -time.Hour} {
		clock.SetTime(time.Unix(1_000_000_000, 0).Add(to))
		poke(db.tidy)
		w, err := db.Watch("/", true, db.Revision())
		if err != nil {
			t.Fatal(err)
		}
		put(t, db, "/stays", fmt.Sprint(i))
		<-w.Ready()
		if events, upTo, err := w.Take(2); err != nil || len(events) != 1 || upTo != rev+1 {
			t.Errorf("%+v up to %d: %v", events, upTo, err)
		}
		w.Close()
		shut(t, db)
		db = open(t, cfg)
		if rev++; db.Revision() != rev {
			t.Errorf("revision %d instead of %d", db.Revision(), rev)
		}
	}
	if got := dump(t, db, "/", 0); !strings.HasPrefix(got, "/ends=x@2\n/stays=2@") {
		t.Errorf("%s", got)
	}
}

// step moves the clock when somebody waits for it.
func step(t *testing.T, db *DB, clock *clocktesting.FakeClock, d time.Duration) {
	t.Helper()
	for !clock.HasWaiters() {
		time.Sleep(time.Millisecond)
	}
	clock.Step(d)
	poke(db.tidy)
}

// TestPastIsBounded: in bytes at once, and in age.
func TestPastIsBounded(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Unix(1_000_000, 0))
	db := open(t, Config{Clock: clock, HistoryBytes: 100 << 10})
	for i := range 300 {
		put(t, db, fmt.Sprintf("/%d", i%10), strings.Repeat("x", 1000))
		if db.state.pastBytes > 100<<10 {
			t.Fatalf("%d bytes of the past", db.state.pastBytes)
		}
	}
	if known := db.Revision() - db.Compacted(); known < 50 || known > 150 {
		t.Errorf("%d writes are remembered", known)
	}
	clock.Step(6 * time.Minute)
	poke(db.tidy)
	for db.Compacted() != db.Revision() {
		time.Sleep(time.Millisecond)
	}
	db.mu.RLock()
	defer db.mu.RUnlock()
	if db.state.pastBytes != 0 || db.state.past != nil {
		t.Errorf("%d bytes of the past are kept", db.state.pastBytes)
	}
}

func TestClosed(t *testing.T) {
	db := open(t, Config{Dir: filepath.Join(t.TempDir(), "a", "b")})
	put(t, db, "/a", "x")
	shut(t, db)
	shut(t, db)
	if _, _, _, err := db.Put(t.Context(), "/a", nil, 0, 0); !errors.Is(err, ErrClosed) {
		t.Error("a write after the end: ", err)
	}
	if _, err := db.Watch("/", true, 0); !errors.Is(err, ErrClosed) {
		t.Error("a watch after the end: ", err)
	}
	if _, err := db.Backup(&bytes.Buffer{}); !errors.Is(err, ErrClosed) {
		t.Error("a backup after the end: ", err)
	}
}

// After Condense nothing on disk tells what a value was, and everything is
// there; writes go on meanwhile, and who asks during another's gets their own.
func TestCondense(t *testing.T) {
	dir := t.TempDir()
	db, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	rev := put(t, db, "/a", "the old secret")
	if _, _, ok, err := db.Put(t.Context(), "/a", []byte("the new one"), 0, rev); !ok || err != nil {
		t.Fatal(ok, err)
	}
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for j := range 50 {
				put(t, db, fmt.Sprintf("/b/%d/%d", i, j), "b")
			}
		})
		group.Go(func() {
			if err := db.Condense(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if err := db.Condense(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(t, db, "/c", "c")
	files, err := filepath.Glob(filepath.Join(dir, "*-*"))
	if err != nil || len(files) != 2 {
		t.Errorf("files: %v, %v", files, err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err != nil || strings.Contains(string(b), "the old secret") {
			t.Errorf("%s has it yet (%v)", f, err)
		}
	}
	before := dump(t, db, "/", 0)
	shut(t, db)
	if err := db.Condense(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	again, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer shut(t, again)
	if now := dump(t, again, "/", 0); now != before {
		t.Errorf("afterwards there is\n%s\nnot\n%s", now, before)
	}
}
