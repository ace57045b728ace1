package pause

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// blob is a recipe encoded by hand, straight from the format in PROTOCOL.md, so
// that these tests check the C program against the document and not against
// the builder in internal/recipe.
type blob struct {
	steps  []wireStep
	relocs []wireReloc
	data   []byte
	files  []*os.File
	raw    []byte // sent as it is, if set
}

type wireStep struct {
	NR       uint32
	Nargs    uint8
	Kind     [6]uint8
	Zero     uint8
	Tolerate [4]uint16
	Store    uint32
	Arg      [6]uint64
}

type wireReloc struct{ Where, Kind, Value uint32 }

type wireHeader struct{ Magic, Size, Nsteps, Steps, Nrelocs, Relocs, Nfds, Zero uint32 }

// Arguments of a step besides plain integers.
type (
	ptr uint32 // data at this offset
	fd  int    // received descriptor
	res int    // result of an earlier step
)

const dataAt = 32 // data comes first, behind the header

func (b *blob) bytes(p []byte) ptr {
	for len(b.data)%8 != 0 {
		b.data = append(b.data, 0)
	}
	at := ptr(dataAt + len(b.data))
	b.data = append(b.data, p...)
	return at
}

func (b *blob) str(s string) ptr { return b.bytes(append([]byte(s), 0)) }

// strs makes an argv.
func (b *blob) strs(list ...string) ptr {
	at := make([]ptr, len(list))
	for i, s := range list {
		at[i] = b.str(s)
	}
	array := b.bytes(make([]byte, 8*(len(list)+1)))
	for i, p := range at {
		b.relocs = append(b.relocs, wireReloc{uint32(array) + uint32(8*i), 0, uint32(p)})
	}
	return array
}

func (b *blob) file(f *os.File) fd {
	b.files = append(b.files, f)
	return fd(len(b.files) - 1)
}

func (b *blob) call(nr int, args ...any) res {
	s := wireStep{NR: uint32(nr), Nargs: uint8(len(args))}
	for i, a := range args {
		switch a := a.(type) {
		case ptr:
			s.Kind[i], s.Arg[i] = 1, uint64(a)
		case fd:
			s.Kind[i], s.Arg[i] = 2, uint64(a)
		case res:
			s.Kind[i], s.Arg[i] = 3, uint64(a)
		case int:
			s.Arg[i] = uint64(a)
		default:
			panic(fmt.Sprintf("argument %T", a))
		}
	}
	b.steps = append(b.steps, s)
	return res(len(b.steps) - 1)
}

func (b *blob) tolerate(errnos ...unix.Errno) {
	for i, e := range errnos {
		b.steps[len(b.steps)-1].Tolerate[i] = uint16(e)
	}
}

// exec ends the recipe; stdio is /dev/null unless dup3'ed before.
func (b *blob) exec(argv ...string) {
	b.call(unix.SYS_EXECVE, b.str(argv[0]), b.strs(argv...), b.strs("PATH=/usr/sbin:/usr/bin:/sbin:/bin"))
}

func (b *blob) exit(code int) { b.call(unix.SYS_EXIT_GROUP, code) }

func (b *blob) header() wireHeader {
	steps := (dataAt + len(b.data) + 7) &^ 7
	relocs := steps + 72*len(b.steps)
	return wireHeader{
		Magic: 0x31525055, Size: uint32(relocs + 12*len(b.relocs)),
		Nsteps: uint32(len(b.steps)), Steps: uint32(steps),
		Nrelocs: uint32(len(b.relocs)), Relocs: uint32(relocs), Nfds: uint32(len(b.files)),
	}
}

func (b *blob) Encode() []byte {
	if b.raw != nil {
		return b.raw
	}
	h := b.header()
	out, _ := binary.Append(nil, binary.LittleEndian, h)
	out = append(out, b.data...)
	out = append(out, make([]byte, int(h.Steps)-len(out))...)
	out, _ = binary.Append(out, binary.LittleEndian, b.steps)
	out, _ = binary.Append(out, binary.LittleEndian, b.relocs)
	return out
}

func (b *blob) Files() []*os.File { return b.files }

type stepError struct {
	Step  int
	Errno unix.Errno
}

func (e *stepError) Error() string { return fmt.Sprintf("step %d: %v", e.Step, e.Errno) }
func (e *stepError) Unwrap() error { return e.Errno }

func (b *blob) Explain(step int, errno unix.Errno) error { return &stepError{step, errno} }

func shell(script string) *blob {
	b := new(blob)
	b.exec("/bin/sh", "-c", script)
	return b
}

// testContext ends before the test binary's own patience does.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

const podNamespaces = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET

func requireRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes namespaces")
	}
}

// start makes a pod that ends with the test.
func start(t testing.TB, cfg Config) *Conn {
	t.Helper()
	requireRoot(t)
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.Cloneflags == 0 {
		cfg.Cloneflags = podNamespaces
	}
	c, err := Start(testContext(t), cfg)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() { end(t, c) })
	return c
}

func end(t testing.TB, c *Conn) {
	if err := c.Terminate(); err != nil {
		t.Errorf("Terminate: %v", err)
	}
	select {
	case <-c.Done():
	case <-time.After(30 * time.Second):
		t.Errorf("pause %d hasn't ended", c.PID())
	}
	c.Close()
}

func spawn(t testing.TB, c *Conn, r SpawnRequest) *Process {
	t.Helper()
	p, err := c.Spawn(testContext(t), r)
	if err != nil {
		t.Fatalf("Spawn %s: %v", r.ID, err)
	}
	t.Cleanup(func() { p.Pidfd.Close() })
	return p
}

// awaitExit returns the next exit, which must be that of id.
func awaitExit(t testing.TB, c *Conn, id string) Exit {
	t.Helper()
	select {
	case e, ok := <-c.Exits():
		if !ok {
			t.Fatalf("Exits was closed while waiting for %s", id)
		}
		if e.ID != id {
			t.Fatalf("exit of %q, want %q", e.ID, id)
		}
		return e
	case <-time.After(30 * time.Second):
		t.Fatalf("no exit of %s", id)
	}
	panic("unreachable")
}

func release(t testing.TB, c *Conn, id string) {
	t.Helper()
	if err := c.Release(testContext(t), id); err != nil {
		t.Fatalf("Release %s: %v", id, err)
	}
}

func pipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	var p [2]int // blocking, unlike os.Pipe's: children use them
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w = os.NewFile(uintptr(p[0]), "pipe"), os.NewFile(uintptr(p[1]), "pipe")
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// eventually waits for a condition of the outside world.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			_, file, line, _ := runtime.Caller(1)
			t.Fatalf("%s:%d: waited too long: %s", file, line, what)
		}
	}
}

func (ch *Child) close() {
	if ch.Pidfd != nil {
		ch.Pidfd.Close()
	}
	closeAll(ch.Keep)
}
