package sys

import "testing"

func TestProgramPages(t *testing.T) {
	const exe = "/usr/local/bin/unipod"
	for line, want := range map[string]bool{
		"00400000-0452f000 r-xp 00000000 fe:00 1                  " + exe:       true,
		"0452f000-09109000 r--p 0412f000 fe:00 1                  " + exe:       true,
		"09109000-09278000 rw-p 08d09000 fe:00 1                  " + exe:       false, // written to
		"00400000-0452f000 r-xs 00000000 fe:00 1                  " + exe:       false,
		"7f2bf2920000-7f2bf2d00000 r-xp 00000000 fe:00 2          /lib/ld-x.so": false,
		"00400000-0452f000 r-xp 00000000 fe:00 1 " + exe + " (deleted)":         true, // the file is still what was started
		"7f2bf2920000-7f2bf2d00000 rw-p 00000000 00:00 0 ":                      false,
		"0452f000-00400000 r-xp 00000000 fe:00 1                  " + exe:       false,
		"no-address r-xp 00000000 fe:00 1                         " + exe:       false,
		"": false,
		"00400000-0452f000 r-xp 00000000 fe:00 1                  " + exe + "-old": false,
	} {
		start, end, ok := programPages(line, exe, false)
		if ok != want || ok && (start == 0 || end <= start) {
			t.Errorf("%q: %#x %#x %v", line, start, end, ok)
		}
	}
}

// Constants that a loader has relocated are not in the file as they are in
// memory.
func TestRelocated(t *testing.T) {
	for mode, want := range map[string]bool{"r-xp": true, "r--p": false} {
		if _, _, ok := programPages("00400000-0452f000 "+mode+" 00000000 fe:00 1 /bin/unipod", "/bin/unipod", true); ok != want {
			t.Errorf("%s: %t", mode, ok)
		}
	}
	for _, program := range []string{"/bin/sh", "/proc/self/exe"} {
		relocated, err := isRelocated(program)
		if err != nil {
			t.Fatal(err)
		}
		if program == "/bin/sh" && !relocated {
			t.Error("/bin/sh has no loader")
		}
	}
}

// What was given back is there again when it is needed.
func TestTrim(t *testing.T) {
	for range 3 {
		if err := Trim(); err != nil {
			t.Fatal(err)
		}
	}
}
