package recipe_test

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/recipe"
	"unipod.dev/unipod/internal/sys"
)

func TestContainerWorld(t *testing.T) {
	p := plainPod(t)
	root, _ := rootfs(t, nil)
	p.expect(p.spec(root, `hostname; pwd; echo $$
		awk '{ print $2, $3, substr($4, 1, 2) }' /proc/mounts | grep -v -e ^/proc/ -e ^/sys/ | sort
		echo x >/dev/shm/x && cat /dev/shm/x; ls /dev; cat; echo lost >/dev/null`),
		"pod\n/\n1\n"+
			"/ overlay rw\n/dev tmpfs rw\n/dev/mqueue mqueue rw\n/dev/pts devpts rw\n/dev/shm tmpfs rw\n/proc proc rw\n/sys sysfs ro\n"+
			"x\nfd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n")
	// The next container of the pod sees the same /dev/shm, and nothing else of the first.
	root, _ = rootfs(t, nil)
	p.expect(p.spec(root, "cat /dev/shm/x; echo /proc/[0-9]*"), "x\n/proc/1\n")
}

// status are the lines of /proc/self/status that tell who a process is.
const status = `grep -e ^Uid -e ^Gid -e ^Groups -e ^Cap -e ^NoNewPrivs -e ^Seccomp: -e ^Umask /proc/self/status | tr '\t' ' ' | sed 's/ *$//'`

func TestIdentity(t *testing.T) {
	p := plainPod(t)
	const chown, kill, admin = 1 << unix.CAP_CHOWN, 1 << unix.CAP_KILL, 1 << unix.CAP_SYS_ADMIN
	user := func(pr *recipe.Process) { pr.UID, pr.GID, pr.Groups = 1000, 1001, []uint32{1001, 2000} }
	for _, c := range []struct {
		name   string
		change func(pr *recipe.Process)
		want   string
	}{
		{"root", func(pr *recipe.Process) {
			pr.Bounding, pr.Permitted, pr.Effective = chown|kill, chown|kill, chown|kill
			pr.NoNewPrivs = false
		}, "Umask: 0022\nUid: 0 0 0 0\nGid: 0 0 0 0\nGroups:\nCapInh: 0\nCapPrm: 21\nCapEff: 21\nCapBnd: 21\nCapAmb: 0\nNoNewPrivs: 0\nSeccomp: 0\n"},
		{"user without capabilities", func(pr *recipe.Process) {
			user(pr)
			pr.Bounding, pr.Permitted, pr.Effective = chown, 0, 0
			pr.NoNewPrivs, pr.Seccomp, pr.Umask = true, deny(unix.SYS_MKDIRAT), new(uint32)
		}, "Umask: 0000\nUid: 1000 1000 1000 1000\nGid: 1001 1001 1001 1001\nGroups: 1001 2000\nCapInh: 0\nCapPrm: 0\nCapEff: 0\nCapBnd: 1\nCapAmb: 0\nNoNewPrivs: 1\nSeccomp: 2\n"},
		{"user with ambient capabilities, filtered", func(pr *recipe.Process) {
			user(pr)
			pr.Bounding, pr.Permitted, pr.Effective, pr.Inheritable, pr.Ambient = chown|kill, kill, kill, kill, kill
			pr.Seccomp = deny(unix.SYS_MKDIRAT)
		}, "Umask: 0022\nUid: 1000 1000 1000 1000\nGid: 1001 1001 1001 1001\nGroups: 1001 2000\nCapInh: 20\nCapPrm: 20\nCapEff: 20\nCapBnd: 21\nCapAmb: 20\nNoNewPrivs: 0\nSeccomp: 2\n"},
		{"user with ambient capabilities", func(pr *recipe.Process) {
			user(pr)
			pr.Bounding, pr.Permitted, pr.Effective, pr.Inheritable, pr.Ambient = chown|kill, kill|chown, kill, kill, kill
			pr.NoNewPrivs = true
		}, "Umask: 0022\nUid: 1000 1000 1000 1000\nGid: 1001 1001 1001 1001\nGroups: 1001 2000\nCapInh: 20\nCapPrm: 20\nCapEff: 20\nCapBnd: 21\nCapAmb: 20\nNoNewPrivs: 1\nSeccomp: 0\n"},
		{"root with CAP_SYS_ADMIN, filtered", func(pr *recipe.Process) {
			pr.Bounding, pr.Permitted, pr.Effective = admin, admin, admin
			pr.Seccomp = deny(unix.SYS_MKDIRAT)
		}, "Umask: 0022\nUid: 0 0 0 0\nGid: 0 0 0 0\nGroups:\nCapInh: 0\nCapPrm: 200000\nCapEff: 200000\nCapBnd: 200000\nCapAmb: 0\nNoNewPrivs: 0\nSeccomp: 2\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.t = t
			root, _ := rootfs(t, nil)
			spec := p.spec(root, status+` | sed -e 's/: 0*\([0-9a-f]\)/: \1/' -e 's/^Umask: \(.*\)/Umask: 000\1/' -e 's/^Umask: .*\(....\)$/Umask: \1/'`)
			c.change(&spec.Process)
			p.expect(spec, c.want)

			// The same for an exec.
			root, _ = rootfs(t, nil)
			con, err := p.launch(p.spec(root, "sleep 100"), containerNamespaces)
			if err != nil {
				t.Fatal(err)
			}
			pr := spec.Process
			pr.Stdout, pr.Stderr = nil, nil
			run, err := p.exec(con, pr, nil)
			if err != nil {
				t.Fatalf("exec: %v%s", err, callOf(err))
			}
			if got := run.wait(); got.out != c.want {
				t.Errorf("exec: code %d, output\n%s\nwant\n%s", got.code, got.out, c.want)
			}
			unix.PidfdSendSignal(int(con.Pidfd.Fd()), unix.SIGKILL, nil, 0)
			con.wait()
		})
	}
}

// deny is a seccomp program that refuses one system call with ENOTTY.
func deny(nr uint32) []unix.SockFilter {
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: nr, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOTTY)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
}

// TestSeccompIsLate: a program that refuses everything the recipe does before
// it is installed doesn't stop the container.
func TestSeccompIsLate(t *testing.T) {
	p := plainPod(t)
	for _, nnp := range []bool{true, false} {
		for _, nr := range []uint32{unix.SYS_MOVE_MOUNT, unix.SYS_SETRESUID, unix.SYS_SETGROUPS, unix.SYS_FCHDIR, unix.SYS_CLOSE_RANGE, unix.SYS_OPENAT2} {
			root, _ := rootfs(t, nil)
			spec := p.spec(root, "echo runs")
			spec.UID, spec.NoNewPrivs, spec.Seccomp = 1000, nnp, deny(nr)
			spec.Permitted, spec.Effective = 0, 0
			p.expect(spec, "runs\n")
		}
	}
	root, _ := rootfs(t, nil)
	spec := p.spec(root, "mkdir /tmp/x; stat /tmp/x >/dev/null 2>&1 || echo refused")
	spec.Seccomp = []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: mkdirNumber, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOTTY)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	if got := p.run(spec); !strings.Contains(got.out, "Inappropriate ioctl") || !strings.Contains(got.out, "refused") {
		t.Errorf("the filter doesn't filter: %q", got.out)
	}
}

func TestWorkingDirectory(t *testing.T) {
	p := plainPod(t)
	for cwd, want := range map[string]string{
		"": "/\n", "/root": "/root\n", "/a/b/../new": "/a/new\n", "/link": "/root\n", "/private": "/private\n", "/data/sub": "/data/sub\n",
	} {
		root, _ := rootfs(t, func(upper string) {
			os.Symlink("/root", upper+"/link")
			os.Mkdir(upper+"/private", 0o700)
		})
		spec := p.spec(root, "/bin/busybox pwd")
		spec.Cwd, spec.UID = cwd, 1000 // who may not enter /private himself
		spec.Permitted, spec.Effective = 0, 0
		spec.Mounts = []recipe.Mount{{Source: bind(t, t.TempDir()), Target: "/data"}}
		p.expect(spec, want)
	}
	root, _ := rootfs(t, nil)
	spec := p.spec(root, "")
	spec.Cwd = "/etc/passwd"
	if got := p.refuses(spec); got != "changing to the working directory /etc/passwd: not a directory" {
		t.Error(got)
	}
}

// TestWorkingDirectoryOfTheUser: root of a user namespace may not enter what
// belongs to an ID that isn't mapped; a user in the directory's group may.
func TestWorkingDirectoryOfTheUser(t *testing.T) {
	p := newPod(t, recipe.SandboxSpec{UserNS: true}, podNamespaces)
	volume := t.TempDir()
	os.MkdirAll(volume+"/closed/sub", 0o777)
	for _, err := range []error{
		os.Chown(volume+"/closed", 0, mappedID+5000), os.Chmod(volume+"/closed", 0o070), os.Chmod(volume, 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	spec := func(cwd string, groups ...uint32) recipe.ContainerSpec {
		s := p.spec(mappedRootfs(t), "/bin/busybox pwd")
		s.UserNS, s.Devpts, s.Shm, s.Cwd = true, nil, false, cwd
		s.UID, s.GID, s.Groups, s.Permitted, s.Effective = 1000, 1000, groups, 0, 0
		s.Mounts = []recipe.Mount{{Source: bind(t, volume), Target: "/vol"}}
		return s
	}
	for _, cwd := range []string{"/vol/closed", "/vol/closed/sub"} {
		p.expect(spec(cwd, 5000), cwd+"\n")
		if got, want := p.refuses(spec(cwd)), "changing to the working directory "+cwd+": permission denied"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	// The same for an exec.
	s := spec("/")
	s.Args[2] = "exec sleep 100"
	c, err := p.launch(s, containerNamespaces)
	if err != nil {
		t.Fatal(err)
	}
	for _, groups := range [][]uint32{{5000}, nil} {
		pr := process("/bin/busybox pwd")
		pr.Cwd, pr.UID, pr.Groups, pr.Permitted, pr.Effective = "/vol/closed/sub", 1000, groups, 0, 0
		run, err := p.exec(c, pr, func(s *recipe.ExecSpec) { s.UserNS = true })
		switch {
		case groups == nil && (err == nil || err.Error() != "changing to the working directory /vol/closed/sub: permission denied"):
			t.Errorf("exec: %v", err)
		case groups != nil && err != nil:
			t.Errorf("exec: %v%s", err, callOf(err))
		case groups != nil:
			if got := run.wait(); got.out != "/vol/closed/sub\n" {
				t.Errorf("exec: %+v", got)
			}
		}
	}
}

func TestCommandLookup(t *testing.T) {
	p := plainPod(t)
	for _, c := range []struct {
		args []string
		path string
		want string // output, or the error if it has a colon
	}{
		{[]string{"hello"}, "PATH=/none:/etc/passwd:/noexec:/dirs:/good", "hello"},
		{[]string{"./good/hello"}, "", "hello"},
		{[]string{"hello"}, "PATH=/none:/noexec", `exec: "hello": executable file not found in $PATH`},
		{[]string{"hello"}, "PATH=/noexec:/none", `exec: "hello": executable file not found in $PATH`},
		{[]string{"hello"}, "", `exec: "hello": executable file not found in $PATH`},
		{[]string{"/noexec/hello"}, "", `exec: "/noexec/hello": permission denied`},
		{[]string{"/none"}, "", `exec: "/none": stat /none: no such file or directory`},
		{[]string{"/etc/passwd/x"}, "", `exec: "/etc/passwd/x": stat /etc/passwd/x: not a directory`},
		{[]string{"/good/text"}, "", `exec /good/text: exec format error`},
		{[]string{"text"}, "PATH=/good:/none", `exec /good/text: exec format error`},
	} {
		root, _ := rootfs(t, func(upper string) {
			for _, d := range []string{"noexec", "dirs/hello", "good"} {
				os.MkdirAll(filepath.Join(upper, d), 0o755)
			}
			os.WriteFile(upper+"/noexec/hello", nil, 0o644)
			os.WriteFile(upper+"/good/hello", []byte("#!/bin/sh\necho hello"), 0o755)
			os.WriteFile(upper+"/good/text", []byte("no program"), 0o755)
		})
		spec := p.spec(root, "")
		spec.Args, spec.Env = c.args, []string{"PATH=/bin", c.path}
		if c.path == "" {
			spec.Env = nil
		}
		if strings.Contains(c.want, ":") {
			if got := p.refuses(spec); got != c.want {
				t.Errorf("%v: %s, want %s", c, got, c.want)
			}
			continue
		}
		p.expect(spec, c.want+"\n")
	}
}

func TestLimitsAndScores(t *testing.T) {
	p := plainPod(t)
	root, _ := rootfs(t, nil)
	adj := 321
	spec := p.spec(root, "cat /proc/self/oom_score_adj; ulimit -n; env | sort; readlink /proc/self/ns/cgroup | wc -l")
	spec.OOMScoreAdj = &adj
	spec.Rlimits = []recipe.Rlimit{{Type: unix.RLIMIT_NOFILE, Soft: 99, Hard: 100}, {Type: unix.RLIMIT_CORE, Soft: 0, Hard: 0}}
	spec.Env = append(spec.Env, "TOKEN=a=b")
	p.expect(spec, "321\n99\nPATH=/usr/bin:/bin\nPWD=/\nSHLVL=1\nTOKEN=a=b\n1\n")
	// What isn't permitted is tolerated, and the container runs.
	root, _ = rootfs(t, nil)
	spec = p.spec(root, "echo runs")
	low := -1000
	spec.OOMScoreAdj = &low
	spec.Rlimits = []recipe.Rlimit{{Type: unix.RLIMIT_NOFILE, Soft: 1 << 20, Hard: 1 << 40}}
	p.expect(spec, "runs\n")
	// An impossible value isn't.
	root, _ = rootfs(t, nil)
	spec = p.spec(root, "")
	low = -5000
	spec.OOMScoreAdj = &low
	if got := p.refuses(spec); got != "setting oom_score_adj: invalid argument" {
		t.Error(got)
	}
}

// openPTY makes a terminal of a devpts and returns its two ends.
func openPTY(t testing.TB, devpts *os.File) (ptmx, tty *os.File) {
	t.Helper()
	ptmx, err := os.OpenFile(sys.ProcPath(devpts)+"/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	ptmx = keep(t, ptmx, err)
	if err := unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	slave, _, errno := unix.Syscall(unix.SYS_IOCTL, ptmx.Fd(), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.Fatal(errno)
	}
	return ptmx, os.NewFile(slave, "terminal")
}

// lines reads the first lines of a terminal.
func lines(ptmx *os.File, n int) string {
	var got []string
	for in := bufio.NewScanner(ptmx); len(got) < n && in.Scan(); {
		got = append(got, in.Text())
	}
	return strings.Join(got, " ")
}

func TestTerminal(t *testing.T) {
	p := plainPod(t)
	root, _ := rootfs(t, nil)
	spec := p.spec(root, "tty; echo hi >/dev/tty; echo log >/dev/console; stat -c %u /dev/pts/0; trap 'exit 7' INT; while :; do sleep 0.05; done")
	ptmx, tty := openPTY(t, spec.Devpts)
	spec.Stdin, spec.Stdout, spec.Stderr, spec.Terminal = tty, tty, tty, true
	spec.UID = 1000
	c, err := p.launch(spec, containerNamespaces)
	tty.Close()
	if err != nil {
		t.Fatalf("%v%s", err, callOf(err))
	}
	if got, want := lines(ptmx, 4), "/dev/pts/0 hi log 1000"; got != want {
		t.Errorf("terminal shows %q, want %q", got, want)
	}

	// An exec has a terminal of its own, of the same devpts.
	second, tty := openPTY(t, spec.Devpts)
	pr := process("tty; echo hi >/dev/tty; stat -c %t:%T /dev/console")
	run, err := p.exec(c, pr, func(s *recipe.ExecSpec) {
		s.Stdin, s.Stdout, s.Stderr, s.Terminal = tty, tty, tty, true
	})
	tty.Close()
	if err != nil {
		t.Fatalf("%v%s", err, callOf(err))
	}
	if got, want := lines(second, 3), "/dev/pts/1 hi 88:0"; got != want {
		t.Errorf("the exec's terminal shows %q, want %q", got, want)
	}
	run.wait()

	ptmx.Write([]byte{3}) // ^C reaches the foreground processes of the session
	if r := c.wait(); r.code != 7 && r.code != 128+int(unix.SIGINT) {
		t.Errorf("ended with %d", r.code)
	}
}

func TestStdin(t *testing.T) {
	p := plainPod(t)
	root, _ := rootfs(t, nil)
	spec := p.spec(root, "cat; echo >&2 err; echo again >/dev/stdout")
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	w.WriteString("typed\n")
	w.Close()
	spec.Stdin, spec.UID, spec.GID = in, 1234, 1234
	defer in.Close()
	p.expect(spec, "typed\nerr\nagain\n") // /dev/stdout is opened anew: the pipe was given to the user
}

func TestExec(t *testing.T) {
	p := plainPod(t)
	root, _ := rootfs(t, nil)
	spec := p.spec(root, "echo one >/tmp/f; mount -t tmpfs none /root; touch /root/inside; exec sleep 100")
	c, err := p.launch(spec, containerNamespaces)
	if err != nil {
		t.Fatal(err)
	}
	score := 700
	pr := process("while ! test -e /root/inside; do sleep 0.01; done; pwd; cat /tmp/f; ls /root; hostname; cat /proc/self/oom_score_adj; id -u; test $$ -gt 1 && kill -0 1 && echo sees")
	pr.Cwd, pr.OOMScoreAdj = "/etc", &score
	run, err := p.exec(c, pr, nil)
	if err != nil {
		t.Fatalf("%v%s", err, callOf(err))
	}
	if got := run.wait(); got.out != "/etc\none\ninside\npod\n700\n0\nsees\n" || got.code != 0 {
		t.Errorf("%+v", got)
	}
	for _, bad := range []struct {
		change func(pr *recipe.Process)
		want   string
	}{
		{func(pr *recipe.Process) { pr.Cwd = "/none" }, "changing to the working directory /none: no such file or directory"},
		{func(pr *recipe.Process) { pr.Args = []string{"none"} }, `exec: "none": executable file not found in $PATH`},
		{func(pr *recipe.Process) { pr.AppArmor = "none" }, ""},
	} {
		pr := process("")
		bad.change(&pr)
		if pr.AppArmor != "" && hasAppArmor() {
			continue
		}
		_, err := p.exec(c, pr, nil)
		var se *recipe.StepError
		if !errors.As(err, &se) || bad.want != "" && err.Error() != bad.want {
			t.Errorf("%v, want %s", err, bad.want)
		}
	}
	unix.PidfdSendSignal(int(c.Pidfd.Fd()), unix.SIGKILL, nil, 0)
	c.wait()
}

func hasAppArmor() bool {
	_, err := os.Stat("/sys/kernel/security/apparmor")
	return err == nil
}

func TestKilled(t *testing.T) {
	p := plainPod(t)
	root, _ := rootfs(t, nil)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	spec := p.spec(root, "echo first; exec sleep 100")
	spec.Stdout = write
	c, err := p.launch(spec, containerNamespaces)
	write.Close()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 6)
	if _, err := io.ReadFull(read, b); err != nil || string(b) != "first\n" {
		t.Errorf("%q, %v", b, err)
	}
	unix.PidfdSendSignal(int(c.Pidfd.Fd()), unix.SIGKILL, nil, 0)
	if got := c.wait(); got.code != 128+int(unix.SIGKILL) {
		t.Errorf("%+v", got)
	}
}
