package recipe

import "encoding/binary"

// The wire format; pause's PROTOCOL.md describes it and interp.c reads it.
//
//	header  magic, size, nsteps, steps, nrelocs, relocs, nfds, 0   (u32 each)
//	steps   nr u32, nargs u8, kind [6]u8, 0 u8, tolerate [4]u16, store u32, arg [6]u64
//	relocs  where u32, kind u32, value u32
//	memory  every chunk at a multiple of eight
const (
	magic      = 0x31525055 // "UPR1"
	headerSize = 32
	stepSize   = 72
	relocSize  = 12

	relocAddress = 0
)

// Encode returns the recipe as pause reads it.
func (r *Recipe) Encode() []byte {
	le := binary.LittleEndian
	blob := make([]byte, r.size)
	steps, relocs := headerSize, headerSize+len(r.steps)*stepSize
	for i, v := range []int{magic, len(blob), len(r.steps), steps, r.relocs, relocs, len(r.fds), 0} {
		le.PutUint32(blob[4*i:], uint32(v))
	}
	for i := range r.steps {
		r.steps[i].encode(blob[steps+i*stepSize:][:stepSize])
	}
	at := relocs
	for _, c := range r.chunks {
		copy(blob[c.offset:], c.data)
		for _, rel := range c.relocs {
			le.PutUint32(blob[at:], c.offset+uint32(rel.at))
			le.PutUint32(blob[at+4:], relocAddress)
			le.PutUint32(blob[at+8:], rel.to.offset)
			at += relocSize
		}
	}
	return blob
}

func (s *step) encode(to []byte) {
	le := binary.LittleEndian
	le.PutUint32(to, uint32(s.nr))
	to[4] = uint8(s.nargs)
	for i, a := range s.args[:s.nargs] {
		to[5+i] = uint8(a.kind)
		value := a.value
		if a.kind == argPtr {
			value = uint64(a.mem.offset)
		}
		le.PutUint64(to[24+8*i:], value)
	}
	for i, e := range s.tolerate {
		le.PutUint16(to[12+2*i:], e)
	}
}
