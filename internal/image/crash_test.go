package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// TestMain runs the test binary as the victim of TestKill.
func TestMain(m *testing.M) {
	if spec := os.Getenv("UNIPOD_TEST_VICTIM"); spec != "" {
		victim(spec)
	}
	code := m.Run()
	http.DefaultClient.CloseIdleConnections()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// victim does one thing to a store and says how it got on.
func victim(spec string) {
	parts := strings.Split(spec, " ")
	cfg := Config{Root: parts[1], Run: parts[2], Platform: "linux/amd64", CertsDirs: []string{}, RegistriesConf: "/nonexistent", PolicyFile: "/nonexistent", AuthFile: "/nonexistent", Logger: slog.New(slog.DiscardHandler)}
	s, err := Open(context.Background(), cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("open")
	switch parts[0] {
	case "pull":
		_, err = s.Pull(context.Background(), parts[3], PullOptions{})
	case "remove":
		_, err = s.Remove(context.Background(), parts[3])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("done")
	// It keeps the store open until it is killed.
	time.Sleep(time.Hour)
}

// killAt starts a victim and kills it after a time, counted from when it has
// opened the store. It reports whether the victim had finished its work.
func killAt(t *testing.T, d time.Duration, spec ...string) bool {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "UNIPOD_TEST_VICTIM="+strings.Join(spec, " "))
	cmd.Stdout, cmd.Stderr = w, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	buf := make([]byte, 64)
	n, err := r.Read(buf)
	if err != nil {
		cmd.Wait()
		t.Fatalf("the victim did not start: %v %s", err, errs.String())
	}
	out.Write(buf[:n])
	time.Sleep(d)
	cmd.Process.Kill()
	for {
		n, err := r.Read(buf)
		out.Write(buf[:n])
		if err != nil {
			break
		}
	}
	cmd.Wait()
	if errs.Len() > 0 {
		t.Fatalf("victim: %s", errs.String())
	}
	return strings.Contains(out.String(), "done")
}

// TestKill kills a process in the middle of pulling and removing, at many
// moments. The next Open must find every image it lists whole, and nothing
// else on the disk.
func TestKill(t *testing.T) {
	f := newFake(t)
	var layers [][]byte
	for l := range 4 {
		var es []entry
		for i := range 60 {
			es = append(es, file(fmt.Sprintf("d%d/f%d", i%7, i), strings.Repeat(fmt.Sprint(l, i), 4000)))
		}
		layers = append(layers, layerTar(t, es...))
	}
	b := build(t, gz, ocispec.ImageConfig{}, layers...)
	ref := f.add("victim", "v1", b)
	cfg := testConfig(t)
	rounds := 30
	if testing.Short() {
		rounds = 8
	}
	// How long the work takes here, so that deaths fall all over it.
	limits := map[string]time.Duration{}
	timed := func(op string, f func(s *Store) error) {
		s := openStore(t, cfg)
		defer s.Close()
		start := time.Now()
		if err := f(s); err != nil {
			t.Fatal(err)
		}
		limits[op] = time.Since(start) * 5 / 4
	}
	timed("pull", func(s *Store) error { _, err := s.Pull(context.Background(), ref, PullOptions{}); return err })
	timed("remove", func(s *Store) error { _, err := s.Remove(context.Background(), ref); return err })
	var finished, interrupted int
	for round := range rounds {
		op := "pull"
		if round%3 == 2 {
			s := openStore(t, cfg)
			if _, err := s.Pull(context.Background(), ref, PullOptions{}); err != nil {
				t.Fatal(err)
			}
			s.Close()
			op = "remove"
		}
		if killAt(t, time.Duration(rand.Int64N(int64(limits[op]))), op, cfg.Root, cfg.Run, ref) {
			finished++
		} else {
			interrupted++
		}
		s := openStore(t, cfg)
		list, err := s.List(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if len(list) > 0 {
			checkWhole(t, s, list[0], b)
			if _, err := s.Remove(context.Background(), list[0].ID); err != nil {
				t.Fatal(err)
			}
		}
		empty(t, s)
		s.Close()
		if t.Failed() {
			t.Fatalf("round %d, %s", round, op)
		}
	}
	t.Logf("%d interrupted, %d had finished", interrupted, finished)
}

// checkWhole verifies that an image can be used.
func checkWhole(t *testing.T, s *Store, img *Image, b *built) {
	t.Helper()
	dirs, err := s.Layers(context.Background(), img.ID, "check")
	if err != nil {
		t.Fatal(err)
	}
	defer s.ReleaseLayers(context.Background(), "check")
	if len(dirs) != len(b.layers) {
		t.Fatalf("%d layers", len(dirs))
	}
	for i, d := range dirs {
		l := len(dirs) - 1 - i
		for f := range 60 {
			got, err := os.ReadFile(filepath.Join(d, fmt.Sprintf("d%d/f%d", f%7, f)))
			if err != nil || string(got) != strings.Repeat(fmt.Sprint(l, f), 4000) {
				t.Fatalf("layer %d, file %d: %d bytes, %v", l, f, len(got), err)
			}
		}
	}
	var buf bytes.Buffer
	if err := s.Save(context.Background(), &buf, OCIArchive, img.ID); err != nil {
		t.Error(err)
	}
}

// TestDiskFull pulls onto a file system that is too small, at first for the
// blob, then for the files.
func TestDiskFull(t *testing.T) {
	noise := make([]byte, 4<<20)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(noise)
	f := newFake(t)
	for _, tc := range []struct {
		name string
		size string
		img  *built
	}{
		{"no room for the blob", "3m", build(t, plain, ocispec.ImageConfig{}, layerTar(t, file("noise", string(noise))))},
		{"no room for the files", "3m", build(t, gz, ocispec.ImageConfig{}, layerTar(t, file("zeros", strings.Repeat("a", 8<<20))))},
		{"no room for the inodes", "8m,nr_inodes=100", build(t, gz, ocispec.ImageConfig{}, layerTar(t, many(200)...))},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Skip("mounting a tmpfs needs root")
			}
			cfg := testConfig(t)
			if err := os.MkdirAll(cfg.Root, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("tmpfs", cfg.Root, "tmpfs", 0, "size="+tc.size); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Unmount(cfg.Root, unix.MNT_DETACH) })
			s := openStore(t, cfg)
			_, err := s.Pull(context.Background(), f.add("a", "b", tc.img), PullOptions{})
			wantErr(t, err, errdefs.ErrResourceExhausted, "no space left on device")
			t.Log(err)
			empty(t, s)
			// It works again with a smaller image.
			if _, err := s.Pull(context.Background(), f.add("a", "small", simple(t, "x")), PullOptions{}); err != nil {
				t.Error(err)
			}
			s.Close()
		})
	}
}

func many(n int) []entry {
	var es []entry
	for i := range n {
		es = append(es, file(fmt.Sprint("f", i), "x"))
	}
	return es
}

// TestCollectionFails makes a file undeletable for a while: the removal says
// so, and the next collection, in this process or another, finishes the job.
func TestCollectionFails(t *testing.T) {
	ctx := context.Background()
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart %t", restart), func(t *testing.T) {
			cfg := testConfig(t)
			s := openStore(t, cfg)
			img := load(t, s, simple(t, "x"), nameA)
			dirs, err := s.Layers(ctx, img.ID, "c")
			if err != nil {
				t.Fatal(err)
			}
			if err := s.ReleaseLayers(ctx, "c"); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(filepath.Join(dirs[0], "f"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			const immutable = 0x10 // FS_IMMUTABLE_FL
			if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, immutable); err != nil {
				t.Skipf("this file system has no immutable files: %v", err)
			}
			_, err = s.Remove(ctx, nameA)
			if err == nil || !strings.Contains(err.Error(), "operation not permitted") {
				t.Errorf("removal: %v", err)
			}
			if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0); err != nil {
				t.Fatal(err)
			}
			if restart {
				s.Close()
				s = openStore(t, cfg)
			} else {
				if _, err := s.Pull(ctx, "127.0.0.1:1/a:b", PullOptions{}); err == nil {
					t.Error("pulled from nowhere")
				}
				load(t, s, simple(t, "y"), nameB)
				if _, err := s.Remove(ctx, nameB); err != nil {
					t.Error(err)
				}
			}
			empty(t, s)
		})
	}
}

// TestFailedPullKeepsOthers fails a pull that shares layers with an image.
func TestFailedPullKeepsOthers(t *testing.T) {
	ctx := context.Background()
	f := newFake(t)
	base := twoLayers(t)
	good := build(t, gz, ocispec.ImageConfig{}, base...)
	bad := build(t, gz, ocispec.ImageConfig{}, append(base[:2:2], layerTar(t, file("../x", "")))...)
	s := openStore(t, testConfig(t))
	img, err := s.Pull(ctx, f.add("a", "good", good), PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Pull(ctx, f.add("a", "bad", bad), PullOptions{})
	wantErr(t, err, errdefs.ErrInvalidArgument)
	dirs, err := s.Layers(ctx, img.ID, "c")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		if _, err := os.Stat(filepath.Join(d, "etc/hostname")); err != nil {
			t.Error(err)
		}
	}
	f.hook = func(w http.ResponseWriter, r *http.Request) bool {
		http.Error(w, "", http.StatusServiceUnavailable)
		return true
	}
	if _, err := s.Pull(ctx, f.addr()+"/a:good", PullOptions{}); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("registry away: %v", err)
	}
	if _, err := s.Get(ctx, f.addr()+"/a:good"); err != nil {
		t.Error(err)
	}
}
