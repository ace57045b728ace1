package recipe

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// String prints the recipe, one numbered system call a line, with what it is
// for behind a "#" where that changes and the errors it tolerates behind "or".
// fd:name is a descriptor that came with the recipe, %3 the result of step 3.
// Of many like calls in a row only the first and the last are printed.
func (r *Recipe) String() string {
	var b strings.Builder
	b.Grow(100 * len(r.steps))
	texts := map[*chunk]string{}
	why := ""
	for i := 0; i < len(r.steps); i++ {
		s := &r.steps[i]
		fmt.Fprintf(&b, "%3d  ", i)
		r.writeCall(&b, s, texts)
		for j, e := range s.tolerate {
			if e != 0 {
				b.WriteString([2]string{"  or ", "|"}[min(j, 1)])
				b.WriteString(errnoName(unix.Errno(e)))
			}
		}
		if s.why != why {
			why = s.why
			b.WriteString("   # ")
			b.WriteString(oneLine(why))
			if n := r.alike(i); n > 8 {
				fmt.Fprintf(&b, "\n     … %d more", n-2)
				i += n - 2
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// alike counts the steps from i on that make the same call for the same reason.
func (r *Recipe) alike(i int) int {
	n := 1
	for n < len(r.steps)-i && r.steps[i+n].nr == r.steps[i].nr && r.steps[i+n].why == r.steps[i].why {
		n++
	}
	return n
}

// call prints one system call.
func (r *Recipe) call(s *step) string {
	var b strings.Builder
	r.writeCall(&b, s, map[*chunk]string{})
	return b.String()
}

// writeCall prints one system call; texts are the memory that was printed
// before, which many steps share.
func (r *Recipe) writeCall(b *strings.Builder, s *step, texts map[*chunk]string) {
	sig, known := signatures[s.nr]
	if !known {
		sig.name = "syscall_" + strconv.Itoa(int(s.nr))
	}
	b.WriteString(sig.name)
	b.WriteByte('(')
	for i, a := range s.args[:s.nargs] {
		if i > 0 {
			b.WriteString(", ")
		}
		switch a.kind {
		case argFD:
			b.WriteString("fd:")
			b.WriteString(oneLine(r.fds[a.value].name))
		case argResult:
			b.WriteByte('%')
			b.WriteString(strconv.FormatUint(a.value, 10))
		case argPtr:
			text, known := texts[a.mem]
			if !known {
				text = a.mem.show()
				texts[a.mem] = text
			}
			b.WriteString(text)
		case argInt:
			show := showInt
			if i < len(sig.args) && sig.args[i] != nil {
				show = sig.args[i]
			}
			b.WriteString(show(a.value, s))
		}
	}
	b.WriteByte(')')
}

// errnoName is the errno's symbol.
func errnoName(e unix.Errno) string {
	if name := unix.ErrnoName(e); name != "" {
		return name
	}
	return strconv.Itoa(int(e))
}

// maxText is how much of a string is printed.
const maxText = 256

// quote prints a string on one line, in quotes, cut if it is long.
func quote[S ~string](s S) string {
	if len(s) <= maxText {
		return quoteText(string(s), "")
	}
	cut := maxText
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return quoteText(string(s[:cut]), "…")
}

func quoteText(s, more string) string {
	q := strconv.Quote(s)
	return q[:len(q)-1] + more + `"`
}

// oneLine keeps what others named (a volume, a path) from breaking the line.
func oneLine(s string) string {
	if q := strconv.Quote(s); len(q) != len(s)+2 {
		return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
	}
	return s
}

func showList(v []string, show func(string) string) string {
	parts := make([]string, len(v))
	for i, s := range v {
		parts[i] = show(s)
	}
	return "[" + strings.Join(parts, ", ") + "]"
}

// intPrinter prints an integer argument of a step.
type intPrinter func(v uint64, s *step) string

func showInt(v uint64, _ *step) string {
	if n := int64(v); n > -4096 && n < 4096 {
		return strconv.FormatInt(n, 10)
	}
	return "0x" + strconv.FormatUint(v, 16)
}

func showFD(v uint64, s *step) string {
	if int64(v) == unix.AT_FDCWD {
		return "AT_FDCWD"
	}
	return showInt(v, s)
}

// showNull prints a pointer given as an integer.
func showNull(v uint64, s *step) string {
	if v == 0 {
		return "NULL"
	}
	return showInt(v, s)
}

func showMode(v uint64, _ *step) string {
	if v&unix.S_IFMT == unix.S_IFREG {
		return fmt.Sprintf("S_IFREG|%#o", v&^unix.S_IFMT)
	}
	if v&unix.S_IFMT == unix.S_IFCHR {
		return fmt.Sprintf("S_IFCHR|%#o", v&^unix.S_IFMT)
	}
	return fmt.Sprintf("%#o", v)
}

func showDevice(v uint64, s *step) string {
	if v == 0 {
		return "0"
	}
	return fmt.Sprintf("%d:%d", unix.Major(v), unix.Minor(v))
}

func showLimit(v uint64) string {
	if v == unix.RLIM_INFINITY {
		return "unlimited"
	}
	return strconv.FormatUint(v, 10)
}

// showPrctl1 prints the second argument of prctl.
func showPrctl1(v uint64, s *step) string {
	switch s.args[0].value {
	case unix.PR_CAPBSET_DROP:
		return showCap(v)
	case unix.PR_CAP_AMBIENT:
		return ambientOps.show(v)
	}
	return showInt(v, s)
}

// showPrctl2 prints the third.
func showPrctl2(v uint64, s *step) string {
	if s.args[0].value == unix.PR_CAP_AMBIENT && s.args[1].value == unix.PR_CAP_AMBIENT_RAISE {
		return showCap(v)
	}
	return showInt(v, s)
}

func showCap(v uint64) string {
	if v < uint64(len(capNames)) {
		return "CAP_" + capNames[v]
	}
	return strconv.FormatUint(v, 10)
}

// showCaps prints a set of capabilities.
func showCaps(set uint64) string {
	const all = 1<<41 - 1 // CAP_CHOWN … CAP_CHECKPOINT_RESTORE
	switch set {
	case 0:
		return "none"
	case all, ^uint64(0):
		return "all"
	}
	var parts []string
	for i := range uint64(64) {
		if set&(1<<i) != 0 {
			parts = append(parts, showCap(i))
		}
	}
	return strings.Join(parts, "|")
}

// flagNames are the names of bits.
type flagNames []struct {
	bit  uint64
	name string
}

func (f flagNames) show(v uint64) string {
	var b strings.Builder
	for _, n := range f {
		if n.bit != 0 && v&n.bit == n.bit {
			if b.Len() > 0 {
				b.WriteByte('|')
			}
			b.WriteString(n.name)
			v &^= n.bit
		}
	}
	if v != 0 || b.Len() == 0 {
		if b.Len() > 0 {
			b.WriteByte('|')
		}
		b.WriteString(showInt(v, nil))
	}
	return b.String()
}

func (f flagNames) print(v uint64, _ *step) string { return f.show(v) }

// valueNames are the names of values.
type valueNames map[uint64]string

func (n valueNames) show(v uint64) string {
	if s, ok := n[v]; ok {
		return s
	}
	return showInt(v, nil)
}

func (n valueNames) print(v uint64, _ *step) string { return n.show(v) }
