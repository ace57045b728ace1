package harness

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
)

// Process is a unipod that runs while the test goes on. What it prints is read
// line by line.
type Process struct {
	t   testing.TB
	cmd *exec.Cmd
	out bytes.Buffer

	mu    sync.Mutex
	grown *sync.Cond
	lines []string
	ended bool
	wait  func() error
}

// Start starts a command. It is killed when the test is over.
func (m *Machine) Start(args ...string) *Process {
	m.T.Helper()
	return m.start(args, false)
}

// StartApart is Start with standard output kept apart from the lines.
func (m *Machine) StartApart(args ...string) *Process {
	m.T.Helper()
	return m.start(args, true)
}

func (m *Machine) start(args []string, apart bool) *Process {
	m.T.Helper()
	p := &Process{t: m.T, cmd: m.Command(args...)}
	p.grown = sync.NewCond(&p.mu)
	r, w, err := os.Pipe()
	if err != nil {
		m.T.Fatal(err)
	}
	p.cmd.Stdout, p.cmd.Stderr = w, w
	if apart {
		p.cmd.Stdout = &p.out
	}
	if err := p.cmd.Start(); err != nil {
		m.T.Fatal(err)
	}
	w.Close()
	go p.read(r)
	p.wait = sync.OnceValue(p.cmd.Wait)
	m.T.Cleanup(func() {
		p.cmd.Process.Kill()
		p.wait()
		if m.T.Failed() {
			m.T.Logf("%v printed:\n%s", args, p.Printed())
		}
	})
	return p
}

func (p *Process) read(r io.ReadCloser) {
	defer r.Close()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		p.mu.Lock()
		p.lines = append(p.lines, lines.Text())
		p.grown.Broadcast()
		p.mu.Unlock()
	}
	p.mu.Lock()
	p.ended = true
	p.grown.Broadcast()
	p.mu.Unlock()
}

// Lines are those it printed so far.
func (p *Process) Lines() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lines[:len(p.lines):len(p.lines)]
}

// Printed is all it printed so far.
func (p *Process) Printed() string { return strings.Join(p.Lines(), "\n") }

// Output is what a process that was started apart said on standard output.
// It is whole when Code has returned.
func (p *Process) Output() []byte { return p.out.Bytes() }

// Until waits until so many printed lines match, and reports whether they did
// before the end.
func (p *Process) Until(match func(line string) bool, times int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for seen, next := 0, 0; ; {
		for ; next < len(p.lines); next++ {
			if match(p.lines[next]) {
				if seen++; seen == times {
					return true
				}
			}
		}
		if p.ended {
			return false
		}
		p.grown.Wait()
	}
}

// Says waits for a line that contains text. If none comes, the test ends.
func (p *Process) Says(text string) {
	p.t.Helper()
	if !p.Until(func(line string) bool { return strings.Contains(line, text) }, 1) {
		p.t.Fatalf("it ended without saying %q:\n%s", text, p.Printed())
	}
}

// Signal sends it a signal, if it is still there.
func (p *Process) Signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Error(err)
	}
}

// Code waits for the end and returns the exit code; -1 when it was killed. A
// process that can't be waited for ends the test.
func (p *Process) Code() int {
	p.t.Helper()
	err := p.wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.t.Fatal(err)
	}
	return p.cmd.ProcessState.ExitCode()
}
