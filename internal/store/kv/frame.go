package kv

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Both kinds of file are a header and frames. A frame is what is written and
// synced at once, and is whole or not there.
//
//	header: "unipodkv" | version u16 | kind u16 | crc u32 | nonce u64 | revision u64
//	frame:  crc u32 | mark u32 | length u32 | count u32 | revision u64 | payload
//
// All numbers are little-endian, checksums CRC-32C. The nonce is random and
// known to nobody else; the mark and every checksum depend on it, so that no
// value can look like a frame, nor can what an earlier file left on the disk.
//
//	log:      payload is count operations; revision is that of the first
//	snapshot: payload is count entries; a last frame without payload, whose
//	          count is that of the frames before and whose revision is the
//	          snapshot's, says that it is whole. In the frames before,
//	          revision is their number from 1.
const (
	fileMagic   = "unipodkv"
	fileVersion = 1
	headerSize  = 32
	frameHeader = 24

	kindLog      = 1
	kindSnapshot = 2

	// maxFrame bounds what a reader allocates; a writer stays far below.
	maxFrame = 128 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type header struct {
	kind     uint16
	nonce    uint64
	revision int64
}

func newHeader(kind uint16, revision int64) header {
	var n [8]byte
	rand.Read(n[:]) // never fails
	return header{kind, binary.LittleEndian.Uint64(n[:]), revision}
}

func (h header) encode() []byte {
	b := make([]byte, 0, headerSize)
	b = append(b, fileMagic...)
	b = binary.LittleEndian.AppendUint16(b, fileVersion)
	b = binary.LittleEndian.AppendUint16(b, h.kind)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, h.nonce)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.revision))
	binary.LittleEndian.PutUint32(b[12:], crc32.Checksum(b, castagnoli))
	return b
}

func decodeHeader(b []byte, kind uint16) (header, error) {
	if len(b) != headerSize || !bytes.HasPrefix(b, []byte(fileMagic)) {
		return header{}, errors.New("not a file of this store")
	}
	sum := binary.LittleEndian.Uint32(b[12:])
	zeroed := bytes.Clone(b)
	clear(zeroed[12:16])
	if crc32.Checksum(zeroed, castagnoli) != sum {
		return header{}, errors.New("the header's checksum is wrong")
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != fileVersion {
		return header{}, fmt.Errorf("format %d; this version of unipod reads %d", v, fileVersion)
	}
	if k := binary.LittleEndian.Uint16(b[10:]); k != kind {
		return header{}, fmt.Errorf("a file of kind %d instead of %d", k, kind)
	}
	h := header{kind, binary.LittleEndian.Uint64(b[16:]), int64(binary.LittleEndian.Uint64(b[24:]))}
	if h.revision < 1 {
		return header{}, fmt.Errorf("revision %d", h.revision)
	}
	return h, nil
}

func (h header) mark() uint32 { return uint32(h.nonce>>32) ^ uint32(h.nonce) }

func (h header) sum(b []byte) uint32 {
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], h.nonce)
	return crc32.Update(crc32.Checksum(n[:], castagnoli), castagnoli, b)
}

// frame appends room for a frame's header; seal fills it in when the payload
// has been appended too.
func openFrame(b []byte) []byte { return append(b, make([]byte, frameHeader)...) }

func (h header) seal(b []byte, count int, revision int64) {
	binary.LittleEndian.PutUint32(b[4:], h.mark())
	binary.LittleEndian.PutUint32(b[8:], uint32(len(b)-frameHeader))
	binary.LittleEndian.PutUint32(b[12:], uint32(count))
	binary.LittleEndian.PutUint64(b[16:], uint64(revision))
	binary.LittleEndian.PutUint32(b, h.sum(b[4:]))
}

type frame struct {
	count    int
	revision int64
	payload  []byte // valid until the next is read
}

// frames reads a file from behind its header.
type frames struct {
	h      header
	r      io.Reader
	offset int64 // of the next frame
	buf    bytes.Buffer
}

// next reads a frame. Its error is io.EOF at the end of the file, a *torn when
// there is something that is no whole frame, or the reader's.
func (f *frames) next() (frame, error) {
	var hdr [frameHeader]byte
	n, err := io.ReadFull(f.r, hdr[:])
	switch {
	case err == io.EOF:
		return frame{}, io.EOF
	case err == io.ErrUnexpectedEOF:
		return frame{}, &torn{fmt.Sprintf("%d bytes instead of a record's header", n)}
	case err != nil:
		return frame{}, err
	}
	length, ok := f.h.plausible(hdr[:])
	if !ok {
		return frame{}, &torn{"not a record"}
	}
	// Not by the length's word alone: memory follows what is really there.
	f.buf.Reset()
	f.buf.Write(hdr[:])
	if _, err := io.CopyN(&f.buf, f.r, length); err == io.EOF {
		return frame{}, &torn{fmt.Sprintf("a record of %d bytes, of which %d are there", length, f.buf.Len()-frameHeader)}
	} else if err != nil {
		return frame{}, err
	}
	fr, ok := f.h.check(f.buf.Bytes())
	if !ok {
		return frame{}, &torn{"a record's checksum is wrong"}
	}
	f.offset += int64(f.buf.Len())
	return fr, nil
}

// plausible looks at a frame's header and says how long its payload would be.
func (h header) plausible(b []byte) (length int64, ok bool) {
	length = int64(binary.LittleEndian.Uint32(b[8:]))
	return length, binary.LittleEndian.Uint32(b[4:]) == h.mark() && length <= maxFrame && int64(binary.LittleEndian.Uint64(b[16:])) > 0
}

// check decodes a frame that is b.
func (h header) check(b []byte) (frame, bool) {
	if h.sum(b[4:]) != binary.LittleEndian.Uint32(b) {
		return frame{}, false
	}
	return frame{
		count:    int(binary.LittleEndian.Uint32(b[12:])),
		revision: int64(binary.LittleEndian.Uint64(b[16:])),
		payload:  b[frameHeader:],
	}, true
}

// search looks for a whole frame in what follows a torn one.
func (h header) search(b []byte) (offset int, found bool) {
	mark := binary.LittleEndian.AppendUint32(nil, h.mark())
	for at := 0; ; {
		i := bytes.Index(b[at:], mark)
		if i < 0 {
			return 0, false
		}
		start := at + i - 4
		at += i + 1
		if start < 0 || len(b)-start < frameHeader {
			continue
		}
		length, ok := h.plausible(b[start:])
		if !ok || int64(len(b)-start) < frameHeader+length {
			continue
		}
		if _, ok := h.check(b[start : start+frameHeader+int(length)]); ok {
			return start, true
		}
	}
}

// torn says that no whole frame is where one was expected.
type torn struct{ reason string }

func (e *torn) Error() string { return e.reason }

// An operation is what a log's payload is made of.
type operation struct {
	key     string
	value   []byte // nil: the key is deleted
	expires int64  // Unix milliseconds, 0 never
}

const (
	opPut    = 1
	opDelete = 2
)

func (o operation) append(b []byte) []byte {
	if o.value == nil {
		return appendBytes(append(b, opDelete), o.key)
	}
	b = appendBytes(append(b, opPut), o.key)
	b = binary.AppendVarint(b, o.expires)
	return appendBytes(b, o.value)
}

func (o operation) size() int { return len(o.key) + len(o.value) + 16 }

func appendBytes[T string | []byte](b []byte, s T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

var errPayload = errors.New("a record whose checksum is right has no sense in it")

// operations decodes a log frame's payload. What it returns shares no memory
// with it.
func (f frame) operations() ([]operation, error) {
	// Every operation has two bytes at least: the count can't make us allocate.
	if f.count < 1 || f.count > len(f.payload)/2 {
		return nil, errPayload
	}
	d := decoder{f.payload}
	ops := make([]operation, 0, f.count)
	for range f.count {
		kind, ok := d.byte()
		key, ok2 := d.bytes()
		op := operation{key: string(key)}
		if kind == opPut && ok2 {
			var value []byte
			if op.expires, ok2 = d.varint(); ok2 {
				value, ok2 = d.bytes()
			}
			op.value = append(make([]byte, 0, len(value)), value...)
		}
		if !ok || !ok2 || kind != opPut && kind != opDelete || op.key == "" || op.expires < 0 {
			return nil, errPayload
		}
		ops = append(ops, op)
	}
	if len(d.b) > 0 {
		return nil, errPayload
	}
	return ops, nil
}

func (e *Entry) append(b []byte) []byte {
	b = appendBytes(b, e.Key)
	b = binary.AppendUvarint(b, uint64(e.Revision))
	b = binary.AppendVarint(b, e.Expires)
	return appendBytes(b, e.Value)
}

// entries decodes a snapshot frame's payload.
func (f frame) entries(yield func(*Entry) error) error {
	d := decoder{f.payload}
	for range f.count {
		key, ok := d.bytes()
		if !ok || len(key) == 0 {
			return errPayload
		}
		rev, ok := d.uvarint()
		if !ok || int64(rev) < 1 {
			return errPayload
		}
		expires, ok := d.varint()
		if !ok || expires < 0 {
			return errPayload
		}
		value, ok := d.bytes()
		if !ok {
			return errPayload
		}
		e := &Entry{Key: string(key), Value: append(make([]byte, 0, len(value)), value...), Revision: int64(rev), Expires: expires}
		if err := yield(e); err != nil {
			return err
		}
	}
	if len(d.b) > 0 {
		return errPayload
	}
	return nil
}

type decoder struct{ b []byte }

func (d *decoder) byte() (byte, bool) {
	if len(d.b) == 0 {
		return 0, false
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c, true
}

func (d *decoder) uvarint() (uint64, bool) {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		return 0, false
	}
	d.b = d.b[n:]
	return v, true
}

func (d *decoder) varint() (int64, bool) {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		return 0, false
	}
	d.b = d.b[n:]
	return v, true
}

func (d *decoder) bytes() ([]byte, bool) {
	n, ok := d.uvarint()
	if !ok || n > uint64(len(d.b)) {
		return nil, false
	}
	s := d.b[:n]
	d.b = d.b[n:]
	return s, true
}
