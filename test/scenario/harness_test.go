// Package scenario runs whole pods and compares their lives with the story
// that Kubernetes promises: testdata/NAME.yaml is the manifest, NAME.story
// what must become of it (see parseStory for the grammar).
//
// All scenarios run at the same time, through the real command line, on the
// real kernel, with an image made here; the test binary itself is unipod when
// it is told so, so that the race detector watches it too. With
// UNIPOD_SCENARIO_RUNTIME=containerd the same scenarios run on a containerd
// started here: the engine's only tie to a runtime is the CRI.
//
// Floor: none; nothing imports it.
package scenario

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"unipod.dev/unipod/internal/cli"
)

// role is the environment variable that says what this binary is to be.
const role = "UNIPOD_SCENARIO_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "unipod":
		os.Exit(cli.Main(os.Args[1:]))
	case "test":
		os.Exit(m.Run())
	}
	if os.Geteuid() != 0 {
		fmt.Println("skipped: scenarios make pods, which needs root")
		os.Exit(0)
	}
	os.Exit(isolated())
}

// isolated runs this binary's tests in a network namespace of their own.
func isolated() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), role+"=test")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode()
	case err != nil:
		fmt.Println("running the tests in a network namespace:", err)
		return 1
	}
	return 0
}

// machine is a place where scenarios run: unipod's directories, and what it
// is told about its runtime.
type machine struct {
	t              *testing.T
	dir, root, run string
	// endpoint is another runtime's socket; empty for unipod's own.
	endpoint string
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	return &machine{t: t, dir: dir, root: filepath.Join(dir, "root"), run: filepath.Join(dir, "run")}
}

// runtime makes ready what shall run the pods, with the image in it, and names
// it.
func (m *machine) runtime(archive string) string {
	m.t.Helper()
	if os.Getenv("UNIPOD_SCENARIO_RUNTIME") == "containerd" {
		m.startContainerd(archive)
		return "containerd"
	}
	if code, out := m.do("image", "load", archive); code != 0 {
		m.t.Fatalf("image load: code %d\n%s", code, out)
	}
	return "unipod"
}

// file writes one below the machine's directory and returns its path.
func (m *machine) file(name, text string) string {
	m.t.Helper()
	path := filepath.Join(m.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path+".tmp", []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		m.t.Fatal(err)
	}
	return path
}

func (m *machine) command(args ...string) *exec.Cmd {
	if m.endpoint != "" && (args[0] == "play" || args[0] == "serve") {
		args = append([]string{args[0], "--runtime-endpoint", m.endpoint}, args[1:]...)
	}
	if args[0] == "serve" {
		// How full the disk of the machine is that tests is none of their business.
		args = slices.Insert(slices.Clone(args), 1, "--eviction-hard=", "--image-gc-high-threshold=100")
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), role+"=unipod", "UNIPOD_ROOT="+m.root, "UNIPOD_RUN="+m.run)
	// A test that fails must not leave it running, nor must it be reached by
	// a Ctrl-C that is meant for the test.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	return cmd
}

// do runs a command to its end and returns its code and all it printed.
func (m *machine) do(args ...string) (int, string) {
	m.t.Helper()
	out, err := m.command(args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.t.Fatal(err)
	}
	if exit != nil {
		return exit.ExitCode(), string(out)
	}
	return 0, string(out)
}

// answer is do with standard output alone.
func (m *machine) answer(args ...string) string {
	m.t.Helper()
	out, err := m.command(args...).Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// get runs a command that prints JSON into v.
func (m *machine) get(v any, args ...string) error {
	out, err := m.command(args...).Output()
	if err != nil {
		return fmt.Errorf("%v: %w", args, err)
	}
	return json.Unmarshal(out, v)
}

// background is a unipod that runs while the test goes on. What it prints to
// standard error is read line by line.
type background struct {
	t   *testing.T
	cmd *exec.Cmd
	out bytes.Buffer // standard output; complete when it has ended

	mu    sync.Mutex
	grown *sync.Cond
	lines []string
	ended bool
	wait  func() error
}

func (m *machine) start(args ...string) *background {
	m.t.Helper()
	b := &background{t: m.t, cmd: m.command(args...)}
	b.grown = sync.NewCond(&b.mu)
	r, w, err := os.Pipe()
	if err != nil {
		m.t.Fatal(err)
	}
	b.cmd.Stdout, b.cmd.Stderr = &b.out, w
	if err := b.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	w.Close()
	go b.read(r)
	b.wait = sync.OnceValue(b.cmd.Wait)
	m.t.Cleanup(func() {
		b.cmd.Process.Kill()
		b.wait()
		if m.t.Failed() {
			m.t.Logf("%v printed:\n%s", args, strings.Join(b.printed(), "\n"))
		}
	})
	return b
}

func (b *background) read(r io.ReadCloser) {
	defer r.Close()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		b.mu.Lock()
		b.lines = append(b.lines, lines.Text())
		b.grown.Broadcast()
		b.mu.Unlock()
	}
	b.mu.Lock()
	b.ended = true
	b.grown.Broadcast()
	b.mu.Unlock()
}

func (b *background) printed() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lines[:len(b.lines):len(b.lines)]
}

// until waits until so many printed lines match, and reports whether they
// did before the end.
func (b *background) until(match func(line string) bool, times int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for seen, next := 0, 0; ; {
		for ; next < len(b.lines); next++ {
			if match(b.lines[next]) {
				if seen++; seen == times {
					return true
				}
			}
		}
		if b.ended {
			return false
		}
		b.grown.Wait()
	}
}

// contains waits for a line that contains text.
func (b *background) contains(text string) {
	b.t.Helper()
	if !b.until(func(line string) bool { return strings.Contains(line, text) }, 1) {
		b.t.Fatalf("it ended without saying %q", text)
	}
}

func (b *background) signal(s os.Signal) {
	if err := b.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		b.t.Error(err)
	}
}

// code waits for the end and returns the exit code; -1 when it was killed.
func (b *background) code() int {
	b.t.Helper()
	err := b.wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		b.t.Fatal(err)
	}
	return b.cmd.ProcessState.ExitCode()
}
