package recipe

import (
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The words the compositions are written in. Each is one system call or a
// short idiom of the mount API.

const (
	openHowSize   = 24
	mountAttrSize = 32

	// inRoot resolves a path as a process whose root is the directory would
	// see it: whatever links a hostile image or volume holds, they lead to
	// something inside, and never through a magic link of procfs.
	inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	// onlyHere resolves a path on one file system without any symbolic link.
	onlyHere = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV
	// ownProc is for procfs, whose self and thread-self are honest links.
	ownProc = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

	safeFS = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

	onlyDir = unix.O_PATH | unix.O_DIRECTORY
	allFDs  = Int(^uint32(0))
)

// cwd is the directory descriptor that means the working directory.
var cwd = Int(unix.AT_FDCWD)

func (b *Builder) open(why string, dir Arg, path string, flags, resolve uint64) Result {
	how := OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve}
	return b.Call(why, unix.SYS_OPENAT2, dir, Str(path), how, Int(openHowSize))
}

func (b *Builder) close(why string, fd Arg) Result { return b.Call(why, unix.SYS_CLOSE, fd) }

func (b *Builder) write(why string, fd Arg, data string) Result {
	return b.Call(why, unix.SYS_WRITE, fd, Str(data), Int(len(data)))
}

// fsOption is one setting of a new file system; without a value it is a flag.
type fsOption struct{ key, value string }

// newFS makes an instance of a file system. It returns the context, which can
// reconfigure it later, and the detached mount.
func (b *Builder) newFS(why, fstype string, attrs Int, options ...fsOption) (context, mount Result) {
	context = b.Call(why, unix.SYS_FSOPEN, Str(fstype), Int(unix.FSOPEN_CLOEXEC))
	if !slices.ContainsFunc(options, func(o fsOption) bool { return o.key == "source" }) {
		options = append(options, fsOption{"source", fstype}) // as it is shown in /proc/mounts
	}
	for _, o := range options {
		b.configure(why, context, o)
	}
	b.Call(why, unix.SYS_FSCONFIG, context, Int(unix.FSCONFIG_CMD_CREATE), Int(0), Int(0), Int(0))
	mount = b.Call(why, unix.SYS_FSMOUNT, context, Int(unix.FSMOUNT_CLOEXEC), attrs)
	return context, mount
}

func (b *Builder) configure(why string, context Result, o fsOption) {
	if o.value == "" {
		b.Call(why, unix.SYS_FSCONFIG, context, Int(unix.FSCONFIG_SET_FLAG), Str(o.key), Int(0), Int(0))
		return
	}
	b.Call(why, unix.SYS_FSCONFIG, context, Int(unix.FSCONFIG_SET_STRING), Str(o.key), Str(o.value), Int(0))
}

// move attaches a detached mount at an opened target.
func (b *Builder) move(why string, mount, target Arg) Result {
	return b.Call(why, unix.SYS_MOVE_MOUNT, mount, Str(""), target, Str(""),
		Int(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

// moveTo attaches a detached mount at a path of ours: pause's root.
func (b *Builder) moveTo(why string, mount Arg, path string) Result {
	return b.Call(why, unix.SYS_MOVE_MOUNT, mount, Str(""), cwd, Str(path), Int(unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// clone copies the mount at a path of ours, detached.
func (b *Builder) clone(why, path string) Result {
	return b.Call(why, unix.SYS_OPEN_TREE, cwd, Str(path), Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC))
}

// mkdir makes a directory; it may exist.
func (b *Builder) mkdir(why string, dir Arg, name string, tolerate ...unix.Errno) {
	b.Call(why, unix.SYS_MKDIRAT, dir, Str(name), Int(0o755)).Tolerate(append(tolerate, unix.EEXIST)...)
}

// target opens the place in root where something is to be mounted, making it
// and its missing parents. The tree may be hostile and may be changing: every
// component is opened anew from root, confined to it, and made relative to the
// descriptor of its parent, so no link can lead outside.
//
// A new file is made with mknod, which doesn't open what is already there: an
// image may hold a FIFO or a device at that name.
//
// With tolerate, steps that fail so go unnoticed, and the result may be none.
func (b *Builder) target(why string, root Arg, at string, file bool, tolerate ...unix.Errno) Result {
	parts := split(at)
	parent, opened := root, false
	for i, name := range parts {
		last := i == len(parts)-1
		if last && file {
			b.Call(why, unix.SYS_MKNODAT, parent, Str(name), Int(unix.S_IFREG|0o644), Int(0)).Tolerate(unix.EEXIST)
		} else {
			b.mkdir(why, parent, name, tolerate...)
		}
		if last {
			break
		}
		next := b.open(why, root, "/"+path.Join(parts[:i+1]...), onlyDir, inRoot).Tolerate(tolerate...)
		if opened {
			b.close(why, parent).Tolerate(tolerate...)
		}
		parent, opened = next, true
	}
	if opened {
		b.close(why, parent).Tolerate(tolerate...)
	}
	flags := uint64(onlyDir)
	if file {
		flags = unix.O_PATH
	}
	return b.open(why, root, path.Clean("/"+at), flags, inRoot).Tolerate(tolerate...)
}

// split returns the names of an absolute path, "." and ".." resolved.
func split(at string) []string {
	return slices.DeleteFunc(strings.Split(path.Clean("/"+at), "/"), func(s string) bool { return s == "" })
}

// within returns what is left of at below dir: "" for dir itself.
func within(at, dir string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(at, dir)
	if !ok || rest != "" && rest[0] != '/' {
		return "", false
	}
	return strings.TrimPrefix(rest, "/"), true
}

// procWrite writes to a file of a procfs that nobody else has: CVE-2019-16884,
// CVE-2019-19921, CVE-2025-52881. The file is opened from the descriptor of a
// mount that was just made, so it is the kernel's whatever an image, a volume
// or a container racing with us has put at /proc.
func (b *Builder) procWrite(why string, proc Arg, file, data string, tolerate ...unix.Errno) {
	fd := b.open(why, proc, file, unix.O_WRONLY, ownProc).Tolerate(tolerate...)
	written, closed := b.write(why, fd, data), b.close(why, fd)
	if len(tolerate) > 0 {
		written.Tolerate(append(slices.Clone(tolerate), unix.EBADF)...)
		closed.Tolerate(unix.EBADF)
	}
}
