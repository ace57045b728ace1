package sys

import (
	"slices"
	"strings"
	"testing"
)

func TestProgramPages(t *testing.T) {
	const smaps = `00400000-0452f000 r-xp 00000000 fe:00 1                  /usr/local/bin/unipod
Rss:               58300 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
0452f000-09109000 r--p 0412f000 fe:00 1                  /usr/local/bin/unipod (deleted)
Rss:               66404 kB
Anonymous:             0 kB
09109000-0910a000 r--p 08d09000 fe:00 1                  /usr/local/bin/unipod
Rss:                   4 kB
Anonymous:             4 kB
0910a000-09278000 rw-p 08d09000 fe:00 1                  /usr/local/bin/unipod
Anonymous:             0 kB
0a000000-0b000000 r-xs 00000000 fe:00 1                  /usr/local/bin/unipod
Anonymous:             0 kB
0c000000-0d000000 r-xp 00000000 fe:00 1                  /usr/local/bin/unipod-old
Anonymous:             0 kB
0f000000-0e000000 r-xp 00000000 fe:00 1                  /usr/local/bin/unipod
Anonymous:             0 kB
nonsense r-xp 00000000 fe:00 1                  /usr/local/bin/unipod
Anonymous:             0 kB
7f2bf2920000-7f2bf2d00000 rw-p 00000000 00:00 0
Anonymous:          3932 kB

Anonymous:`
	want := []mapping{{0x400000, 0x452f000}, {0x452f000, 0x9109000}}
	if got := programPages(strings.NewReader(smaps), "/usr/local/bin/unipod"); !slices.Equal(got, want) {
		t.Errorf("%#x", got)
	}
}

// What was given back is there again when it is needed, in a program with
// relocations too, as this one is where tests are linked dynamically.
func TestTrim(t *testing.T) {
	for range 3 {
		if err := Trim(); err != nil {
			t.Fatal(err)
		}
	}
}
