package pause

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// TestMain lets the test binary play other processes: see the roles.
func TestMain(m *testing.M) {
	role, ok := roles[os.Getenv("PAUSE_TEST_ROLE")]
	if !ok {
		os.Exit(m.Run())
	}
	if err := role(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

var roles = map[string]func(args []string) error{
	"node":     playNode,
	"starter":  playStarter,
	"stranger": playStranger,
}

func role(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), "PAUSE_TEST_ROLE="+name)
	cmd.Stderr = os.Stderr
	return cmd
}

func TestReconnect(t *testing.T) {
	dir := t.TempDir()
	old := start(t, Config{Dir: dir})
	r, w := pipe(t)
	lines := new(blob)
	lines.call(unix.SYS_DUP3, lines.file(w), 1, 0)
	in, inw := pipe(t)
	lines.call(unix.SYS_DUP3, lines.file(in), 0, 0)
	lines.exec("/bin/cat")
	p := spawn(t, old, SpawnRequest{ID: "cat", Recipe: lines, Keep: []*os.File{r, inw}})
	spawn(t, old, SpawnRequest{ID: "early", Recipe: exits(4)})
	awaitExit(t, old, "early") // delivered, but never released
	for _, f := range []*os.File{r, w, in, inw} {
		f.Close()
	}
	old.Close()
	if _, ok := <-old.Exits(); ok {
		t.Error("Exits is open after Close")
	}
	if _, err := old.Children(testContext(t)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Children of a closed connection: %v", err)
	}

	c, err := Connect(testContext(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.PID() != old.PID() || c.Version() != protocolVersion {
		t.Errorf("connected to %d, version %d; want %d, %d", c.PID(), c.Version(), old.PID(), protocolVersion)
	}
	children, err := c.Children(testContext(t))
	if err != nil || len(children) != 2 {
		t.Fatalf("Children = %v, %v; want two", children, err)
	}
	cat, early := children[0], children[1]
	if cat.ID != "cat" || cat.PID != p.PID || cat.Exited || len(cat.Keep) != 2 || !cat.StartedAt.Equal(p.StartedAt) {
		t.Fatalf("cat = %+v; want PID %d, started %v", cat, p.PID, p.StartedAt)
	}
	if early.ID != "early" || !early.Exited || early.Status.ExitStatus() != 4 || early.Pidfd != nil || early.FinishedAt.Before(early.StartedAt) {
		t.Errorf("early = %+v", early)
	}
	awaitExit(t, c, "early") // again
	release(t, c, "early")

	// What was kept still talks with the container.
	if _, err := cat.Keep[1].WriteString("still here"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 32)
	if n, err := cat.Keep[0].Read(buf); string(buf[:n]) != "still here" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	if err := unix.PidfdSendSignal(int(cat.Pidfd.Fd()), unix.SIGTERM, nil, 0); err != nil {
		t.Fatal(err)
	}
	if e := awaitExit(t, c, "cat"); !e.Status.Signaled() || e.Status.Signal() != unix.SIGTERM {
		t.Errorf("status %#x, want SIGTERM", e.Status)
	}
	release(t, c, "cat")
	cat.close()
	noChildren(t, c)
}

func exits(code int) *blob {
	b := new(blob)
	b.exit(code)
	return b
}

// The end of a container's stdin, whose other end pause keeps.
func TestDropKept(t *testing.T) {
	c := start(t, Config{})
	in, inw := pipe(t)
	other, _ := pipe(t)
	b := new(blob)
	b.call(unix.SYS_DUP3, b.file(in), 0, 0)
	b.exec("/bin/cat")
	spawn(t, c, SpawnRequest{ID: "cat", Recipe: b, Keep: []*os.File{other, inw}})
	inw.Close()
	if err := c.DropKept(testContext(t), "cat"); err != nil {
		t.Fatal(err)
	}
	if e := awaitExit(t, c, "cat"); e.Status != 0 {
		t.Errorf("status %#x, want 0", e.Status)
	}
	children, err := c.Children(testContext(t))
	if err != nil || len(children) != 1 || len(children[0].Keep) != 1 {
		t.Fatalf("Children = %+v, %v; want one descriptor left", children, err)
	}
	children[0].close()
	if err := c.DropKept(testContext(t), "cat"); err != nil {
		t.Error(err)
	}
	for _, id := range []string{"cat", "nobody"} {
		if err := c.DropKept(testContext(t), id); !errdefs.IsNotFound(err) {
			t.Errorf("DropKept(%s) where nothing is kept: %v", id, err)
		}
	}
	release(t, c, "cat")
}

// A second connection takes over; the first one learns it.
func TestReplaced(t *testing.T) {
	dir := t.TempDir()
	old := start(t, Config{Dir: dir})
	c, err := Connect(testContext(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range old.Exits() {
	}
	if _, err := old.Children(testContext(t)); !errdefs.IsUnavailable(err) {
		t.Errorf("Children on the old connection: %v, want unavailable", err)
	}
	if _, err := old.Spawn(testContext(t), SpawnRequest{ID: "x", Recipe: exits(0)}); !errdefs.IsUnavailable(err) {
		t.Errorf("Spawn on the old connection: %v, want unavailable", err)
	}
	spawn(t, c, SpawnRequest{ID: "x", Recipe: exits(0)})
	awaitExit(t, c, "x")
}

// A spawn is under way when its connection is replaced: its child never reaches
// its program, and what became of it is known to the next connection.
func TestReplacedWhileSpawning(t *testing.T) {
	dir := t.TempDir()
	old := start(t, Config{Dir: dir})
	r, w := pipe(t)
	ran := filepath.Join(t.TempDir(), "ran")
	b := new(blob)
	b.call(unix.SYS_READ, b.file(r), b.bytes(make([]byte, 8)), 1)
	b.exec("/usr/bin/touch", ran)
	result := make(chan error)
	go func() {
		_, err := old.Spawn(testContext(t), SpawnRequest{ID: "x", Recipe: b})
		result <- err
	}()
	eventually(t, "the child exists", func() bool { return len(childrenOf(t, old.PID())) == 1 })
	old.Close()
	if err := <-result; err == nil {
		t.Error("Spawn succeeded over a closed connection")
	}
	c, err := Connect(testContext(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w.WriteString("!")
	e := awaitExit(t, c, "x")
	if _, err := os.Stat(ran); err == nil {
		t.Errorf("the child executed its program; it ended with %#x", e.Status)
	}
	release(t, c, "x")
}

func TestConnectToNothing(t *testing.T) {
	if _, err := Connect(testContext(t), filepath.Join(t.TempDir(), "none")); !errdefs.IsNotFound(err) {
		t.Errorf("no directory: %v", err)
	}
	dir := t.TempDir()
	if _, err := Connect(testContext(t), dir); !errdefs.IsNotFound(err) {
		t.Errorf("no socket: %v", err)
	}
	c := start(t, Config{Dir: dir})
	if _, err := Start(testContext(t), Config{Dir: dir, Cloneflags: podNamespaces}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("Start where a pause lives: %v", err)
	}
	noChildren(t, c) // undisturbed
	end(t, c)
	if err := c.Terminate(); err != nil {
		t.Errorf("Terminate of a dead pause: %v", err)
	}
	eventually(t, "no pause", func() bool {
		_, err := Connect(testContext(t), dir)
		return errdefs.IsNotFound(err)
	})
	start(t, Config{Dir: dir}) // its stale socket is replaced
}

// Requests that wait when pause dies end, and the channels are closed.
func TestPauseDies(t *testing.T) {
	c := start(t, Config{})
	r, _ := pipe(t)
	b := new(blob)
	b.call(unix.SYS_READ, b.file(r), b.bytes(make([]byte, 8)), 1)
	b.exec("/bin/true")
	result := make(chan error)
	go func() {
		_, err := c.Spawn(testContext(t), SpawnRequest{ID: "x", Recipe: b})
		result <- err
	}()
	eventually(t, "the child exists", func() bool { return len(childrenOf(t, c.PID())) == 1 })
	c.Terminate()
	if err := <-result; err == nil {
		t.Error("Spawn succeeded")
	}
	<-c.Done()
	for range c.Exits() {
	}
	if _, err := c.Children(testContext(t)); !errdefs.IsUnavailable(err) {
		t.Errorf("Children: %v, want unavailable", err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", c.PID())); err == nil {
		t.Errorf("pause %d hasn't been reaped", c.PID())
	}
}

// childrenOf lists the PIDs whose parent is pid.
func childrenOf(t testing.TB, pid int) []int {
	t.Helper()
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for f := range strings.FieldsSeq(string(list)) {
		p, _ := strconv.Atoi(f)
		pids = append(pids, p)
	}
	return pids
}

// ---- a node that is killed ----

// playNode starts a pod with two containers, one of which ends soon, and waits
// to be killed.
func playNode(args []string) error {
	ctx := context.Background()
	c, err := Start(ctx, Config{Dir: args[0], Cloneflags: podNamespaces})
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	b := new(blob)
	b.call(unix.SYS_DUP3, b.file(w), 1, 0)
	b.exec("/bin/sh", "-c", "echo one; read x <"+args[1]+"; echo two; ulimit -Sn; exit 5")
	if _, err := c.Spawn(ctx, SpawnRequest{ID: "main", Recipe: b, Keep: []*os.File{r}}); err != nil {
		return err
	}
	fmt.Println(c.PID())
	time.Sleep(time.Hour)
	return nil
}

func TestNodeKilled(t *testing.T) {
	requireRoot(t)
	dir, fifo := t.TempDir(), filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	node := role(t, "node", dir, fifo)
	// Its soft limit is less than its hard one: pause uses all, containers get
	// what the node was given.
	node.Args = append([]string{"/bin/sh", "-c", `ulimit -Sn 123; exec "$@"`, "sh"}, append([]string{node.Path}, node.Args[1:]...)...)
	node.Path = "/bin/sh"
	out, err := node.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the node said %q: %v", line, err)
	}
	if err := node.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	node.Wait()
	// The container ends while there is no node.
	if err := os.WriteFile(fifo, []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}

	c, err := Connect(testContext(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer end(t, c)
	if fmt.Sprintln(c.PID()) != line {
		t.Errorf("pause is %d, the node had said %s", c.PID(), line)
	}
	if e := awaitExit(t, c, "main"); e.Status.ExitStatus() != 5 {
		t.Errorf("status %#x, want exit 5", e.Status)
	}
	children, err := c.Children(testContext(t))
	if err != nil || len(children) != 1 || len(children[0].Keep) != 1 {
		t.Fatalf("Children = %+v, %v", children, err)
	}
	got, err := io.ReadAll(children[0].Keep[0])
	if string(got) != "one\ntwo\n123\n" {
		t.Errorf("kept pipe: read %q, %v", got, err)
	}
	children[0].close()
	release(t, c, "main")
	noChildren(t, c)
}

// playStarter starts pods with a container each, until it is killed.
func playStarter(args []string) error {
	m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
	for i := 0; ; i++ {
		cfg := Config{Dir: filepath.Join(args[0], fmt.Sprint(i)), Cloneflags: podNamespaces}
		if i%2 == 1 {
			cfg.Cloneflags, cfg.UIDMap, cfg.GIDMap = cfg.Cloneflags|unix.CLONE_NEWUSER, m, m
		}
		setup := new(blob)
		setup.call(unix.SYS_SETHOSTNAME, setup.str("set up"), 6)
		cfg.Setup = setup
		if err := os.Mkdir(cfg.Dir, 0o700); err != nil {
			return err
		}
		c, err := Start(context.Background(), cfg)
		if err != nil {
			return err
		}
		b := new(blob)
		b.exec("/bin/sleep", "1000")
		if _, err := c.Spawn(context.Background(), SpawnRequest{ID: "x", Recipe: b, Cloneflags: unix.CLONE_NEWPID}); err != nil {
			return err
		}
	}
}

// The node is killed at any instant while it starts pods. Of each pod there is
// either nothing, or a pause that is set up and whose child runs its program or
// has ended.
func TestNodeKilledAnywhere(t *testing.T) {
	requireRoot(t)
	// Orphans become ours, so that we see them all.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	found, step := 0, 331*time.Microsecond
	for round := range 40 {
		if round%10 == 9 && found == 0 {
			step *= 8 // a slow machine
		}
		top := t.TempDir()
		node := role(t, "starter", top)
		if err := node.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the first pod", func() bool {
			_, err := os.Stat(filepath.Join(top, "0"))
			return err == nil
		})
		time.Sleep(time.Duration(round) * step)
		node.Process.Kill()
		node.Wait()
		dirs, err := os.ReadDir(top)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range dirs {
			found += endOrphan(t, filepath.Join(top, d.Name()))
		}
		eventually(t, "every pause has ended", func() bool {
			for {
				if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 {
					return err == unix.ECHILD
				}
			}
		})
	}
	if found == 0 {
		t.Error("no pod was ever made")
	}
}

// endOrphan checks the pod in dir, if there is one, and ends it.
func endOrphan(t *testing.T, dir string) int {
	t.Helper()
	c, err := Connect(testContext(t), dir)
	if errdefs.IsNotFound(err) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	spawn(t, c, SpawnRequest{ID: "check", Recipe: shell(`test "$(hostname)" = "set up"`)})
	e := <-c.Exits()
	if e.ID == "x" { // it had not yet been about to execute its program
		release(t, c, "x")
		e = <-c.Exits()
	}
	if e.ID != "check" || e.Status != 0 {
		t.Errorf("a pause that isn't set up: %+v", e)
	}
	release(t, c, "check")
	children, err := c.Children(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, ch := range children {
		eventually(t, "the child runs its program or ends", func() bool {
			name := status(ch.PID, "Name")
			return ch.Exited || name == "sleep" || name == ""
		})
		ch.close()
	}
	if err := c.Terminate(); err != nil {
		t.Error(err)
	}
	<-c.Done()
	return 1
}

// sockets are what a pause is born with: its listener, in a directory of the
// test's, and both ends of its first connection.
func sockets(t *testing.T) (dir string, listener int, pair [2]int) {
	t.Helper()
	d, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if listener, err = bind(testContext(t), d); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(listener) })
	if pair, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	return d.Name(), listener, pair
}

// A node that dies before pause is set up leaves nothing: neither if it hasn't
// asked for it, nor if pause is just about it.
func TestNodeKilledBeforeSetup(t *testing.T) {
	requireRoot(t)
	for _, asked := range []bool{false, true} {
		dir, listener, pair := sockets(t)
		p, err := run(Config{Cloneflags: podNamespaces}, listener, pair)
		if err != nil {
			t.Fatal(err)
		}
		c, err := newConn(pair[0], p)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.hello(testContext(t)); err != nil {
			t.Fatal(err)
		}
		busy, r, w := make(chan error), (*os.File)(nil), (*os.File)(nil)
		if asked {
			r, w = pipe(t)
			setup := new(blob)
			setup.call(unix.SYS_SETHOSTNAME, setup.str("x"), 1)
			setup.call(unix.SYS_READ, setup.file(r), setup.bytes(make([]byte, 8)), 1)
			go func() { busy <- c.prepare(testContext(t), Config{Setup: setup}) }()
			eventually(t, "pause waits in its recipe", func() bool {
				call, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", p.pid))
				return err == nil && strings.HasPrefix(string(call), fmt.Sprint(unix.SYS_READ, " "))
			})
		}
		// Nobody else can reach it before it is set up.
		if _, err := Connect(testContext(t), dir); !errdefs.IsNotFound(err) {
			t.Errorf("Connect: %v, want not found", err)
		}
		c.Close()
		if asked {
			if err := <-busy; err == nil {
				t.Error("the SETUP of a lost connection succeeded")
			}
			w.WriteString("!")
		}
		select {
		case <-p.done:
		case <-time.After(30 * time.Second):
			p.kill()
			t.Errorf("pause lives on; SETUP was sent: %v", asked)
		}
	}
}

// ---- a stranger at the socket ----

// playStranger connects to a socket as a user and waits for pause to hang up.
func playStranger(args []string) error {
	uid, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(s, &unix.SockaddrUnix{Name: args[0]}); err != nil {
		return err
	}
	hello := request{Type: typeHello, Serial: 1, Magic: protocolMagic}
	unix.Write(s, hello.encode())
	b := make([]byte, messageSize)
	if n, err := unix.Read(s, b); n > 0 {
		return fmt.Errorf("pause answered: %v", b[:n])
	} else if err != nil && !errors.Is(err, unix.ECONNRESET) {
		return err
	}
	fmt.Println("turned away")
	return nil
}

func TestStranger(t *testing.T) {
	dir := t.TempDir()
	c := start(t, Config{Dir: dir})
	sock := filepath.Join(dir, socketName)
	if info, err := os.Stat(sock); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v; want mode 0600", info, err)
	}
	// Even if the file system let him in:
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(sock, 0o666); err != nil {
		t.Fatal(err)
	}
	cmd := role(t, "stranger", sock, "1234")
	exe, err := os.ReadFile(cmd.Path)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Path = filepath.Join(dir, "stranger")
	if err := os.WriteFile(cmd.Path, exe, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := cmd.Output(); string(out) != "turned away\n" {
		t.Errorf("stranger: %q, %v", out, err)
	}
	// Nor may a container that the socket was mounted into, as root.
	got := runs(t, c, SpawnRequest{ID: "x"}, fmt.Sprintf("PAUSE_TEST_ROLE=stranger exec %s %s 0", cmd.Path, sock))
	if got != "turned away" {
		t.Errorf("stranger in a container: %q", got)
	}
	noChildren(t, c) // and the node's connection still stands
}
