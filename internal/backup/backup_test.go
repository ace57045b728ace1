package backup

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/pki"
	"unipod.dev/unipod/internal/store"
)

// root is a node's directory with keys and an empty store.
func root(t *testing.T) (string, *pki.Authority, *store.Store) {
	t.Helper()
	dir := t.TempDir()
	keys, err := pki.Open(filepath.Join(dir, Keys), clock.RealClock{})
	if err != nil {
		t.Fatal(err)
	}
	objects, err := store.Open(store.Config{Dir: filepath.Join(dir, Objects)})
	if err != nil {
		t.Fatal(err)
	}
	return dir, keys, objects
}

// What was backed up is there after a restore, keys and all, in the place of
// what was there or where nothing was.
func TestRestore(t *testing.T) {
	from, keys, objects := root(t)
	file := filepath.Join(t.TempDir(), "backup.zip")
	var b bytes.Buffer
	if err := Write(&b, from, objects, About{Node: "n", Time: time.Unix(0, 0)}); err != nil {
		t.Fatal(err)
	}
	if err := objects.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	used, _, theirs := root(t)
	if _, err := Restore(file, used, clock.RealClock{}); err == nil {
		t.Error("a store that is open was replaced")
	}
	if err := theirs.Close(); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{filepath.Join(t.TempDir(), "new"), used} {
		about, err := Restore(file, to, clock.RealClock{})
		if err != nil || about.Node != "n" {
			t.Fatalf("%+v, %v", about, err)
		}
		got, err := pki.Load(filepath.Join(to, Keys), clock.RealClock{})
		if err != nil || !bytes.Equal(got.CABundlePEM(), keys.CABundlePEM()) {
			t.Errorf("the keys: %v", err)
		}
		s, err := store.Open(store.Config{Dir: filepath.Join(to, Objects)})
		if err != nil || s.Revision() < about.Revision {
			t.Fatalf("the objects: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if left, _ := filepath.Glob(filepath.Join(to, "*")); len(left) != 2 {
			t.Errorf("left: %q", left)
		}
		if err := Check(to); err != nil {
			t.Error(err)
		}
	}
	if err := os.WriteFile(filepath.Join(used, markName), []byte("x.zip\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Check(used); err == nil || !strings.Contains(err.Error(), "x.zip") {
		t.Errorf("after an interrupted restore: %v", err)
	}
}

// A backup that isn't whole, at any byte, changes nothing.
func TestDamaged(t *testing.T) {
	from, _, objects := root(t)
	var b bytes.Buffer
	if err := Write(&b, from, objects, About{Node: "n"}); err != nil {
		t.Fatal(err)
	}
	if err := objects.Close(); err != nil {
		t.Fatal(err)
	}
	to, keys, others := root(t)
	if err := others.Close(); err != nil {
		t.Fatal(err)
	}
	whole := b.Bytes()
	file := filepath.Join(t.TempDir(), "backup.zip")
	try := func(what string, text []byte) {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Restore(file, to, clock.RealClock{})
		got, lerr := pki.Load(filepath.Join(to, Keys), clock.RealClock{})
		if err == nil || lerr != nil || !bytes.Equal(got.CABundlePEM(), keys.CABundlePEM()) || Check(to) != nil {
			t.Errorf("%s: restored: %v, keys: %v", what, err, lerr)
		}
	}
	for n := 0; n < len(whole); n += max(1, len(whole)/40) {
		try("cut", whole[:n])
	}
	for at := 0; at < len(whole); at += max(1, len(whole)/97) {
		bad := bytes.Clone(whole)
		bad[at] ^= 0x40
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		// Some bits of an archive mean nothing; what is accepted must be whole.
		if _, err := Restore(file, to, clock.RealClock{}); err == nil {
			if keys, err = pki.Load(filepath.Join(to, Keys), clock.RealClock{}); err != nil {
				t.Fatalf("byte %d: accepted, and the keys are damaged: %v", at, err)
			}
		}
	}
}
