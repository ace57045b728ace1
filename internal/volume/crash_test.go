package volume

import (
	"context"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// busyPod uses every kind of volume that leaves something on disk.
func busyPod() (*v1.Pod, *objects) {
	src := &objects{
		configMaps: map[string]*v1.ConfigMap{"ns/cm": {Data: map[string]string{"a": "1", "b": "2"}}},
		secrets:    map[string]*v1.Secret{"ns/s": {Data: map[string][]byte{"key": []byte("x")}}},
	}
	pod := newPod(
		v1.Volume{Name: "disk", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
		v1.Volume{Name: "mem", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory}}},
		v1.Volume{Name: "cm", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}, DefaultMode: ptr(int32(0o644))}}},
		v1.Volume{Name: "s", VolumeSource: v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "s", DefaultMode: ptr(int32(0o600))}}},
	)
	pod.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: ptr(int64(5))}
	c := &pod.Spec.Containers[0]
	c.TerminationMessagePath = "/dev/termination-log"
	c.VolumeMounts[0].SubPath = "sub/path"
	c.VolumeMounts[2].SubPath = "a"
	return pod, src
}

// life is a pod's volumes from beginning to end.
func life(m *Manager, src *objects, pod *v1.Pod) error {
	ctx := context.Background()
	for _, text := range []string{"1", "2"} {
		src.configMaps["ns/cm"].Data["a"] = text
		mounted, err := m.Setup(ctx, pod)
		if err != nil {
			return err
		}
		if _, err := m.Mounts(pod, &pod.Spec.Containers[0], MountOptions{Volumes: mounted, PodIPs: []string{"10.0.0.1"}}); err != nil {
			return err
		}
	}
	return m.Teardown(ctx, pod.UID)
}

const crashDir = "UNIPOD_TEST_CRASH_DIR"

// TestCrashHelper lives one life after another until it is killed. It is run
// by TestKilledAnywhere.
func TestCrashHelper(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		return // not a test of its own
	}
	pod, src := busyPod()
	m, err := New(Config{Dir: dir, Source: src.of})
	if err != nil {
		t.Fatal(err)
	}
	for first := true; ; first = false {
		if err := life(m, src, pod); err != nil {
			t.Fatal(err)
		}
		if first {
			os.Stdout.WriteString("alive\n")
		}
	}
}

// TestKilledAnywhere kills a process that makes and removes volumes at random
// points, and expects the next one to finish either work.
func TestKilledAnywhere(t *testing.T) {
	rounds := 20
	if testing.Short() {
		rounds = 5
	}
	pod, src := busyPod()
	m := newManager(t, src)
	for i := range rounds {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestCrashHelper$")
		cmd.Env = append(os.Environ(), crashDir+"="+m.Dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		said, err := io.ReadAtLeast(out, make([]byte, 6), 6)
		if err != nil {
			t.Fatalf("the helper said %d bytes: %v", said, err)
		}
		time.Sleep(time.Duration(rand.IntN(5000)) * time.Microsecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if i%2 == 0 {
			// The next process goes on with the pod…
			if err := life(m, src, pod); err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
		} else if err := m.CleanOrphans(t.Context(), nil); err != nil {
			// …or finds that the pod is gone.
			t.Fatalf("round %d: %v", i, err)
		}
		if left, _ := filepath.Glob(m.Dir + "/*"); len(left) > 0 || len(mountsBelow(t, m.Dir)) > 0 {
			t.Fatalf("round %d: left %q, mounts %q", i, left, mountsBelow(t, m.Dir))
		}
	}
}

func BenchmarkLife(b *testing.B) {
	pod, src := busyPod()
	m, err := New(Config{Dir: filepath.Join(b.TempDir(), "pods"), Source: src.of})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := life(m, src, pod); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSetup is what a pod's start waits for; BenchmarkRefresh what each
// later sync costs when nothing has changed.
func BenchmarkSetup(b *testing.B) {
	pod, src := busyPod()
	m, err := New(Config{Dir: filepath.Join(b.TempDir(), "pods"), Source: src.of})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		mounted, err := m.Setup(b.Context(), pod)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := m.Mounts(pod, &pod.Spec.Containers[0], MountOptions{Volumes: mounted, PodIPs: []string{"10.0.0.1"}}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := m.Teardown(b.Context(), pod.UID); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkRefresh(b *testing.B) {
	pod, src := busyPod()
	m, err := New(Config{Dir: filepath.Join(b.TempDir(), "pods"), Source: src.of})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := m.Setup(b.Context(), pod); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	if err := m.Teardown(context.Background(), pod.UID); err != nil {
		b.Fatal(err)
	}
}
