package recipe

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// signature is how a system call is printed: its name and, by position, how
// integers are. A nil printer prints a number.
type signature struct {
	name string
	args []intPrinter
}

// signatures are the system calls recipes use. Calls that aren't here print
// by number.
var signatures = map[uintptr]signature{
	unix.SYS_CAPSET:        {"capset", nil},
	unix.SYS_CHDIR:         {"chdir", nil},
	unix.SYS_CLOSE:         {"close", nil},
	unix.SYS_CLOSE_RANGE:   {"close_range", []intPrinter{nil, showLast, closeRangeFlags.print}},
	unix.SYS_DUP3:          {"dup3", []intPrinter{nil, nil, openFlags.print}},
	unix.SYS_EXECVE:        {"execve", nil},
	unix.SYS_EXIT_GROUP:    {"exit_group", nil},
	unix.SYS_FCHDIR:        {"fchdir", nil},
	unix.SYS_FCHOWN:        {"fchown", []intPrinter{nil, showID, showID}},
	unix.SYS_FCNTL:         {"fcntl", []intPrinter{nil, fcntlCommands.print, nil}},
	unix.SYS_FSCONFIG:      {"fsconfig", []intPrinter{nil, fsconfigCommands.print, showNull, showNull, nil}},
	unix.SYS_FSMOUNT:       {"fsmount", []intPrinter{nil, fsmountFlags.print, mountAttrFlags.print}},
	unix.SYS_FSOPEN:        {"fsopen", []intPrinter{nil, fsopenFlags.print}},
	unix.SYS_IOCTL:         {"ioctl", []intPrinter{nil, ioctls.print, nil}},
	unix.SYS_KEYCTL:        {"keyctl", []intPrinter{keyctls.print, showNull}},
	unix.SYS_MKDIRAT:       {"mkdirat", []intPrinter{showFD, nil, showMode}},
	unix.SYS_MKNODAT:       {"mknodat", []intPrinter{showFD, nil, showMode, showDevice}},
	unix.SYS_MOUNT_SETATTR: {"mount_setattr", []intPrinter{showFD, nil, atFlags.print, nil, nil}},
	unix.SYS_MOVE_MOUNT:    {"move_mount", []intPrinter{showFD, nil, showFD, nil, moveMountFlags.print}},
	unix.SYS_OPENAT2:       {"openat2", []intPrinter{showFD, nil, nil, nil}},
	unix.SYS_OPEN_TREE:     {"open_tree", []intPrinter{showFD, nil, openTreeFlags.print}},
	unix.SYS_PIVOT_ROOT:    {"pivot_root", nil},
	unix.SYS_PRCTL:         {"prctl", []intPrinter{prctls.print, showPrctl1, showPrctl2}},
	unix.SYS_PRLIMIT64:     {"prlimit64", []intPrinter{nil, rlimits.print, nil, showNull}},
	unix.SYS_SECCOMP:       {"seccomp", []intPrinter{seccompModes.print, seccompFlags.print, nil}},
	unix.SYS_SETGROUPS:     {"setgroups", []intPrinter{nil, showNull}},
	unix.SYS_SETHOSTNAME:   {"sethostname", nil},
	unix.SYS_SETNS:         {"setns", []intPrinter{nil, cloneFlags.print}},
	unix.SYS_SETRESGID:     {"setresgid", []intPrinter{showID, showID, showID}},
	unix.SYS_SETRESUID:     {"setresuid", []intPrinter{showID, showID, showID}},
	unix.SYS_SETSID:        {"setsid", nil},
	unix.SYS_UMASK:         {"umask", []intPrinter{showMode}},
	unix.SYS_UMOUNT2:       {"umount2", []intPrinter{nil, umountFlags.print}},
	unix.SYS_UNSHARE:       {"unshare", []intPrinter{cloneFlags.print}},
	unix.SYS_WRITE:         {"write", nil},
}

func showLast(v uint64, s *step) string {
	if v == ^uint64(0)>>32 {
		return "~0"
	}
	return showInt(v, s)
}

// showID prints a user or group ID; -1 leaves it as it is.
func showID(v uint64, s *step) string {
	if int64(v) == -1 {
		return "-1"
	}
	return strconv.FormatUint(v, 10)
}

var (
	openFlags = flagNames{
		{unix.O_PATH, "O_PATH"}, {unix.O_WRONLY, "O_WRONLY"}, {unix.O_RDWR, "O_RDWR"},
		{unix.O_DIRECTORY, "O_DIRECTORY"}, {unix.O_NOFOLLOW, "O_NOFOLLOW"}, {unix.O_CLOEXEC, "O_CLOEXEC"},
	}
	resolveFlags = flagNames{
		{unix.RESOLVE_IN_ROOT, "RESOLVE_IN_ROOT"}, {unix.RESOLVE_BENEATH, "RESOLVE_BENEATH"},
		{unix.RESOLVE_NO_MAGICLINKS, "RESOLVE_NO_MAGICLINKS"}, {unix.RESOLVE_NO_SYMLINKS, "RESOLVE_NO_SYMLINKS"},
		{unix.RESOLVE_NO_XDEV, "RESOLVE_NO_XDEV"},
	}
	mountAttrFlags = flagNames{
		{unix.MOUNT_ATTR_RDONLY, "MOUNT_ATTR_RDONLY"}, {unix.MOUNT_ATTR_NOSUID, "MOUNT_ATTR_NOSUID"},
		{unix.MOUNT_ATTR_NODEV, "MOUNT_ATTR_NODEV"}, {unix.MOUNT_ATTR_NOEXEC, "MOUNT_ATTR_NOEXEC"},
		{unix.MOUNT_ATTR_IDMAP, "MOUNT_ATTR_IDMAP"}, {unix.MOUNT_ATTR_NOSYMFOLLOW, "MOUNT_ATTR_NOSYMFOLLOW"},
	}
	mountFlags = flagNames{
		{unix.MS_PRIVATE, "MS_PRIVATE"}, {unix.MS_SLAVE, "MS_SLAVE"},
		{unix.MS_SHARED, "MS_SHARED"}, {unix.MS_UNBINDABLE, "MS_UNBINDABLE"},
	}
	moveMountFlags = flagNames{
		{unix.MOVE_MOUNT_F_EMPTY_PATH, "MOVE_MOUNT_F_EMPTY_PATH"}, {unix.MOVE_MOUNT_T_EMPTY_PATH, "MOVE_MOUNT_T_EMPTY_PATH"},
		{unix.MOVE_MOUNT_F_SYMLINKS, "MOVE_MOUNT_F_SYMLINKS"}, {unix.MOVE_MOUNT_T_SYMLINKS, "MOVE_MOUNT_T_SYMLINKS"},
	}
	openTreeFlags = flagNames{
		{unix.OPEN_TREE_CLONE, "OPEN_TREE_CLONE"}, {unix.OPEN_TREE_CLOEXEC, "OPEN_TREE_CLOEXEC"},
		{unix.AT_EMPTY_PATH, "AT_EMPTY_PATH"}, {unix.AT_RECURSIVE, "AT_RECURSIVE"},
		{unix.AT_SYMLINK_NOFOLLOW, "AT_SYMLINK_NOFOLLOW"},
	}
	atFlags = flagNames{
		{unix.AT_EMPTY_PATH, "AT_EMPTY_PATH"}, {unix.AT_RECURSIVE, "AT_RECURSIVE"},
		{unix.AT_SYMLINK_NOFOLLOW, "AT_SYMLINK_NOFOLLOW"},
	}
	cloneFlags = flagNames{
		{unix.CLONE_NEWNS, "CLONE_NEWNS"}, {unix.CLONE_NEWPID, "CLONE_NEWPID"}, {unix.CLONE_NEWNET, "CLONE_NEWNET"},
		{unix.CLONE_NEWIPC, "CLONE_NEWIPC"}, {unix.CLONE_NEWUTS, "CLONE_NEWUTS"}, {unix.CLONE_NEWUSER, "CLONE_NEWUSER"},
		{unix.CLONE_NEWCGROUP, "CLONE_NEWCGROUP"}, {unix.CLONE_NEWTIME, "CLONE_NEWTIME"},
	}
	closeRangeFlags = flagNames{{unix.CLOSE_RANGE_CLOEXEC, "CLOSE_RANGE_CLOEXEC"}}
	fsopenFlags     = flagNames{{unix.FSOPEN_CLOEXEC, "FSOPEN_CLOEXEC"}}
	fsmountFlags    = flagNames{{unix.FSMOUNT_CLOEXEC, "FSMOUNT_CLOEXEC"}}
	umountFlags     = flagNames{{unix.MNT_DETACH, "MNT_DETACH"}}
	seccompFlags    = flagNames{
		{unix.SECCOMP_FILTER_FLAG_TSYNC, "SECCOMP_FILTER_FLAG_TSYNC"}, {unix.SECCOMP_FILTER_FLAG_LOG, "SECCOMP_FILTER_FLAG_LOG"},
		{unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, "SECCOMP_FILTER_FLAG_SPEC_ALLOW"},
	}

	seccompModes     = valueNames{unix.SECCOMP_SET_MODE_FILTER: "SECCOMP_SET_MODE_FILTER"}
	fsconfigCommands = valueNames{
		unix.FSCONFIG_SET_FLAG: "FSCONFIG_SET_FLAG", unix.FSCONFIG_SET_STRING: "FSCONFIG_SET_STRING",
		unix.FSCONFIG_CMD_CREATE: "FSCONFIG_CMD_CREATE", unix.FSCONFIG_CMD_RECONFIGURE: "FSCONFIG_CMD_RECONFIGURE",
	}
	fcntlCommands = valueNames{unix.F_DUPFD_CLOEXEC: "F_DUPFD_CLOEXEC"}
	ioctls        = valueNames{unix.TIOCSCTTY: "TIOCSCTTY"}
	keyctls       = valueNames{unix.KEYCTL_JOIN_SESSION_KEYRING: "KEYCTL_JOIN_SESSION_KEYRING"}
	prctls        = valueNames{
		unix.PR_CAPBSET_DROP: "PR_CAPBSET_DROP", unix.PR_CAP_AMBIENT: "PR_CAP_AMBIENT",
		unix.PR_SET_KEEPCAPS: "PR_SET_KEEPCAPS", unix.PR_SET_NO_NEW_PRIVS: "PR_SET_NO_NEW_PRIVS",
		unix.PR_SET_DUMPABLE: "PR_SET_DUMPABLE",
	}
	ambientOps = valueNames{
		unix.PR_CAP_AMBIENT_CLEAR_ALL: "PR_CAP_AMBIENT_CLEAR_ALL", unix.PR_CAP_AMBIENT_RAISE: "PR_CAP_AMBIENT_RAISE",
	}
	rlimits = valueNames{
		unix.RLIMIT_CPU: "RLIMIT_CPU", unix.RLIMIT_FSIZE: "RLIMIT_FSIZE", unix.RLIMIT_DATA: "RLIMIT_DATA",
		unix.RLIMIT_STACK: "RLIMIT_STACK", unix.RLIMIT_CORE: "RLIMIT_CORE", unix.RLIMIT_RSS: "RLIMIT_RSS",
		unix.RLIMIT_NPROC: "RLIMIT_NPROC", unix.RLIMIT_NOFILE: "RLIMIT_NOFILE", unix.RLIMIT_MEMLOCK: "RLIMIT_MEMLOCK",
		unix.RLIMIT_AS: "RLIMIT_AS", unix.RLIMIT_LOCKS: "RLIMIT_LOCKS", unix.RLIMIT_SIGPENDING: "RLIMIT_SIGPENDING",
		unix.RLIMIT_MSGQUEUE: "RLIMIT_MSGQUEUE", unix.RLIMIT_NICE: "RLIMIT_NICE", unix.RLIMIT_RTPRIO: "RLIMIT_RTPRIO",
		unix.RLIMIT_RTTIME: "RLIMIT_RTTIME",
	}
)

// capNames are the capabilities by number, see capabilities(7).
var capNames = [...]string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}
