package sys

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Trim gives back what a long-lived process needed to start and doesn't need
// to go on: freed heap, and the pages of the program itself that were mapped
// around those that ran once. What is needed again comes from the page cache
// by a minor fault. It reads the process's own memory map, so it is for now
// and then; concurrent use is safe.
func Trim() error {
	debug.FreeOSMemory()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("trimming memory: %w", err)
	}
	exe = strings.TrimSuffix(exe, " (deleted)") // an upgrade replaced the file, not the program
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("trimming memory: %w", err)
	}
	defer f.Close()
	var failed error
	for _, m := range programPages(f, exe) {
		pages := unsafe.Slice((*byte)(unsafe.Add(nil, m.start)), m.end-m.start)
		if err := unix.Madvise(pages, unix.MADV_DONTNEED); err != nil {
			failed = errors.Join(failed, fmt.Errorf("trimming memory at %#x: %w", m.start, err))
		}
	}
	return failed
}

type mapping struct{ start, end uintptr }

// programPages reads a process's smaps: what is mapped of exe and is as it is
// in the file. A mapping with a page of its own, such as one that the dynamic
// linker relocated before it was made read-only, would lose that page.
func programPages(smaps io.Reader, exe string) (all []mapping) {
	var now mapping
	ours := false
	for s := bufio.NewScanner(smaps); s.Scan(); {
		fields := strings.Fields(s.Text())
		switch {
		case len(fields) < 2:
		case !strings.HasSuffix(fields[0], ":"): // a mapping's first line
			now, ours = mapping{}, false
			if len(fields) < 6 || fields[5] != exe || fields[1] != "r-xp" && fields[1] != "r--p" {
				continue
			}
			_, err := fmt.Sscanf(fields[0], "%x-%x", &now.start, &now.end)
			ours = err == nil && now.end > now.start
		case ours && fields[0] == "Anonymous:" && fields[1] == "0":
			all = append(all, now)
		}
	}
	return all
}
