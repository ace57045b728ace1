package runtime

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/cgroup"
)

// place is a cgroup opened for a process to be born in.
type place struct {
	dir   *os.File
	procs []*os.File
}

// openPlace opens g. A parent in a user namespace may not clone into a cgroup
// (the kernel asks whether it may write there); its child enters by files
// that the node, which may, has opened.
func openPlace(g *cgroup.Group, userns bool) (_ *place, err error) {
	p := &place{}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.dir, err = g.Dir(); err != nil {
		return nil, err
	}
	if p.procs, err = g.Procs(); err != nil || !userns {
		return p, err
	}
	fd, err := unix.Openat(int(p.dir.Fd()), "cgroup.procs", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "openat", Path: p.dir.Name() + "/cgroup.procs", Err: err}
	}
	p.procs = append(p.procs, os.NewFile(uintptr(fd), p.dir.Name()+"/cgroup.procs"))
	p.dir.Close()
	p.dir = nil
	return p, nil
}

func (p *place) close() {
	if p.dir != nil {
		p.dir.Close()
	}
	for _, f := range p.procs {
		f.Close()
	}
}

// removeGroup ends whatever is left in the pod's cgroup and removes it.
func (s *sandbox) removeGroup() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.group.Kill(ctx); err != nil {
		s.r.log.Warn("killing what is left of a pod", "sandbox", s.id, "error", err)
	}
	if err := s.group.Remove(); err != nil {
		s.r.log.Warn("removing a pod's cgroup", "sandbox", s.id, "error", err)
	}
}
