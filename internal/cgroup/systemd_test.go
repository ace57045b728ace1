package cgroup

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestPlaceholder(t *testing.T) {
	p, err := startPlaceholder()
	if err != nil {
		t.Fatal(err)
	}
	stat := func() string {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
		_, after, _ := strings.Cut(string(b), ") ")
		return after[:min(len(after), 1)]
	}
	for range 1000 { // from exec to its sleep
		if stat() == "S" {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if got := stat(); got != "S" {
		t.Errorf("the placeholder is in state %q, want S", got)
	}
	// A signal with a handler's absence, and a stop, don't make it go on.
	unix.Kill(p.pid, unix.SIGSTOP)
	unix.Kill(p.pid, unix.SIGCONT)
	if err := unix.Kill(p.pid, 0); err != nil {
		t.Errorf("the placeholder: %v", err)
	}
	p.end()
	if err := unix.Kill(p.pid, 0); err != unix.ESRCH {
		t.Errorf("the placeholder after its end: %v", err)
	}
}

func TestPlaceholderARM64(t *testing.T) {
	qemu, err := exec.LookPath("qemu-aarch64-static")
	if err != nil {
		t.Skip("needs qemu-aarch64-static (Debian: qemu-user-static)")
	}
	program, err := idleProgram("arm64")
	if err != nil {
		t.Fatal(err)
	}
	file := t.TempDir() + "/idle"
	if err := os.WriteFile(file, program, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(qemu, "-strace", file)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	first, err := bufio.NewReader(stderr).ReadString('(')
	if err != nil || !strings.HasSuffix(first, " ppoll(") {
		t.Errorf("its first call is %q, %v; want ppoll", first, err)
	}
}

func TestSlices(t *testing.T) {
	h := &Hierarchy{version: 2, driver: DriverSystemd, root: "system.slice", unified: tree{dir: mountpoint}}
	g, err := h.Pod("kubepods-burstable-pod1234_5.slice", "abc")
	if err != nil {
		t.Fatal(err)
	}
	const want = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1234_5.slice/cri-unipod-abc.scope"
	if g.Path() != want {
		t.Errorf("%s, want %s", g.Path(), want)
	}
	if c, err := g.Child("ctr"); err != nil || c.Path() != want+"/ctr" {
		t.Errorf("%v, %v", c, err)
	}
	if g, err := h.Pod("", "abc"); err != nil || g.Path() != "/system.slice/cri-unipod-abc.scope" {
		t.Errorf("%v, %v", g, err)
	}
	// The engine's pods are ours to limit, a kubelet's aren't.
	ours := &Hierarchy{version: 2, driver: DriverSystemd, root: DefaultSlice, unified: tree{dir: mountpoint}}
	for parent, want := range map[string]bool{"unipod-besteffort-pod1.slice": true, "": true, "kubepods-besteffort-pod1.slice": false, "unipodder.slice": false} {
		if g, err := ours.Pod(parent, "abc"); err != nil || g.Ours() != want {
			t.Errorf("parent %q: ours is not %v (%v)", parent, want, err)
		}
	}
	for _, parent := range []string{"/kubepods/pod1", "kubepods", "a/b.slice", "a--b.slice", ".slice"} {
		if _, err := h.Pod(parent, "abc"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("parent %q: %v, want invalid argument", parent, err)
		}
	}
	fs := &Hierarchy{version: 2, driver: DriverCgroupfs, root: DefaultRoot}
	for _, parent := range []string{"kubepods-pod1.slice", "/a/../b", "/", "../x"} {
		if _, err := fs.Pod(parent, "abc"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("parent %q with cgroupfs: %v, want invalid argument", parent, err)
		}
	}
	for _, id := range []string{"", ".", "..", "a/b", "-x", "pause\n", strings.Repeat("x", 300)} {
		if _, err := fs.Pod("", id); !errdefs.IsInvalidArgument(err) {
			t.Errorf("id %q: %v, want invalid argument", id, err)
		}
	}
}

// TestSystemd makes a pod as a kubelet with the systemd driver has it.
func TestSystemd(t *testing.T) {
	if !runningSystemd() {
		t.Skip("systemd is not PID 1 here (test/vm/run.sh -s runs this test)")
	}
	h, err := Open(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if h.Driver() != DriverSystemd {
		t.Fatalf("the driver is %s", h.Driver())
	}
	pod, err := h.Pod("unipodtest-burstable-pod1.slice", "p1")
	if err != nil {
		t.Fatal(err)
	}
	if err := pod.Create(Resources{Memory: 256 << 20, Pids: 99}); err != nil {
		t.Fatal(err)
	}
	if err := pod.Create(Resources{Pids: 99}); err != nil {
		t.Fatalf("again: %v", err)
	}
	ctr := makeContainer(t, pod, "c", Resources{CPUShares: 512, Memory: 64 << 20, MemorySwap: 64 << 20})
	pause, app := start(t, pod, "sleep"), start(t, ctr, "sleep")

	if got := where(t, pause.Process.Pid)[""]; got != pod.Path()+"/"+pauseLeaf {
		t.Errorf("pause is in %s", got)
	}
	if got := where(t, app.Process.Pid)[""]; got != ctr.Path() {
		t.Errorf("the container is in %s", got)
	}
	for g, want := range map[*Group]string{pod: "268435456", ctr: "67108864"} {
		if got := value(t, g, "", "", "memory.max"); got != want {
			t.Errorf("%s: memory.max %s, want %s", g.Path(), got, want)
		}
	}
	// The placeholder leaves when pause has come.
	for range 1000 {
		if pids, err := pod.PIDs(); err == nil && len(pids) == 2 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if pids, err := pod.PIDs(); err != nil || len(pids) != 2 {
		t.Errorf("processes of the pod: %v, %v; want pause and the container", pids, err)
	}
	// systemd knows the limits, and doing its rounds leaves the pod alone.
	systemctl(t, "daemon-reload")
	if got := systemctl(t, "show", "-p", "MemoryMax,TasksMax,ActiveState,Delegate", path.Base(pod.Path())); got != "Delegate=yes\nMemoryMax=268435456\nTasksMax=99\nActiveState=active" {
		t.Errorf("systemd says %q", got)
	}
	if err := pod.Update(Resources{Memory: 512 << 20}); err != nil {
		t.Fatal(err)
	}
	if got := systemctl(t, "show", "-p", "MemoryMax", path.Base(pod.Path())); got != "MemoryMax=536870912" {
		t.Errorf("after the update systemd says %q", got)
	}
	if err := pod.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := pod.Remove(); err != nil {
		t.Fatal(err)
	}
	if pod.Exists() {
		t.Errorf("left behind: %v", pod.Paths())
	}
	if got := systemctl(t, "show", "-p", "LoadState", path.Base(pod.Path())); got != "LoadState=not-found" {
		t.Errorf("after the removal systemd says %q", got)
	}
	// A pod whose process never comes.
	if err := pod.Create(Resources{}); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if err := pod.Remove(); err != nil {
		t.Fatal(err)
	}
	if pod.Exists() {
		t.Errorf("left behind: %v", pod.Paths())
	}
	systemctl(t, "stop", "unipodtest.slice")
}

func systemctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("systemctl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("systemctl %v: %v, %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}
