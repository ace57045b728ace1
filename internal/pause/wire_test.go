package pause

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func encodeMessage(m message) []byte {
	b, err := binary.Append(nil, binary.LittleEndian, m)
	if err != nil {
		panic(err)
	}
	return b
}

func decodeRequest(b []byte) (r request) {
	if _, err := binary.Decode(b, binary.LittleEndian, &r); err != nil {
		panic(err)
	}
	return r
}

func TestSizes(t *testing.T) {
	if n := len((&request{}).encode()); n != requestSize {
		t.Errorf("a request takes %d bytes, want %d", n, requestSize)
	}
	if n := len(encodeMessage(message{})); n != messageSize {
		t.Errorf("a message takes %d bytes, want %d", n, messageSize)
	}
}

// Whatever comes from the socket, the connection survives or ends with an error.
func FuzzReceive(f *testing.F) {
	f.Add([]byte{})
	for _, m := range []message{{Type: typeExit}, {Type: typeResult, Serial: 1}, {Type: typeChild, Serial: 1, Exited: 1}, {Type: typeChild, Serial: 1}, {Type: 9}} {
		copy(m.ID[:], "x")
		f.Add(encodeMessage(m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		call1 := &call{done: make(chan struct{})}
		s := &spawning{id: "x", exited: make(chan struct{})}
		c := &Conn{
			calls: map[uint32]*call{1: call1}, spawning: map[string]*spawning{"x": s},
			closing: make(chan struct{}), exits: make(chan Exit),
		}
		for range 2 {
			c.receive(b, nil)
		}
		m, err := decodeMessage(b)
		if err != nil {
			return
		}
		if bytes.IndexByte([]byte(m.id()), 0) >= 0 || len(m.id()) > idSize {
			t.Errorf("ID %q", m.id())
		}
		if got := encodeMessage(*m); !bytes.Equal(got, b[:messageSize]) {
			t.Errorf("decoded and encoded, %x became %x", b, got)
		}
		close(c.closing)
		c.workers.Wait()
	})
}
