package progress

import (
	"bytes"
	"fmt"
	"unicode"
	"unicode/utf8"
)

// Clean makes a line fit for a terminal. Colours (SGR sequences) and tabs
// stay; of a line that a program wrote over with carriage returns the last
// state is kept; every other control character is shown as ^X or \xNN
// instead of being obeyed.
func Clean(line []byte) []byte {
	line = bytes.TrimRight(line, "\r")
	if i := bytes.LastIndexByte(line, '\r'); i >= 0 {
		line = line[i+1:]
	}
	if isPlain(line) {
		return line
	}
	out := make([]byte, 0, len(line)+16)
	for len(line) > 0 {
		if n := colourLen(line); n > 0 {
			out = append(out, line[:n]...)
			line = line[n:]
			continue
		}
		r, n := utf8.DecodeRune(line)
		switch {
		case r == utf8.RuneError && n == 1:
			out = fmt.Appendf(out, `\x%02x`, line[0])
		case r == '\t':
			out = append(out, '\t')
		case r < 0x20 || r == 0x7f:
			out = append(out, '^', byte(r)^0x40)
		// C1 controls, and format characters that reorder or hide text.
		case unicode.IsControl(r) || (unicode.Is(unicode.Bidi_Control, r)):
			out = fmt.Appendf(out, `\u%04x`, r)
		default:
			out = append(out, line[:n]...)
		}
		line = line[n:]
	}
	return out
}

func isPlain(b []byte) bool {
	for _, c := range b {
		if c < 0x20 || c >= 0x7f {
			return false
		}
	}
	return true
}

// colourLen is the length of the SGR sequence at the beginning of b, or 0.
// Sequences are short; a long one is no colour.
func colourLen(b []byte) int {
	if len(b) < 3 || b[0] != 0x1b || b[1] != '[' {
		return 0
	}
	for i := 2; i < len(b) && i < 40; i++ {
		switch c := b[i]; {
		case c == 'm':
			return i + 1
		case (c < '0' || c > '9') && c != ';' && c != ':':
			return 0
		}
	}
	return 0
}

// stripColour takes the colours out of a clean line.
func stripColour(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for len(b) > 0 {
		if n := colourLen(b); n > 0 {
			b = b[n:]
			continue
		}
		out = append(out, b[0])
		b = b[1:]
	}
	return out
}
