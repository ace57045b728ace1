package ruleset

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	v1 "k8s.io/api/core/v1"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/service/plan"
)

// id is where an element is: a set and the key in it. Both are bytes as the
// kernel has them.
type id struct{ set, key string }

// elements are what a set, or several, have: to each key its value, a chain
// where the set's values are verdicts.
type elements map[id]string

// elementsOf are those of one Service but for hairpins, which Services share.
func elementsOf(ports []plan.Port) elements {
	all := elements{}
	for _, p := range ports {
		n, key := familyOf(p.Addr), keyOf(p.Key)
		all[id{"addresses" + n, string(p.Addr.AsSlice())}] = ""
		if p.Drop {
			all[id{"dropped" + n, key}] = ""
		}
		if len(p.Backends) > 0 {
			all[id{"vips" + n, key}] = chainOf(p).name()
		}
		for i, b := range p.Backends {
			to := string(b.Addr().AsSlice()) + word16(b.Port())
			all[id{"backends" + n, key + nativeWord(uint32(i))}] = to
			if p.Affinity > 0 {
				all[id{"live" + n, key + to}] = ""
			}
		}
	}
	return all
}

// hairpin is the element by which a pod reaches itself.
func hairpin(backend netip.Addr) id {
	a := string(backend.AsSlice())
	return id{"hairpin" + familyOf(backend), a + a}
}

// difference is what must go from one and come to be the other. An element
// with another value does both.
func difference(have, want elements) (gone []id, come elements) {
	come = elements{}
	for e, value := range have {
		if now, ok := want[e]; !ok || now != value {
			gone = append(gone, e)
		}
	}
	for e, value := range want {
		if was, ok := have[e]; !ok || was != value {
			come[e] = value
		}
	}
	return gone, come
}

// placed gives backends their indexes: those that were there stay where they
// are if they can, so that a change of one is a change of few elements.
func placed(before, want []netip.AddrPort) []netip.AddrPort {
	left := make(map[netip.AddrPort]bool, len(want))
	for _, b := range want {
		left[b] = true
	}
	all := make([]netip.AddrPort, len(want))
	for i, b := range before {
		if i < len(all) && left[b] {
			all[i] = b
			delete(left, b)
		}
	}
	next := 0
	for _, b := range want {
		if !left[b] {
			continue
		}
		for all[next].IsValid() {
			next++
		}
		all[next] = b
	}
	return all
}

// sound leaves out what no kernel can do, so that one Service can't keep the
// others from being served, and takes copies of what it changes.
func sound(before, ports []plan.Port) []plan.Port {
	places := make(map[plan.Key][]netip.AddrPort, len(before))
	for _, p := range before {
		places[p.Key] = p.Backends
	}
	all := make([]plan.Port, 0, len(ports))
	for _, p := range ports {
		if protocol(p.Protocol) == 0 || !p.Addr.IsValid() {
			continue
		}
		p.Backends = slices.DeleteFunc(slices.Clone(p.Backends), func(b netip.AddrPort) bool { return b.Addr().Is4() != p.Addr.Is4() })
		p.Backends = placed(places[p.Key], p.Backends)
		all = append(all, p)
	}
	return all
}

// chain takes one of count backends, and the same again for so many seconds.
type chain struct {
	family  string
	count   int
	seconds int
}

func chainOf(p plan.Port) chain {
	return chain{familyOf(p.Addr), len(p.Backends), int(p.Affinity.Seconds())}
}

func (c chain) name() string {
	if c.seconds > 0 {
		return fmt.Sprintf("ip%s-%d-%d", c.family, c.count, c.seconds)
	}
	return fmt.Sprintf("ip%s-%d", c.family, c.count)
}

func familyOf(a netip.Addr) string {
	if a.Is4() {
		return "4"
	}
	return "6"
}

func keyOf(k plan.Key) string {
	return string(k.Addr.AsSlice()) + string([]byte{protocol(k.Protocol), 0, 0, 0}) + word16(k.Port)
}

// protocol is the number of one, 0 for what has no ports.
func protocol(p v1.Protocol) byte {
	switch p {
	case v1.ProtocolTCP:
		return unix.IPPROTO_TCP
	case v1.ProtocolUDP:
		return unix.IPPROTO_UDP
	case v1.ProtocolSCTP:
		return unix.IPPROTO_SCTP
	}
	return 0
}

// word16 is a port in network order, padded to a register's four bytes.
func word16(port uint16) string {
	return string([]byte{byte(port >> 8), byte(port), 0, 0})
}

func nativeWord(v uint32) string {
	return string(binary.NativeEndian.AppendUint32(nil, v))
}
