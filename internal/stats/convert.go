package stats

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

func at(nanos int64) metav1.Time { return metav1.NewTime(time.Unix(0, nanos)) }

func optional(v *runtimeapi.UInt64Value) *uint64 {
	if v == nil {
		return nil
	}
	n := v.Value
	return &n
}

// cpu translates CPU figures; the rate of a runtime that reckons none is made
// from this measurement and the one before.
func (p *Provider) cpu(id string, c *runtimeapi.CpuUsage) *statsapi.CPUStats {
	if c == nil {
		return nil
	}
	out := &statsapi.CPUStats{
		Time: at(c.Timestamp), UsageCoreNanoSeconds: optional(c.UsageCoreNanoSeconds), UsageNanoCores: optional(c.UsageNanoCores), PSI: psi(c.Psi),
	}
	if out.UsageNanoCores == nil && out.UsageCoreNanoSeconds != nil {
		out.UsageNanoCores = p.rates.rate(id, out.Time.Time, *out.UsageCoreNanoSeconds)
	}
	return out
}

func memoryOf(m *runtimeapi.MemoryUsage) *statsapi.MemoryStats {
	if m == nil {
		return nil
	}
	return &statsapi.MemoryStats{
		Time: at(m.Timestamp), AvailableBytes: optional(m.AvailableBytes), UsageBytes: optional(m.UsageBytes), WorkingSetBytes: optional(m.WorkingSetBytes),
		RSSBytes: optional(m.RssBytes), PageFaults: optional(m.PageFaults), MajorPageFaults: optional(m.MajorPageFaults), PSI: psi(m.Psi),
	}
}

func swap(s *runtimeapi.SwapUsage) *statsapi.SwapStats {
	if s == nil {
		return nil
	}
	return &statsapi.SwapStats{Time: at(s.Timestamp), SwapAvailableBytes: optional(s.SwapAvailableBytes), SwapUsageBytes: optional(s.SwapUsageBytes)}
}

func io(u *runtimeapi.IoUsage) *statsapi.IOStats {
	if u == nil || u.Psi == nil {
		return nil
	}
	return &statsapi.IOStats{Time: at(u.Timestamp), PSI: psi(u.Psi)}
}

func psi(p *runtimeapi.PsiStats) *statsapi.PSIStats {
	if p == nil {
		return nil
	}
	data := func(d *runtimeapi.PsiData) statsapi.PSIData {
		return statsapi.PSIData{Total: d.GetTotal(), Avg10: d.GetAvg10(), Avg60: d.GetAvg60(), Avg300: d.GetAvg300()}
	}
	return &statsapi.PSIStats{Full: data(p.Full), Some: data(p.Some)}
}

func networkOf(n *runtimeapi.NetworkUsage) *statsapi.NetworkStats {
	if n == nil {
		return nil
	}
	one := func(u *runtimeapi.NetworkInterfaceUsage) statsapi.InterfaceStats {
		return statsapi.InterfaceStats{Name: u.GetName(), RxBytes: optional(u.GetRxBytes()), RxErrors: optional(u.GetRxErrors()), TxBytes: optional(u.GetTxBytes()), TxErrors: optional(u.GetTxErrors())}
	}
	out := &statsapi.NetworkStats{Time: at(n.Timestamp), InterfaceStats: one(n.DefaultInterface)}
	for _, u := range n.Interfaces {
		out.Interfaces = append(out.Interfaces, one(u))
	}
	return out
}

// rates turns CPU times into CPU use, between two measurements of the same
// thing.
type rates map[string]sample

type sample struct {
	at   time.Time
	used uint64
	rate *uint64
}

const (
	// minGap is the shortest time that gives a sane rate.
	minGap = 100 * time.Millisecond
	// forget is when nobody measures a thing any more.
	forget = 10 * time.Minute
)

// rate is nil at the first measurement.
func (r rates) rate(id string, now time.Time, used uint64) *uint64 {
	last, ok := r[id]
	if ok && now.Sub(last.at) < minGap {
		return last.rate
	}
	next := sample{at: now, used: used}
	if ok && used >= last.used {
		n := uint64(float64(used-last.used) / now.Sub(last.at).Seconds())
		next.rate = &n
	}
	r[id] = next
	return next.rate
}

// sweep forgets what isn't measured any more.
func (r rates) sweep(now time.Time) {
	for id, s := range r {
		if now.Sub(s.at) > forget {
			delete(r, id)
		}
	}
}
