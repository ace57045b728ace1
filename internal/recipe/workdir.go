package recipe

import (
	"path"

	"golang.org/x/sys/unix"
)

// The working directory.
//
// CVE-2024-21626: it can't be a descriptor left open by somebody, nor reached
// through one: magic links aren't followed, and it is opened inside the root
// after everything has been mounted, so it is what the container will see
// there.
//
// It is entered by root, who may enter what the process's user may not; but
// where even root may not (NFS with root_squash, owners that a user namespace
// doesn't map), it is tried again by the user, as runc does.

func (p *Process) cwd() string { return path.Clean("/" + p.Cwd) }

func (p *Process) whyCwd() string { return "changing to the working directory " + p.cwd() }

// makeWorkdir makes and opens a container's working directory.
func (b *Builder) makeWorkdir(p *Process, root Arg) Result {
	if p.cwd() == "/" {
		return b.open(p.whyCwd(), root, "/", onlyDir, inRoot)
	}
	return b.target(p.whyCwd(), root, p.cwd(), false, unix.EACCES, unix.EBADF)
}

// openWorkdir opens the working directory of an exec, which must exist.
func (b *Builder) openWorkdir(p *Process, root Arg) Result {
	return b.open(p.whyCwd(), root, p.cwd(), onlyDir, inRoot).Tolerate(unix.EACCES)
}

// enterWorkdir enters the directory. It returns what enterWorkdirAgain needs: a
// copy of root's descriptor if permission was denied. If not, fchdir has
// returned 0, and the copy has become one of descriptor 0, in which nothing
// can be opened.
func (b *Builder) enterWorkdir(p *Process, root Arg, dir Result) Result {
	why := p.whyCwd()
	slot := b.Call(why, unix.SYS_FCNTL, root, Int(unix.F_DUPFD_CLOEXEC), Int(3))
	entered := b.Call(why, unix.SYS_FCHDIR, dir).Tolerate(unix.EACCES, unix.EBADF)
	b.Call(why, unix.SYS_DUP3, entered, slot, Int(unix.O_CLOEXEC)).Tolerate(unix.EBADF)
	return slot
}

// enterWorkdirAgain does it as the user, if root could not.
func (b *Builder) enterWorkdirAgain(p *Process, slot Result) {
	dir := b.open(p.whyCwd(), slot, p.cwd(), onlyDir, inRoot).Tolerate(unix.ENOTDIR)
	b.Call(p.whyCwd(), unix.SYS_FCHDIR, dir).Tolerate(unix.EBADF)
}
