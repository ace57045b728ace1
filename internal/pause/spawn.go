package pause

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// SpawnRequest describes a child.
type SpawnRequest struct {
	ID           string     // of the container or exec; 1 to 64 bytes, unique among pause's children
	Cloneflags   uintptr    // CLONE_NEW*: its own namespaces
	PIDNamespace *os.File   // pidfd or PID namespace it is born in; nil: pause's own
	Cgroup       *os.File   // directory of the v2 cgroup it is born in; may be nil
	Recipe       Recipe     // must end in execve or exit
	Keep         []*os.File // pause keeps copies for a restarted node; at most 8
}

// Process is a child that was spawned. Pidfd is the caller's to close.
type Process struct {
	ID        string
	PID       int // in the node's PID namespace; 0 if it ended at once
	Pidfd     *os.File
	StartedAt time.Time // when pause cloned it
}

// spawning is a Spawn under way. The child's exit isn't for Exits before Spawn
// has returned, and never if it fails.
type spawning struct {
	id     string
	call   *call
	report *os.File      // read end
	exited chan struct{} // closed when the child has ended
	exit   Exit          // then
}

// Spawn lets pause clone a child and waits until the child has executed its
// program. If a step of the recipe fails, the error is what Recipe.Explain
// says, and pause has already forgotten the child. errdefs.ErrAlreadyExists: the
// ID is in use; errdefs.ErrResourceExhausted: pause has too many children or
// descriptors. If ctx ends, a child that came to be is killed and forgotten
// behind Spawn's return.
func (c *Conn) Spawn(ctx context.Context, r SpawnRequest) (*Process, error) {
	s, err := c.begin(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", r.ID, err)
	}
	if err := c.wait(ctx, s.call); err != nil {
		c.discard(ctx, s)
		return nil, fmt.Errorf("starting %s: %w", r.ID, err)
	}
	if errno := unix.Errno(s.call.reply.Error); errno != 0 {
		c.finish(s, true)
		return nil, fmt.Errorf("starting %s: %w", r.ID, c.refusal(r, errno))
	}
	if len(s.call.files) != 1 {
		c.discard(ctx, s)
		return nil, fmt.Errorf("starting %s: %d descriptors came from pause instead of a pidfd", r.ID, len(s.call.files))
	}
	pid, err := fileNumber(s.call.files[0], pidOf)
	if err == nil {
		err = c.outcome(ctx, s, r.Recipe)
	}
	if err != nil {
		c.discard(ctx, s)
		if errors.Is(err, errUnreported) {
			err = s.death()
		}
		return nil, err
	}
	c.finish(s, true)
	return &Process{ID: r.ID, PID: pid, Pidfd: s.call.files[0], StartedAt: time.Unix(0, s.call.reply.Started)}, nil
}

// begin sends the request.
func (c *Conn) begin(ctx context.Context, r SpawnRequest) (_ *spawning, err error) {
	req, err := r.encode()
	if err != nil {
		return nil, err
	}
	memfd, err := recipeMemfd(r.Recipe)
	if err != nil {
		return nil, err
	}
	defer memfd.Close()
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("report pipe: %w", err)
	}
	theirs := os.NewFile(uintptr(pipe[1]), "report")
	defer theirs.Close()
	unix.SetNonblock(pipe[0], true) // ours only: pause's end is another open file
	s := &spawning{id: r.ID, report: os.NewFile(uintptr(pipe[0]), "report"), exited: make(chan struct{})}

	c.mu.Lock()
	_, taken := c.spawning[r.ID]
	if !taken {
		c.spawning[r.ID] = s
	}
	c.mu.Unlock()
	if taken {
		s.report.Close()
		return nil, errIDTaken
	}
	if s.call, err = c.send(ctx, req, r.files(memfd, theirs)); err != nil {
		c.finish(s, true)
		return nil, err
	}
	return s, nil
}

var errIDTaken = fmt.Errorf("a process with this ID exists: %w", errdefs.ErrAlreadyExists)

// finish ends a Spawn. With deliver, the child's exit is from now on (or, if it
// came meanwhile, at once) a matter of Exits.
func (c *Conn) finish(s *spawning, deliver bool) {
	s.report.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.spawning, s.id)
	select {
	case <-s.exited:
		if deliver {
			c.give(s.exit)
		}
	default:
	}
}

// discard makes a failed Spawn undone: the child is killed, reaped and
// forgotten. It waits for that while ctx lasts; the work goes on behind.
func (c *Conn) discard(ctx context.Context, s *spawning) {
	done := make(chan struct{})
	undo := func() { c.undo(s); close(done) }
	c.mu.Lock()
	closed := c.closed()
	if !closed {
		c.workers.Go(undo)
	}
	c.mu.Unlock()
	if closed {
		undo() // has nothing to wait for
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

func (c *Conn) undo(s *spawning) {
	defer c.finish(s, false)
	<-s.call.done
	if s.call.err != nil || s.call.reply.Error != 0 {
		return
	}
	for _, f := range s.call.files {
		fileNumber(f, func(pidfd int) (int, error) { return 0, unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0) })
	}
	closeAll(s.call.files)
	select {
	case <-s.exited:
		c.Release(context.Background(), s.id) // fails only with the connection
	case <-c.ended:
	}
}

// errUnreported: the child ended before it reached its program, without a word.
var errUnreported = errors.New("no report")

// outcome reads the child's report until it executes its program or ends, or
// the connection does.
func (c *Conn) outcome(ctx context.Context, s *spawning, recipe Recipe) error {
	stop := context.AfterFunc(ctx, func() { s.report.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	launched := false
	for {
		var b [8]byte
		_, err := io.ReadFull(s.report, b[:])
		switch {
		case err == io.EOF && launched:
			return nil
		case err == io.EOF:
			return errUnreported
		case errors.Is(err, os.ErrDeadlineExceeded):
			if err = ctx.Err(); err == nil {
				err = c.lost()
			}
			return fmt.Errorf("starting %s: %w", s.id, err)
		case err != nil:
			return fmt.Errorf("starting %s: reading its report: %w", s.id, err)
		}
		step, errno := binary.LittleEndian.Uint32(b[:]), unix.Errno(binary.LittleEndian.Uint32(b[4:]))
		switch {
		case errno == 0:
			launched = true // it is about to execve
		case step == reportRecipe:
			return fmt.Errorf("starting %s: pause can't read its recipe: %w", s.id, errno)
		default:
			return recipe.Explain(int(step), errno)
		}
	}
}

// death says how a child ended that never reached its program.
func (s *spawning) death() error {
	select {
	case <-s.exited:
	default:
		return fmt.Errorf("starting %s: it ended while it was being set up: %w", s.id, errdefs.ErrAborted)
	}
	if s.exit.Status.Signaled() {
		return fmt.Errorf("starting %s: it was killed (%v) while it was being set up; is its memory limit too low? %w",
			s.id, unix.SignalName(s.exit.Status.Signal()), errdefs.ErrAborted)
	}
	return fmt.Errorf("starting %s: it exited with %d while it was being set up: %w", s.id, s.exit.Status.ExitStatus(), errdefs.ErrAborted)
}

// refusal translates what pause says to a SPAWN it can't fulfil.
func (c *Conn) refusal(r SpawnRequest, errno unix.Errno) error {
	switch {
	case errno == unix.EEXIST:
		return errIDTaken
	case errno == unix.ENOSPC:
		return fmt.Errorf("pause has %d children, more than that it can't hold; release some: %w", c.limit, errdefs.ErrResourceExhausted)
	case errno == unix.EMFILE || errno == unix.ENFILE:
		return fmt.Errorf("pause can't take more descriptors (RLIMIT_NOFILE): %w: %w", errno, errdefs.ErrResourceExhausted)
	case errno == unix.EAGAIN:
		return fmt.Errorf("the limit of processes is reached (pids cgroup, RLIMIT_NPROC or pid_max): %w: %w", errno, errdefs.ErrResourceExhausted)
	case errno == unix.ENOMEM && r.PIDNamespace != nil, errno == unix.ESRCH && r.PIDNamespace != nil:
		return fmt.Errorf("joining its PID namespace, which has ended: %w: %w", errno, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("cloning it: %w", errno)
}

func (r *SpawnRequest) encode() (request, error) {
	req := request{Type: typeSpawn, Cloneflags: uint64(r.Cloneflags), Keep: uint32(len(r.Keep))}
	switch {
	case r.Recipe == nil:
		return req, fmt.Errorf("no recipe: %w", errdefs.ErrInvalidArgument)
	case r.Cloneflags&^namespaces != 0:
		return req, fmt.Errorf("clone flags %#x: only namespaces are allowed: %w", r.Cloneflags, errdefs.ErrInvalidArgument)
	case len(r.Keep) > maxKeep:
		return req, fmt.Errorf("%d descriptors to keep, at most %d are possible: %w", len(r.Keep), maxKeep, errdefs.ErrInvalidArgument)
	}
	if r.PIDNamespace != nil {
		req.Flags |= spawnPIDNamespace
	}
	if r.Cgroup != nil {
		req.Flags |= spawnCgroup
	}
	return req, setID(&req, r.ID)
}

// files lists what goes with the request, in the protocol's order.
func (r *SpawnRequest) files(recipe, report *os.File) []*os.File {
	files := []*os.File{recipe, report}
	if r.PIDNamespace != nil {
		files = append(files, r.PIDNamespace)
	}
	if r.Cgroup != nil {
		files = append(files, r.Cgroup)
	}
	files = append(files, r.Recipe.Files()...)
	return append(files, r.Keep...)
}

func recipeMemfd(r Recipe) (*os.File, error) {
	blob := r.Encode()
	if len(blob) > maxRecipe {
		return nil, fmt.Errorf("its recipe takes %d bytes, at most %d are possible (arguments and environment too long?): %w: %w",
			len(blob), maxRecipe, unix.E2BIG, errdefs.ErrInvalidArgument)
	}
	return sealedMemfd("recipe", blob, unix.MFD_NOEXEC_SEAL)
}
