package pause

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// rawConn speaks the protocol by hand: what another version of the node might
// do, or a broken one.
type rawConn struct {
	t  *testing.T
	fd int
}

func dialRaw(t *testing.T, dir string) *rawConn {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30})
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, socketName)}); err != nil {
		t.Fatal(err)
	}
	return &rawConn{t, fd}
}

func (r *rawConn) send(b []byte, fds ...int) {
	r.t.Helper()
	if err := unix.Sendmsg(r.fd, b, unix.UnixRights(fds...), nil, 0); err != nil {
		r.t.Fatal(err)
	}
}

// receive returns the next message, without its descriptors.
func (r *rawConn) receive() *message {
	r.t.Helper()
	b, oob := make([]byte, 1024), make([]byte, 1024)
	n, oobn, _, _, err := unix.Recvmsg(r.fd, b, oob, unix.MSG_CMSG_CLOEXEC)
	for err == unix.EINTR { // SO_RCVTIMEO forbids the kernel to start it again
		n, oobn, _, _, err = unix.Recvmsg(r.fd, b, oob, unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	files, err := rights(oob[:oobn])
	closeAll(files)
	m, derr := decodeMessage(b[:n])
	if err != nil || derr != nil {
		r.t.Fatal(err, derr)
	}
	return m
}

// asks sends a request and expects this errno as its answer.
func (r *rawConn) asks(req request, want unix.Errno, fds ...int) *message {
	r.t.Helper()
	r.send(req.encode(), fds...)
	m := r.receive()
	if m.Type != typeResult || m.Serial != req.Serial || unix.Errno(m.Error) != want {
		r.t.Errorf("request %d/%d: answer %d/%d, errno %d; want errno %d", req.Type, req.Serial, m.Type, m.Serial, m.Error, want)
	}
	return m
}

func (r *rawConn) greet() {
	r.t.Helper()
	r.asks(request{Type: typeHello, Serial: 1000, Magic: protocolMagic, Version: protocolVersion}, 0)
}

func spawnRequest(serial uint32, id string) request {
	r := request{Type: typeSpawn, Serial: serial}
	copy(r.ID[:], id)
	return r
}

func memfd(t *testing.T, content []byte) int {
	f, err := sealedMemfd("recipe", content, unix.MFD_NOEXEC_SEAL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return int(f.Fd())
}

func TestProtocol(t *testing.T) {
	dir := t.TempDir()
	start(t, Config{Dir: dir})
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	nfd := int(null.Fd())
	recipe := memfd(t, exits(0).Encode())

	r := dialRaw(t, dir)
	r.asks(request{Type: typeList, Serial: 1}, unix.EPROTO)
	r.asks(spawnRequest(2, "x"), unix.EPROTO, recipe, nfd)
	r.asks(request{Type: typeHello, Serial: 3, Magic: 1}, unix.EPROTO)
	r.asks(request{Type: typeList, Serial: 4}, unix.EPROTO)
	hello := request{Type: typeHello, Serial: 5, Magic: protocolMagic, Version: 99}
	if m := r.asks(hello, 0); m.Magic != protocolMagic || m.Version != protocolVersion || m.Oldest > m.Version || m.Limit < 1024 {
		t.Errorf("HELLO: %+v", m)
	}
	r.asks(request{Type: 99, Serial: 6}, unix.ENOSYS)
	r.asks(request{Type: typeSetup, Serial: 7}, unix.EALREADY, recipe)

	// Requests of other lengths: an older node's and a newer one's.
	short := request{Type: typeHello, Serial: 8, Magic: protocolMagic}
	r.send(short.encode()[:16])
	if m := r.receive(); m.Error != 0 || m.Serial != 8 {
		t.Errorf("a short request: %+v", m)
	}
	long := append(hello.encode(), make([]byte, 100)...)
	r.send(long)
	if m := r.receive(); m.Error != 0 {
		t.Errorf("a long request with nothing new in it: %+v", m)
	}
	long[len(long)-1] = 1
	r.send(long)
	if m := r.receive(); unix.Errno(m.Error) != unix.E2BIG {
		t.Errorf("a long request with something new: %+v", m)
	}
	r.send(append(hello.encode(), make([]byte, 1000)...))
	if m := r.receive(); unix.Errno(m.Error) != unix.E2BIG {
		t.Errorf("a much too long request: %+v", m)
	}

	// Spawns that aren't.
	r.asks(spawnRequest(10, "x"), unix.EINVAL)
	r.asks(spawnRequest(11, "x"), unix.EINVAL, recipe)
	r.asks(spawnRequest(12, ""), unix.EINVAL, recipe, nfd)
	for i, spoil := range []func(*request){
		func(q *request) { q.Cloneflags = unix.CLONE_VM },
		func(q *request) { q.Cloneflags = unix.CLONE_PARENT },
		func(q *request) { q.Cloneflags = 1 << 33 },
		func(q *request) { q.Flags = 4 },
		func(q *request) { q.Flags = spawnPIDNamespace },
		func(q *request) { q.Flags = spawnCgroup },
		func(q *request) { q.Keep = 1 },
		func(q *request) { q.Keep = 0xffffffff },
	} {
		q := spawnRequest(uint32(20+i), "x")
		spoil(&q)
		r.asks(q, unix.EINVAL, recipe, nfd)
	}
	endless := spawnRequest(30, "x")
	for i := range endless.ID {
		endless.ID[i] = 'x'
	}
	r.asks(endless, unix.E2BIG, recipe, nfd)

	// Descriptors sent ahead belong to their serial only, and to one request.
	files := request{Type: typeFiles, Serial: 40}
	r.send(files.encode(), recipe)
	r.asks(spawnRequest(40, "x"), 0, nfd)
	if m := r.receive(); m.Type != typeExit || m.id() != "x" {
		t.Errorf("got %+v, want the exit of x", m)
	}
	files.Serial = 41
	r.send(files.encode(), recipe, nfd)
	r.asks(spawnRequest(42, "y"), unix.EINVAL)
	r.asks(spawnRequest(41, "y"), unix.EINVAL)
	many := make([]int, maxSCM)
	for i := range many {
		many[i] = nfd
	}
	files.Serial = 43
	for range maxStash/maxSCM + 1 {
		r.send(files.encode(), many...)
	}
	r.asks(spawnRequest(43, "y"), unix.E2BIG)
	r.asks(spawnRequest(44, "y"), 0, recipe, nfd)
}

// Nobody reads the child's report: the node that asked is gone. The child must
// not become a container nobody knows about.
func TestNoReaderNoProgram(t *testing.T) {
	dir := t.TempDir()
	start(t, Config{Dir: dir})
	r := dialRaw(t, dir)
	r.greet()
	ran := filepath.Join(t.TempDir(), "ran")
	b := new(blob)
	b.exec("/usr/bin/touch", ran)
	report, childReport := pipe(t)
	report.Close()
	r.asks(spawnRequest(1, "x"), 0, memfd(t, b.Encode()), int(childReport.Fd()))
	m := r.receive()
	if status := unix.WaitStatus(m.Status); m.Type != typeExit || !status.Signaled() || status.Signal() != unix.SIGPIPE {
		t.Errorf("got %+v, want death by SIGPIPE", m)
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("the program was executed")
	}
}

// A node that doesn't read holds up nothing: pause reaps, and says everything
// once the node listens again.
func TestSlowNode(t *testing.T) {
	dir := t.TempDir()
	c := start(t, Config{Dir: dir})
	r := dialRaw(t, dir)
	r.greet()
	recipe := memfd(t, exits(3).Encode())
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	unix.SetNonblock(r.fd, true)
	sent := 0
	for ; sent < 1500; sent++ {
		q := spawnRequest(uint32(sent+1), fmt.Sprint(sent))
		err := unix.Sendmsg(r.fd, q.encode(), unix.UnixRights(recipe, int(null.Fd())), nil, 0)
		if err == unix.EAGAIN {
			// pause has stopped reading because we don't: as it should.
			time.Sleep(20 * time.Millisecond)
			if err = unix.Sendmsg(r.fd, q.encode(), unix.UnixRights(recipe, int(null.Fd())), nil, 0); err == unix.EAGAIN {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if sent == 1500 {
		t.Fatal("the connection was never full")
	}
	eventually(t, "its children are reaped", func() bool { return len(childrenOf(t, c.PID())) == 0 })
	unix.SetNonblock(r.fd, false)
	answers, exits := 0, map[string]bool{}
	for answers < sent || len(exits) < sent {
		switch m := r.receive(); m.Type {
		case typeResult:
			if answers++; m.Serial != uint32(answers) || m.Error != 0 {
				t.Fatalf("answer %d is %+v", answers, m)
			}
		case typeExit:
			if exits[m.id()] || m.Status != 3<<8 {
				t.Fatalf("exit %+v", m)
			}
			exits[m.id()] = true
		}
	}
	// It vanishes without having released one: the next learns them all.
	unix.Close(r.fd)
	again, err := Connect(testContext(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for range sent {
		e := <-again.Exits()
		if !exits[e.ID] {
			t.Fatalf("exit of %s", e.ID)
		}
		delete(exits, e.ID)
	}
}

// fakePause answers with what answer makes of each request.
func fakePause(t *testing.T, answer func(request) []message) *Conn {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	p, err := newProcess(os.Getpid(), pidfd, false)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newConn(pair[0], p)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer unix.Close(pair[1])
		b := make([]byte, requestSize)
		for {
			if n, err := unix.Read(pair[1], b); n <= 0 || err != nil {
				return
			}
			for _, m := range answer(decodeRequest(b)) {
				unix.Write(pair[1], encodeMessage(m))
			}
		}
	}()
	t.Cleanup(func() {
		c.Close()
		<-done
	})
	return c
}

func TestVersions(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer message
		ok     bool
	}{
		{"same", message{Magic: protocolMagic, Version: protocolVersion, Oldest: 1}, true},
		{"newer pause that knows us", message{Magic: protocolMagic, Version: 9, Oldest: protocolVersion}, true},
		{"newer pause that doesn't", message{Magic: protocolMagic, Version: 9, Oldest: protocolVersion + 1}, false},
		{"older than we know", message{Magic: protocolMagic, Version: oldestVersion - 1}, false},
		{"something else", message{Magic: 1, Version: 1, Oldest: 1}, false},
		{"refuses", message{Error: uint32(unix.EPROTO)}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := fakePause(t, func(r request) []message {
				m := tc.answer
				m.Type, m.Serial = typeResult, r.Serial
				return []message{m}
			})
			err := c.hello(testContext(t))
			if tc.ok && (err != nil || c.Version() != int(tc.answer.Version)) {
				t.Errorf("hello: %v, version %d", err, c.Version())
			}
			if !tc.ok && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("hello: %v, want failed precondition", err)
			}
		})
	}
}

// Nonsense from the other side ends the connection with an error, and nothing
// waits for ever.
func TestNonsense(t *testing.T) {
	id := func(s string) (b [idSize]byte) { copy(b[:], s); return b }
	for name, answer := range map[string]func(request) []message{
		"unknown type": func(r request) []message { return []message{{Type: 7, Serial: r.Serial}} },
		"child, error": func(r request) []message {
			return []message{{Type: typeChild, Serial: r.Serial, Error: uint32(unix.EMFILE)}, {Type: typeResult, Serial: r.Serial}}
		},
		"child, no pidfd": func(r request) []message { return []message{{Type: typeChild, Serial: r.Serial}} },
	} {
		c := fakePause(t, answer)
		if _, err := c.Children(testContext(t)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	// An answer to nothing, and the same exit again and again, are harmless.
	c := fakePause(t, func(r request) []message {
		exit := message{Type: typeExit, ID: id("x")}
		return []message{{Type: typeResult, Serial: 77}, exit, exit, exit, {Type: typeResult, Serial: r.Serial}}
	})
	if _, err := c.Children(testContext(t)); err != nil {
		t.Error(err)
	}
	for range 3 {
		awaitExit(t, c, "x")
	}
	// One that says nothing: the caller's context decides.
	c = fakePause(t, func(request) []message { return nil })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.Children(ctx); err != context.DeadlineExceeded && !errdefs.IsDeadlineExceeded(err) {
		t.Errorf("silence: %v", err)
	}
}
