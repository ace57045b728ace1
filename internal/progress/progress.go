// Package progress draws on a terminal: lines that stay, and under them a
// few live lines (a download's bar, a countdown) that change in place. Where
// there is no terminal the live lines are left out and the others are plain.
//
// It promises that lines never mix: a [Screen] may be used by any number of
// goroutines. What it prints is cleaned first ([Clean]): the output of a
// container may colour itself, but not move the cursor, rename the window or
// answer for us.
//
// Floor: 8, a face. It imports nothing of unipod.
package progress

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
	"k8s.io/utils/clock"
)

// redraw is the shortest time between two drawings of a live line that only
// changed its text.
const redraw = 100 * time.Millisecond

// A Screen is an output and an error stream, one terminal or not.
type Screen struct {
	Colour bool // lines may be coloured

	mu    sync.Mutex
	out   io.Writer
	err   io.Writer
	clean bool       // out is a terminal
	width func() int // of the terminal that shows live lines; nil without one
	clock clock.PassiveClock

	live  []liveLine
	drawn int // live lines on the terminal now
	at    time.Time
}

type liveLine struct{ key, text string }

// NewScreen shows lines on out and err, and live lines on err when that is a
// terminal. Colours are used on a terminal, unless the user says otherwise
// (noColour, or NO_COLOR in the environment, see https://no-color.org).
func NewScreen(out, err *os.File, noColour bool) *Screen {
	s := &Screen{out: out, err: err, clean: term.IsTerminal(int(out.Fd())), clock: clock.RealClock{}}
	if term.IsTerminal(int(err.Fd())) && os.Getenv("TERM") != "dumb" {
		s.width = func() int {
			w, _, e := term.GetSize(int(err.Fd()))
			if e != nil || w < 20 {
				return 80
			}
			return w
		}
	}
	s.Colour = s.clean && !noColour && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return s
}

// Live reports whether live lines are shown.
func (s *Screen) Live() bool { return s.width != nil }

// Out prints a line of a container's output.
func (s *Screen) Out(prefix string, text []byte) {
	if s.clean {
		text = Clean(text)
	}
	if !s.Colour && bytes.IndexByte(text, 0x1b) >= 0 && s.clean {
		text = stripColour(text)
	}
	s.print(s.out, prefix, text)
}

// Say prints a line of our own to the error stream.
func (s *Screen) Say(format string, args ...any) {
	s.print(s.err, "", Clean(fmt.Appendf(nil, format, args...)))
}

func (s *Screen) print(w io.Writer, prefix string, text []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	line := make([]byte, 0, len(prefix)+len(text)+5)
	line = append(line, prefix...)
	line = append(line, text...)
	if s.clean && bytes.IndexByte(text, 0x1b) >= 0 {
		line = append(line, "\x1b[0m"...) // its colour ends with its line
	}
	// A terminal or pipe that is gone is found by the signal it brings.
	_, _ = w.Write(append(line, '\n'))
	s.draw()
}

// Set makes, changes or (with an empty text) removes the live line of key.
func (s *Screen) Set(key, text string) {
	if s.width == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.live, func(l liveLine) bool { return l.key == key })
	switch {
	case text == "" && i < 0:
		return
	case text == "":
		s.live = slices.Delete(s.live, i, i+1)
	case i < 0:
		s.live = append(s.live, liveLine{key, text})
	default:
		s.live[i].text = text
		if s.clock.Since(s.at) < redraw {
			return
		}
	}
	s.erase()
	s.draw()
}

// Close takes the live lines away.
func (s *Screen) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	s.live = nil
}

func (s *Screen) erase() {
	if s.drawn > 0 {
		fmt.Fprintf(s.err, "\x1b[%dA\r\x1b[J", s.drawn)
		s.drawn = 0
	}
}

func (s *Screen) draw() {
	if len(s.live) == 0 {
		return
	}
	width := s.width()
	var b strings.Builder
	for _, l := range s.live {
		text := []rune(string(stripColour(Clean([]byte(l.text)))))
		// A line that wrapped would be two to erase.
		b.WriteString(string(text[:min(len(text), width-1)]))
		b.WriteByte('\n')
	}
	fmt.Fprint(s.err, b.String())
	s.drawn, s.at = len(s.live), s.clock.Now()
}
