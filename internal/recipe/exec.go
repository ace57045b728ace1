package recipe

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ExecSpec is a process executed in a running container.
type ExecSpec struct {
	Process
	// PIDFD is a pidfd of the container's first process.
	PIDFD *os.File
	// Namespaces are those to join, CLONE_NEW*: the ones the container
	// doesn't share with pause. Not CLONE_NEWPID, which pause sees to.
	Namespaces uint64
	// UserNS is as in ContainerSpec.
	UserNS bool
}

// Exec returns the recipe of a process executed in a container.
//
// Whatever the container did to its mounts, nothing of it is looked at before
// the child has joined them with everything else set up; and then only its
// working directory and the command are.
func Exec(spec ExecSpec) (*Recipe, error) {
	err := spec.Process.validate()
	switch {
	case err != nil:
	case spec.PIDFD == nil:
		err = fmt.Errorf("PIDFD: missing")
	case spec.Namespaces == 0:
		err = fmt.Errorf("Namespaces: none to join")
	case spec.Namespaces&unix.CLONE_NEWPID != 0:
		err = fmt.Errorf("Namespaces: the PID namespace is entered by cloning")
	}
	if err != nil {
		return nil, fmt.Errorf("recipe: exec: %w", err)
	}
	b := New()
	b.joinCgroups(spec.CgroupProcs)
	b.stdio(&spec.Process)
	if spec.OOMScoreAdj != nil {
		// pause's own procfs: of no use to anybody if it were another, and a
		// new one costs more than the rest of the recipe.
		proc := b.open("setting oom_score_adj", cwd, "/proc", onlyDir, 0)
		b.oomScoreAdj(proc, *spec.OOMScoreAdj)
	}
	if spec.AppArmor != "" || spec.SELinuxLabel != "" {
		// The container may have mounted anything over its /proc.
		_, proc := b.newFS("preparing proc", "proc", safeFS)
		b.labels(&spec.Process, proc)
	}
	b.Call("joining the container's namespaces", unix.SYS_SETNS, b.FD("container", spec.PIDFD), Int(int64(spec.Namespaces)))

	// The kernel has put us into the root directory of the container's mount
	// namespace.
	root := b.open("opening the root directory", cwd, "/", onlyDir, 0)
	again := b.enterWorkdir(&spec.Process, root, b.openWorkdir(&spec.Process, root))
	b.session(&spec.Process)
	b.become(&spec.Process, again, !spec.UserNS)
	return b.Recipe()
}
