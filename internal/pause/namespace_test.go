package pause

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// status returns a field of /proc/PID/status, or "" once the process is gone.
func status(pid int, field string) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut("\n"+string(text), "\n"+field+":")
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(line)
}

func namespace(t *testing.T, pid int, name string) string {
	t.Helper()
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// runs lets a shell script print to the test, and returns what it says.
func runs(t *testing.T, c *Conn, r SpawnRequest, script string) string {
	t.Helper()
	out, w := pipe(t)
	b := new(blob)
	b.call(unix.SYS_DUP3, b.file(w), 1, 0)
	b.exec("/bin/sh", "-c", script)
	r.Recipe = b
	spawn(t, c, r)
	w.Close()
	got, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	if e := awaitExit(t, c, r.ID); e.Status != 0 {
		t.Errorf("%s ended with %#x", r.ID, e.Status)
	}
	release(t, c, r.ID)
	return strings.TrimSpace(string(got))
}

func TestNamespaces(t *testing.T) {
	c := start(t, Config{})
	p := spawn(t, c, SpawnRequest{ID: "private", Recipe: shell("sleep 1000"), Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP})
	shared := map[string][2]bool{ // with the node, with pause
		"net": {false, true}, "ipc": {false, true}, "uts": {false, true}, "user": {true, true},
		"mnt": {false, false}, "pid": {false, false}, "cgroup": {false, false},
	}
	for name, want := range shared {
		ours, pauses, its := namespace(t, os.Getpid(), name), namespace(t, c.PID(), name), namespace(t, p.PID, name)
		if (its == ours) != want[0] || (its == pauses) != want[1] {
			t.Errorf("%s: node %s, pause %s, container %s", name, ours, pauses, its)
		}
	}
	if got := status(c.PID(), "NSpid"); !strings.HasSuffix(got, "\t1") {
		t.Errorf("pause has NSpid %q, want to be PID 1", got)
	}
	if got := status(c.PID(), "NSsid"); !strings.HasSuffix(got, "\t1") {
		t.Errorf("pause has NSsid %q, want its own session", got)
	}
	if got := status(c.PID(), "Name"); got != "pause" {
		t.Errorf("pause is called %q", got)
	}
}

// An exec is born in the PID namespace of the container it belongs to; those
// after it aren't.
func TestExecInPIDNamespace(t *testing.T) {
	c := start(t, Config{})
	p := spawn(t, c, SpawnRequest{ID: "main", Recipe: shell("sleep 1000"), Cloneflags: unix.CLONE_NEWPID})
	nsfd, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", p.PID))
	if err != nil {
		t.Fatal(err)
	}
	defer nsfd.Close()
	for name, ns := range map[string]*os.File{"pidfd": p.Pidfd, "nsfd": nsfd} {
		e := spawn(t, c, SpawnRequest{ID: name, Recipe: shell("sleep 1000"), PIDNamespace: ns})
		if got, want := namespace(t, e.PID, "pid"), namespace(t, p.PID, "pid"); got != want {
			t.Errorf("by %s: in %s, want %s", name, got, want)
		}
		if got := status(e.PID, "PPid"); got != strconv.Itoa(c.PID()) {
			t.Errorf("by %s: parent %s, want pause (%d)", name, got, c.PID())
		}
		after := spawn(t, c, SpawnRequest{ID: "after " + name, Recipe: shell("sleep 1000")})
		if got, want := namespace(t, after.PID, "pid"), namespace(t, c.PID(), "pid"); got != want {
			t.Errorf("after %s: in %s, want pause's %s", name, got, want)
		}
	}
	// When the container's first process ends, the kernel kills its execs. Until
	// pause has reaped them it hasn't ended.
	unix.PidfdSendSignal(int(p.Pidfd.Fd()), unix.SIGKILL, nil, 0)
	ended := map[string]bool{}
	for range 3 {
		e := <-c.Exits()
		ended[e.ID] = e.Status.Signaled() && e.Status.Signal() == unix.SIGKILL
	}
	if !ended["main"] || !ended["pidfd"] || !ended["nsfd"] {
		t.Errorf("killed: %v", ended)
	}
	_, err = c.Spawn(testContext(t), SpawnRequest{ID: "late", Recipe: shell("true"), PIDNamespace: nsfd})
	if err == nil || !strings.Contains(err.Error(), "PID namespace") {
		t.Errorf("exec in a dead PID namespace: %v", err)
	}
	runs(t, c, SpawnRequest{ID: "last"}, "true")
}

// Orphans in a pod with a shared PID namespace become pause's, which reaps them.
func TestZombiesReaped(t *testing.T) {
	c := start(t, Config{})
	runs(t, c, SpawnRequest{ID: "x"}, "for i in 1 2 3 4 5; do (sleep 0.05 & ) ; done")
	eventually(t, "pause has no children", func() bool { return len(childrenOf(t, c.PID())) == 0 })
	noChildren(t, c)
}

// In a hostPID pod pause is a subreaper instead of PID 1.
func TestHostPID(t *testing.T) {
	c := start(t, Config{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWIPC})
	if got, want := namespace(t, c.PID(), "pid"), namespace(t, os.Getpid(), "pid"); got != want {
		t.Fatalf("pause is in %s, want %s", got, want)
	}
	out := runs(t, c, SpawnRequest{ID: "x"}, "sleep 1000 >/dev/null & echo $!")
	orphan, err := strconv.Atoi(out)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(orphan, unix.SIGKILL)
	if got := status(orphan, "PPid"); got != strconv.Itoa(c.PID()) {
		t.Errorf("the orphan's parent is %s, want pause (%d)", got, c.PID())
	}
	unix.Kill(orphan, unix.SIGKILL)
	eventually(t, "the orphan is reaped", func() bool { return status(orphan, "State") == "" })
	noChildren(t, c)
}

// Whatever runs in the pod ends with pause.
func TestDeathTakesThePodAlong(t *testing.T) {
	c := start(t, Config{})
	var pids []int
	for i, flags := range []uintptr{0, unix.CLONE_NEWPID, unix.CLONE_NEWPID | unix.CLONE_NEWNS} {
		p := spawn(t, c, SpawnRequest{ID: fmt.Sprint(i), Recipe: shell("trap '' TERM; /bin/sleep 1000 & /bin/sleep 1000 & wait"), Cloneflags: flags})
		eventually(t, "its children run", func() bool { return len(childrenOf(t, p.PID)) == 2 })
		pids = append(append(pids, p.PID), childrenOf(t, p.PID)...)
	}
	c.Terminate()
	<-c.Done()
	for _, pid := range pids {
		eventually(t, fmt.Sprintf("%d is gone", pid), func() bool { return status(pid, "State") == "" })
	}
}

func TestSignals(t *testing.T) {
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
		c := start(t, Config{})
		unix.Kill(c.PID(), sig)
		<-c.Done()
	}
	// From within, as a container with a shared PID namespace may.
	c := start(t, Config{})
	c.Spawn(testContext(t), SpawnRequest{ID: "x", Recipe: shell("kill -TERM 1; sleep 1000")}) // may see the end
	<-c.Done()

	// Others do nothing, even where pause isn't PID 1; and children get the
	// default back.
	c = start(t, Config{Cloneflags: unix.CLONE_NEWNS})
	for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPIPE, unix.SIGALRM, unix.SIGTSTP, unix.SIGTTIN, unix.SIGWINCH, 34} {
		if err := unix.Kill(c.PID(), sig); err != nil {
			t.Fatal(err)
		}
	}
	b := new(blob)
	b.exec("/bin/sleep", "1000")
	p := spawn(t, c, SpawnRequest{ID: "x", Recipe: b})
	for _, field := range []string{"SigBlk", "SigIgn", "SigCgt"} {
		if got := status(p.PID, field); strings.Trim(got, "0") != "" {
			t.Errorf("a child's %s is %s", field, got)
		}
	}
}

func TestUserNamespace(t *testing.T) {
	dir := t.TempDir()
	m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
	c := start(t, Config{Dir: dir, Cloneflags: podNamespaces | unix.CLONE_NEWUSER, UIDMap: m, GIDMap: m})
	if got := status(c.PID(), "Uid"); got != "100000\t100000\t100000\t100000" {
		t.Errorf("pause has uids %q", got)
	}
	if got := status(c.PID(), "CapEff"); !strings.HasPrefix(got, "000001ff") {
		t.Errorf("pause has capabilities %s, want all of its user namespace", got)
	}
	if got := status(c.PID(), "PPid"); got != strconv.Itoa(os.Getpid()) {
		t.Errorf("the parent of pause is %s, want the node (%d)", got, os.Getpid())
	}
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", c.PID())); exe != "/memfd:pause (deleted)" || len(openFiles(t, c.PID())) != 7 {
		t.Errorf("pause runs from %s, %v; open: %q", exe, err, openFiles(t, c.PID()))
	}
	p := spawn(t, c, SpawnRequest{ID: "main", Recipe: shell("sleep 1000"), Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS})
	if got := status(p.PID, "Uid"); !strings.HasPrefix(got, "100000\t") {
		t.Errorf("the container has uids %q", got)
	}
	if got := runs(t, c, SpawnRequest{ID: "exec", PIDNamespace: p.Pidfd}, "id -u; cat /proc/self/uid_map"); strings.Join(strings.Fields(got), " ") != "0 0 100000 65536" {
		t.Errorf("inside: %q", got)
	}
	// The node, whose uid means nothing in there, may still come back.
	c.Close()
	again, err := Connect(testContext(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	children, err := again.Children(testContext(t))
	if err != nil || len(children) != 1 || children[0].PID != p.PID {
		t.Fatalf("Children = %+v, %v", children, err)
	}
	children[0].close()
}

func TestBornInCgroup(t *testing.T) {
	c := start(t, Config{})
	name := fmt.Sprintf("unipod-pause-test-%d", os.Getpid())
	mkcgroup := func(t *testing.T, parent string) string {
		dir := filepath.Join(parent, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			eventually(t, "the cgroup is removed", func() bool {
				err := unix.Rmdir(dir)
				return err == nil || errors.Is(err, unix.ENOENT)
			})
		})
		return dir
	}
	kill := func(t *testing.T, p *Process) {
		unix.PidfdSendSignal(int(p.Pidfd.Fd()), unix.SIGKILL, nil, 0)
		awaitExit(t, c, p.ID)
		release(t, c, p.ID)
	}
	cgroups := func(t *testing.T, p *Process) string {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	mount := func(t *testing.T, fstype, option string) string {
		mounts, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(mounts)) {
			f := strings.Fields(line)
			if f[2] == fstype && (option == "" || strings.Contains(","+f[3]+",", ","+option+",")) {
				return f[1]
			}
		}
		t.Skipf("no mounted %s %s here", fstype, option)
		return ""
	}
	t.Run("v2", func(t *testing.T) {
		dir, err := os.Open(mkcgroup(t, mount(t, "cgroup2", "")))
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		p := spawn(t, c, SpawnRequest{ID: "v2", Recipe: shell("exec sleep 1000"), Cgroup: dir})
		defer kill(t, p)
		if got := cgroups(t, p); !strings.Contains(got, "0::/"+name+"\n") {
			t.Errorf("it is in %s", got)
		}
		pod := start(t, Config{Cgroup: dir})
		defer end(t, pod)
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pod.PID()))
		if err != nil || !strings.Contains(string(text), "0::/"+name+"\n") {
			t.Errorf("pause is in %s, %v", text, err)
		}
	})
	t.Run("v1", func(t *testing.T) {
		procs, err := os.OpenFile(filepath.Join(mkcgroup(t, mount(t, "cgroup", "freezer")), "cgroup.procs"), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer procs.Close()
		b := new(blob)
		b.call(unix.SYS_WRITE, b.file(procs), b.str("0"), 1)
		b.exec("/bin/sleep", "1000")
		p := spawn(t, c, SpawnRequest{ID: "v1", Recipe: b})
		defer kill(t, p)
		if got := cgroups(t, p); !strings.Contains(got, ":freezer:/"+name+"\n") {
			t.Errorf("it is in %s", got)
		}
	})
}
