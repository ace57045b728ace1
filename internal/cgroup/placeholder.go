package cgroup

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/sys"
)

// placeholder is a process that does nothing, of a program of some 140 bytes.
// It dies with this process.
type placeholder struct {
	pid  int
	quit chan struct{} // closed to end it
	dead chan struct{} // closed when it is reaped
}

// idle is machine code that sleeps for ever: ppoll(NULL, 0, NULL, NULL) in a
// loop, as there is no pause(2) on arm64.
var idle = map[string][]byte{
	"amd64": {
		0xb8, 0x0f, 0x01, 0x00, 0x00, // mov  eax, 271 (ppoll)
		0x31, 0xff, 0x31, 0xf6, 0x31, 0xd2, 0x45, 0x31, 0xd2, // xor edi, esi, edx, r10d
		0x0f, 0x05, // syscall
		0xeb, 0xee, // jmp  to the start
	},
	"arm64": {
		0x28, 0x09, 0x80, 0xd2, // mov x8, 73 (ppoll)
		0x00, 0x00, 0x80, 0xd2, 0x01, 0x00, 0x80, 0xd2, 0x02, 0x00, 0x80, 0xd2, 0x03, 0x00, 0x80, 0xd2, // mov x0..x3, 0
		0x01, 0x00, 0x00, 0xd4, // svc 0
		0xfa, 0xff, 0xff, 0x17, // b   to the start
	},
}

// idleProgram wraps the code in the smallest executable.
func idleProgram(arch string) ([]byte, error) {
	const base = 0x10000
	machine := elf.EM_X86_64
	if arch == "arm64" {
		machine = elf.EM_AARCH64
	}
	header := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Ehsize: 64, Phoff: 64, Phentsize: 56, Phnum: 1, Entry: base + 64 + 56,
	}
	size := uint64(64 + 56 + len(idle[arch]))
	segment := elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: base, Paddr: base, Filesz: size, Memsz: size, Align: 0x10000,
	}
	var b bytes.Buffer
	for _, part := range []any{header, segment, idle[arch]} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// startPlaceholder starts one. The caller ends it.
func startPlaceholder() (*placeholder, error) {
	program, err := idleProgram(runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("placeholder", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "placeholder")
	defer f.Close()
	if _, err := f.Write(program); err != nil {
		return nil, err
	}
	p := &placeholder{quit: make(chan struct{}), dead: make(chan struct{})}
	started := make(chan error)
	go func() {
		// Its parent, whose death ends it, is this thread: keep it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		proc, err := os.StartProcess(sys.ProcPath(f), []string{"unipod-placeholder"}, &os.ProcAttr{
			Dir: "/", Env: []string{}, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true},
		})
		if err == nil {
			p.pid = proc.Pid
		}
		started <- err
		if err != nil {
			return
		}
		defer close(p.dead)
		<-p.quit
		proc.Kill()
		proc.Wait()
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// end kills the placeholder and waits until it is gone.
func (p *placeholder) end() {
	close(p.quit)
	<-p.dead
}
