package network

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// element is one entry of the table's maps.
type element struct {
	set        string // name of the map
	key, value []byte
	comment    string
}

// elements returns the entries that carry out a pod's port mappings.
func elements(id string, ips []netip.Prefix, ports []PortMapping) []element {
	var all []element
	for _, p := range ports {
		for _, ip := range ips {
			set, key, ok := mapKey(p, ip.Addr())
			if !ok {
				continue
			}
			all = append(all, element{
				set:     set,
				key:     key,
				value:   append(ip.Addr().AsSlice(), word16(p.ContainerPort)...),
				comment: "pod " + id,
			})
		}
	}
	return all
}

// mapKey returns the map and the key of a mapping to a pod address, if the
// mapping is for that family.
func mapKey(p PortMapping, pod netip.Addr) (set string, key []byte, ok bool) {
	key = append([]byte{p.Protocol.number(), 0, 0, 0}, word16(p.HostPort)...)
	n := "6"
	if pod.Is4() {
		n = "4"
	}
	switch {
	case !p.HostIP.IsValid():
		return "any" + n, key, true
	case p.HostIP.Is4() != pod.Is4():
		return "", nil, false
	case p.HostIP.IsUnspecified():
		return "any" + n, key, true
	default:
		return "one" + n, append(p.HostIP.AsSlice(), key...), true
	}
}

func (p Protocol) number() byte {
	switch p {
	case UDP:
		return unix.IPPROTO_UDP
	case SCTP:
		return unix.IPPROTO_SCTP
	default:
		return unix.IPPROTO_TCP
	}
}

// word16 is a port in network order, padded to a register's four bytes.
func word16(port uint16) []byte {
	return []byte{byte(port >> 8), byte(port), 0, 0}
}

func nativeUint32(v uint32) []byte {
	return binary.NativeEndian.AppendUint32(nil, v)
}
