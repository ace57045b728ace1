package pause

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// program is the pause ELF as a sealed memfd, shared by all pods of this node
// process: what a container could reach as /proc/PID/exe can't be written by
// anybody, and isn't a file of the host (CVE-2019-5736).
var program = sync.OnceValues(func() (*os.File, error) {
	return sealedMemfd("pause", []byte(elf), unix.MFD_EXEC)
})

// sealedMemfd returns an anonymous file with this content that can never
// change. mode says whether it may be executed (MFD_EXEC or MFD_NOEXEC_SEAL),
// for kernels that ask (6.3).
func sealedMemfd(name string, content []byte, mode int) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|mode)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(content); err != nil {
		f.Close()
		return nil, fmt.Errorf("writing memfd %s: %w", name, err)
	}
	seals := unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, fmt.Errorf("sealing memfd %s: %w", name, err)
	}
	return f, nil
}
