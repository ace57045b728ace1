package seccomp

import (
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Values of seccomp(2) that x/sys/unix lacks in this form.
const (
	retKillThread = unix.SECCOMP_RET_KILL_THREAD
	maxErrno      = 4095
)

// rules is what happens to one system call: the first alternative that
// matches decides, else otherwise does.
type rules struct {
	alternatives []alternative
	otherwise    uint32
}

type alternative struct {
	conds []cond // all must hold
	ret   uint32
}

// cond compares an argument, masked, with a value.
type cond struct {
	arg         uint
	op          specs.LinuxSeccompOperator
	mask, value uint64
	narrow      bool // only the low half counts
}

func (r *rules) equal(o *rules) bool {
	return r.otherwise == o.otherwise && slices.EqualFunc(r.alternatives, o.alternatives, func(a, b alternative) bool {
		return a.ret == b.ret && slices.Equal(a.conds, b.conds)
	})
}

// section is what happens to the calls of one abi: the i-th span holds from
// its first number to before the next one's.
type section struct {
	abi   *abi
	spans []span
}

type span struct {
	first uint32
	rules *rules
}

// Compile makes the program of a profile for this machine.
func Compile(p *specs.LinuxSeccomp) (*Program, error) {
	return compile(p, nativeArch())
}

func compile(p *specs.LinuxSeccomp, native specs.Arch) (*Program, error) {
	flags, err := flagsOf(p)
	if err != nil {
		return nil, err
	}
	if p.ListenerPath != "" || p.ListenerMetadata != "" {
		return nil, fmt.Errorf("listenerPath: SCMP_ACT_NOTIFY is not supported: %w", errdefs.ErrNotImplemented)
	}
	wanted := map[*abi]bool{abis[native]: true} // the kernel's own is always meant
	for _, name := range p.Architectures {
		if a := abis[name]; a != nil {
			wanted[a] = true
		} else if !slices.Contains(foreignArches, name) {
			return nil, fmt.Errorf("architectures: %q is unknown: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	var sections []section
	for _, name := range families[native] {
		if a := abis[name]; wanted[a] {
			s, err := a.section(p)
			if err != nil {
				return nil, err
			}
			sections = append(sections, s)
		}
	}
	filter, err := assemble(sections)
	if err != nil {
		return nil, err
	}
	return &Program{Filter: filter, Flags: flags}, nil
}

func flagsOf(p *specs.LinuxSeccomp) (uint32, error) {
	if p.Flags == nil {
		// As runc since 1.2: the mitigation costs much and protects a
		// container from itself only.
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil
	}
	var flags uint32
	for _, f := range p.Flags {
		switch f {
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case "SECCOMP_FILTER_FLAG_TSYNC":
			// For all threads of the process, of which there is one.
		default:
			return 0, fmt.Errorf("flags: %q is not supported: %w", f, errdefs.ErrInvalidArgument)
		}
	}
	return flags, nil
}

// action is the value a filter returns.
func action(where string, a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	data := uint(unix.EPERM)
	if errno != nil {
		if a != specs.ActErrno && a != specs.ActTrace {
			return 0, fmt.Errorf("%s: errnoRet goes with SCMP_ACT_ERRNO or SCMP_ACT_TRACE, not %s: %w", where, a, errdefs.ErrInvalidArgument)
		}
		if data = *errno; data > maxErrno {
			return 0, fmt.Errorf("%s: errnoRet %d is more than %d: %w", where, data, maxErrno, errdefs.ErrInvalidArgument)
		}
	}
	switch a {
	case specs.ActKill, specs.ActKillThread:
		return retKillThread, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | uint32(data), nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | uint32(data), nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActNotify:
		return 0, fmt.Errorf("%s: SCMP_ACT_NOTIFY is not supported: %w", where, errdefs.ErrNotImplemented)
	}
	return 0, fmt.Errorf("%s: action %q is unknown: %w", where, a, errdefs.ErrInvalidArgument)
}

// section works out what the profile means for one abi.
func (a *abi) section(p *specs.LinuxSeccomp) (section, error) {
	def, err := action("defaultAction", p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return section{}, err
	}
	calls := map[uint32]*rules{}
	closed := map[uint32]bool{} // calls with an unconditional rule
	newest, found := a.bit, false
	add := func(nr uint32, ret uint32, alternatives [][]cond) {
		if closed[nr] {
			return
		}
		r := calls[nr]
		if r == nil {
			r = &rules{otherwise: def}
			calls[nr] = r
		}
		for _, conds := range alternatives {
			if len(conds) == 0 {
				r.alternatives, r.otherwise = nil, ret
				closed[nr] = true
				return
			}
			r.alternatives = append(r.alternatives, alternative{conds, ret})
		}
	}
	for i, s := range p.Syscalls {
		where := fmt.Sprintf("syscalls[%d]", i)
		if len(s.Names) == 0 {
			return section{}, fmt.Errorf("%s: no names: %w", where, errdefs.ErrInvalidArgument)
		}
		ret, err := action(where, s.Action, s.ErrnoRet)
		if err != nil {
			return section{}, err
		}
		alternatives, err := a.conditions(where, s.Args)
		if err != nil {
			return section{}, err
		}
		for _, name := range s.Names {
			for _, nr := range a.numbers(name) {
				newest, found = max(newest, nr), true
				if ret != def {
					add(nr, ret, alternatives)
				}
			}
			if m, ok := a.mux[name]; ok && ret != def && len(s.Args) == 0 {
				for _, nr := range a.numbers(m.name) {
					newest, found = max(newest, nr), true
					add(nr, ret, [][]cond{{{0, specs.OpEqualTo, ^uint64(0), m.call, a.narrow}}})
				}
			}
		}
	}
	unknown := def
	if found && def != unix.SECCOMP_RET_ALLOW && def != unix.SECCOMP_RET_LOG {
		unknown = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	}
	return section{a, spansOf(a.bit, newest, calls, def, unknown)}, nil
}

// conditions are the alternatives of a rule's arguments: one that needs all,
// or one for each where an argument is looked at twice. No arguments are one
// alternative that always holds.
func (a *abi) conditions(where string, args []specs.LinuxSeccompArg) ([][]cond, error) {
	conds := make([]cond, 0, len(args))
	var seen [6]bool
	twice := false
	for j, arg := range args {
		if arg.Index > 5 {
			return nil, fmt.Errorf("%s.args[%d]: index %d, a system call has 6 arguments: %w", where, j, arg.Index, errdefs.ErrInvalidArgument)
		}
		c := cond{arg.Index, arg.Op, ^uint64(0), arg.Value, a.narrow}
		switch arg.Op {
		case specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterThan, specs.OpGreaterEqual:
		case specs.OpMaskedEqual:
			c.op, c.mask, c.value = specs.OpEqualTo, arg.Value, arg.Value&arg.ValueTwo
		default:
			return nil, fmt.Errorf("%s.args[%d]: op %q is unknown: %w", where, j, arg.Op, errdefs.ErrInvalidArgument)
		}
		twice = twice || seen[arg.Index]
		seen[arg.Index] = true
		conds = append(conds, c)
	}
	if !twice {
		return [][]cond{conds}, nil
	}
	var each [][]cond
	for _, c := range conds {
		each = append(each, []cond{c})
	}
	return each, nil
}

// spansOf cuts the numbers from first on into spans of the same rules.
func spansOf(first, newest uint32, calls map[uint32]*rules, def, unknown uint32) []span {
	var spans []span
	put := func(nr uint32, r *rules) {
		if n := len(spans); n == 0 || !spans[n-1].rules.equal(r) {
			spans = append(spans, span{nr, r})
		}
	}
	next := first
	for _, nr := range slices.Sorted(maps.Keys(calls)) {
		if nr > next {
			put(next, &rules{otherwise: def})
		}
		put(nr, calls[nr])
		next = nr + 1
	}
	if next <= newest {
		put(next, &rules{otherwise: def})
	}
	put(newest+1, &rules{otherwise: unknown})
	return spans
}
