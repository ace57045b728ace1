package logview

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// openLog opens a log file, and only a file: neither a link nor a FIFO that
// somebody put in its place.
func openLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("opening the log %s: %w", path, err)
	}
	return f, nil
}
