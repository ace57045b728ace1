package pause

import (
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// A recipe is checked wholly before its first step, by the child that would
// carry it out: a bad one is refused, and pause doesn't notice.
func TestMalformedRecipes(t *testing.T) {
	c := start(t, Config{})
	r, _ := pipe(t)

	// Steps 0 and 1 are fine; the data holds 64 bytes at offset 32.
	good := func() *blob {
		b := new(blob)
		at := b.bytes(make([]byte, 64))
		b.call(unix.SYS_GETPID, int(at))
		b.call(unix.SYS_EXIT_GROUP, 0)
		b.relocs = append(b.relocs, wireReloc{uint32(at), 0, uint32(at)})
		b.file(r)
		return b
	}
	header := func(b *blob, change func(*wireHeader)) {
		h := b.header()
		change(&h)
		raw := b.Encode()
		if _, err := binary.Encode(raw, binary.LittleEndian, h); err != nil {
			t.Fatal(err)
		}
		b.raw = raw
	}
	arg := func(b *blob, kind uint8, value uint64) {
		b.steps[0].Kind[0], b.steps[0].Arg[0] = kind, value
	}
	const big = 0xfffffff8
	for _, tc := range []struct {
		name  string
		spoil func(*blob)
	}{
		{"empty", func(b *blob) { b.raw = []byte{} }},
		{"shorter than a header", func(b *blob) { b.raw = b.Encode()[:31] }},
		{"cut", func(b *blob) { b.raw = b.Encode(); b.raw = b.raw[:len(b.raw)-1] }},
		{"longer than it says", func(b *blob) { b.raw = append(b.Encode(), 0) }},
		{"magic", func(b *blob) { header(b, func(h *wireHeader) { h.Magic++ }) }},
		{"header's zero", func(b *blob) { header(b, func(h *wireHeader) { h.Zero = 1 }) }},
		{"no steps", func(b *blob) { header(b, func(h *wireHeader) { h.Nsteps = 0 }) }},
		{"more steps than fit", func(b *blob) { header(b, func(h *wireHeader) { h.Nsteps = 100 }) }},
		{"steps overflow", func(b *blob) { header(b, func(h *wireHeader) { h.Nsteps = 0xffffffff }) }},
		{"steps in the header", func(b *blob) { header(b, func(h *wireHeader) { h.Steps = 24 }) }},
		{"steps beyond the end", func(b *blob) { header(b, func(h *wireHeader) { h.Steps = big }) }},
		{"steps unaligned", func(b *blob) { header(b, func(h *wireHeader) { h.Steps -= 4 }) }},
		{"more relocations than fit", func(b *blob) { header(b, func(h *wireHeader) { h.Nrelocs = 2 }) }},
		{"relocations overflow", func(b *blob) { header(b, func(h *wireHeader) { h.Nrelocs = 0xffffffff }) }},
		{"relocations beyond the end", func(b *blob) { header(b, func(h *wireHeader) { h.Relocs = big }) }},
		{"relocations in the header", func(b *blob) { header(b, func(h *wireHeader) { h.Relocs = 16 }) }},
		{"relocations unaligned", func(b *blob) { header(b, func(h *wireHeader) { h.Relocs = 34 }) }},
		{"relocations over steps", func(b *blob) { header(b, func(h *wireHeader) { h.Relocs = h.Steps }) }},
		{"missing descriptors", func(b *blob) { header(b, func(h *wireHeader) { h.Nfds = 2 }) }},
		{"left-over descriptors", func(b *blob) { header(b, func(h *wireHeader) { h.Nfds = 0 }) }},
		{"seven arguments", func(b *blob) { b.steps[0].Nargs = 7 }},
		{"step's zero", func(b *blob) { b.steps[0].Zero = 1 }},
		{"unknown kind", func(b *blob) { arg(b, 4, 0) }},
		{"pointer to the end", func(b *blob) { arg(b, 1, uint64(b.header().Size)) }},
		{"pointer beyond the end", func(b *blob) { arg(b, 1, 1<<63) }},
		{"unknown descriptor", func(b *blob) { arg(b, 2, 1) }},
		{"negative descriptor", func(b *blob) { arg(b, 2, 1<<64-1) }},
		{"its own result", func(b *blob) { arg(b, 3, 0) }},
		{"a later result", func(b *blob) { arg(b, 3, 1) }},
		{"store in the header", func(b *blob) { b.steps[0].Store = 28 }},
		{"store unaligned", func(b *blob) { b.steps[0].Store = 34 }},
		{"store in a step", func(b *blob) { b.steps[0].Store = b.header().Steps }},
		{"store in a relocation", func(b *blob) { b.steps[0].Store = b.header().Relocs }},
		{"store beyond the end", func(b *blob) { b.steps[0].Store = 0xfffffffc }},
		{"relocation of unknown kind", func(b *blob) { b.relocs[0].Kind = 2 }},
		{"relocation in the header", func(b *blob) { b.relocs[0].Where = 25 }},
		{"relocation into a step", func(b *blob) { b.relocs[0].Where = b.header().Steps - 1 }},
		{"relocation of relocations", func(b *blob) { b.relocs[0].Where = b.header().Relocs }},
		{"relocation beyond the end", func(b *blob) { b.relocs[0].Where = 0xffffffff }},
		{"relocation to the end", func(b *blob) { b.relocs[0].Value = b.header().Size }},
		{"relocation of an unknown descriptor", func(b *blob) { b.relocs[0].Kind = 1; b.relocs[0].Value = 1 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := good()
			tc.spoil(b)
			_, err := c.Spawn(testContext(t), SpawnRequest{ID: "x", Recipe: b})
			var se *stepError
			if !errors.Is(err, unix.EINVAL) || errors.As(err, &se) {
				t.Fatalf("Spawn: %v, want EINVAL of the recipe", err)
			}
		})
	}
	spawn(t, c, SpawnRequest{ID: "good", Recipe: good()})
	awaitExit(t, c, "good")

	endless := good()
	endless.steps = endless.steps[:1]
	if _, err := c.Spawn(testContext(t), SpawnRequest{ID: "x", Recipe: endless}); !errors.Is(err, unix.ENOEXEC) {
		t.Errorf("a recipe without an end: %v, want ENOEXEC", err)
	}
}
