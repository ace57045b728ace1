package recipe

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestEncodeBytes spells the wire format out, byte by byte.
func TestEncodeBytes(t *testing.T) {
	b := New()
	fd := b.FD("x", null(t))
	first := b.Call("opening", 257, Int(-100), Str("/a")).Tolerate(unix.ENOENT, unix.EACCES)
	b.Call("running", 59, first, Argv{"hi"}, fd)
	r, err := b.Recipe()
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		// header: UPR1, size 224, 2 steps at 32, 1 reloc at 176, 1 descriptor
		"55505231 e0000000 02000000 20000000 01000000 b0000000 01000000 00000000",
		// step 0: nr 257, 2 arguments INT PTR, ENOENT EACCES; -100, offset 192
		"01010000 02 000100000000 00 0200 0d00 0000 0000 00000000",
		"9cffffffffffffff c000000000000000 0000000000000000 0000000000000000 0000000000000000 0000000000000000",
		// step 1: nr 59, 3 arguments RESULT PTR FD
		"3b000000 03 030102000000 00 0000 0000 0000 0000 00000000",
		"0000000000000000 c800000000000000 0000000000000000 0000000000000000 0000000000000000 0000000000000000",
		// reloc: at 200 goes the address of 216; padding
		"c8000000 00000000 d8000000 00000000",
		// "/a"; argv; "hi"
		"2f61000000000000 0000000000000000 0000000000000000 6869000000000000",
	}, "")
	want = strings.ReplaceAll(want, " ", "")
	got := hex.EncodeToString(r.Encode())
	if got != want {
		t.Errorf("encoded\n%s\nwant\n%s", got, want)
	}
}

// decoded is a recipe read back by the rules of the wire format.
type decoded struct {
	nr       uint32
	kinds    []byte
	args     []uint64
	tolerate []uint16
}

// decode reads a blob as pause does and fails on what pause would refuse.
func decode(t testing.TB, blob []byte, nfds int) []decoded {
	t.Helper()
	le := binary.LittleEndian
	u32 := func(at int) int { return int(le.Uint32(blob[at:])) }
	nsteps, steps, nrelocs, relocs := u32(8), u32(12), u32(16), u32(20)
	if u32(0) != magic || u32(4) != len(blob) || u32(24) != nfds || u32(28) != 0 || nsteps == 0 {
		t.Fatalf("bad header % x", blob[:headerSize])
	}
	memory := relocs + nrelocs*relocSize
	if steps != headerSize || relocs != steps+nsteps*stepSize || relocs%8 != 0 || memory > len(blob) {
		t.Fatalf("bad layout: steps at %d, relocations at %d", steps, relocs)
	}
	var out []decoded
	for i := range nsteps {
		s := blob[steps+i*stepSize:][:stepSize]
		d := decoded{nr: le.Uint32(s)}
		if s[4] > 6 || s[11] != 0 || le.Uint32(s[20:]) != 0 {
			t.Fatalf("bad step %d: % x", i, s)
		}
		for j := range int(s[4]) {
			kind, v := s[5+j], le.Uint64(s[24+8*j:])
			bad := kind > 3 || kind == 1 && (v >= uint64(len(blob)) || v < uint64(memory)) ||
				kind == 2 && v >= uint64(nfds) || kind == 3 && v >= uint64(i)
			if bad {
				t.Fatalf("step %d, argument %d: kind %d, value %d", i, j, kind, v)
			}
			d.kinds, d.args = append(d.kinds, kind), append(d.args, v)
		}
		for j := range 4 {
			d.tolerate = append(d.tolerate, le.Uint16(s[12+2*j:]))
		}
		out = append(out, d)
	}
	for i := range nrelocs {
		where, kind, value := u32(relocs+12*i), u32(relocs+12*i+4), u32(relocs+12*i+8)
		if kind != relocAddress || where < memory || where+8 > len(blob) || where%8 != 0 || value < memory || value >= len(blob) {
			t.Fatalf("relocation %d: where %d, kind %d, value %d", i, where, kind, value)
		}
	}
	return out
}

// TestEncodeGoldens decodes every composition.
func TestEncodeGoldens(t *testing.T) {
	for name, build := range goldens(t) {
		r, err := build()
		if err != nil {
			t.Fatal(err)
		}
		steps := decode(t, r.Encode(), len(r.Files()))
		if len(steps) != r.Len() {
			t.Errorf("%s: %d steps encoded of %d", name, len(steps), r.Len())
		}
		if last := steps[len(steps)-1]; !strings.HasPrefix(name, "sandbox") &&
			(last.nr != unix.SYS_EXECVE || !reflect.DeepEqual(last.tolerate, []uint16{0, 0, 0, 0})) {
			t.Errorf("%s: doesn't end in an execve that must succeed: %+v", name, last)
		}
	}
}

func TestBuilderRefuses(t *testing.T) {
	other := New()
	foreign := other.Call("x", unix.SYS_SETSID)
	for name, build := range map[string]func(b *Builder){
		"no steps":             func(b *Builder) {},
		"nil descriptor":       func(b *Builder) { b.Call("x", unix.SYS_CLOSE, b.FD("gone", nil)) },
		"NUL in a string":      func(b *Builder) { b.Call("x", unix.SYS_CHDIR, Str("a\x00b")) },
		"NUL in an argument":   func(b *Builder) { b.Call("x", unix.SYS_EXECVE, Str("a"), Argv{"a\x00b"}) },
		"too many arguments":   func(b *Builder) { b.Call("x", 1, Int(1), Int(1), Int(1), Int(1), Int(1), Int(1), Int(1)) },
		"too many tolerations": func(b *Builder) { b.Call("x", 1).Tolerate(1, 2, 3, 4, 5) },
		"foreign result":       func(b *Builder) { b.Call("x", unix.SYS_CLOSE, foreign) },
		"empty filter":         func(b *Builder) { b.Call("x", unix.SYS_SECCOMP, Filter{}) },
		"too large":            func(b *Builder) { b.Call("x", unix.SYS_CHDIR, Str(strings.Repeat("x", MaxSize))) },
		"too many descriptors": func(b *Builder) {
			f := null(t)
			for range MaxFiles + 1 {
				b.Call("x", unix.SYS_CLOSE, b.FD("f", f))
			}
		},
	} {
		b := New()
		build(b)
		if r, err := b.Recipe(); err == nil {
			t.Errorf("%s: accepted:\n%s", name, r)
		}
	}
	b := New()
	b.Call("x", unix.SYS_EXECVE, Str("a"), Int(0), Environ{"TOKEN=sec\x00ret"})
	if _, err := b.Recipe(); err == nil || strings.Contains(err.Error(), "sec") {
		t.Errorf("error shows a secret, or none: %v", err)
	}
}

func TestExplain(t *testing.T) {
	f := null(t)
	spec := ContainerSpec{Process: process(t), Rootfs: f, Mounts: []Mount{{Source: f, Target: "/data", Why: "mounting volume cache at /data"}}}
	r, err := Container(spec)
	if err != nil {
		t.Fatal(err)
	}
	find := func(call string) int {
		for i, line := range strings.Split(r.String(), "\n") {
			if strings.Contains(line, call) {
				return i
			}
		}
		t.Fatalf("no step %s in\n%s", call, r)
		return -1
	}
	spec.Args = []string{"/no/such"}
	slash, err := Container(spec)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		r     *Recipe
		step  int
		errno unix.Errno
		want  string
	}{
		{r, find("fd:mount:/data"), unix.EACCES, "mounting volume cache at /data: permission denied"},
		{r, find("fd:mount:/data"), unix.EINVAL, "mounting volume cache at /data: not a directory (is a directory mounted onto a file, or a file onto a directory?)"},
		{r, r.Len() - 1, unix.ENOENT, `exec: "sh": executable file not found in $PATH`},
		{r, r.Len() - 1, unix.EACCES, `exec: "sh": executable file not found in $PATH`},
		{r, r.Len() - 2, unix.ENOEXEC, `exec /usr/bin/sh: exec format error`},
		{slash, slash.Len() - 1, unix.ENOENT, `exec: "/no/such": stat /no/such: no such file or directory`},
		{slash, slash.Len() - 1, unix.EACCES, `exec: "/no/such": permission denied`},
		{slash, slash.Len() - 1, unix.ENOEXEC, `exec /no/such: exec format error`},
		{r, NoStep, unix.EINVAL, "reading the recipe: invalid argument"},
		{r, -1, unix.EINVAL, "reading the recipe: invalid argument"},
	} {
		err := c.r.Explain(c.step, c.errno)
		var se *StepError
		if err.Error() != c.want || !errors.Is(err, c.errno) || !errors.As(err, &se) {
			t.Errorf("step %d: %q, want %q", c.step, err, c.want)
		}
	}
}

func TestSysctlPath(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.ip_forward":             "net/ipv4/ip_forward",
		"net/ipv4/ip_forward":             "net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/1.forwarding": "net/ipv4/conf/eth0.1/forwarding",
		"net/ipv4/conf/eth0.1/forwarding": "net/ipv4/conf/eth0.1/forwarding",
		"kernel":                          "kernel",
		"":                                "", "..": "", "net/../../attr": "", "/etc": "", "a.": "", "net.//.x": "",
	} {
		if got, err := sysctlPath(name); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
}

// TestSpecsRefused names the field of every specification that can't be.
func TestSpecsRefused(t *testing.T) {
	f := null(t)
	good := func() ContainerSpec { return ContainerSpec{Process: process(t), Rootfs: f} }
	for want, change := range map[string]func(s *ContainerSpec){
		"Args":                 func(s *ContainerSpec) { s.Args = nil },
		"Cwd":                  func(s *ContainerSpec) { s.Cwd = "srv" },
		"Effective":            func(s *ContainerSpec) { s.Effective = 1 },
		"Ambient":              func(s *ContainerSpec) { s.Ambient = 1 },
		"Stdin":                func(s *ContainerSpec) { s.Terminal = true },
		"Seccomp":              func(s *ContainerSpec) { s.Seccomp = []unix.SockFilter{} },
		"Umask":                func(s *ContainerSpec) { s.Umask = ptr(uint32(0o1000)) },
		"Rlimits[0]":           func(s *ContainerSpec) { s.Rlimits = []Rlimit{{1, 2, 1}} },
		"Rootfs":               func(s *ContainerSpec) { s.Rootfs = nil },
		"Sysfs":                func(s *ContainerSpec) { s.Sysfs = "yes" },
		"Mounts[0].Target: /p": func(s *ContainerSpec) { s.Mounts = []Mount{{Source: f, Target: "/proc/../proc/sys"}} },
		"Mounts[0].Target: \"": func(s *ContainerSpec) { s.Mounts = []Mount{{Source: f, Target: "data"}} },
		"Mounts[0].Target: /":  func(s *ContainerSpec) { s.Mounts = []Mount{{Source: f, Target: "/data/.."}} },
		"Mounts[0].Source":     func(s *ContainerSpec) { s.Mounts = []Mount{{Target: "/data"}} },
		"Cgroupfs[0].Source":   func(s *ContainerSpec) { s.Cgroupfs = []Mount{{Target: "/data"}} },
		"MaskedPaths":          func(s *ContainerSpec) { s.MaskedPaths = []string{"/"} },
		"ReadonlyPaths":        func(s *ContainerSpec) { s.ReadonlyPaths = []string{"proc"} },
	} {
		s := good()
		change(&s)
		if _, err := Container(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	for want, s := range map[string]ExecSpec{
		"PIDFD":            {Process: process(t), Namespaces: unix.CLONE_NEWNS},
		"Namespaces: none": {Process: process(t), PIDFD: f},
		"Namespaces: the":  {Process: process(t), PIDFD: f, Namespaces: unix.CLONE_NEWPID},
	} {
		if _, err := Exec(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	for want, s := range map[string]SandboxSpec{
		"Sysctls": {Sysctls: map[string]string{"net/../x": "1"}},
		"ShmSize": {ShmSize: -1},
	} {
		if _, err := Sandbox(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestFiles(t *testing.T) {
	a, c := null(t), null(t)
	b := New()
	b.Call("x", unix.SYS_CLOSE, b.FD("a", a))
	b.Call("x", unix.SYS_CLOSE, b.FD("c", c))
	r, err := b.Recipe()
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Files(); !reflect.DeepEqual(got, []*os.File{a, c}) || !bytes.Contains(r.Encode(), []byte("UPR1")) {
		t.Errorf("files %v", got)
	}
}
