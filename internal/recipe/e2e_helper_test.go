package recipe_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/pause"
	"unipod.dev/unipod/internal/recipe"
	"unipod.dev/unipod/internal/sys"
)

// The tests in this package carry recipes out, by the real pause, on the real
// kernel, with busybox as the image.

const (
	podNamespaces       = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET
	containerNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID
	// mappedID is the first ID on the host of pods with a user namespace.
	mappedID = 100000
	allCaps  = 1<<41 - 1
)

func requireRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes containers")
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("needs Debian's busybox-static as the image:", err)
	}
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// files keeps descriptors until the test ends.
func keep(t testing.TB, f *os.File, err error) *os.File {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// newMount is a detached mount that ends with the test.
func newMount(t testing.TB, fstype string, attrs int, options ...sys.Option) *os.File {
	t.Helper()
	f, err := sys.NewMount(fstype, attrs, options...)
	return keep(t, f, err)
}

// bind is a detached copy of the mount at a host path.
func bind(t testing.TB, path string) *os.File {
	t.Helper()
	f := keep(t, must(os.OpenFile(path, unix.O_PATH, 0)), nil)
	m := keep(t, must(sys.CloneTree(f, true)), nil)
	// As the node does with every source: else what happens below it in the
	// container would show on a host whose mounts are shared.
	if err := sys.SetMountAttr(m, true, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		t.Fatal(err)
	}
	return m
}

// applets are the commands of the image; all are busybox.
var applets = strings.Fields(`sh ls cat echo id grep readlink mount umount mkdir rm ln touch sleep true stat
	head wc tty hostname chmod chown test dd sysctl env printf kill ps mknod nc ip unshare tail awk sed sort tr cut seq`)

// writeImage makes busybox's image in a directory.
func writeImage(t testing.TB, dir string) {
	t.Helper()
	check := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	for _, d := range []string{"bin", "etc", "tmp", "root", "dev", "proc", "sys"} {
		check(os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	check(os.Chmod(filepath.Join(dir, "tmp"), 0o1777))
	box, err := os.ReadFile("/bin/busybox")
	check(err)
	check(os.WriteFile(filepath.Join(dir, "bin/busybox"), box, 0o755))
	check(os.Chmod(filepath.Join(dir, "bin/busybox"), 0o755))
	for _, a := range applets {
		check(os.Symlink("busybox", filepath.Join(dir, "bin", a)))
	}
	check(os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\n"), 0o644))
}

var image struct {
	sync.Once
	dir string
}

func TestMain(m *testing.M) {
	code := m.Run()
	if image.dir != "" {
		os.RemoveAll(image.dir)
	}
	os.Exit(code)
}

// rootfs is a detached overlay over the image, whose upper directory prepare
// may fill with whatever a hostile image could hold. It returns the upper
// directory too, to see what was changed.
func rootfs(t testing.TB, prepare func(upper string)) (*os.File, string) {
	t.Helper()
	requireRoot(t)
	image.Do(func() {
		image.dir = must(os.MkdirTemp("", "recipe-image-"))
		writeImage(t, image.dir)
	})
	dir := t.TempDir()
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if prepare != nil {
		prepare(upper)
	}
	return newMount(t, "overlay", 0, sys.Option{Key: "lowerdir", Value: image.dir},
		sys.Option{Key: "upperdir", Value: upper}, sys.Option{Key: "workdir", Value: work}), upper
}

// mappedRootfs is a rootfs whose files belong to the IDs of a pod with a user
// namespace.
func mappedRootfs(t testing.TB) *os.File {
	t.Helper()
	requireRoot(t)
	m := newMount(t, "tmpfs", 0, sys.Option{Key: "mode", Value: "0755"})
	writeImage(t, sys.ProcPath(m))
	err := filepath.WalkDir(sys.ProcPath(m)+"/", func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, mappedID, mappedID)
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// dev is what the node makes for /dev.
func dev(t testing.TB) *os.File {
	t.Helper()
	m := newMount(t, "tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, sys.Option{Key: "mode", Value: "0755"})
	for name, device := range map[string]uint64{
		"null": unix.Mkdev(1, 3), "zero": unix.Mkdev(1, 5), "full": unix.Mkdev(1, 7),
		"random": unix.Mkdev(1, 8), "urandom": unix.Mkdev(1, 9), "tty": unix.Mkdev(5, 0),
	} {
		err := unix.Mknodat(int(m.Fd()), name, unix.S_IFCHR, int(device))
		if err := errors.Join(err, os.Chmod(sys.ProcPath(m)+"/"+name, 0o666)); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"} {
		if err := os.Symlink(to, sys.ProcPath(m)+"/"+name); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"pts", "shm", "mqueue"} {
		if err := os.Mkdir(sys.ProcPath(m)+"/"+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func devpts(t testing.TB) *os.File {
	return newMount(t, "devpts", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC,
		sys.Option{Key: "ptmxmode", Value: "0666"}, sys.Option{Key: "mode", Value: "0620"})
}

// pod is a pause process with its exits.
type pod struct {
	t     testing.TB
	conn  *pause.Conn
	next  int
	exits map[string]pause.Exit
}

func newPod(t testing.TB, spec recipe.SandboxSpec, namespaces uintptr) *pod {
	t.Helper()
	p, err := tryPod(t, spec, namespaces)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	return p
}

func tryPod(t testing.TB, spec recipe.SandboxSpec, namespaces uintptr) (*pod, error) {
	t.Helper()
	requireRoot(t)
	setup, err := recipe.Sandbox(spec)
	if err != nil {
		t.Fatal(err)
	}
	cfg := pause.Config{Dir: t.TempDir(), Cloneflags: namespaces, Setup: setup}
	if spec.UserNS {
		cfg.Cloneflags |= unix.CLONE_NEWUSER
		cfg.UIDMap = []syscall.SysProcIDMap{{ContainerID: 0, HostID: mappedID, Size: 65536}}
		cfg.GIDMap = cfg.UIDMap
	}
	conn, err := pause.Start(testContext(t), cfg)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		if err := conn.Terminate(); err != nil {
			t.Errorf("Terminate: %v", err)
		}
		<-conn.Done()
		conn.Close()
	})
	return &pod{t: t, conn: conn, exits: map[string]pause.Exit{}}, nil
}

// plainPod is a pod with all namespaces and a host name.
func plainPod(t testing.TB) *pod {
	return newPod(t, recipe.SandboxSpec{Hostname: "pod", ShmSize: 1 << 20}, podNamespaces)
}

// process is what every test starts from: root with all capabilities the node
// has, so that nothing but the recipe itself stands in an attacker's way.
func process(script string) recipe.Process {
	caps := ownCaps()
	return recipe.Process{
		Args: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"},
		Bounding: caps, Effective: caps, Permitted: caps,
	}
}

// ownCaps are the capabilities this process has.
var ownCaps = sync.OnceValue(func() uint64 {
	var data [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		panic(err)
	}
	return uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32
})

// spec is a container with the mounts every container has.
func (p *pod) spec(root *os.File, script string) recipe.ContainerSpec {
	return recipe.ContainerSpec{
		Process: process(script), Rootfs: root, Dev: dev(p.t), Devpts: devpts(p.t),
		Shm: true, Mqueue: true, PrivateProc: true, Sysfs: "ro",
		MaskedPaths:   maskedPaths,
		ReadonlyPaths: readonlyPaths,
	}
}

// containerd's lists.
var (
	maskedPaths = []string{"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap", "/proc/interrupts"}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// result is how a process ended and what it wrote to stdout and stderr.
type result struct {
	out  string
	code int
}

// running is a started process.
type running struct {
	*pause.Process
	pod *pod
	out chan string
}

// start starts a container or, with a PID namespace, an exec.
func (p *pod) start(r *recipe.Recipe, output *os.File, request pause.SpawnRequest) (*running, error) {
	p.t.Helper()
	p.next++
	request.ID, request.Recipe = fmt.Sprint("c", p.next), r
	proc, err := p.conn.Spawn(testContext(p.t), request)
	if err != nil {
		return nil, err
	}
	p.t.Cleanup(func() { proc.Pidfd.Close() })
	run := &running{proc, p, make(chan string, 1)}
	if output != nil {
		go func() {
			b, _ := io.ReadAll(output)
			run.out <- string(b)
		}()
	}
	return run, nil
}

// launch starts a container whose output is read. change may be nil.
func (p *pod) launch(spec recipe.ContainerSpec, namespaces uintptr) (*running, error) {
	p.t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { read.Close() })
	defer write.Close()
	if spec.UserNS {
		write.Chown(mappedID+int(spec.UID), mappedID+int(spec.GID))
	}
	if spec.Stdout == nil {
		spec.Stdout, spec.Stderr = write, write
	}
	r, err := recipe.Container(spec)
	if err != nil {
		p.t.Fatal(err)
	}
	return p.start(r, read, pause.SpawnRequest{Cloneflags: namespaces})
}

// exec starts a process in a container.
func (p *pod) exec(c *running, process recipe.Process, change func(*recipe.ExecSpec)) (*running, error) {
	p.t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { read.Close() })
	defer write.Close()
	spec := recipe.ExecSpec{Process: process, PIDFD: c.Pidfd, Namespaces: unix.CLONE_NEWNS}
	spec.Stdout, spec.Stderr = write, write
	if change != nil {
		change(&spec)
	}
	r, err := recipe.Exec(spec)
	if err != nil {
		p.t.Fatal(err)
	}
	return p.start(r, read, pause.SpawnRequest{PIDNamespace: c.Pidfd})
}

// wait returns how a process ended. Its output must have been piped.
func (r *running) wait() result {
	p := r.pod
	p.t.Helper()
	for {
		if e, ok := p.exits[r.ID]; ok {
			if err := p.conn.Release(testContext(p.t), r.ID); err != nil {
				p.t.Fatal(err)
			}
			code := e.Status.ExitStatus()
			if e.Status.Signaled() {
				code = 128 + int(e.Status.Signal())
			}
			return result{<-r.out, code}
		}
		select {
		case e, ok := <-p.conn.Exits():
			if !ok {
				p.t.Fatalf("pause is gone while waiting for %s", r.ID)
			}
			p.exits[e.ID] = e
		case <-time.After(30 * time.Second):
			unix.PidfdSendSignal(int(r.Pidfd.Fd()), unix.SIGKILL, nil, 0)
			p.t.Fatalf("%s doesn't end", r.ID)
		}
	}
}

// run starts a container and waits; it must start.
func (p *pod) run(spec recipe.ContainerSpec) result {
	p.t.Helper()
	c, err := p.launch(spec, containerNamespaces)
	if err != nil {
		p.t.Fatalf("Spawn: %v%s", err, callOf(err))
	}
	return c.wait()
}

// callOf is the system call that failed, for messages.
func callOf(err error) string {
	var se *recipe.StepError
	if errors.As(err, &se) {
		return fmt.Sprintf("\nstep %d: %s", se.Step, se.Call)
	}
	return ""
}

// expect runs a container, which must end with 0 and have written want.
func (p *pod) expect(spec recipe.ContainerSpec, want string) {
	p.t.Helper()
	if got := p.run(spec); got.out != want || got.code != 0 {
		p.t.Errorf("exit code %d and output:\n%s\nwant 0 and:\n%s", got.code, got.out, want)
	}
}

// refuses runs a container that must not start, and returns the sentence.
func (p *pod) refuses(spec recipe.ContainerSpec) string {
	p.t.Helper()
	c, err := p.launch(spec, containerNamespaces)
	if err == nil {
		p.t.Fatalf("it started: %+v", c.wait())
	}
	var se *recipe.StepError
	if !errors.As(err, &se) {
		p.t.Fatalf("not a failed step: %v", err)
	}
	return err.Error()
}

// hostDir is a directory of the host with a file that nobody may touch, and a
// check that nobody did.
func hostDir(t testing.TB) (dir string, untouched func()) {
	t.Helper()
	dir = t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("host"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := must(os.Stat(file))
	return dir, func() {
		t.Helper()
		data, err := os.ReadFile(file)
		if err != nil || !bytes.Equal(data, []byte("host")) {
			t.Errorf("the host's file was changed: %q, %v", data, err)
		}
		if after := must(os.Stat(file)); after.Mode() != before.Mode() || after.ModTime() != before.ModTime() {
			t.Errorf("the host's file was changed: %v %v, was %v %v", after.Mode(), after.ModTime(), before.Mode(), before.ModTime())
		}
		if names := must(os.ReadDir(dir)); len(names) != 1 {
			t.Errorf("the host's directory now holds %v", names)
		}
	}
}
