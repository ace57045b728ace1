package ruleset

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// layout changes with every change of the chains or sets below: a table of
// another one is replaced.
const layout = 1

// markOf names the empty chain by which a table is known to be as this version
// and these settings make it.
func markOf(cfg Config) string {
	h := fnv.New32a()
	fmt.Fprint(h, layout, cfg.From, cfg.Networks)
	return fmt.Sprintf("layout-%08x", h.Sum32())
}

// maxSticky bounds what clients can make the kernel remember; beyond it a
// client's next connection may go elsewhere.
const maxSticky = 1 << 16

func setsOf(table *nftables.Table) map[string]*nftables.Set {
	all := map[string]*nftables.Set{}
	for _, f := range []struct {
		n    string
		addr nftables.SetDatatype
	}{{"4", nftables.TypeIPAddr}, {"6", nftables.TypeIP6Addr}} {
		port := []nftables.SetDatatype{f.addr, nftables.TypeInetProto, nftables.TypeInetService}
		backend := []nftables.SetDatatype{f.addr, nftables.TypeInetService}
		put := func(name string, s nftables.Set, key ...nftables.SetDatatype) {
			s.Table, s.Name, s.ID = table, name+f.n, uint32(len(all)+1)
			s.KeyType = key[0]
			if s.Concatenation = len(key) > 1; s.Concatenation {
				s.KeyType = nftables.MustConcatSetType(key...)
			}
			all[s.Name] = &s
		}
		to := nftables.MustConcatSetType(backend...)
		put("vips", nftables.Set{IsMap: true, DataType: nftables.TypeVerdict}, port...)
		put("backends", nftables.Set{IsMap: true, DataType: to}, append(port[:3:3], nftables.TypeMark)...)
		put("dropped", nftables.Set{}, port...)
		put("addresses", nftables.Set{}, f.addr)
		put("sticky", nftables.Set{IsMap: true, DataType: to, Dynamic: true, HasTimeout: true, Size: maxSticky}, append([]nftables.SetDatatype{f.addr}, port...)...)
		put("live", nftables.Set{}, append(port[:3:3], backend...)...)
		put("hairpin", nftables.Set{}, f.addr, f.addr)
	}
	return all
}

// registers are where a family's parts of a packet are kept: 8 to 23 are four
// bytes each. Keys of all sets are neighbours in this order:
//
//	client, address, protocol, port, then backend and port (or an index)
type registers struct {
	family                                   byte
	src, dst                                 uint32 // offsets in the packet's header
	length                                   uint32 // of an address
	client, address, protocol, port, backend uint32
}

func registersOf(family string) registers {
	r := registers{family: unix.NFPROTO_IPV4, src: 12, dst: 16, length: 4}
	if family == "6" {
		r = registers{family: unix.NFPROTO_IPV6, src: 8, dst: 24, length: 16}
	}
	words := r.length / 4
	r.client = 8
	r.address = r.client + words
	r.protocol = r.address + words
	r.port = r.protocol + 1
	r.backend = r.port + 1
	return r
}

// load reads what a connection is made to, and by whom if a Service wants to
// know.
func (r registers) load(client bool) (e []expr.Any) {
	if client {
		e = append(e, &expr.Payload{DestRegister: r.client, Base: expr.PayloadBaseNetworkHeader, Offset: r.src, Len: r.length})
	}
	return append(e,
		&expr.Payload{DestRegister: r.address, Base: expr.PayloadBaseNetworkHeader, Offset: r.dst, Len: r.length},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: r.protocol},
		&expr.Payload{DestRegister: r.port, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	)
}

// one takes one of count backends at random.
func (t *Table) one(r registers, family string, count int) []expr.Any {
	return []expr.Any{
		&expr.Numgen{Register: r.backend, Modulus: uint32(count), Type: unix.NFT_NG_RANDOM},
		t.look("backends"+family, r.address, r.backend),
	}
}

// redirect sends the packet to the backend in the registers.
func (r registers) redirect() expr.Any {
	return &expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(r.family), RegAddrMin: r.backend, RegProtoMin: r.backend + r.length/4}
}

// look looks a key up that begins in register from. What a map has for it is
// put into register to; of a set, the packet has to be in it.
func (t *Table) look(set string, from, to uint32) expr.Any {
	s := t.sets[set]
	return &expr.Lookup{SourceRegister: from, DestRegister: to, IsDestRegSet: s.IsMap, SetName: s.Name, SetID: s.ID}
}

// remember changes what stickyN has for the client.
func (t *Table) remember(r registers, family string, operation uint32, timeout time.Duration) expr.Any {
	s := t.sets["sticky"+family]
	return &expr.Dynset{SrcRegKey: r.client, SrcRegData: r.backend, SetName: s.Name, SetID: s.ID, Operation: operation, Timeout: timeout}
}

const (
	dynsetUpdate = 1 // enum nft_dynset_ops
	dynsetDelete = 2
)

// addSpread makes a chain of that name unless it is there.
func (t *Table) addSpread(name string) {
	if t.chains[name] {
		return
	}
	t.chains[name] = true
	var family byte
	var count, seconds int
	// Our own name, or the chain would never be gone to.
	fmt.Sscanf(name, "ip%c-%d-%d", &family, &count, &seconds)
	f := string(family)
	r := registersOf(f)
	c := t.conn.AddChain(&nftables.Chain{Name: name, Table: t.nft})
	if seconds == 0 {
		t.rule(c, "", r.load(false), t.one(r, f, count), []expr.Any{r.redirect()})
		return
	}
	keep := time.Duration(seconds) * time.Second
	t.rule(c, "the backend it had, if the Service still has it", r.load(true),
		[]expr.Any{t.look("sticky"+f, r.client, r.backend), t.look("live"+f, r.address, 0), t.remember(r, f, dynsetUpdate, keep), r.redirect()})
	// An update renews the time only, and so another backend needs a new entry.
	t.rule(c, "another, from now on", r.load(true), t.one(r, f, count),
		[]expr.Any{t.remember(r, f, dynsetDelete, 0), t.remember(r, f, dynsetUpdate, keep), r.redirect()})
	t.rule(c, "no room to remember it", r.load(true), t.one(r, f, count), []expr.Any{r.redirect()})
}

// addChains makes everything that is there without any Service.
func (t *Table) addChains() {
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		return t.conn.AddChain(&nftables.Chain{Name: name, Table: t.nft, Type: kind, Hooknum: hook, Priority: prio})
	}
	t.conn.AddChain(&nftables.Chain{Name: t.mark, Table: t.nft})
	services := t.conn.AddChain(&nftables.Chain{Name: "services", Table: t.nft})
	nowhere := t.conn.AddChain(&nftables.Chain{Name: "nowhere", Table: t.nft})
	prerouting := base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	output := base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	postrouting := base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	forward := base("filter-forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	out := base("filter-output", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter)

	from := []expr.Any{}
	if t.cfg.From != "" {
		from = []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: linkName(t.cfg.From)}}
	}
	t.rule(prerouting, "", from, verdict(expr.VerdictJump, services.Name))
	t.rule(output, "", verdict(expr.VerdictJump, services.Name))
	t.rule(forward, "", verdict(expr.VerdictJump, nowhere.Name))
	t.rule(out, "", verdict(expr.VerdictJump, nowhere.Name))
	for _, f := range []string{"4", "6"} {
		r := registersOf(f)
		t.rule(services, "", r.is(), r.load(false), []expr.Any{t.look("vips"+f, r.address, 0)})
		t.rule(nowhere, "backends elsewhere only", r.is(), r.load(false), []expr.Any{t.look("dropped"+f, r.address, 0)}, verdict(expr.VerdictDrop, ""))
		t.rule(nowhere, "no backend, or no such port", r.is(), r.load(false), []expr.Any{
			t.look("addresses"+f, r.address, 0),
			&expr.Cmp{Op: expr.CmpOpEq, Register: r.protocol, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Reject{Type: unix.NFT_REJECT_TCP_RST},
		})
		t.rule(nowhere, "", r.is(), r.load(false), []expr.Any{
			t.look("addresses"+f, r.address, 0),
			&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH},
		})
		t.rule(postrouting, "a pod that reaches itself: the answer must come back this way", r.is(), redirected(), []expr.Any{
			&expr.Payload{DestRegister: r.client, Base: expr.PayloadBaseNetworkHeader, Offset: r.src, Len: r.length},
			&expr.Payload{DestRegister: r.address, Base: expr.PayloadBaseNetworkHeader, Offset: r.dst, Len: r.length},
			t.look("hairpin"+f, r.client, 0),
			&expr.Masq{FullyRandom: true},
		})
	}
	for _, p := range t.cfg.Networks {
		t.rule(nowhere, "no Service's", to(p), verdict(expr.VerdictDrop, ""))
	}
}

func (t *Table) rule(c *nftables.Chain, comment string, parts ...[]expr.Any) {
	r := &nftables.Rule{Table: t.nft, Chain: c}
	for _, p := range parts {
		r.Exprs = append(r.Exprs, p...)
	}
	if comment != "" {
		r.UserData = userdata.AppendString(nil, userdata.TypeComment, comment)
	}
	t.conn.AddRule(r)
}

// is matches packets of the family.
func (r registers) is() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{r.family}},
	}
}

// to matches packets to a network.
func to(p netip.Prefix) []expr.Any {
	f := familyOf(p.Addr())
	r := registersOf(f)
	mask := make([]byte, r.length)
	for i := range p.Bits() {
		mask[i/8] |= 1 << (7 - i%8)
	}
	return append(r.is(),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: r.dst, Len: r.length},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: r.length, Mask: mask, Xor: make([]byte, r.length)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	)
}

// redirected matches packets of connections whose destination was changed.
func redirected() []expr.Any {
	const ipsDstNAT = 1 << 5 // enum ip_conntrack_status
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, ipsDstNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func linkName(name string) []byte {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return padded
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}
