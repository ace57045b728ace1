package upkeep

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func isNotFound(err error) bool { return status.Code(err) == codes.NotFound }

// trigger asks the kernel to tell when tasks have waited for memory for 200 ms
// of two seconds. Windows that are no multiple of two seconds need a privilege.
const trigger = "some 200000 2000000"

// watchPressure wakes a reader whenever memory gets tight, until ctx ends. An
// error says that this kernel doesn't tell.
func watchPressure(ctx context.Context, path string, wake chan<- struct{}) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(trigger + "\x00"); err != nil {
		return fmt.Errorf("asking for events of memory pressure: %w", err)
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	defer unix.Close(stop)
	end := context.AfterFunc(ctx, func() { _, _ = unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
	ended := false
	defer func() {
		// The descriptor must outlive its writer, which ends it all.
		if !ended && !end() {
			var b [8]byte
			_, _ = unix.Read(stop, b[:])
		}
	}()
	fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}, {Fd: int32(stop), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return fmt.Errorf("poll: %w", err)
		}
		switch {
		case fds[1].Revents != 0:
			ended = true
			return nil
		case fds[0].Revents&unix.POLLERR != 0:
			return fmt.Errorf("%s ended", path)
		case fds[0].Revents&unix.POLLPRI != 0:
			select {
			case wake <- struct{}{}:
			default:
			}
		}
	}
}
