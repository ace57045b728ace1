package seccomp

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getenv("SECCOMP_TEST_CHILD") != "" {
		child()
	}
	os.Exit(m.Run())
}

// call is one system call tried under a filter.
type call struct {
	Nr   uintptr
	Args [6]uintptr
}

// job is what the child gets on its standard input.
type job struct {
	Filter []unix.SockFilter
	Flags  uint32
	Calls  []call
}

// child installs a filter on itself, makes the calls and prints each errno.
func child() {
	runtime.LockOSThread()
	var j job
	if err := json.NewDecoder(os.Stdin).Decode(&j); err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	prog := unix.SockFprog{Len: uint16(len(j.Filter)), Filter: &j.Filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(j.Flags|unix.SECCOMP_FILTER_FLAG_TSYNC), uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		fmt.Println("seccomp:", errno)
		os.Exit(2)
	}
	for _, c := range j.Calls {
		_, _, errno := unix.RawSyscall6(c.Nr, c.Args[0], c.Args[1], c.Args[2], c.Args[3], c.Args[4], c.Args[5])
		fmt.Println(int(errno))
	}
	os.Exit(0)
}

// run tries calls under p in a process of its own.
func run(t *testing.T, p *Program, calls ...call) ([]unix.Errno, error) {
	t.Helper()
	in, err := json.Marshal(job{p.Filter, p.Flags, calls})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "SECCOMP_TEST_CHILD=1")
	cmd.Stdin = strings.NewReader(string(in))
	out, err := cmd.Output()
	var errnos []unix.Errno
	for line := range strings.Lines(string(out)) {
		var e int
		if _, serr := fmt.Sscanf(line, "%d\n", &e); serr != nil {
			t.Fatalf("child said %q", line)
		}
		errnos = append(errnos, unix.Errno(e))
	}
	return errnos, err
}

var defaultCaps = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}

func TestRuntimeDefaultInTheKernel(t *testing.T) {
	p, err := RuntimeDefault(defaultCaps)
	if err != nil {
		t.Fatal(err)
	}
	const sysClone3 = 435
	tests := []struct {
		name string
		call call
		want unix.Errno
	}{
		{"getpid", call{Nr: unix.SYS_GETPID}, 0},
		{"unshare(CLONE_NEWNS)", call{unix.SYS_UNSHARE, [6]uintptr{unix.CLONE_NEWNS}}, unix.EPERM},
		{"mount", call{Nr: unix.SYS_MOUNT}, unix.EPERM},
		{"keyctl", call{Nr: unix.SYS_KEYCTL}, unix.EPERM},
		{"bpf", call{Nr: unix.SYS_BPF}, unix.EPERM},
		// Not there without CAP_SYS_ADMIN: programs fall back to clone.
		{"clone3", call{Nr: sysClone3}, unix.ENOSYS},
		// Refused by the flags, before the kernel looks at the stack.
		{"clone(CLONE_NEWUSER)", call{unix.SYS_CLONE, [6]uintptr{unix.CLONE_NEWUSER | 17}}, unix.EPERM},
		// Allowed by the filter; the kernel refuses the flags.
		{"clone(CLONE_THREAD alone)", call{unix.SYS_CLONE, [6]uintptr{unix.CLONE_THREAD}}, unix.EINVAL},
		{"personality(0xffffffff)", call{unix.SYS_PERSONALITY, [6]uintptr{0xffffffff}}, 0},
		{"personality(ADDR_NO_RANDOMIZE)", call{unix.SYS_PERSONALITY, [6]uintptr{0x40000}}, unix.EPERM},
		{"personality(bit 32 set)", call{unix.SYS_PERSONALITY, [6]uintptr{1 << 32}}, unix.EPERM},
		{"socket(AF_INET)", call{unix.SYS_SOCKET, [6]uintptr{unix.AF_INET, unix.SOCK_DGRAM}}, 0},
		{"socket(AF_VSOCK)", call{unix.SYS_SOCKET, [6]uintptr{unix.AF_VSOCK, unix.SOCK_STREAM}}, unix.EPERM},
		{"socket(AF_ALG)", call{unix.SYS_SOCKET, [6]uintptr{unix.AF_ALG, unix.SOCK_SEQPACKET}}, unix.EPERM},
		{"a call of the future", call{Nr: 4000}, unix.ENOSYS},
	}
	var calls []call
	for _, tt := range tests {
		calls = append(calls, tt.call)
	}
	got, err := run(t, p, calls...)
	if err != nil {
		t.Fatal(err)
	}
	for i, tt := range tests {
		if got[i] != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got[i], tt.want)
		}
	}
	// With CAP_SYS_ADMIN in the set the same calls reach the kernel.
	p, err = RuntimeDefault(append(defaultCaps, "CAP_SYS_ADMIN"))
	if err != nil {
		t.Fatal(err)
	}
	got, err = run(t, p, call{unix.SYS_UNSHARE, [6]uintptr{unix.CLONE_NEWUTS}}, call{Nr: sysClone3})
	if err != nil || got[0] != 0 || got[1] != unix.EINVAL {
		t.Errorf("with CAP_SYS_ADMIN: unshare %v, clone3 %v, %v", got[0], got[1], err)
	}
}

func TestActionsInTheKernel(t *testing.T) {
	for _, tt := range []struct {
		action specs.LinuxSeccompAction
		signal syscall.Signal
	}{
		{specs.ActKillProcess, syscall.SIGSYS},
		{specs.ActTrap, syscall.SIGSYS},
	} {
		p, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"getpgid"}, Action: tt.action}}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = run(t, p, call{Nr: unix.SYS_GETPGID})
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Errorf("%s: ended with %v, want %v", tt.action, err, tt.signal)
			continue
		}
		// Go's runtime turns a SIGSYS trap into a crash with status 2.
		ws := exit.Sys().(syscall.WaitStatus)
		if !(ws.Signaled() && ws.Signal() == tt.signal) && tt.action == specs.ActKillProcess {
			t.Errorf("%s: %v, want %v", tt.action, exit, tt.signal)
		}
	}
	e := uint(unix.EXDEV)
	p, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{}, Syscalls: []specs.LinuxSyscall{
		{Names: []string{"getpgid"}, Action: specs.ActErrno, ErrnoRet: &e},
		{Names: []string{"getsid"}, Action: specs.ActLog},
	}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := run(t, p, call{Nr: unix.SYS_GETPGID}, call{Nr: unix.SYS_GETSID}, call{Nr: 4000})
	if err != nil || got[0] != unix.EXDEV || got[1] != 0 || got[2] != unix.ENOSYS {
		t.Errorf("errno %v, log %v, %v", got, got[1], err)
	}
}

// TestDefaultProfileNames finds names of the default profile that none of the
// tables knows: a table that has grown old would deny them.
func TestDefaultProfileNames(t *testing.T) {
	for _, s := range DefaultProfile(nil).Syscalls {
		for _, name := range s.Names {
			if !slices.ContainsFunc([]specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32, specs.ArchAARCH64, specs.ArchARM}, func(a specs.Arch) bool {
				return len(abis[a].numbers(name)) > 0
			}) {
				t.Errorf("no table knows %s", name)
			}
		}
	}
}

func TestSearchIsShallow(t *testing.T) {
	p, err := RuntimeDefault(defaultCaps)
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, p.Filter)
	if got := m.run(t, unix.AUDIT_ARCH_X86_64, unix.SYS_READ, [6]uint64{}); runtime.GOARCH == "amd64" && got != unix.SECCOMP_RET_ALLOW {
		t.Errorf("read: %#x", got)
	}
	t.Logf("RuntimeDefault has %d instructions", len(p.Filter))
	if len(p.Filter) > 2000 {
		t.Errorf("RuntimeDefault has %d instructions", len(p.Filter))
	}
}

func TestLocalhost(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	good := write("good.json", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["getpgid"],"action":"SCMP_ACT_ERRNO","errnoRet":95}]}`)
	p, err := Localhost(good, nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Localhost(good, nil)
	if err != nil || again != p {
		t.Errorf("the same content was compiled twice")
	}
	got, err := run(t, p, call{Nr: unix.SYS_GETPGID})
	if err != nil || got[0] != unix.EOPNOTSUPP {
		t.Errorf("getpgid: %v, %v", got, err)
	}
	write("good.json", `{"defaultAction":"SCMP_ACT_ALLOW"}`)
	if again, err = Localhost(good, nil); err != nil || again == p {
		t.Errorf("changed content gave the old program (%v)", err)
	}
	docker := write("docker.json", `{"defaultAction":"SCMP_ACT_ERRNO","defaultErrno":"EACCES","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],
	 "syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","comment":"x"},
	 {"name":"reboot","action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_BOOT"]}},
	 {"name":"getpid","action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}},
	 {"name":"getppid","action":"SCMP_ACT_ALLOW","includes":{"minKernel":"400.8"}},
	 {"name":"clone","action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"],"arches":["s390"]}}]}`)
	for _, tt := range []struct {
		caps []string
		want []string
	}{
		{nil, []string{"read", "getpid", "clone"}},
		{[]string{"CAP_SYS_BOOT", "CAP_SYS_ADMIN"}, []string{"read", "reboot", "getpid"}},
	} {
		b, _ := os.ReadFile(docker)
		p, err := Parse(b, tt.caps)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, s := range p.Syscalls {
			names = append(names, s.Names...)
		}
		if !slices.Equal(names, tt.want) || *p.DefaultErrnoRet != uint(unix.EACCES) {
			t.Errorf("with %v: %v (errno %d), want %v", tt.caps, names, *p.DefaultErrnoRet, tt.want)
		}
	}

	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"missing.json":  "no such file",
		"fifo":          "not a regular file",
		write("a", `{`): "unexpected EOF",
		write("b", `{"defaultAction":"SCMP_ACT_ALLOW","sycalls":[]}`):                                                                                               `unknown field "sycalls"`,
		write("c", `{"defaultAction":"SCMP_ACT_ALLOW"} {}`):                                                                                                         "something follows",
		write("d", `{"defaultAction":"SCMP_ACT_NOPE"}`):                                                                                                             `defaultAction: action "SCMP_ACT_NOPE" is unknown`,
		write("e", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_NOTIFY"}]}`):                                                 "syscalls[0]: SCMP_ACT_NOTIFY is not supported",
		write("f", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}`): "syscalls[0].args[0]: index 6",
		write("g", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL","args":[{"index":0,"value":0,"op":"EQ"}]}]}`):          `op "EQ" is unknown`,
		write("h", `{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_VAX"]}`):                                                                          `architectures: "SCMP_ARCH_VAX" is unknown`,
		write("i", `{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}`):                                                         "flags: ",
		write("j", `{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5000}`):                                                                                     "errnoRet 5000",
		write("k", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_KILL"}]}`):                                                                    "syscalls[0]: no names",
		write("l", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","errno":"EWHAT"}]}`):                                  `syscalls[0].errno "EWHAT" is no errno`,
		write("m", strings.Repeat(" ", maxProfile+1)):                                                                                                               "larger than",
	} {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		_, err := Localhost(name, nil)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, want %q", filepath.Base(name), err, want)
		}
	}
	if _, err := Localhost(filepath.Join(dir, "missing.json"), nil); !errdefs.IsNotFound(err) {
		t.Errorf("missing file: %v, want not found", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrno":"EACCES","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"]}],"syscalls":[{"names":["read","clone"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}],"includes":{"caps":["CAP_SYS_BOOT"],"minKernel":"4.8"}}]}`))
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_KILL","architectures":["SCMP_ARCH_X86"],"flags":["SECCOMP_FILTER_FLAG_LOG"],"syscalls":[{"name":"shmat","action":"SCMP_ACT_TRACE","errnoRet":7,"excludes":{"arches":["arm64"]}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(b, []string{"CAP_SYS_BOOT"})
		if err != nil {
			return
		}
		prog, err := Compile(p)
		if err != nil {
			return
		}
		if len(prog.Filter) == 0 || len(prog.Filter) > maxFilter {
			t.Fatalf("%d instructions", len(prog.Filter))
		}
		newMachine(t, prog.Filter) // refuses jumps out of the program
	})
}

func BenchmarkCompileDefault(b *testing.B) {
	for b.Loop() {
		if _, err := Compile(DefaultProfile(defaultCaps)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCachedDefault(b *testing.B) {
	for b.Loop() {
		if _, err := RuntimeDefault(defaultCaps); err != nil {
			b.Fatal(err)
		}
	}
}
