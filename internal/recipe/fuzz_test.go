package recipe

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// bites takes a fuzzer's bytes apart into whatever is asked for.
type bites struct{ data []byte }

func (b *bites) byte() byte {
	if len(b.data) == 0 {
		return 0
	}
	v := b.data[0]
	b.data = b.data[1:]
	return v
}

func (b *bites) bool() bool { return b.byte()&1 == 1 }

func (b *bites) uint64() (v uint64) {
	for range 8 {
		v = v<<8 | uint64(b.byte())
	}
	return v
}

func (b *bites) string() string {
	n := min(int(b.byte()), len(b.data))
	s := string(b.data[:n])
	b.data = b.data[n:]
	return s
}

func (b *bites) strings() (v []string) {
	for range b.byte() % 6 {
		v = append(v, b.string())
	}
	return v
}

func (b *bites) file(f *os.File) *os.File {
	if b.bool() {
		return f
	}
	return nil
}

// path is absolute more often than not, so that specifications are accepted.
func (b *bites) path() string {
	if b.byte()%8 == 0 {
		return b.string()
	}
	return "/" + b.string()
}

func (b *bites) paths() (v []string) {
	for range b.byte() % 6 {
		v = append(v, b.path())
	}
	return v
}

func (b *bites) mounts(f *os.File) (v []Mount) {
	for range b.byte() % 6 {
		v = append(v, Mount{Source: f, Target: b.path(), File: b.bool(), Why: b.string()})
	}
	return v
}

func (b *bites) process(f *os.File) Process {
	caps := b.uint64()
	p := Process{
		Args: append([]string{b.string()}, b.strings()...), Cwd: b.path(),
		UID: uint32(b.byte()), GID: uint32(b.byte()), Groups: make([]uint32, b.byte()),
		Bounding: b.uint64(), Permitted: caps, Effective: caps & b.uint64(), Inheritable: b.uint64(),
		NoNewPrivs: b.bool(), AppArmor: b.string(), SELinuxLabel: b.string(),
		Stdin: b.file(f), Stdout: b.file(f), Stderr: b.file(f), Terminal: b.bool(),
	}
	p.Ambient = p.Permitted & p.Inheritable
	for i, v := range b.strings() {
		p.Env = append(p.Env, string(rune('A'+i))+"="+secretMark+v, b.string())
	}
	if b.bool() {
		p.Env = append(p.Env, "PATH="+b.string())
	}
	if b.bool() {
		p.Seccomp = make([]unix.SockFilter, b.byte())
		p.OOMScoreAdj = ptr(int(int8(b.byte())))
		p.Umask = ptr(uint32(b.byte()))
		p.Rlimits = []Rlimit{{int(b.byte()), b.uint64() >> 1, 1 << 63}}
		p.CgroupProcs = []*os.File{f}
	}
	return p
}

const secretMark = "s3cr3t-"

// FuzzCompositions builds the three recipes from arbitrary specifications.
// What is accepted must be readable for pause, and print and explain itself
// without a secret and without a line that an input could have forged.
func FuzzCompositions(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x00\x02sh\x01\x04/tmp\xff\xff\xff\xff"))
	f.Add([]byte(strings.Repeat("\x01\x05/a/b\n", 60)))
	null := null(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		in := &bites{data}
		var r *Recipe
		var err error
		switch in.byte() % 4 {
		case 0:
			r, err = Sandbox(SandboxSpec{
				Hostname: in.string(), Sysctls: map[string]string{in.string(): in.string()}, ShmSize: int64(in.uint64()),
				HostIPCShm: in.bool(), UserNS: in.bool(), CgroupProcs: []*os.File{in.file(null)}, OOMScoreAdj: ptr(int(in.byte())),
			})
		case 1:
			r, err = Exec(ExecSpec{Process: in.process(null), PIDFD: in.file(null), Namespaces: in.uint64(), UserNS: in.bool()})
		default:
			r, err = Container(ContainerSpec{
				Process: in.process(null), Rootfs: null, ReadonlyRootfs: in.bool(), Mounts: in.mounts(null),
				Dev: in.file(null), Devpts: in.file(null), Console: in.file(null), Shm: in.bool(), Mqueue: in.bool(),
				PrivateProc: in.bool(), Sysfs: []string{"", "ro", "rw", "x"}[in.byte()%4], Cgroupfs: in.mounts(null), CgroupNS: in.bool(),
				MaskedPaths: in.paths(), ReadonlyPaths: in.paths(), UserNS: in.bool(), Volumes: in.paths(),
			})
		}
		if err != nil {
			if strings.Contains(err.Error(), secretMark) {
				t.Errorf("the error holds a secret: %v", err)
			}
			return
		}
		decode(t, r.Encode(), len(r.Files()))
		text := r.String()
		if strings.Contains(text, secretMark) {
			t.Errorf("the text holds a secret:\n%s", text)
		}
		next := 0
		for line := range strings.Lines(text) {
			n := 0
			for _, c := range strings.TrimLeft(line, " ") {
				if c < '0' || c > '9' {
					break
				}
				n = 10*n + int(c-'0')
			}
			if strings.HasPrefix(line, "     … ") {
				next = -1
			} else if next >= 0 && n != next || n >= r.Len() || !strings.HasSuffix(line, "\n") {
				t.Fatalf("line %q isn't step %d", line, next)
			} else {
				next = n + 1
			}
		}
		if next != r.Len() {
			t.Errorf("%d steps printed of %d", next, r.Len())
		}
		for i := range r.Len() {
			if err := r.Explain(i, unix.EACCES); strings.Contains(err.Error(), secretMark) {
				t.Errorf("step %d: %v", i, err)
			}
		}
	})
}
