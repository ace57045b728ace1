package seccomp

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// interpret is what a profile means, written as plainly as can be.
func interpret(p *specs.LinuxSeccomp, native specs.Arch, audit, nr uint32, args [6]uint64) uint32 {
	var name specs.Arch
	for _, a := range families[native] {
		if abis[a].audit == audit && (a == specs.ArchX32) == (audit == unix.AUDIT_ARCH_X86_64 && nr >= x32Bit && nr != 0xffffffff) {
			name = a
		}
	}
	if name == "" || name != native && !slices.Contains(p.Architectures, name) {
		return unix.SECCOMP_RET_KILL_THREAD
	}
	a := abis[name]
	def := returns(p.DefaultAction, p.DefaultErrnoRet)
	called := a.table.SyscallNumbers[int(nr&^a.bit)]
	newest, any := uint32(0), false
	type rule struct {
		conds []specs.LinuxSeccompArg
		ret   uint32
	}
	var mine []rule
	for _, s := range p.Syscalls {
		ret := returns(s.Action, s.ErrnoRet)
		for _, n := range s.Names {
			if n == called && ret != def {
				mine = append(mine, rule{s.Args, ret})
			}
			for _, k := range a.numbers(n) {
				newest, any = max(newest, k), true
			}
			if m, ok := a.mux[n]; ok && len(s.Args) == 0 && ret != def {
				newest, any = max(newest, a.numbers(m.name)[0]), true
				if m.name == called {
					mine = append(mine, rule{[]specs.LinuxSeccompArg{{Index: 0, Value: m.call, Op: specs.OpEqualTo}}, ret})
				}
			}
		}
	}
	for _, r := range mine {
		if len(r.conds) == 0 {
			return r.ret
		}
	}
	for _, r := range mine {
		all, one, twice := true, false, false
		seen := map[uint]bool{}
		for _, c := range r.conds {
			ok := holds(a, c, args)
			all, one = all && ok, one || ok
			twice = twice || seen[c.Index]
			seen[c.Index] = true
		}
		if twice && one || !twice && all {
			return r.ret
		}
	}
	if nr > newest && any && def != 0x7fff0000 && def != 0x7ffc0000 {
		return 0x00050000 | uint32(unix.ENOSYS)
	}
	return def
}

// returns is what a filter returns for an action.
func returns(act specs.LinuxSeccompAction, errno *uint) uint32 {
	data := uint32(unix.EPERM)
	if errno != nil {
		data = uint32(*errno)
	}
	switch act {
	case specs.ActAllow:
		return 0x7fff0000
	case specs.ActLog:
		return 0x7ffc0000
	case specs.ActErrno:
		return 0x00050000 | data
	case specs.ActTrace:
		return 0x7ff00000 | data
	case specs.ActTrap:
		return 0x00030000
	case specs.ActKillProcess:
		return 0x80000000
	}
	return 0
}

// holds compares one argument.
func holds(a *abi, c specs.LinuxSeccompArg, args [6]uint64) bool {
	x, v, v2 := args[c.Index], c.Value, c.ValueTwo
	if a.narrow {
		x, v, v2 = x&0xffffffff, v&0xffffffff, v2&0xffffffff
	}
	switch c.Op {
	case specs.OpEqualTo:
		return x == v
	case specs.OpNotEqual:
		return x != v
	case specs.OpLessThan:
		return x < v
	case specs.OpLessEqual:
		return x <= v
	case specs.OpGreaterThan:
		return x > v
	case specs.OpGreaterEqual:
		return x >= v
	}
	return x&v == v2&v
}

// machine runs a program on Go's BPF machine, which reads big-endian.
type machine struct{ vm *bpf.VM }

func newMachine(t testing.TB, filter []unix.SockFilter) machine {
	t.Helper()
	var ins []bpf.Instruction
	for _, f := range filter {
		ins = append(ins, bpf.RawInstruction{Op: f.Code, Jt: f.Jt, Jf: f.Jf, K: f.K}.Disassemble())
	}
	vm, err := bpf.NewVM(ins)
	if err != nil {
		t.Fatal(err)
	}
	return machine{vm}
}

func (m machine) run(t testing.TB, audit, nr uint32, args [6]uint64) uint32 {
	t.Helper()
	b := make([]byte, 64)
	binary.BigEndian.PutUint32(b[0:], nr)
	binary.BigEndian.PutUint32(b[4:], audit)
	for i, a := range args {
		binary.BigEndian.PutUint32(b[16+8*i:], uint32(a))
		binary.BigEndian.PutUint32(b[20+8*i:], uint32(a>>32))
	}
	n, err := m.vm.Run(b)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

// compare runs a profile's program and the interpreter on many calls.
func compare(t *testing.T, p *specs.LinuxSeccomp, native specs.Arch, random *rand.Rand, n int) {
	t.Helper()
	prog, err := compile(p, native)
	if err != nil {
		t.Fatalf("%v\n%+v", err, p)
	}
	m := newMachine(t, prog.Filter)
	values := []uint64{0, 1, 2, 3, 8, 0x20000, 0x20008, 0xffffffff, 1 << 32, 1<<32 | 8, ^uint64(0), 40, 38}
	for _, s := range p.Syscalls {
		for _, a := range s.Args {
			values = append(values, a.Value, a.Value+1, a.Value-1, a.ValueTwo, a.Value^1<<32, a.Value|a.ValueTwo)
		}
	}
	audits := []uint32{unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_ARM, unix.AUDIT_ARCH_PPC64LE}
	for range n {
		audit := audits[random.IntN(len(audits))]
		nr := uint32(random.IntN(480))
		switch random.IntN(10) {
		case 0:
			nr |= x32Bit
		case 1:
			nr = random.Uint32()
		case 2:
			nr = 0xffffffff
		case 3, 4, 5: // one the profile names
			s := p.Syscalls[random.IntN(len(p.Syscalls))]
			name := s.Names[random.IntN(len(s.Names))]
			for _, a := range abis {
				if nrs := a.numbers(name); a.audit == audit && len(nrs) > 0 {
					nr = nrs[random.IntN(len(nrs))]
				}
			}
		}
		var args [6]uint64
		for i := range args {
			args[i] = values[random.IntN(len(values))]
			if random.IntN(8) == 0 {
				args[i] = random.Uint64()
			}
		}
		if got, want := m.run(t, audit, nr, args), interpret(p, native, audit, nr, args); got != want {
			t.Fatalf("audit arch %#x, call %d (%#x), args %#x: the program says %#x, the profile %#x", audit, nr, nr, args, got, want)
		}
	}
}

func TestDefaultProfileAgainstInterpreter(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, caps := range [][]string{defaultCaps, {"CAP_SYS_ADMIN", "CAP_BPF"}, nil} {
		compare(t, DefaultProfile(caps), nativeArch(), random, 10000)
	}
	p := DefaultProfile(defaultCaps)
	p.Architectures = []specs.Arch{specs.ArchARM, specs.ArchAARCH64}
	compare(t, p, specs.ArchAARCH64, random, 10000)
}

func TestRandomProfilesAgainstInterpreter(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	pick := func(list ...specs.LinuxSeccompAction) specs.LinuxSeccompAction { return list[random.IntN(len(list))] }
	ops := []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual}
	var names []string
	for _, a := range abis {
		for name := range numbersOf(a) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	for range 300 {
		p := &specs.LinuxSeccomp{DefaultAction: pick(specs.ActErrno, specs.ActAllow, specs.ActKillProcess, specs.ActLog)}
		for _, a := range []specs.Arch{specs.ArchX32, specs.ArchX86, specs.ArchARM, specs.ArchMIPS64} {
			if random.IntN(2) == 0 {
				p.Architectures = append(p.Architectures, a)
			}
		}
		few := names
		if random.IntN(2) == 0 { // so that rules meet
			few = []string{"socket", "clone", "personality", "shmat", "ioctl", "socketcall", "accept4", "rt_sigaction"}
		}
		for range 1 + random.IntN(30) {
			s := specs.LinuxSyscall{Action: pick(specs.ActErrno, specs.ActAllow, specs.ActTrap, specs.ActTrace, specs.ActLog)}
			if e := uint(random.IntN(4096)); random.IntN(2) == 0 && (s.Action == specs.ActErrno || s.Action == specs.ActTrace) {
				s.ErrnoRet = &e
			}
			for range 1 + random.IntN(4) {
				s.Names = append(s.Names, few[random.IntN(len(few))])
			}
			for range random.IntN(4) {
				a := specs.LinuxSeccompArg{Index: uint(random.IntN(6)), Op: ops[random.IntN(len(ops))]}
				for _, v := range []*uint64{&a.Value, &a.ValueTwo} {
					*v = []uint64{0, 1, 8, 0xff, 0xffffffff, 1 << 32, 1<<32 | 8, random.Uint64(), ^uint64(0)}[random.IntN(9)]
				}
				s.Args = append(s.Args, a)
			}
			p.Syscalls = append(p.Syscalls, s)
		}
		native := specs.ArchX86_64
		if random.IntN(4) == 0 {
			native = specs.ArchAARCH64
		}
		compare(t, p, native, random, 300)
	}
}
