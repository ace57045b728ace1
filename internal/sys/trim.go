package sys

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
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
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("trimming memory: %w", err)
	}
	defer f.Close()
	relocated, err := isRelocated("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("trimming memory: %w", err)
	}
	var failed error
	for s := bufio.NewScanner(f); s.Scan(); {
		start, end, ok := programPages(s.Text(), exe, relocated)
		if !ok {
			continue
		}
		pages := unsafe.Slice((*byte)(unsafe.Add(nil, start)), end-start)
		if err := unix.Madvise(pages, unix.MADV_DONTNEED); err != nil {
			failed = errors.Join(failed, fmt.Errorf("trimming memory at %#x: %w", start, err))
		}
	}
	return failed
}

// isRelocated reports whether a program's read-only data may have been written
// by its loader. Ours as it is built has no loader; built with cgo (for the
// race detector) or to be position-independent it has one.
func isRelocated(exe string) (bool, error) {
	f, err := elf.Open(exe)
	if err != nil {
		return false, err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_DYNAMIC || p.Type == elf.PT_GNU_RELRO {
			return true, nil
		}
	}
	return false, nil
}

// programPages reads a line of /proc/self/maps: pages of exe that nobody can
// have written to, so that the file still holds what they do: its code and,
// unless a loader has relocated what is in them, its constants.
func programPages(line, exe string, relocated bool) (start, end uintptr, ok bool) {
	fields := strings.Fields(line)
	if len(fields) < 6 || fields[5] != exe || fields[1] != "r-xp" && (fields[1] != "r--p" || relocated) {
		return 0, 0, false
	}
	if _, err := fmt.Sscanf(fields[0], "%x-%x", &start, &end); err != nil || end <= start {
		return 0, 0, false
	}
	return start, end, true
}
