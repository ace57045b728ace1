package runtime

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func ownerOf(fi os.FileInfo) uint32 {
	if fi == nil {
		return ^uint32(0)
	}
	return fi.Sys().(*syscall.Stat_t).Uid
}

// checkSequence wants the numbers from 0 on, one a line, none missing.
func checkSequence(t *testing.T, out string) {
	t.Helper()
	n := 0
	for line := range strings.Lines(out) {
		if got := strings.TrimSpace(line); got != strconv.Itoa(n) {
			t.Fatalf("line %d is %q", n, got)
		}
		n++
	}
	if n < 10 {
		t.Errorf("only %d lines", n)
	}
}
