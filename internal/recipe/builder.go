package recipe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits of what pause takes; a recipe beyond them is refused when built.
const (
	MaxSize  = 8 << 20 // bytes of the encoded recipe
	MaxFiles = 1000    // descriptors that travel with it
)

// Arg is an argument of a system call: [Int], [FD], [Result], or memory the
// kernel reads: [Str], [Argv], [Environ], [OpenHow], [MountAttr] and the other
// types of this package that are named for what the call takes.
type Arg interface {
	place(b *Builder) arg
}

// arg is an argument as it is kept: the wire format's kinds.
type arg struct {
	kind  argKind
	value uint64 // of argInt; index for argFD and argResult
	mem   *chunk // of argPtr
}

type argKind uint8

const (
	argInt argKind = iota
	argPtr
	argFD
	argResult
)

// chunk is a piece of memory of the recipe.
type chunk struct {
	data   []byte
	relocs []reloc
	offset uint32 // in the blob; set by Builder.Recipe
	show   func() string
}

// reloc makes the eight bytes at an offset of a chunk the address of another.
type reloc struct {
	at int
	to *chunk
}

// Int is an integer argument.
type Int int64

func (i Int) place(*Builder) arg { return arg{kind: argInt, value: uint64(i)} }

// FD is a descriptor that travels with the recipe; see [Builder.FD].
type FD struct{ index int }

func (f FD) place(*Builder) arg { return arg{kind: argFD, value: uint64(f.index)} }

// Result is what an earlier step returned. If that step failed with an errno
// it tolerates, the result is -errno; as a descriptor that gives EBADF, which
// is how a step depends on an earlier one: it tolerates EBADF.
type Result struct {
	b    *Builder
	step int
}

func (r Result) place(b *Builder) arg {
	if r.b != b {
		b.fail(errors.New("a result of another recipe"))
	}
	return arg{kind: argResult, value: uint64(r.step)}
}

// Tolerate lets the step go on when it fails with one of these (at most four).
func (r Result) Tolerate(errnos ...unix.Errno) Result {
	s := &r.b.steps[r.step]
	if len(errnos) > len(s.tolerate) {
		r.b.fail(fmt.Errorf("step %d (%s): more than %d tolerated errors", r.step, s.why, len(s.tolerate)))
		return r
	}
	for i, e := range errnos {
		s.tolerate[i] = uint16(e)
	}
	return r
}

// explained gives the step its own sentences for failures.
func (r Result) explained(f func(unix.Errno) string) Result {
	r.b.steps[r.step].explain = f
	return r
}

// Builder collects the steps of a recipe. The first mistake is kept and
// returned by [Builder.Recipe]. It must not be used concurrently.
type Builder struct {
	steps  []step
	fds    []received
	chunks []*chunk
	strs   shared[Str]
	hows   shared[OpenHow]
	attrs  shared[MountAttr]
	err    error
}

// New returns an empty builder.
func New() *Builder {
	return &Builder{
		steps: make([]step, 0, 384), // a container has about 300
		strs:  shared[Str]{}, hows: shared[OpenHow]{}, attrs: shared[MountAttr]{},
	}
}

func (b *Builder) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

// FD adds a descriptor to those that travel with the recipe; name is how it
// is printed.
func (b *Builder) FD(name string, f *os.File) FD {
	if f == nil {
		b.fail(fmt.Errorf("descriptor %s is missing", name))
	}
	b.fds = append(b.fds, received{name, f})
	return FD{len(b.fds) - 1}
}

// Call adds a system call. why says what it is for, as the beginning of the
// sentence its failure becomes: "mounting volume cache at /data". nr is a
// number of the architecture this was compiled for (unix.SYS_*).
func (b *Builder) Call(why string, nr uintptr, args ...Arg) Result {
	s := step{why: why, nr: nr, nargs: len(args)}
	if len(args) > len(s.args) {
		b.fail(fmt.Errorf("step %d (%s): %d arguments", len(b.steps), why, len(args)))
		s.nargs = len(s.args)
	}
	for i, a := range args[:s.nargs] {
		s.args[i] = a.place(b)
	}
	b.steps = append(b.steps, s)
	return Result{b, len(b.steps) - 1}
}

// Recipe lays the memory out and returns the finished recipe. The builder must
// not be used any more.
func (b *Builder) Recipe() (*Recipe, error) {
	switch {
	case b.err != nil:
		return nil, fmt.Errorf("recipe: %w", b.err)
	case len(b.steps) == 0:
		return nil, errors.New("recipe: it has no steps")
	case len(b.fds) > MaxFiles:
		return nil, fmt.Errorf("recipe: %d descriptors, at most %d can be passed (fewer mounts?)", len(b.fds), MaxFiles)
	}
	r := &Recipe{steps: b.steps, fds: b.fds, chunks: b.chunks}
	for _, c := range r.chunks {
		r.relocs += len(c.relocs)
	}
	at := headerSize + len(r.steps)*stepSize + align8(r.relocs*relocSize)
	for _, c := range r.chunks {
		c.offset = uint32(at)
		if at += align8(len(c.data)); at > MaxSize {
			return nil, fmt.Errorf("recipe: larger than %d MiB (arguments and environment too long)", MaxSize>>20)
		}
	}
	r.size = uint32(at)
	return r, nil
}

func align8(n int) int { return (n + 7) &^ 7 }

// memory adds a chunk. Every chunk starts at a multiple of eight bytes.
func (b *Builder) memory(data []byte, show func() string) arg {
	c := &chunk{data: data, show: show}
	b.chunks = append(b.chunks, c)
	return arg{kind: argPtr, mem: c}
}

// shared are the chunks that serve all equal arguments of a type.
type shared[A comparable] map[A]*chunk

// place returns the argument's chunk, made the first time.
func (m shared[A]) place(b *Builder, a A, data func(A) []byte, show func(A) string) arg {
	c := m[a]
	if c == nil {
		c = b.memory(data(a), func() string { return show(a) }).mem
		m[a] = c
	}
	return arg{kind: argPtr, mem: c}
}

// Str is a string, passed NUL-terminated.
type Str string

func (s Str) place(b *Builder) arg {
	if strings.IndexByte(string(s), 0) >= 0 {
		b.fail(fmt.Errorf("%q contains a NUL byte", string(s)))
	}
	return b.strs.place(b, s, terminated[Str], quote[Str])
}

// terminated returns the bytes of a string with a NUL behind them.
func terminated[S ~string](s S) []byte {
	data := make([]byte, len(s)+1)
	copy(data, s)
	return data
}

// Argv is an argument list, passed as execve takes it.
type Argv []string

func (v Argv) place(b *Builder) arg {
	return b.vector(v, func() string { return showList(v, quote[string]) })
}

// Environ is an environment. It is printed without the variables' values.
type Environ []string

func (v Environ) place(b *Builder) arg {
	return b.vector(v, func() string {
		return showList(v, func(s string) string {
			name, _, _ := strings.Cut(s, "=")
			return quoteText(name+"=", "…")
		})
	})
}

// vector is a NULL-terminated array of pointers to strings.
func (b *Builder) vector(v []string, show func() string) arg {
	a := b.memory(make([]byte, 8*(len(v)+1)), show)
	for i, s := range v {
		if strings.IndexByte(s, 0) >= 0 {
			// Not the string itself: it may be a secret.
			name, _, _ := strings.Cut(s, "=")
			b.fail(fmt.Errorf("the argument or variable starting with %q contains a NUL byte", cutNUL(name)))
		}
		to := b.memory(terminated(s), nil)
		a.mem.relocs = append(a.mem.relocs, reloc{at: 8 * i, to: to.mem})
	}
	return a
}

func cutNUL(s string) string { s, _, _ = strings.Cut(s, "\x00"); return s }

// OpenHow is what openat2(2) takes; its size is the next argument.
type OpenHow unix.OpenHow

func (h OpenHow) place(b *Builder) arg { return b.hows.place(b, h, OpenHow.bytes, OpenHow.show) }

func (h OpenHow) bytes() []byte { return words(h.Flags, h.Mode, h.Resolve) }

func (h OpenHow) show() string {
	s := "{" + openFlags.show(h.Flags)
	if h.Mode != 0 {
		s += fmt.Sprintf(", %#o", h.Mode)
	}
	if h.Resolve != 0 {
		s += ", " + resolveFlags.show(h.Resolve)
	}
	return s + "}"
}

// MountAttr is what mount_setattr(2) takes; its size is the next argument.
type MountAttr unix.MountAttr

func (m MountAttr) place(b *Builder) arg {
	return b.attrs.place(b, m, MountAttr.bytes, MountAttr.show)
}

func (m MountAttr) bytes() []byte { return words(m.Attr_set, m.Attr_clr, m.Propagation, m.Userns_fd) }

func (m MountAttr) show() string {
	var parts []string
	if m.Attr_set != 0 {
		parts = append(parts, mountAttrFlags.show(m.Attr_set))
	}
	if m.Attr_clr != 0 {
		parts = append(parts, "clear "+mountAttrFlags.show(m.Attr_clr))
	}
	if m.Propagation != 0 {
		parts = append(parts, mountFlags.show(m.Propagation))
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// Limit is a struct rlimit64 for prlimit64(2).
type Limit struct{ Soft, Hard uint64 }

func (l Limit) place(b *Builder) arg {
	return b.memory(words(l.Soft, l.Hard), func() string {
		return "{" + showLimit(l.Soft) + ", " + showLimit(l.Hard) + "}"
	})
}

// Groups is a list of group IDs for setgroups(2).
type Groups []uint32

func (g Groups) place(b *Builder) arg {
	data := make([]byte, 4*len(g))
	for i, id := range g {
		binary.LittleEndian.PutUint32(data[4*i:], id)
	}
	return b.memory(data, func() string { return strings.ReplaceAll(fmt.Sprint([]uint32(g)), " ", ", ") })
}

// CapHeader is the first argument of capset(2): version 3, the calling process.
type CapHeader struct{}

func (CapHeader) place(b *Builder) arg {
	return b.memory(words(unix.LINUX_CAPABILITY_VERSION_3), func() string { return "{v3}" })
}

// CapData is the second argument of capset(2), as 64-bit masks.
type CapData struct{ Effective, Permitted, Inheritable uint64 }

func (c CapData) place(b *Builder) arg {
	data := make([]byte, 24)
	for i, set := range []uint64{c.Effective, c.Permitted, c.Inheritable} {
		binary.LittleEndian.PutUint32(data[4*i:], uint32(set))
		binary.LittleEndian.PutUint32(data[12+4*i:], uint32(set>>32))
	}
	return b.memory(data, func() string {
		return "{effective " + showCaps(c.Effective) + ", permitted " + showCaps(c.Permitted) +
			", inheritable " + showCaps(c.Inheritable) + "}"
	})
}

// Filter is a seccomp program, passed as the struct sock_fprog seccomp(2) takes.
type Filter []unix.SockFilter

func (f Filter) place(b *Builder) arg {
	if len(f) == 0 || len(f) > maxFilter {
		b.fail(fmt.Errorf("a seccomp program of %d instructions, the kernel takes 1 to %d", len(f), maxFilter))
		return arg{}
	}
	code := make([]byte, 8*len(f))
	for i, ins := range f {
		binary.LittleEndian.PutUint16(code[8*i:], ins.Code)
		code[8*i+2], code[8*i+3] = ins.Jt, ins.Jf
		binary.LittleEndian.PutUint32(code[8*i+4:], ins.K)
	}
	to := b.memory(code, nil)
	a := b.memory(words(uint64(len(f)), 0), func() string { return fmt.Sprintf("{%d instructions}", len(f)) })
	a.mem.relocs = []reloc{{at: 8, to: to.mem}}
	return a
}

// maxFilter is the kernel's BPF_MAXINSNS.
const maxFilter = 4096

// words is a structure of 64-bit fields.
func words(values ...uint64) []byte {
	data := make([]byte, 8*len(values))
	for i, v := range values {
		binary.LittleEndian.PutUint64(data[8*i:], v)
	}
	return data
}
