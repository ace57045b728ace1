package pause

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Config says how to start a pause process.
type Config struct {
	Dir            string                 // the pod's run directory, 0700; the socket is pause.sock in it
	Cloneflags     uintptr                // CLONE_NEW*: the namespaces of the pod
	UIDMap, GIDMap []syscall.SysProcIDMap // with CLONE_NEWUSER; must map 0
	Cgroup         *os.File               // directory of the v2 cgroup to be born in; may be nil
	Setup          Recipe                 // carried out by pause itself before Start returns; may be nil
	// Born is called with pause's PID once its namespaces are there, while it
	// sets itself up; what it starts, the caller ends should Start fail. May be
	// nil.
	Born func(pid int)
}

// Recipe is what a process carries out; *internal/recipe.Recipe is one.
type Recipe interface {
	// Encode returns the recipe in the format of pause/PROTOCOL.md.
	Encode() []byte
	// Files returns the descriptors it needs, in order. They stay the caller's.
	Files() []*os.File
	// Explain says what it means that a step failed.
	Explain(step int, errno unix.Errno) error
}

const socketName = "pause.sock"

// Start makes a pause process and connects to it. It fails with
// errdefs.ErrAlreadyExists if one lives in that directory, and with what
// Setup.Explain says if a step of Setup fails.
func Start(ctx context.Context, cfg Config) (_ *Conn, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if cfg.Cloneflags&^namespaces != 0 {
		return nil, fmt.Errorf("clone flags %#x of pause: only namespaces are allowed: %w", cfg.Cloneflags, errdefs.ErrInvalidArgument)
	}
	dir, err := os.OpenFile(cfg.Dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("run directory of pause: %w", err)
	}
	defer dir.Close()
	listener, err := bind(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("socket of pause in %s: %w", cfg.Dir, err)
	}
	defer unix.Close(listener)
	defer func() {
		if err != nil {
			unix.Unlinkat(int(dir.Fd()), socketName, 0)
		}
	}()

	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket pair for pause: %w", err)
	}
	p, err := run(cfg, listener, pair)
	if err != nil {
		unix.Close(pair[0])
		return nil, fmt.Errorf("starting pause: %w", err)
	}
	c, err := newConn(pair[0], p)
	if err == nil {
		if err = c.prepare(ctx, cfg); err == nil {
			return c, nil
		}
		c.Close()
	}
	p.kill()
	<-p.done
	return nil, err
}

const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// prepare shakes hands and lets pause set itself up. It asks for both before it
// waits for either: the program is our own, so it won't say no.
func (c *Conn) prepare(ctx context.Context, cfg Config) error {
	req := request{Type: typeSetup}
	var files []*os.File
	if cfg.Setup != nil {
		memfd, err := recipeMemfd(cfg.Setup)
		if err != nil {
			return fmt.Errorf("setting up pause: %w", err)
		}
		defer memfd.Close()
		files = append([]*os.File{memfd}, cfg.Setup.Files()...)
	}
	hello, err := c.greet(ctx)
	if err != nil {
		return err
	}
	if cfg.Born != nil {
		cfg.Born(c.PID())
	}
	call, err := c.send(ctx, req, files)
	if err != nil {
		return fmt.Errorf("setting up pause: %w", err)
	}
	if err := c.greeted(ctx, hello); err != nil {
		return err
	}
	if err := c.answered(ctx, call); err != nil {
		return fmt.Errorf("setting up pause: %w", err)
	}
	switch errno := unix.Errno(call.reply.Error); {
	case errno == 0:
		return nil
	case cfg.Setup == nil || call.reply.Step == reportRecipe:
		return fmt.Errorf("setting up pause: %w", errno)
	default:
		return cfg.Setup.Explain(int(call.reply.Step), errno)
	}
}

// socketPath names pause's socket without the limit of 107 bytes.
func socketPath(dir *os.File) *unix.SockaddrUnix {
	return &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName)}
}

// bind makes the socket that pause will listen on: pause itself calls
// listen(2), so that who connects sees pause as its peer. The socket of a pause
// that has died is replaced.
func bind(ctx context.Context, dir *os.File) (_ int, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	if err := unix.Fchmod(fd, 0o600); err != nil { // the mode bind gives the file
		return -1, err
	}
	err = unix.Bind(fd, socketPath(dir))
	if !errors.Is(err, unix.EADDRINUSE) {
		return fd, err
	}
	if err := awaitDeath(ctx, dir); err != nil {
		return -1, err
	}
	if err := unix.Unlinkat(int(dir.Fd()), socketName, 0); err != nil {
		return -1, err
	}
	return fd, unix.Bind(fd, socketPath(dir))
}

// awaitDeath waits until nobody has the socket open. A process that this node
// is forking has a copy of every descriptor for a moment, so the socket may
// outlive its pause by that.
func awaitDeath(ctx context.Context, dir *os.File) error {
	// A socket of another type is refused before it disturbs a living one.
	probe, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(probe)
	patience := time.After(time.Second)
	for {
		if err := unix.Connect(probe, socketPath(dir)); errors.Is(err, unix.ECONNREFUSED) {
			return nil
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		case <-patience:
			return fmt.Errorf("a pause process lives here already: %w", errdefs.ErrAlreadyExists)
		}
	}
}
