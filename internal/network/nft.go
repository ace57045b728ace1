package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// table is our nftables table. Its chains are written once; what changes with
// the pods are elements of its maps:
//
//	anyN    proto . port           -> pod address . port
//	oneN    address . proto . port -> pod address . port
//
// for N = 4 and 6, where anyN is for mappings to every address of the host
// and oneN for those to one.
type table struct {
	mu   sync.Mutex // one transaction at a time
	conn *nftables.Conn
	nft  *nftables.Table
	maps map[string]*nftables.Set
}

// socketBuffer has room for one transaction with the elements of thousands of
// pods, and for its acknowledgements.
const socketBuffer = 8 << 20

func openTable(ns *os.File, name string) (*table, error) {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(int(ns.Fd())),
		nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
			return errors.Join(c.SetWriteBuffer(socketBuffer), c.SetReadBuffer(socketBuffer))
		}))
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	t := &table{conn: conn, maps: make(map[string]*nftables.Set)}
	t.nft = &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
	port := []nftables.SetDatatype{nftables.TypeInetProto, nftables.TypeInetService}
	for i, m := range []struct {
		name string
		addr nftables.SetDatatype
		one  bool
	}{
		{"any4", nftables.TypeIPAddr, false},
		{"one4", nftables.TypeIPAddr, true},
		{"any6", nftables.TypeIP6Addr, false},
		{"one6", nftables.TypeIP6Addr, true},
	} {
		key := port
		if m.one {
			key = append([]nftables.SetDatatype{m.addr}, port...)
		}
		t.maps[m.name] = &nftables.Set{
			Table: t.nft, Name: m.name, ID: uint32(i + 1),
			IsMap: true, Concatenation: true,
			KeyType:  nftables.MustConcatSetType(key...),
			DataType: nftables.MustConcatSetType(m.addr, nftables.TypeInetService),
		}
	}
	return t, nil
}

func (t *table) close() {
	t.conn.CloseLasting()
}

// rebuild makes the table as it should be, with these elements, in place of
// whatever was under its name, in one transaction.
func (t *table) rebuild(bridge string, networks []netip.Prefix, all []element) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	// Added first, so that deleting it can't fail.
	t.conn.AddTable(t.nft)
	t.conn.DelTable(t.nft)
	t.conn.AddTable(t.nft)
	for _, name := range []string{"any4", "one4", "any6", "one6"} {
		if err := t.conn.AddSet(t.maps[name], nil); err != nil {
			return err
		}
	}
	t.addChains(bridge, networks)
	if err := t.change(t.conn.SetAddElements, all); err != nil {
		return err
	}
	if err := t.conn.Flush(); err != nil {
		return fmt.Errorf("making nftables table %s: %w (it needs a kernel with nf_tables, nft_fib_inet, nft_nat and nft_masq)", t.nft.Name, err)
	}
	return nil
}

// add adds elements in one transaction: all or none. errors.Is fs.ErrNotExist
// when the table is gone.
func (t *table) add(all []element) error {
	return t.update("adding host ports", t.conn.SetAddElements, all)
}

// remove removes elements in one transaction.
func (t *table) remove(all []element) error {
	return t.update("removing host ports", t.conn.SetDeleteElements, all)
}

func (t *table) update(why string, op func(*nftables.Set, []nftables.SetElement) error, all []element) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.change(op, all); err != nil {
		return err
	}
	if err := t.conn.Flush(); err != nil {
		return fmt.Errorf("%s in nftables table %s: %w", why, t.nft.Name, err)
	}
	return nil
}

// maxElements keeps a message's attribute of elements below 64 KiB.
const maxElements = 256

// change puts the change of elements into the transaction being made.
func (t *table) change(op func(*nftables.Set, []nftables.SetElement) error, all []element) error {
	byMap := make(map[string][]nftables.SetElement)
	for _, e := range all {
		byMap[e.set] = append(byMap[e.set], nftables.SetElement{Key: e.key, Val: e.value, Comment: e.comment})
	}
	for name, elements := range byMap {
		for len(elements) > 0 {
			n := min(len(elements), maxElements)
			if err := op(t.maps[name], elements[:n]); err != nil {
				return err
			}
			elements = elements[n:]
		}
	}
	return nil
}

// drop removes the table; one that isn't there is no error.
func (t *table) drop() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conn.AddTable(t.nft)
	t.conn.DelTable(t.nft)
	if err := t.conn.Flush(); err != nil {
		return fmt.Errorf("deleting nftables table %s: %w", t.nft.Name, err)
	}
	return nil
}

// exists tells whether the table is there.
func (t *table) exists() (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, err := t.conn.ListTableOfFamily(t.nft.Name, t.nft.Family)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, err
}

func (t *table) addChains(bridge string, networks []netip.Prefix) {
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		return t.conn.AddChain(&nftables.Chain{Name: name, Table: t.nft, Type: kind, Hooknum: hook, Priority: prio})
	}
	guard := base("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	hostports := t.conn.AddChain(&nftables.Chain{Name: "hostports", Table: t.nft})
	prerouting := base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	output := base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	postrouting := base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)

	local4 := netip.MustParsePrefix("127.0.0.0/8")
	local6 := netip.MustParsePrefix("::1/128")
	drop := verdict(expr.VerdictDrop, "")
	back := verdict(expr.VerdictReturn, "")

	t.rule(guard, "pods do not reach the host's loopback (CVE-2020-8558)", ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq, bridge), to(expr.CmpOpEq, local4), drop)
	t.rule(guard, "nor pretend to be there", ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq, bridge), from(expr.CmpOpEq, local4), drop)

	t.rule(prerouting, "127.0.0.1 is for this host alone", to(expr.CmpOpEq, local4), back)
	t.rule(prerouting, "", toThisHost(), verdict(expr.VerdictJump, hostports.Name))
	t.rule(output, "IPv6 has no route_localnet, the node forwards these", to(expr.CmpOpEq, local6), back)
	t.rule(output, "", toThisHost(), verdict(expr.VerdictJump, hostports.Name))

	t.rule(hostports, "", t.redirect("one4"))
	t.rule(hostports, "", t.redirect("any4"))
	t.rule(hostports, "", t.redirect("one6"))
	t.rule(hostports, "", t.redirect("any6"))

	outBridge := ifname(expr.MetaKeyOIFNAME, expr.CmpOpEq, bridge)
	masquerade := []expr.Any{&expr.Masq{FullyRandom: true}}
	for _, p := range networks {
		multicast := netip.MustParsePrefix("224.0.0.0/4")
		if p.Addr().Is6() {
			multicast = netip.MustParsePrefix("ff00::/8")
		}
		t.rule(postrouting, "pods to the outside", ifname(expr.MetaKeyOIFNAME, expr.CmpOpNeq, bridge),
			from(expr.CmpOpEq, p), to(expr.CmpOpNeq, p), to(expr.CmpOpNeq, multicast), masquerade)
		if p.Addr().Is4() {
			t.rule(postrouting, "localhost to a host port", outBridge, from(expr.CmpOpEq, local4), masquerade)
		}
		t.rule(postrouting, "a pod to a pod's host port: the answer must come back this way",
			outBridge, from(expr.CmpOpEq, p), wasRedirected(), masquerade)
	}
}

func (t *table) rule(c *nftables.Chain, comment string, parts ...[]expr.Any) {
	r := &nftables.Rule{Table: t.nft, Chain: c}
	for _, p := range parts {
		r.Exprs = append(r.Exprs, p...)
	}
	if comment != "" {
		r.UserData = userdata.AppendString(nil, userdata.TypeComment, comment)
	}
	t.conn.AddRule(r)
}

// redirect looks a packet up in a map and sends it where the map says.
//
// Register 1 is sixteen bytes long; 8 to 23 are the same space in pieces of
// four, so that 1 and 8 begin together.
func (t *table) redirect(name string) []expr.Any {
	const first = 8
	addr := addressOf(name[3] == '6')
	words := uint32(addr.length / 4)
	e := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{addr.family}},
	}
	next := uint32(first)
	if name[:3] == "one" {
		e = append(e, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: addr.dst, Len: addr.length})
		next += words
	}
	return append(e,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: next},
		&expr.Payload{DestRegister: next + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: first, DestRegister: 1, IsDestRegSet: true, SetName: name, SetID: t.maps[name].ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(addr.family), RegAddrMin: 1, RegProtoMin: first + words},
	)
}

// address says where a family's addresses are in its header.
type address struct {
	family           byte
	src, dst, length uint32
}

func addressOf(six bool) address {
	if six {
		return address{unix.NFPROTO_IPV6, 8, 24, 16}
	}
	return address{unix.NFPROTO_IPV4, 12, 16, 4}
}

func from(op expr.CmpOp, p netip.Prefix) []expr.Any {
	a := addressOf(p.Addr().Is6())
	return matchPrefix(a, a.src, op, p)
}

func to(op expr.CmpOp, p netip.Prefix) []expr.Any {
	a := addressOf(p.Addr().Is6())
	return matchPrefix(a, a.dst, op, p)
}

func matchPrefix(a address, off uint32, op expr.CmpOp, p netip.Prefix) []expr.Any {
	mask := make([]byte, a.length)
	for i := range p.Bits() {
		mask[i/8] |= 1 << (7 - i%8)
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{a.family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: a.length},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: a.length, Mask: mask, Xor: make([]byte, a.length)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

func ifname(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: padded}}
}

// toThisHost matches packets to an address of this host.
func toThisHost() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: nativeUint32(unix.RTN_LOCAL)},
	}
}

// wasRedirected matches packets of connections whose destination was changed.
func wasRedirected() []expr.Any {
	const ipsDstNAT = 1 << 5 // enum ip_conntrack_status
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: nativeUint32(ipsDstNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}
