package seccomp

import (
	"fmt"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data; arguments are little-endian on every
// machine unipod runs on.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

// maxFilter is the kernel's BPF_MAXINSNS.
const maxFilter = 4096

func load(off uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
}

func ret(k uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k}
}

func jump(op uint16, k uint32, jt, jf uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k, Jt: jt, Jf: jf}
}

// assemble makes one program of the sections: by architecture, then by a
// binary search over the call's number, then the arguments.
func assemble(sections []section) ([]unix.SockFilter, error) {
	kill := &rules{otherwise: retKillThread}
	out := []unix.SockFilter{load(offArch)}
	for i := 0; i < len(sections); i++ {
		s := sections[i]
		spans := s.spans
		if s.abi.audit == unix.AUDIT_ARCH_X86_64 {
			last := spans[len(spans)-1]
			if i+1 < len(sections) && sections[i+1].abi.bit == x32Bit {
				i++
				spans = append(spans, sections[i].spans...)
			} else {
				spans = append(spans, span{x32Bit, kill})
			}
			// -1 is no call of x32's: it is what a tracer skips a call with.
			spans = append(spans, span{0xffffffff, last.rules})
		}
		body := append([]unix.SockFilter{load(offNr)}, search(spans)...)
		out = append(out, jump(unix.BPF_JEQ, s.abi.audit, 1, 0), unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(body))})
		out = append(out, body...)
	}
	out = append(out, ret(retKillThread))
	if len(out) > maxFilter {
		return nil, fmt.Errorf("the profile needs %d instructions, the kernel takes %d: %w", len(out), maxFilter, errdefs.ErrInvalidArgument)
	}
	return out, nil
}

// search finds the span of the number in A.
func search(spans []span) []unix.SockFilter {
	if len(spans) == 1 {
		return spans[0].rules.code()
	}
	mid := len(spans) / 2
	left, right := search(spans[:mid]), search(spans[mid:])
	var out []unix.SockFilter
	if len(left) <= 255 {
		out = append(out, jump(unix.BPF_JGE, spans[mid].first, uint8(len(left)), 0))
	} else {
		out = append(out, jump(unix.BPF_JGE, spans[mid].first, 0, 1),
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(left))})
	}
	return append(append(out, left...), right...)
}

// code decides by the arguments and returns.
func (r *rules) code() []unix.SockFilter {
	var out []unix.SockFilter
	for _, a := range r.alternatives {
		// Built from its end, so that each jump to the next alternative
		// knows how far that is.
		block := []unix.SockFilter{ret(a.ret)}
		for i := len(a.conds) - 1; i >= 0; i-- {
			block = append(a.conds[i].code(len(block)), block...)
		}
		out = append(out, block...)
	}
	return append(out, ret(r.otherwise))
}

// code falls through where the condition holds, else jumps over the next
// `over` instructions. A block has at most six conditions, so every distance
// fits the eight bits of a jump.
func (c cond) code(over int) []unix.SockFilter {
	lo := c.low(over)
	if c.narrow {
		return lo
	}
	value, mask := uint32(c.value>>32), uint32(c.mask>>32)
	if mask == 0 && c.op == specs.OpEqualTo {
		return lo
	}
	hi := []unix.SockFilter{load(offArgs + 8*uint32(c.arg) + 4)}
	if mask != ^uint32(0) {
		hi = append(hi, unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask})
	}
	pass := uint8(len(lo))
	fail := pass + uint8(over)
	switch c.op {
	case specs.OpEqualTo:
		hi = append(hi, jump(unix.BPF_JEQ, value, 0, fail))
	case specs.OpNotEqual:
		hi = append(hi, jump(unix.BPF_JEQ, value, 0, pass))
	case specs.OpGreaterThan, specs.OpGreaterEqual:
		hi = append(hi, jump(unix.BPF_JGT, value, pass+1, 0), jump(unix.BPF_JEQ, value, 0, fail))
	default: // less
		hi = append(hi, jump(unix.BPF_JGT, value, fail+1, 0), jump(unix.BPF_JEQ, value, 0, pass))
	}
	return append(hi, lo...)
}

// low compares the low half, the high ones being equal.
func (c cond) low(over int) []unix.SockFilter {
	value, mask := uint32(c.value), uint32(c.mask)
	out := []unix.SockFilter{load(offArgs + 8*uint32(c.arg))}
	if mask != ^uint32(0) {
		out = append(out, unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask})
	}
	fail := uint8(over)
	switch c.op {
	case specs.OpEqualTo:
		return append(out, jump(unix.BPF_JEQ, value, 0, fail))
	case specs.OpNotEqual:
		return append(out, jump(unix.BPF_JEQ, value, fail, 0))
	case specs.OpGreaterThan:
		return append(out, jump(unix.BPF_JGT, value, 0, fail))
	case specs.OpGreaterEqual:
		return append(out, jump(unix.BPF_JGE, value, 0, fail))
	case specs.OpLessThan:
		return append(out, jump(unix.BPF_JGE, value, fail, 0))
	default: // OpLessEqual
		return append(out, jump(unix.BPF_JGT, value, fail, 0))
	}
}
