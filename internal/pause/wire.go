package pause

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// The wire format, as in pause/protocol.h.
const (
	protocolMagic   = 0x31505055 // "UPP1"
	protocolVersion = 1          // what this node speaks at best
	oldestVersion   = 1          // the oldest pause this node speaks with

	typeHello   = 1
	typeSetup   = 2
	typeFiles   = 3
	typeSpawn   = 4
	typeRelease = 5
	typeList    = 6
	typeLaunch  = 7
	typeDrop    = 8

	typeResult = 101
	typeExit   = 102
	typeChild  = 103

	spawnPIDNamespace = 1
	spawnCgroup       = 2

	idSize      = 72 // in messages
	maxID       = 64 // of it used
	maxKeep     = 8
	maxStash    = 1024 // descriptors of one request
	maxSCM      = 253  // descriptors of one message
	maxRecipe   = 8 << 20
	requestSize = 104
	messageSize = 128

	reportRecipe = 0xffffffff // a report's step: the recipe itself is bad
)

type request struct {
	Type, Serial   uint32
	Magic, Version uint32
	Cloneflags     uint64
	Flags, Keep    uint32
	ID             [idSize]byte
}

type message struct {
	Type, Serial      uint32
	Error, Step       uint32
	Magic, Version    uint32
	Oldest, Limit     uint32
	Exited            uint32
	Status            int32
	Started, Finished int64
	ID                [idSize]byte
}

func (r *request) encode() []byte {
	b, err := binary.Append(make([]byte, 0, requestSize), binary.LittleEndian, r)
	if err != nil {
		panic(err) // the type has a fixed size
	}
	return b
}

// decodeMessage reads what pause sent. A newer pause may send more than we
// know, never less.
func decodeMessage(b []byte) (*message, error) {
	if len(b) < messageSize {
		return nil, fmt.Errorf("a message of %d bytes from pause, %d expected", len(b), messageSize)
	}
	m := new(message)
	if _, err := binary.Decode(b, binary.LittleEndian, m); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *message) id() string {
	id, _, _ := bytes.Cut(m.ID[:], []byte{0})
	return string(id)
}

func (m *message) exit() Exit {
	return Exit{ID: m.id(), Status: unix.WaitStatus(m.Status), At: time.Unix(0, m.Finished)}
}
