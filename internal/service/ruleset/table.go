package ruleset

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/service/plan"
)

// Config says what a Table owns.
type Config struct {
	Table string // of nftables, family inet
	// From is the link whose packets may go to Services; "": any link's.
	From string
	// Networks are those that Services' addresses are of.
	Networks []netip.Prefix
	// Netns is the network namespace, nil for the process's own. It must stay
	// open as long as the Table.
	Netns *os.File
	Log   *slog.Logger // nil = slog.Default()
}

// Table is the kernel's part. Its methods may be called concurrently.
type Table struct {
	cfg  Config
	mark string // names what the chains are made of
	nft  *nftables.Table
	sets map[string]*nftables.Set
	flow *flows

	mu       sync.Mutex
	conn     *nftables.Conn
	made     bool                   // the kernel has what follows
	services map[string][]plan.Port // by the Service's name
	hairpins map[netip.Addr]int     // how many ports have the backend
	chains   map[string]bool
}

// socketBuffer has room for one transaction with a hundred thousand elements,
// and for its acknowledgements. The kernel takes only what is used.
const socketBuffer = 32 << 20

// Open makes ready; nothing is changed before the first Replace. Close
// releases what it holds.
func Open(cfg Config) (*Table, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	options := []nftables.ConnOption{nftables.AsLasting(), nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(socketBuffer), c.SetReadBuffer(socketBuffer))
	})}
	if cfg.Netns != nil {
		options = append(options, nftables.WithNetNSFd(int(cfg.Netns.Fd())))
	}
	conn, err := nftables.New(options...)
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	flow, err := openFlows(cfg.Netns)
	if err != nil {
		conn.CloseLasting()
		return nil, err
	}
	t := &Table{cfg: cfg, conn: conn, flow: flow, nft: &nftables.Table{Name: cfg.Table, Family: nftables.TableFamilyINet}}
	t.sets = setsOf(t.nft)
	t.mark = markOf(cfg)
	t.forget()
	return t, nil
}

// Close leaves the kernel as it is.
func (t *Table) Close() error {
	t.flow.close()
	return t.conn.CloseLasting()
}

func (t *Table) forget() {
	t.made, t.services, t.hairpins, t.chains = false, map[string][]plan.Port{}, map[netip.Addr]int{}, map[string]bool{}
}

// Replace makes these the Services there are. What the kernel has already
// stays.
func (t *Table) Replace(all map[string][]plan.Port) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.replace(all)
}

func (t *Table) replace(all map[string][]plan.Port) error {
	t.forget()
	want := t.take(all)
	err := t.adopt(want)
	if err != nil && !errors.Is(err, errNotOurs) {
		t.cfg.Log.Warn("the Services' nftables table can't be taken over as it is, making it anew", "table", t.cfg.Table, "err", err)
	}
	if err != nil {
		err = t.rebuild(want)
	}
	if err != nil {
		return err
	}
	t.made = true
	t.flow.forget(t.cfg.Log, allPorts(t.services))
	return nil
}

// Sync puts some Services, by name, in place of what they were; nil ports are
// of a Service that is gone.
func (t *Table) Sync(changed map[string][]plan.Port) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := map[string][]plan.Port{}
	for name := range changed {
		before[name] = t.services[name]
	}
	if !t.made {
		return t.again(changed)
	}
	have, want := elements{}, elements{}
	var touched, was, is []plan.Port
	for name, ports := range changed {
		ports = sound(before[name], ports)
		maps.Copy(have, elementsOf(before[name]))
		maps.Copy(want, elementsOf(ports))
		was, is = append(was, before[name]...), append(is, ports...)
		t.services[name] = ports
		if len(ports) == 0 {
			delete(t.services, name)
		}
	}
	t.recount(was, is, have, want)
	for _, p := range was {
		p.Backends = nil // until it is said otherwise
		touched = append(touched, p)
	}
	touched = append(touched, is...)
	gone, come := difference(have, want)
	if len(gone) == 0 && len(come) == 0 {
		return nil
	}
	t.remove(gone)
	t.add(come)
	if err := t.flush("changing"); err != nil {
		// Somebody took the table away, or two Services say that an address is
		// theirs. Made anew it is right, whatever it was.
		t.cfg.Log.Debug("Services' nftables table", "err", err)
		return t.again(nil)
	}
	t.flow.forget(t.cfg.Log, touched)
	return nil
}

// again makes everything anew, with some Services in place of what they were.
func (t *Table) again(changed map[string][]plan.Port) error {
	all := maps.Clone(t.services)
	maps.Copy(all, changed)
	return t.replace(all)
}

// Check makes the table anew if somebody took it away.
func (t *Table) Check() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.made {
		if _, err := t.ours(); err == nil {
			return nil
		}
		t.cfg.Log.Warn("the Services' nftables table is gone, making it anew", "table", t.cfg.Table)
	}
	return t.again(nil)
}

// Remove takes the table away; one that isn't there is no error.
func (t *Table) Remove() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forget()
	t.conn.AddTable(t.nft)
	t.conn.DelTable(t.nft)
	return t.flush("deleting")
}

// take makes these all Services there are, and returns their elements. Of two
// that claim the same address and port the first by name has it, as it must be
// one.
func (t *Table) take(all map[string][]plan.Port) elements {
	want := elements{}
	taken := map[plan.Key]string{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		ports := sound(nil, all[name])
		ports = slices.DeleteFunc(ports, func(p plan.Port) bool {
			first, ok := taken[p.Key]
			if ok {
				t.cfg.Log.Error("two Services have one address and port: the second isn't served", "at", p.Key, "first", first, "second", p.Name)
			}
			return ok
		})
		for _, p := range ports {
			taken[p.Key] = p.Name
		}
		if len(ports) == 0 {
			continue
		}
		t.services[name] = ports
		maps.Copy(want, elementsOf(ports))
		t.recount(nil, ports, elements{}, want)
	}
	return want
}

// recount keeps how many ports have a backend, when some ports become others.
// have and want get the hairpins there were and have to be.
func (t *Table) recount(was, is []plan.Port, have, want elements) {
	both := backendsOf(was, is)
	for _, b := range both {
		if t.hairpins[b] > 0 {
			have[hairpin(b)] = ""
		}
	}
	for _, b := range backendsOf(was) {
		t.hairpins[b]--
	}
	for _, b := range backendsOf(is) {
		t.hairpins[b]++
	}
	for _, b := range both {
		if t.hairpins[b] > 0 {
			want[hairpin(b)] = ""
		} else {
			delete(t.hairpins, b)
		}
	}
}

func backendsOf(some ...[]plan.Port) (all []netip.Addr) {
	for _, ports := range some {
		for _, p := range ports {
			for _, b := range p.Backends {
				all = append(all, b.Addr())
			}
		}
	}
	return all
}

// errNotOurs says that there is no table that could be taken over.
var errNotOurs = errors.New("no table of this version")

// ours are the names of the table's chains, if it is as this version makes it.
func (t *Table) ours() (map[string]bool, error) {
	all, err := t.conn.ListChainsOfTableFamily(t.nft.Family)
	if err != nil {
		return nil, fmt.Errorf("listing nftables' chains: %w", err)
	}
	names := map[string]bool{}
	for _, c := range all {
		if c.Table.Name == t.nft.Name {
			names[c.Name] = true
		}
	}
	if !names[t.mark] {
		return nil, errNotOurs
	}
	return names, nil
}

// adopt changes what is different in the table there is.
func (t *Table) adopt(want elements) (err error) {
	if t.chains, err = t.ours(); err != nil {
		return err
	}
	have := elements{}
	for name, set := range t.sets {
		if set.Dynamic {
			continue // the kernel's own
		}
		all, err := t.conn.GetSetElements(set)
		if err != nil {
			return fmt.Errorf("reading nftables set %s: %w", name, err)
		}
		for _, e := range all {
			value := string(e.Val)
			if set.DataType.Name == nftables.TypeVerdict.Name {
				if value, err = chainIn(e.Val); err != nil {
					return fmt.Errorf("reading nftables set %s: %w", name, err)
				}
			}
			have[id{name, string(e.Key)}] = value
		}
	}
	gone, come := difference(have, want)
	t.remove(gone)
	t.add(come)
	return t.flush("taking over")
}

// chainIn is the name of the chain a verdict leads to.
func chainIn(verdict []byte) (string, error) {
	const chainName = 2 // NFTA_VERDICT_CHAIN
	ad, err := mdnetlink.NewAttributeDecoder(verdict)
	if err != nil {
		return "", err
	}
	name := ""
	for ad.Next() {
		if ad.Type() == chainName {
			name = ad.String()
		}
	}
	return name, ad.Err()
}

// rebuild makes the table as it should be in place of whatever was under its
// name, in one transaction.
func (t *Table) rebuild(want elements) error {
	// Added first, so that deleting it can't fail.
	t.conn.AddTable(t.nft)
	t.conn.DelTable(t.nft)
	t.conn.AddTable(t.nft)
	for _, name := range slices.Sorted(maps.Keys(t.sets)) {
		if err := t.conn.AddSet(t.sets[name], nil); err != nil {
			return err
		}
	}
	t.chains = map[string]bool{}
	t.addChains()
	t.add(want)
	if err := t.flush("making"); err != nil {
		return fmt.Errorf("%w (it needs a kernel with nf_tables, nft_nat, nft_masq, nft_numgen and nft_reject_inet)", err)
	}
	return nil
}

// maxElements keeps a message's attribute of elements below 64 KiB.
const maxElements = 256

// remove puts the removal of elements into the transaction being made.
func (t *Table) remove(gone []id) {
	bySet := map[string][]nftables.SetElement{}
	for _, e := range gone {
		bySet[e.set] = append(bySet[e.set], nftables.SetElement{Key: []byte(e.key)})
	}
	for name, all := range bySet {
		for some := range slices.Chunk(all, maxElements) {
			// It fails for anonymous sets only.
			_ = t.conn.SetDeleteElements(t.sets[name], some)
		}
	}
}

// add puts new elements, and the chains they lead to, into the transaction
// being made.
func (t *Table) add(come elements) {
	bySet := map[string][]nftables.SetElement{}
	for e, value := range come {
		out := nftables.SetElement{Key: []byte(e.key), Val: []byte(value)}
		if strings.HasPrefix(e.set, "vips") {
			t.addSpread(value)
			out.Val, out.VerdictData = nil, &expr.Verdict{Kind: expr.VerdictGoto, Chain: value}
		}
		bySet[e.set] = append(bySet[e.set], out)
	}
	for name, all := range bySet {
		for some := range slices.Chunk(all, maxElements) {
			_ = t.conn.SetAddElements(t.sets[name], some)
		}
	}
}

func (t *Table) flush(doing string) error {
	if err := t.conn.Flush(); err != nil {
		t.made = false
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%s nftables table %s: %w (Services need root)", doing, t.nft.Name, err)
		}
		return fmt.Errorf("%s nftables table %s: %w", doing, t.nft.Name, err)
	}
	return nil
}

func allPorts(services map[string][]plan.Port) (all []plan.Port) {
	for _, ports := range services {
		all = append(all, ports...)
	}
	return all
}
