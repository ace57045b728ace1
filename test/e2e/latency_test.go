package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/test/harness"
)

// tellers is a directory of the host that containers make files in, and the
// kernel's word of when they did.
type tellers struct {
	b   *testing.B
	dir string
	f   *os.File
	buf []byte
}

func newTellers(b *testing.B) *tellers {
	b.Helper()
	dir := b.TempDir()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE); err != nil {
		b.Fatal(err)
	}
	t := &tellers{b: b, dir: dir, f: os.NewFile(uintptr(fd), "inotify"), buf: make([]byte, 4096)}
	b.Cleanup(func() { t.f.Close() })
	return t
}

// next waits for the next file made there.
func (t *tellers) next() time.Time {
	t.b.Helper()
	if _, err := t.f.Read(t.buf); err != nil {
		t.b.Fatal(err)
	}
	return time.Now()
}

// benchNode is a node that keeps the pods of a directory.
func benchNode(b *testing.B) (n *node, serve *harness.Process, manifests string) {
	b.Helper()
	n = newNode(b)
	manifests = filepath.Join(n.Dir, "manifests")
	if err := os.MkdirAll(manifests, 0o755); err != nil {
		b.Fatal(err)
	}
	serve = n.Start("serve", "--manifests", manifests)
	serve.Says("serving the Kubernetes API")
	b.Cleanup(func() {
		serve.Signal(syscall.SIGTERM)
		serve.Code()
	})
	return n, serve, manifests
}

const tellingPod = `apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  restartPolicy: Always
  terminationGracePeriodSeconds: 0
  volumes: [{name: out, hostPath: {path: %s}}]
  containers:
  - name: a
    image: IMAGE
    command: [/bin/busybox, sh, -c, %q]
    volumeMounts: [{name: out, mountPath: /out}]
`

func report(b *testing.B, took []time.Duration) {
	b.Helper()
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	b.ReportMetric(ms(took[0]), "ms/min")
	b.ReportMetric(ms(took[len(took)/2]), "ms/p50")
	b.ReportMetric(ms(took[len(took)*9/10]), "ms/p90")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkManifest is the time from a manifest's appearance in the directory
// to the first file that its container's shell makes, the image being present.
// The goal is 25 ms.
func BenchmarkManifest(b *testing.B) {
	n, serve, manifests := benchNode(b)
	out := newTellers(b)
	var took []time.Duration
	i := 0
	for b.Loop() {
		i++
		name := fmt.Sprintf("p%d", i)
		path := n.file("new.yaml", fmt.Sprintf(tellingPod, name, out.dir, "> /out/"+name+"; exec sleep 1000"))
		began := time.Now()
		if err := os.Rename(path, filepath.Join(manifests, name+".yaml")); err != nil {
			b.Fatal(err)
		}
		took = append(took, out.next().Sub(began))
		n.end(serve, name)
	}
	report(b, took)
}

// end takes a pod's manifest away and waits for its end.
func (n *node) end(serve *harness.Process, name string) {
	n.T.Helper()
	if err := os.Remove(filepath.Join(n.Dir, "manifests", name+".yaml")); err != nil {
		n.T.Fatal(err)
	}
	serve.Says(`msg="pod removed" pod=default/` + name + " ")
}

// BenchmarkRestart is the time from what a container does last before its
// first exit, for which there is no back-off, to what its second run does
// first. The goal is 10 ms.
func BenchmarkRestart(b *testing.B) {
	n, serve, _ := benchNode(b)
	out := newTellers(b)
	var took []time.Duration
	i := 0
	for b.Loop() {
		i++
		name := fmt.Sprintf("p%d", i)
		script := strings.ReplaceAll("if [ -e /out/X ]; then > /out/X.2; exec sleep 1000; fi; > /out/X", "X", name)
		n.file("manifests/"+name+".yaml", fmt.Sprintf(tellingPod, name, out.dir, script))
		first := out.next()
		took = append(took, out.next().Sub(first))
		n.end(serve, name)
	}
	report(b, took)
}
