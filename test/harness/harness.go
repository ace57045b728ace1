// Package harness runs unipod as its users do, for the suites that test the
// whole: the real command line on directories of its own, on the real kernel,
// in a network namespace of the suite's. The test binary itself is unipod when
// it is told so, so that the race detector watches it too.
//
// A [Machine]'s methods may be called by any goroutine of its test but those
// that say that they end the test. What a test starts ends with it, at the
// latest when its process dies. Floor: none; only tests import it.
package harness

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"unipod.dev/unipod/internal/cli"
	"unipod.dev/unipod/test/isolate"
)

// AsUnipod in its environment makes the test binary unipod.
const (
	AsUnipod = role + "=unipod"
	role     = "UNIPOD_TEST_ROLE"
)

// Main is the TestMain of a suite that makes pods: it runs the tests in new
// namespaces (see [isolate.Namespaces]), or is unipod.
func Main(m *testing.M, namespaces uintptr) {
	if os.Getenv(role) == "unipod" {
		os.Exit(cli.Main(os.Args[1:]))
	}
	if os.Geteuid() != 0 {
		fmt.Println("skipped: these tests make pods, which needs root")
		os.Exit(0)
	}
	isolate.Namespaces(namespaces)
	os.Exit(m.Run())
}

// Machine is a place where unipod runs: its directories, and what it is told
// about its runtime.
type Machine struct {
	T              testing.TB
	Dir, Root, Run string
	// Endpoint is another runtime's socket; empty for unipod's own.
	Endpoint string
}

// New makes one in a directory. Nothing is made there yet.
func New(t testing.TB, dir string) *Machine {
	return &Machine{T: t, Dir: dir, Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run")}
}

// Command is unipod with these arguments, yet to be started.
func (m *Machine) Command(args ...string) *exec.Cmd {
	if m.Endpoint != "" && (args[0] == "play" || args[0] == "serve") {
		args = append([]string{args[0], "--runtime-endpoint", m.Endpoint}, args[1:]...)
	}
	if len(args) > 0 && args[0] == "serve" && !slices.Contains(args, "--only") {
		// How full the disk of the machine is that tests is none of their business;
		// a test that makes it so says it later on the line.
		args = slices.Insert(slices.Clone(args), 1, "--eviction-hard=", "--image-gc-high-threshold=100")
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), AsUnipod, "UNIPOD_ROOT="+m.Root, "UNIPOD_RUN="+m.Run)
	// A test that fails must not leave it running, nor must it be reached by
	// a Ctrl-C that is meant for the test.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	return cmd
}

// raceNote is what kubectl's code says on standard error of a program that was
// built with the race detector.
var raceNote = regexp.MustCompile(`(?m)^I\d{4} .*\] Data race detection enabled\n`)

// Do runs a command to its end and returns its code and all it printed. A
// command that can't be run ends the test.
func (m *Machine) Do(args ...string) (int, string) {
	m.T.Helper()
	out, err := m.Command(args...).CombinedOutput()
	return m.exitCode(err), string(raceNote.ReplaceAll(out, nil))
}

// Answer is what a command says on standard output alone. A command that can't
// be run ends the test; one that fails doesn't.
func (m *Machine) Answer(args ...string) string {
	m.T.Helper()
	out, err := m.Command(args...).Output()
	m.exitCode(err)
	return strings.TrimSpace(string(out))
}

func (m *Machine) exitCode(err error) int {
	m.T.Helper()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		m.T.Fatal(err)
	}
	return 0
}

// Get runs a command that prints JSON into v.
func (m *Machine) Get(v any, args ...string) error {
	out, err := m.Command(args...).Output()
	if err != nil {
		return fmt.Errorf("%v: %w", args, err)
	}
	if err := json.Unmarshal(out, v); err != nil {
		return fmt.Errorf("%v: %w\n%s", args, err, out)
	}
	return nil
}

// File writes one below the machine's directory, whole at once, and returns its
// path. One that can't be written ends the test.
func (m *Machine) File(name, text string) string {
	m.T.Helper()
	path := filepath.Join(m.Dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.T.Fatal(err)
	}
	if err := os.WriteFile(path+".tmp", []byte(text), 0o644); err != nil {
		m.T.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		m.T.Fatal(err)
	}
	return path
}

// NothingMounted fails the test when a mount of the machine's is left.
func (m *Machine) NothingMounted() {
	m.T.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		m.T.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, m.Root) || strings.Contains(line, m.Run) {
			m.T.Errorf("a mount is left: %s", line)
		}
	}
}

// DemoImage is the image of examples/demo.
const DemoImage = "localhost/unipod-demo:1"

// LoadDemo gives the machine the image of examples/demo.
func (m *Machine) LoadDemo() {
	m.T.Helper()
	tar := filepath.Join(m.Dir, "image.tar")
	if out, err := exec.Command("../../examples/demo/image.sh", DemoImage, tar).CombinedOutput(); err != nil {
		m.T.Fatalf("making the image: %v\n%s", err, out)
	}
	if code, out := m.Do("image", "load", tar); code != 0 {
		m.T.Fatalf("image load: code %d\n%s", code, out)
	}
}
