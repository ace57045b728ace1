package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// rotate does what kubelet does, while the container writes, until it ends:
// rename, then reopen. It returns the rotated files, oldest first.
func (w *world) rotate(t *testing.T, id string, every time.Duration) []string {
	t.Helper()
	path := w.status(id).LogPath
	var files []string
	for w.status(id).State == runtimeapi.ContainerState_CONTAINER_RUNNING {
		time.Sleep(every)
		old := fmt.Sprintf("%s.%d", path, len(files))
		if err := os.Rename(path, old); err != nil {
			t.Fatal(err)
		}
		files = append(files, old)
		if _, err := w.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
			break // it has ended meanwhile
		}
	}
	return append(files, path)
}

// Writers of all speeds: rotation loses no line, doubles none, mixes none up.
func TestLogRotation(t *testing.T) {
	noLeaks(t)
	w := newWorld(t)
	p := w.pod("logs")
	for _, tc := range []struct{ name, script string }{
		{"a line at a time", "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done"},
		{"as fast as it goes", "seq 0 2999999"}, // some 140 MB of log
	} {
		t.Run(tc.name, func(t *testing.T) {
			id := p.start("writer", []string{"sh", "-c", tc.script})
			files := w.rotate(t, id, 20*time.Millisecond)
			if st := w.wait(id); st.ExitCode != 0 {
				t.Fatalf("exit %d", st.ExitCode)
			}
			want := 0
			for _, f := range files {
				b, err := os.ReadFile(f)
				if os.IsNotExist(err) {
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				for line := range strings.Lines(string(b)) {
					_, text, ok := strings.Cut(line, " stdout F ")
					if !ok || text != strconv.Itoa(want)+"\n" {
						t.Fatalf("%s: %q where %d should be", f, line, want)
					}
					want++
				}
			}
			if want != 20000 && want != 3000000 {
				t.Errorf("%d lines", want)
			}
			t.Logf("%d lines in %d files", want, len(files))
		})
	}
}

func TestPartialLines(t *testing.T) {
	w := newWorld(t)
	p := w.pod("partial")
	id := p.start("long", []string{"sh", "-c", "head -c 40000 /dev/zero | tr '\\0' x; echo; printf 'no end'"})
	w.wait(id)
	b, err := os.ReadFile(w.status(id).LogPath)
	if err != nil {
		t.Fatal(err)
	}
	var tags, text strings.Builder
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		tags.WriteString(f[2])
		text.WriteString(f[3])
	}
	if tags.String() != "PPFF" || text.String() != strings.Repeat("x", 40000)+"no end" {
		t.Errorf("tags %s, %d bytes", tags.String(), text.Len())
	}
}

// A full disk blocks no container; what is lost is counted when there is room
// again.
func TestLogDiskFull(t *testing.T) {
	noLeaks(t)
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "logs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	p := w.pod("full", func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = dir })
	id := p.start("writer", []string{"sh", "-c", "seq 0 99999; touch /tmp/written; while ! test -e /tmp/room; do sleep 0.02; done; echo after"})
	for range 1000 {
		if _, code := w.exec(id, "test", "-e", "/tmp/written"); code == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	path := w.status(id).LogPath
	if err := os.Rename(path, path+".0"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path + ".0")
	if err != nil || len(b) == 0 {
		t.Fatalf("before it was full: %d bytes, %v", len(b), err)
	}
	os.Remove(path + ".0")
	if _, err := w.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	w.exec(id, "touch", "/tmp/room")
	if st := w.wait(id); st.ExitCode != 0 {
		t.Errorf("exit %d", st.ExitCode)
	}
	rest, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Every line is there, in order, or among those that a note counts.
	want, lost := 0, 0
	for line := range strings.Lines(string(b) + string(rest)) {
		if _, note, ok := strings.Cut(line, " stderr F unipod: "); ok {
			n := 0
			if _, err := fmt.Sscanf(note, "%d log lines were lost: the log could not be written", &n); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			want, lost = want+n, lost+n
			continue
		}
		_, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " stdout F ")
		if text != strconv.Itoa(want) && (text != "after" || want != 100000) {
			t.Fatalf("%q where %d should be", line, want)
		}
		want++
	}
	if want != 100001 || lost == 0 {
		t.Errorf("%d lines with the %d lost", want, lost)
	}
}
