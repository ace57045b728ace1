package bench

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is one run of the bench.
type Report struct {
	When    time.Time `json:"when"`
	Machine string    `json:"machine"`
	Options Options   `json:"options"`
	// Floor is the bare system calls; Runtimes are unipod, then its peers.
	Floor    *Figures   `json:"floor,omitempty"`
	Runtimes []*Figures `json:"runtimes"`
}

// goals are the project's, for two cores; 0 is none.
var goals = map[string]time.Duration{
	"pod start": 10 * time.Millisecond, "ExecSync true": 3 * time.Millisecond, "stop and remove": 10 * time.Millisecond,
}

// Table prints a report for people.
func (r *Report) Table(w io.Writer) error {
	all := r.Runtimes
	if r.Floor != nil {
		all = append([]*Figures{r.Floor}, all...)
	}
	fmt.Fprintf(w, "%s, %s\nmilliseconds, median / 90th percentile of %d pods; in brackets the median's ratio to the floor\n\n", r.Machine, r.When.Format("2006-01-02 15:04"), r.Options.Pods)
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	header := []string{""}
	for _, f := range all {
		header = append(header, f.Name)
	}
	fmt.Fprintln(t, strings.Join(append(header, "goal"), "\t"))
	row := func(name string, of func(*Figures) Times) {
		cells := []string{name}
		for _, f := range all {
			cell := of(f).String()
			if r.Floor != nil && f != r.Floor && of(r.Floor).P50 > 0 && of(f).P50 > 0 {
				cell += fmt.Sprintf(" (%.1f×)", float64(of(f).P50)/float64(of(r.Floor).P50))
			}
			cells = append(cells, cell)
		}
		goal := ""
		if g := goals[name]; g > 0 {
			goal = "≤ " + short(g)
		}
		fmt.Fprintln(t, strings.Join(append(cells, goal), "\t"))
	}
	row("pod start", func(f *Figures) Times { return f.PodStart })
	row("  RunPodSandbox", func(f *Figures) Times { return f.Sandbox })
	row("  CreateContainer", func(f *Figures) Times { return f.Create })
	row("  StartContainer", func(f *Figures) Times { return f.Start })
	row("ExecSync true", func(f *Figures) Times { return f.Exec })
	row("stop and remove", func(f *Figures) Times { return f.Stop })
	row("image pull and unpack", func(f *Figures) Times { return f.Pull })
	text := func(name, goal string, of func(*Figures) string) {
		cells := []string{name}
		for _, f := range all {
			cells = append(cells, of(f))
		}
		fmt.Fprintln(t, strings.Join(append(cells, goal), "\t"))
	}
	text(fmt.Sprintf("pods per second, %d at a time", r.Options.Parallel), "≥ 100", func(f *Figures) string {
		if f.PodsPerSecond == 0 {
			return "–"
		}
		return fmt.Sprintf("%.1f", f.PodsPerSecond)
	})
	held := func(name, goal string, of func(*Held) string) {
		text(name, goal, func(f *Figures) string {
			if f.Held == nil {
				return "–"
			}
			return of(f.Held)
		})
	}
	if r.Options.Hold > 0 {
		held(fmt.Sprintf("memory per pod of %d, KiB", r.Options.Hold), "≤ 150", func(h *Held) string { return fmt.Sprint(h.BytesPerPod() / 1024) })
		held("  its pause or shim", "", func(h *Held) string { return fmt.Sprint(h.PauseBytes / 1024) })
		held("  the runtime's growth", "", func(h *Held) string { return fmt.Sprint(h.NodeBytes / 1024) })
		held("  the runtime in all, MiB RSS", "", func(h *Held) string {
			if h.NodeRSS == 0 {
				return "–"
			}
			return fmt.Sprint(h.NodeRSS >> 20)
		})
		held("  seconds until all were ready", "", func(h *Held) string { return fmt.Sprintf("%.1f", h.Seconds) })
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, f := range all {
		for _, what := range f.Failed {
			fmt.Fprintf(w, "\n%s, not measured: %s\n", f.Name, what)
		}
	}
	return nil
}
