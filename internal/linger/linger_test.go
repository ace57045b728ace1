package linger

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func pair(t *testing.T) (*Listener, net.Conn, net.Conn) {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := Listen(inner)
	t.Cleanup(func() { l.Close() })
	client, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return l, server, client
}

// What the other side sends after the close fails nowhere, and what was
// written before it arrives.
func TestLastWords(t *testing.T) {
	_, server, client := pair(t)
	if _, err := client.Write(make([]byte, 1<<10)); err != nil { // never read
		t.Fatal(err)
	}
	if _, err := server.Write([]byte("exit 7")); err != nil {
		t.Fatal(err)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if _, err := client.Write(make([]byte, 64<<10)); err != nil {
			t.Fatalf("the other side's write: %v", err)
		}
		time.Sleep(time.Millisecond)
	}
	if got, err := io.ReadAll(client); err != nil || string(got) != "exit 7" {
		t.Errorf("got %q, %v", got, err)
	}
}

// Whoever uses a closed connection is told so, a reader that waits too.
func TestClosed(t *testing.T) {
	_, server, _ := pair(t)
	read := make(chan error)
	go func() {
		_, err := io.Copy(io.Discard, server)
		read <- err
	}()
	time.Sleep(10 * time.Millisecond) // that it waits
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-read; !errors.Is(err, net.ErrClosed) {
		t.Errorf("a read that waits: %v", err)
	}
	for name, err := range map[string]error{
		"read":     second(server.Read(make([]byte, 1))),
		"write":    second(server.Write(make([]byte, 1))),
		"deadline": server.SetDeadline(time.Now()),
		"close":    server.Close(),
	} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second(_ int, err error) error { return err }

// The listener's end is that of all that lingers.
func TestListenerCloses(t *testing.T) {
	l, server, client := pair(t)
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) > 0 {
		t.Errorf("%d connections linger", len(l.waiting))
	}
	client.SetReadDeadline(time.Now().Add(Patience))
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && err == nil {
		t.Errorf("the other side: %v", err)
	}
}
