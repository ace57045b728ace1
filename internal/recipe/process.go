package recipe

import (
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Process is what runs: a container's first process, or one executed in it.
type Process struct {
	// Args are the command and its arguments. A command without a slash is
	// looked up in the PATH of Env, as execvp(3) does; without a PATH there
	// is nothing to look in.
	Args []string
	Env  []string
	// Cwd is the working directory, absolute; "" is the root directory.
	Cwd string

	UID, GID uint32
	Groups   []uint32
	Umask    *uint32 // nil is 022

	// Capability sets; bit n is capability number n. Effective and Ambient
	// must be subsets of Permitted, Ambient of Inheritable. Capabilities the
	// node itself lacks can't be given.
	Bounding, Effective, Permitted, Inheritable, Ambient uint64
	NoNewPrivs                                           bool
	// Seccomp is the program to install, nil is none. Without NoNewPrivs that
	// takes CAP_SYS_ADMIN, so it happens before the last capset, which the
	// program must then allow, as it must execve and prctl.
	Seccomp      []unix.SockFilter
	SeccompFlags uint32

	// AppArmor is the profile, SELinuxLabel the label to run with; "" sets
	// none.
	AppArmor, SELinuxLabel string
	// OOMScoreAdj is the process's; the kernel's refusal is tolerated.
	OOMScoreAdj *int
	// Rlimits are set in order; the kernel's refusal to raise one is
	// tolerated.
	Rlimits []Rlimit

	// Stdin, Stdout and Stderr become descriptors 0, 1 and 2; nil is a null
	// device. Don't pass /dev/null itself: its owner would be changed.
	Stdin, Stdout, Stderr *os.File
	// Terminal says that Stdin is a terminal, to become the controlling one.
	Terminal bool

	// CgroupProcs are cgroup.procs files, open for writing, of the cgroups
	// to enter.
	CgroupProcs []*os.File
}

// Rlimit is a resource limit; Type is a RLIMIT_* number.
type Rlimit struct {
	Type       int
	Soft, Hard uint64
}

func (p *Process) validate() error {
	switch {
	case len(p.Args) == 0 || p.Args[0] == "":
		return fmt.Errorf("Args: no command")
	case p.Cwd != "" && !path.IsAbs(p.Cwd):
		return fmt.Errorf("Cwd: %q is not an absolute path", p.Cwd)
	case p.Effective&^p.Permitted != 0:
		return fmt.Errorf("Effective: %s not in Permitted", showCaps(p.Effective&^p.Permitted))
	case p.Ambient&^(p.Permitted&p.Inheritable) != 0:
		return fmt.Errorf("Ambient: %s not both in Permitted and Inheritable", showCaps(p.Ambient&^(p.Permitted&p.Inheritable)))
	case p.Terminal && p.Stdin == nil:
		return fmt.Errorf("Stdin: a process with a terminal needs it")
	case p.Seccomp != nil && (len(p.Seccomp) == 0 || len(p.Seccomp) > maxFilter):
		return fmt.Errorf("Seccomp: %d instructions, the kernel takes 1 to %d", len(p.Seccomp), maxFilter)
	case p.Umask != nil && *p.Umask > 0o777:
		return fmt.Errorf("Umask: %#o", *p.Umask)
	}
	for i, l := range p.Rlimits {
		if l.Soft > l.Hard {
			return fmt.Errorf("Rlimits[%d]: the soft limit is above the hard one", i)
		}
	}
	return nil
}

// stdio puts the standard descriptors in place. Missing ones are pause's null
// device, so this must happen while pause's root is the root.
func (b *Builder) stdio(p *Process) {
	const why = "setting up stdin, stdout and stderr"
	null := Result{step: -1}
	for fd, f := range []*os.File{p.Stdin, p.Stdout, p.Stderr} {
		var from Arg
		if f != nil {
			from = b.FD([]string{"stdin", "stdout", "stderr"}[fd], f)
		} else {
			if null.step < 0 {
				null = b.open(why, cwd, pauseNull, unix.O_RDWR, 0)
			}
			from = null
		}
		b.Call(why, unix.SYS_DUP3, from, Int(fd), Int(0))
	}
}

// labels sets what the next execve changes, through a procfs that is ours.
func (b *Builder) labels(p *Process, proc Arg) {
	if p.AppArmor != "" {
		b.procWrite("setting AppArmor profile "+p.AppArmor, proc, "thread-self/attr/apparmor/exec", "exec "+p.AppArmor)
	}
	if p.SELinuxLabel != "" {
		b.procWrite("setting SELinux label "+p.SELinuxLabel, proc, "thread-self/attr/exec", p.SELinuxLabel)
	}
}

// session leaves the session of pause for one of its own.
func (b *Builder) session(p *Process) {
	b.Call("starting a session", unix.SYS_SETSID)
	b.keyring(unix.EDQUOT) // the pod's is good enough
	if p.Terminal {
		b.Call("taking the terminal", unix.SYS_IOCTL, Int(0), Int(unix.TIOCSCTTY), Int(0))
	}
	for _, l := range p.Rlimits {
		b.Call("setting "+rlimits.show(uint64(l.Type)), unix.SYS_PRLIMIT64, Int(0), Int(l.Type), Limit{l.Soft, l.Hard}, Int(0)).
			Tolerate(unix.EPERM)
	}
}

// keyring starts a session keyring: the one that is inherited has the keys of
// whoever started the node.
func (b *Builder) keyring(tolerate ...unix.Errno) {
	b.Call("starting a session keyring", unix.SYS_KEYCTL, Int(unix.KEYCTL_JOIN_SESSION_KEYRING), Int(0)).
		Tolerate(append(tolerate, unix.ENOSYS)...)
}

// become turns the child, which has everything but the right identity, into
// the process. workdir is enterWorkdir's result. mapped says that files passed from the host have owners the
// child may change.
func (b *Builder) become(p *Process, workdir Result, mapped bool) {
	if mapped && p.UID != 0 {
		// So that /dev/stdout and its like can be opened again.
		for fd, f := range []*os.File{p.Stdin, p.Stdout, p.Stderr} {
			if f != nil {
				b.Call("giving stdin, stdout and stderr to the user", unix.SYS_FCHOWN, Int(fd), Int(p.UID), Int(-1)).
					Tolerate(unix.EPERM, unix.EINVAL, unix.EROFS)
			}
		}
	}
	// CVE-2024-21626, CVE-2016-9962: no descriptor but these three lives on.
	b.Call("closing all other descriptors at execve", unix.SYS_CLOSE_RANGE, Int(3), allFDs, Int(unix.CLOSE_RANGE_CLOEXEC))
	umask := uint32(0o022)
	if p.Umask != nil {
		umask = *p.Umask
	}
	b.Call("setting the umask", unix.SYS_UMASK, Int(umask))
	b.identity(p, workdir)
	b.execute(p)
}

// identity sets user, groups, capabilities, no_new_privs and the seccomp
// program, in the order that keeps just enough power for the next step.
func (b *Builder) identity(p *Process, workdir Result) {
	why := "limiting the bounding set to " + showCaps(p.Bounding)
	for c := range uint64(64) {
		if p.Bounding&(1<<c) == 0 {
			// EINVAL: the kernel doesn't know it. One that knows more than we
			// do must not give what nobody asked for.
			b.Call(why, unix.SYS_PRCTL, Int(unix.PR_CAPBSET_DROP), Int(c), Int(0), Int(0), Int(0)).
				Tolerate(unix.EINVAL)
		}
	}
	// Capabilities live through the change of user, but no longer than execve.
	b.Call("keeping capabilities for a moment", unix.SYS_PRCTL, Int(unix.PR_SET_KEEPCAPS), Int(1), Int(0), Int(0), Int(0))
	groups := Arg(Int(0))
	if len(p.Groups) > 0 {
		groups = Groups(p.Groups)
	}
	b.Call("setting the supplementary groups", unix.SYS_SETGROUPS, Int(len(p.Groups)), groups)
	gid, uid := Int(p.GID), Int(p.UID)
	b.Call(fmt.Sprintf("setting the group to %d", p.GID), unix.SYS_SETRESGID, gid, gid, gid)
	b.Call(fmt.Sprintf("setting the user to %d", p.UID), unix.SYS_SETRESUID, uid, uid, uid)
	b.enterWorkdirAgain(p, workdir)

	if p.Seccomp != nil && !p.NoNewPrivs {
		if p.UID != 0 {
			const admin = 1 << unix.CAP_SYS_ADMIN
			b.capset("keeping CAP_SYS_ADMIN for the seccomp program",
				CapData{p.Effective | admin, p.Permitted | admin, p.Inheritable})
		}
		b.seccomp(p)
	}
	b.capset("setting capabilities", CapData{p.Effective, p.Permitted, p.Inheritable})
	b.Call("setting ambient capabilities", unix.SYS_PRCTL, Int(unix.PR_CAP_AMBIENT), Int(unix.PR_CAP_AMBIENT_CLEAR_ALL), Int(0), Int(0), Int(0))
	for c := range uint64(64) {
		if p.Ambient&(1<<c) != 0 {
			b.Call("setting ambient capabilities", unix.SYS_PRCTL, Int(unix.PR_CAP_AMBIENT), Int(unix.PR_CAP_AMBIENT_RAISE), Int(c), Int(0), Int(0))
		}
	}
	if p.NoNewPrivs {
		b.Call("setting no_new_privs", unix.SYS_PRCTL, Int(unix.PR_SET_NO_NEW_PRIVS), Int(1), Int(0), Int(0), Int(0))
		if p.Seccomp != nil {
			b.seccomp(p)
		}
	}
}

func (b *Builder) capset(why string, caps CapData) {
	b.Call(why, unix.SYS_CAPSET, CapHeader{}, caps)
}

func (b *Builder) seccomp(p *Process) {
	b.Call("installing the seccomp program", unix.SYS_SECCOMP,
		Int(unix.SECCOMP_SET_MODE_FILTER), Int(p.SeccompFlags), Filter(p.Seccomp))
}

// execute is the last of every recipe. A command without a slash is tried in
// every directory of PATH, like Go's exec.LookPath: what isn't there or isn't
// executable is passed over.
func (b *Builder) execute(p *Process) {
	name := p.Args[0]
	why := fmt.Sprintf("exec: %q", name)
	// Placed once: every attempt passes the same memory.
	argv, env := placed{Argv(p.Args).place(b)}, placed{Environ(p.Env).place(b)}
	if strings.Contains(name, "/") {
		b.Call(why, unix.SYS_EXECVE, Str(name), argv, env).explained(func(e unix.Errno) string {
			switch e {
			case unix.ENOENT, unix.ENOTDIR:
				return fmt.Sprintf("%s: stat %s: %v", why, name, e)
			case unix.EACCES:
				return fmt.Sprintf("%s: %v", why, e)
			}
			return fmt.Sprintf("exec %s: %v", name, e)
		})
		return
	}
	files := candidates(name, lookup(p.Env, "PATH"))
	for i, file := range files {
		try := b.Call(why, unix.SYS_EXECVE, Str(file), argv, env).explained(func(e unix.Errno) string {
			switch e {
			case unix.ENOENT, unix.ENOTDIR, unix.EACCES, unix.ELOOP:
				return why + ": executable file not found in $PATH"
			}
			return fmt.Sprintf("exec %s: %v", file, e)
		})
		if i < len(files)-1 {
			try.Tolerate(unix.ENOENT, unix.ENOTDIR, unix.EACCES, unix.ELOOP)
		}
	}
}

// candidates are the files a command may be, at least one.
func candidates(name, searchPath string) []string {
	if searchPath == "" {
		return []string{""} // which no file is called
	}
	files := strings.Split(searchPath, ":")
	for i, dir := range files {
		if dir == "" {
			dir = "."
		}
		files[i] = strings.TrimSuffix(dir, "/") + "/" + name
	}
	return files
}

// placed is an argument whose memory is in the recipe already.
type placed struct{ a arg }

func (p placed) place(*Builder) arg { return p.a }

// lookup returns the last value of a variable.
func lookup(env []string, name string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if n, v, ok := strings.Cut(env[i], "="); ok && n == name {
			return v
		}
	}
	return ""
}
