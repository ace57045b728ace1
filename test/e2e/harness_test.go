// Package e2e runs unipod as its users do: the real command line, the real
// kernel, images without a registry. The test binary itself is unipod when it
// is told so, so that the race detector watches it too.
//
// Everything happens in a network namespace of its own and in directories of
// its own, so that it disturbs nobody and can say for sure what was left
// behind. Floor: none; nothing imports it.
package e2e

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
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"unipod.dev/unipod/internal/cli"
)

// role is the environment variable that says what this binary is to be.
const role = "UNIPOD_E2E_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "unipod":
		os.Exit(cli.Main(os.Args[1:]))
	case "test":
		os.Exit(m.Run())
	}
	if os.Geteuid() != 0 {
		fmt.Println("skipped: end-to-end tests make pods, which needs root")
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

// raceNote is what kubectl's code says on standard error of a program that was
// built with the race detector.
var raceNote = regexp.MustCompile(`(?m)^I\d{4} .*\] Data race detection enabled\n`)

// imageName is the image that every test's pods run.
const imageName = "localhost/unipod-demo:1"

// node is a machine with unipod on it: its directories.
type node struct {
	t         testing.TB
	root, run string
}

// newNode makes one with the test image loaded. When the test is over,
// nothing may be left of it.
func newNode(t testing.TB) *node {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	n := &node{t: t, root: filepath.Join(dir, "root"), run: filepath.Join(dir, "run")}
	tar := filepath.Join(dir, "image.tar")
	if out, err := exec.Command("../../examples/demo/image.sh", imageName, tar).CombinedOutput(); err != nil {
		t.Fatalf("making the image: %v\n%s", err, out)
	}
	if code, out := n.do("image", "load", tar); code != 0 {
		t.Fatalf("image load: code %d\n%s", code, out)
	}
	t.Cleanup(n.nothingLeft)
	return n
}

func (n *node) command(args ...string) *exec.Cmd {
	if len(args) > 0 && args[0] == "serve" {
		// How full the disk of the machine is that tests is none of their business;
		// a test that makes it so says it later on the line.
		args = slices.Insert(slices.Clone(args), 1, "--eviction-hard=", "--image-gc-high-threshold=100")
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), role+"=unipod", "UNIPOD_ROOT="+n.root, "UNIPOD_RUN="+n.run)
	// A test that fails must not leave it running, nor must it be reached by
	// a Ctrl-C that is meant for the test.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	return cmd
}

// do runs a command to its end and returns its code and all it printed.
func (n *node) do(args ...string) (int, string) {
	n.t.Helper()
	out, err := n.command(args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		n.t.Fatal(err)
	}
	out = raceNote.ReplaceAll(out, nil)
	if exit != nil {
		return exit.ExitCode(), string(out)
	}
	return 0, string(out)
}

// get runs a command that prints JSON into v.
func (n *node) get(v any, args ...string) {
	n.t.Helper()
	out, err := n.command(args...).Output()
	if err != nil {
		n.t.Fatalf("%v: %v", args, err)
	}
	if err := json.Unmarshal(out, v); err != nil {
		n.t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// file writes a manifest. IMAGE in it stands for the test image.
func (n *node) file(name, text string) string {
	n.t.Helper()
	path := filepath.Join(filepath.Dir(n.root), name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	text = strings.ReplaceAll(text, "IMAGE", imageName+"\n    imagePullPolicy: Never")
	if err := os.WriteFile(path+".tmp", []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		n.t.Fatal(err)
	}
	return path
}

// background is a unipod that runs while the test goes on.
type background struct {
	t   testing.TB
	cmd *exec.Cmd

	mu    sync.Mutex
	grown *sync.Cond
	text  bytes.Buffer // all it printed so far
	ended bool
	wait  func() error
}

func (n *node) start(args ...string) *background {
	n.t.Helper()
	b := &background{t: n.t, cmd: n.command(args...)}
	b.grown = sync.NewCond(&b.mu)
	r, w, err := os.Pipe()
	if err != nil {
		n.t.Fatal(err)
	}
	b.cmd.Stdout, b.cmd.Stderr = w, w
	if err := b.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	w.Close()
	go b.read(r)
	b.wait = sync.OnceValue(b.cmd.Wait)
	n.t.Cleanup(func() {
		b.cmd.Process.Kill()
		b.wait()
		if n.t.Failed() {
			n.t.Logf("%v printed:\n%s", args, b.printed())
		}
	})
	return b
}

func (b *background) read(r io.ReadCloser) {
	defer r.Close()
	for lines := bufio.NewScanner(r); lines.Scan(); {
		b.mu.Lock()
		b.text.WriteString(lines.Text() + "\n")
		b.grown.Broadcast()
		b.mu.Unlock()
	}
	b.mu.Lock()
	b.ended = true
	b.grown.Broadcast()
	b.mu.Unlock()
}

func (b *background) printed() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// until waits for a line that contains text and returns it.
func (b *background) until(text string) string {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		for line := range strings.Lines(b.text.String()) {
			if strings.Contains(line, text) {
				return line
			}
		}
		if b.ended {
			b.t.Fatalf("it ended without saying %q:\n%s", text, b.text.String())
		}
		b.grown.Wait()
	}
}

func (b *background) signal(s os.Signal) {
	b.t.Helper()
	if err := b.cmd.Process.Signal(s); err != nil {
		b.t.Fatal(err)
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

// nothingLeft fails the test when anything of its pods is left on the machine.
func (n *node) nothingLeft() {
	if n.t.Failed() {
		return // it had no chance to clean up
	}
	t := n.t
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, n.root) || strings.Contains(line, n.run) {
			t.Errorf("a mount is left: %s", line)
		}
	}
	for _, pattern := range []string{"/sandboxes/*", "/containers/*"} {
		left, err := filepath.Glob(n.run + pattern)
		if err != nil || len(left) > 0 {
			t.Errorf("records are left: %q %v", left, err)
		}
	}
	for _, pattern := range []string{"/containers/*", "/play/[^.]*", "/pods/*"} {
		left, err := filepath.Glob(n.root + pattern)
		if err != nil || len(left) > 0 {
			t.Errorf("directories are left: %q %v", left, err)
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Type() == "veth" || l.Type() == "bridge" {
			t.Errorf("a link is left: %s", l.Attrs().Name)
		}
	}
	tables, err := (&nftables.Conn{}).ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		t.Errorf("a table is left: %s", table.Name)
	}
}

// groupsOf lists the control groups that carry a pod's UID.
func groupsOf(t *testing.T, uid string) []string {
	t.Helper()
	var found []string
	for _, depth := range []string{"*", "*/*", "*/*/*", "*/*/*/*"} {
		all, err := filepath.Glob("/sys/fs/cgroup/" + depth)
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range all {
			if strings.Contains(filepath.Base(dir), uid) {
				found = append(found, dir)
			}
		}
	}
	return slices.Compact(found)
}
