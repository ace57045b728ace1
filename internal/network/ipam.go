package network

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
)

// ipam gives every pod an address of each family. Its methods may be called
// concurrently.
type ipam struct {
	dir string
	log *slog.Logger

	mu    sync.Mutex
	pools []*pool
	left  int // leases until the cursor is to be written again

	writing sync.WaitGroup
}

// The file of the cursor, the position of each pool by its network.
const cursorFile = "cursor.json"

// cursorStride is how far the written cursor is ahead. After a reboot no
// address of the last cursorStride/2 leases comes again at once.
const cursorStride = 512

func openIPAM(dir string, log *slog.Logger, prefixes ...netip.Prefix) (*ipam, error) {
	m := &ipam{dir: dir, log: log}
	at := make(map[netip.Prefix]uint64)
	path := filepath.Join(dir, cursorFile)
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if err := json.Unmarshal(data, &at); err != nil {
			// It only keeps addresses from coming again early.
			log.Warn("starting the pod network's addresses over", "file", path, "error", err)
		}
	}
	for _, prefix := range prefixes {
		if !prefix.IsValid() {
			continue
		}
		p, err := newPool(prefix)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		p.next = at[prefix] % p.size
		m.pools = append(m.pools, p)
	}
	return m, nil
}

// lease hands out an address of each family.
func (m *ipam) lease() ([]netip.Prefix, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ips []netip.Prefix
	for _, p := range m.pools {
		ip, ok := p.take()
		if !ok {
			m.freeLocked(ips)
			return nil, fmt.Errorf("all %d addresses of the pod network %s are in use: %w", p.size, p.prefix, ErrNoFreeIP)
		}
		ips = append(ips, ip)
	}
	if m.left--; m.left < 0 {
		m.left = cursorStride / 2
		m.writing.Go(m.writeCursor)
	}
	return ips, nil
}

// claim marks the addresses of a record as handed out.
func (m *ipam) claim(ips []netip.Prefix) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, ip := range ips {
		for _, p := range m.pools {
			p.claim(ip.Addr())
		}
	}
}

func (m *ipam) free(ips []netip.Prefix) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.freeLocked(ips)
}

func (m *ipam) freeLocked(ips []netip.Prefix) {
	for _, ip := range ips {
		for _, p := range m.pools {
			p.free(ip.Addr())
		}
	}
}

// gateways returns the node's address in each network.
func (m *ipam) gateways() []netip.Prefix {
	var all []netip.Prefix
	for _, p := range m.pools {
		all = append(all, p.gateway())
	}
	return all
}

// networks returns the pod networks.
func (m *ipam) networks() []netip.Prefix {
	var all []netip.Prefix
	for _, p := range m.pools {
		all = append(all, p.prefix)
	}
	return all
}

func (m *ipam) writeCursor() {
	at := make(map[netip.Prefix]uint64)
	m.mu.Lock()
	for _, p := range m.pools {
		at[p.prefix] = (p.next + min(cursorStride, p.size/2)) % p.size
	}
	m.mu.Unlock()
	data, err := json.Marshal(at)
	if err == nil {
		err = writeFile(m.dir, cursorFile, data, true)
	}
	if err != nil {
		m.log.Warn("the pod network's cursor could not be written, addresses may come again early after a reboot", "error", err)
	}
}

// close waits for the cursor to be written.
func (m *ipam) close() { m.writing.Wait() }

// pool hands out the addresses of one prefix in turn, so that a freed address
// is the last to be given out again. It is not safe for concurrent use.
//
// The network address, the gateway (the first address) and, for IPv4, the
// broadcast address are never handed out.
type pool struct {
	prefix netip.Prefix
	size   uint64              // addresses that can be handed out
	next   uint64              // index to try first, < size
	used   map[uint64]struct{} // indices handed out
}

// firstOffset is the distance from the network address to the first address
// of a pod: the network address itself and the gateway come before it.
const firstOffset = 2

// maxPoolBits bounds how many addresses of a wide prefix are used; 2^31 is
// beyond any machine.
const maxPoolBits = 31

func newPool(prefix netip.Prefix) (*pool, error) {
	if prefix != prefix.Masked() {
		return nil, fmt.Errorf("pod network %s: has host bits set, did you mean %s?", prefix, prefix.Masked())
	}
	bits := prefix.Addr().BitLen() - prefix.Bits()
	reserved := uint64(firstOffset)
	if prefix.Addr().Is4() {
		reserved++ // broadcast
	}
	if bits < 2 {
		return nil, fmt.Errorf("pod network %s: too small, it needs room for a gateway and at least one pod", prefix)
	}
	return &pool{
		prefix: prefix,
		size:   uint64(1)<<min(bits, maxPoolBits) - reserved,
		used:   make(map[uint64]struct{}),
	}, nil
}

// gateway returns the address of the node in this network.
func (p *pool) gateway() netip.Prefix {
	return netip.PrefixFrom(offset(p.prefix.Addr(), 1), p.prefix.Bits())
}

// take hands out the next free address; ok is false if there is none.
func (p *pool) take() (addr netip.Prefix, ok bool) {
	if uint64(len(p.used)) >= p.size {
		return netip.Prefix{}, false
	}
	for {
		i := p.next
		p.next = (p.next + 1) % p.size
		if _, taken := p.used[i]; !taken {
			p.used[i] = struct{}{}
			return netip.PrefixFrom(offset(p.prefix.Addr(), firstOffset+i), p.prefix.Bits()), true
		}
	}
}

// claim marks an address from a record as handed out. Addresses of another
// network (the configuration changed while pods ran) need no marking.
func (p *pool) claim(a netip.Addr) {
	if i, ok := p.index(a); ok {
		p.used[i] = struct{}{}
	}
}

func (p *pool) free(a netip.Addr) {
	if i, ok := p.index(a); ok {
		delete(p.used, i)
	}
}

func (p *pool) index(a netip.Addr) (uint64, bool) {
	if !p.prefix.Contains(a) {
		return 0, false
	}
	d := low64(a) - low64(p.prefix.Addr())
	if d < firstOffset || d-firstOffset >= p.size {
		return 0, false
	}
	return d - firstOffset, true
}

// low64 returns the last eight bytes of an address as a number. No pool
// reaches beyond them.
func low64(a netip.Addr) uint64 {
	b := a.As16()
	return binary.BigEndian.Uint64(b[8:])
}

// offset returns the address n after a, within a's last eight bytes.
func offset(a netip.Addr, n uint64) netip.Addr {
	b := a.As16()
	binary.BigEndian.PutUint64(b[8:], low64(a)+n)
	r := netip.AddrFrom16(b)
	if a.Is4() {
		return r.Unmap()
	}
	return r
}
