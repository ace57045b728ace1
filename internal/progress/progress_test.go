package progress

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	testingclock "k8s.io/utils/clock/testing"
)

// terminal is a Screen on a terminal of 30 columns that is a buffer.
func terminal() (*Screen, *bytes.Buffer, *testingclock.FakePassiveClock) {
	var b bytes.Buffer
	c := testingclock.NewFakePassiveClock(time.Unix(100, 0))
	return &Screen{Colour: true, out: &b, err: &b, clean: true, width: func() int { return 30 }, clock: c}, &b, c
}

func TestLinesAboveLive(t *testing.T) {
	s, b, c := terminal()
	s.Set("a", "pulling a")
	s.Out("web | ", []byte("hello"))
	s.Set("b", "pulling b")
	s.Set("a", "too soon to be drawn")
	c.SetTime(c.Now().Add(redraw))
	s.Set("a", "a line longer than the terminal is wide")
	s.Set("a", "")
	s.Say("pulled %s", "a")
	s.Close()
	want := "pulling a\n" +
		"\x1b[1A\r\x1b[Jweb | hello\npulling a\n" +
		"\x1b[1A\r\x1b[Jpulling a\npulling b\n" +
		"\x1b[2A\r\x1b[Ja line longer than the termin\npulling b\n" +
		"\x1b[2A\r\x1b[Jpulling b\n" +
		"\x1b[1A\r\x1b[Jpulled a\npulling b\n" +
		"\x1b[1A\r\x1b[J"
	if b.String() != want {
		t.Errorf("got  %q\nwant %q", b, want)
	}
}

func TestNoTerminal(t *testing.T) {
	var out, err bytes.Buffer
	s := &Screen{out: &out, err: &err}
	s.Set("a", "a bar")
	raw := "raw \x1b]0;title\a\x00 bytes\r"
	s.Out("p | ", []byte(raw))
	s.Say("words")
	if out.String() != "p | "+raw+"\n" || err.String() != "words\n" {
		t.Errorf("out %q, err %q", out.String(), err.String())
	}
}

// What a hostile container writes can't do more than be read.
func TestClean(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"plain", "plain"},
		{"tab\there, ümlaut, 日本", "tab\there, ümlaut, 日本"},
		{"\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m"},
		{"\x1b[2J\x1b[H", "^[[2J^[[H"},
		{"\x1b]0;title\a", "^[]0;title^G"},
		{"\x1b[31", "^[[31"},
		{"10%\r50%\r100%\r", "100%"},
		{"\x9b2J", `\x9b2J`},
		{"\u009b2J", `\u009b2J`},
		{"a\u202eb", `a\u202eb`},
		{"\x7f\x00", "^?^@"},
		{"\x1b[" + strings.Repeat("1", 100) + "m", "^[[" + strings.Repeat("1", 100) + "m"},
	} {
		if got := string(Clean([]byte(tc.in))); got != tc.want {
			t.Errorf("Clean(%q) = %q, want %q", tc.in, got, tc.want)
		}
	}
}

func TestColourEndsWithTheLine(t *testing.T) {
	s, b, _ := terminal()
	s.Out("web | ", []byte("\x1b[31mred"))
	s.Colour = false
	s.Out("web | ", []byte("\x1b[31mred"))
	if want := "web | \x1b[31mred\x1b[0m\nweb | red\n"; b.String() != want {
		t.Errorf("got %q, want %q", b, want)
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.00 KiB", 10 * 1024: "10.0 KiB", 1 << 20: "1.00 MiB", 1<<20 - 1: "1.00 MiB",
		197 << 20: "197 MiB", math.MaxInt64: "8.00 EiB",
	} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestBar(t *testing.T) {
	for _, tc := range []struct {
		done, total int64
		want        string
	}{
		{0, 0, "web  waiting"},
		{0, 4096, "web  ────────────────────────────   0%  0 B / 4.00 KiB  waiting"},
		{1024, 4096, "web  ━━━━━━━─────────────────────  25%  1.00 KiB / 4.00 KiB  waiting"},
		{9999, 4096, "web  ━━━━━━━━━━━━━━━━━━━━━━━━━━━━ 100%  4.00 KiB / 4.00 KiB  waiting"},
	} {
		if got := Bar("web", "waiting", tc.done, tc.total); got != tc.want {
			t.Errorf("got  %q\nwant %q", got, tc.want)
		}
	}
}

func TestManyWriters(t *testing.T) {
	s, b, _ := terminal()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 100 {
				s.Out("", []byte("whole"))
				s.Set(fmt.Sprint(i), "live")
			}
			s.Set(fmt.Sprint(i), "")
		})
	}
	wg.Wait()
	if got := strings.Count(b.String(), "whole\n"); got != 800 {
		t.Errorf("%d whole lines", got)
	}
}

func FuzzClean(f *testing.F) {
	f.Add([]byte("\x1b[31mred\x1b[2J\r\x00\xff\u202e"))
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, r := range string(stripColour(Clean(in))) {
			if (unicode.IsControl(r) && r != '\t') || unicode.Is(unicode.Bidi_Control, r) || r == unicode.ReplacementChar && !bytes.ContainsRune(in, r) {
				t.Fatalf("Clean(%q) leaves %q", in, r)
			}
		}
	})
}
