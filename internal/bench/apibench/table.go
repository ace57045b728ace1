package apibench

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"unipod.dev/unipod/internal/bench"
)

// Report is one run.
type Report struct {
	When    time.Time  `json:"when"`
	Machine string     `json:"machine"`
	Options Options    `json:"options"`
	Servers []*Figures `json:"servers"` // unipod first
}

// Table prints a report for people.
func (r *Report) Table(w io.Writer) error {
	fmt.Fprintf(w, "%s, %s\nmilliseconds, median / 90th percentile of %d requests over https; in brackets the median's ratio to the first\n\n",
		r.Machine, r.When.Format("2006-01-02 15:04"), r.Options.Objects)
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	line := func(name, goal string, of func(i int, f *Figures) string) {
		cells := []string{name}
		for i, f := range r.Servers {
			cells = append(cells, of(i, f))
		}
		fmt.Fprintln(t, strings.Join(append(cells, goal), "\t"))
	}
	line("", "goal", func(_ int, f *Figures) string { return f.Name })
	times := func(name, goal string, of func(*Figures) bench.Times) {
		line(name, goal, func(i int, f *Figures) string {
			text, first := of(f).String(), of(r.Servers[0]).P50
			if i > 0 && first > 0 && of(f).P50 > 0 {
				text += fmt.Sprintf(" (%.1f×)", float64(of(f).P50)/float64(first))
			}
			return text
		})
	}
	number := func(name, goal string, of func(*Figures) (value float64, format string)) {
		line(name, goal, func(_ int, f *Figures) string {
			value, format := of(f)
			if value == 0 {
				return "–"
			}
			return fmt.Sprintf(format, value)
		})
	}
	times("start to ready", "≤ 150", func(f *Figures) bench.Times { return f.Ready })
	number("idle memory, MiB RSS", "≤ 100", func(f *Figures) (float64, string) { return float64(f.RSS) / (1 << 20), "%.0f" })
	number("  of it anonymous", "≤ 40", func(f *Figures) (float64, string) { return float64(f.Anon) / (1 << 20), "%.0f" })
	times("create", "", func(f *Figures) bench.Times { return f.Create })
	times("get", "", func(f *Figures) bench.Times { return f.Get })
	times("update", "", func(f *Figures) bench.Times { return f.Update })
	times("delete", "", func(f *Figures) bench.Times { return f.Delete })
	times("create to a watch's event", "", func(f *Figures) bench.Times { return f.Watch })
	number(fmt.Sprintf("creates per second, %d at a time", r.Options.Parallel), "", func(f *Figures) (float64, string) { return f.CreatesPerSecond, "%.0f" })
	times("pod created to Running", "≤ 30", func(f *Figures) bench.Times { return f.Running })
	number(fmt.Sprintf("Deployment of %d, all ready", r.Options.Replicas), "≤ 2000", func(f *Figures) (float64, string) {
		return float64(f.AllReady) / float64(time.Millisecond), "%.0f"
	})
	number("  deleted, all gone", "", func(f *Figures) (float64, string) { return float64(f.AllGone) / float64(time.Millisecond), "%.0f" })
	if err := t.Flush(); err != nil {
		return err
	}
	for _, f := range r.Servers {
		for _, what := range f.Failed {
			fmt.Fprintf(w, "\n%s, not measured: %s\n", f.Name, what)
		}
	}
	return nil
}
