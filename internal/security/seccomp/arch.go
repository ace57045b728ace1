package seccomp

import (
	"runtime"
	"sync"

	"github.com/elastic/go-seccomp-bpf/arch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// abi is one way to call the kernel.
type abi struct {
	audit  uint32 // AUDIT_ARCH_*, which abis can share
	bit    uint32 // set in all its numbers (x32)
	narrow bool   // arguments have 32 bits
	table  *arch.Info
	// mux are calls that reach others by a number in their first argument.
	mux map[string]muxed
}

type muxed struct {
	name string
	call uint64
}

// x32Bit tells x32's numbers from x86_64's; both have the same audit arch.
const x32Bit = 0x40000000

// socketcall's and ipc's sub-calls on i386 (uapi/linux/net.h, linux/ipc.h):
// a rule for socket must hold for socketcall(SYS_SOCKET) as well.
var muxI386 = map[string]muxed{
	"socket": {"socketcall", 1}, "bind": {"socketcall", 2}, "connect": {"socketcall", 3}, "listen": {"socketcall", 4},
	"accept": {"socketcall", 5}, "getsockname": {"socketcall", 6}, "getpeername": {"socketcall", 7}, "socketpair": {"socketcall", 8},
	"send": {"socketcall", 9}, "recv": {"socketcall", 10}, "sendto": {"socketcall", 11}, "recvfrom": {"socketcall", 12},
	"shutdown": {"socketcall", 13}, "setsockopt": {"socketcall", 14}, "getsockopt": {"socketcall", 15}, "sendmsg": {"socketcall", 16},
	"recvmsg": {"socketcall", 17}, "accept4": {"socketcall", 18}, "recvmmsg": {"socketcall", 19}, "sendmmsg": {"socketcall", 20},
	"semop": {"ipc", 1}, "semget": {"ipc", 2}, "semctl": {"ipc", 3}, "semtimedop": {"ipc", 4},
	"msgsnd": {"ipc", 11}, "msgrcv": {"ipc", 12}, "msgget": {"ipc", 13}, "msgctl": {"ipc", 14},
	"shmat": {"ipc", 21}, "shmdt": {"ipc", 22}, "shmget": {"ipc", 23}, "shmctl": {"ipc", 24},
}

// abis are those of the machines unipod runs on.
var abis = map[specs.Arch]*abi{
	specs.ArchX86_64:  {audit: unix.AUDIT_ARCH_X86_64, table: arch.X86_64},
	specs.ArchX32:     {audit: unix.AUDIT_ARCH_X86_64, bit: x32Bit, table: arch.X32},
	specs.ArchX86:     {audit: unix.AUDIT_ARCH_I386, narrow: true, table: arch.I386, mux: muxI386},
	specs.ArchAARCH64: {audit: unix.AUDIT_ARCH_AARCH64, table: arch.AARCH64},
	specs.ArchARM:     {audit: unix.AUDIT_ARCH_ARM, narrow: true, table: arch.ARM},
}

// families are the ABIs a kernel serves, in the order a filter tries them.
var families = map[specs.Arch][]specs.Arch{
	specs.ArchX86_64:  {specs.ArchX86_64, specs.ArchX32, specs.ArchX86},
	specs.ArchAARCH64: {specs.ArchAARCH64, specs.ArchARM},
}

// foreignArches may be listed in a profile and mean nothing here.
var foreignArches = []specs.Arch{
	specs.ArchMIPS, specs.ArchMIPS64, specs.ArchMIPS64N32, specs.ArchMIPSEL, specs.ArchMIPSEL64, specs.ArchMIPSEL64N32,
	specs.ArchPPC, specs.ArchPPC64, specs.ArchPPC64LE, specs.ArchS390, specs.ArchS390X, specs.ArchPARISC, specs.ArchPARISC64,
	specs.ArchRISCV64, specs.ArchLOONGARCH64, specs.ArchM68K, specs.ArchSH, specs.ArchSHEB,
}

// numbers are the numbers of a call; x32 has two for some.
func (a *abi) numbers(name string) []uint32 { return numbersOf(a)[name] }

var tables sync.Map // *abi -> map[string][]uint32

func numbersOf(a *abi) map[string][]uint32 {
	if t, ok := tables.Load(a); ok {
		return t.(map[string][]uint32)
	}
	t := make(map[string][]uint32, len(a.table.SyscallNumbers))
	for nr, name := range a.table.SyscallNumbers {
		t[name] = append(t[name], uint32(nr)|a.bit)
	}
	tables.Store(a, t)
	return t
}

// nativeArch is this machine's.
func nativeArch() specs.Arch {
	if runtime.GOARCH == "arm64" {
		return specs.ArchAARCH64
	}
	return specs.ArchX86_64
}
