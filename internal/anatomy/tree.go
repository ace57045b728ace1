package anatomy

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"unipod.dev/unipod/internal/progress"
)

// A node is a line of the picture with what hangs below it.
type node struct {
	text string
	kids []*node
}

func (n *node) add(format string, args ...any) *node {
	k := &node{text: fmt.Sprintf(format, args...)}
	n.kids = append(n.kids, k)
	return k
}

// table adds rows whose cells are aligned.
func (n *node) table(rows [][]string) {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		for i := range r {
			r[i] = clean(r[i])
		}
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	w.Flush() // to a strings.Builder: it can't fail
	for line := range strings.Lines(b.String()) {
		n.add("%s", strings.TrimRight(line, " \n"))
	}
}

// clean makes what a container chose (a path, a command) harmless to the
// terminal and to the picture.
func clean(s string) string {
	return string(progress.Clean([]byte(strings.NewReplacer("\x1b", "^[", "\t", "^I").Replace(s))))
}

func (n *node) draw(w io.Writer, indent string) error {
	for i, k := range n.kids {
		branch, below := "├─ ", "│  "
		if i == len(n.kids)-1 {
			branch, below = "└─ ", "   "
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(indent+branch+clean(k.text), " ")); err != nil {
			return err
		}
		if err := k.draw(w, indent+below); err != nil {
			return err
		}
	}
	return nil
}

// Tree draws the pod as it is at the time now; recipes adds the system calls
// each container was made by.
func (p *Pod) Tree(w io.Writer, now time.Time, recipes bool) error {
	root := &node{}
	p.addNetwork(root)
	addCgroup(root, p.Cgroup, nil)
	if p.Pause == nil {
		root.add("pause  is gone")
	}
	parent := root
	if p.Pause != nil {
		parent = root.add("pause  %s", p.Pause.words())
		addNamespaces(parent, p.Pause)
	}
	for _, c := range p.Containers {
		c.add(parent, p.Cgroup, now)
	}
	if p.Pause != nil {
		addChildren(parent, "orphan", p.Pause.Children)
	}
	_, err := fmt.Fprintf(w, "pod %s/%s  %s, %s  (sandbox %s, uid %s)\n", p.Namespace, p.Name, p.State, since(p.CreatedAt, now), shortID(p.SandboxID), p.UID)
	if err != nil {
		return err
	}
	if err := root.draw(w, ""); err != nil || !recipes {
		return err
	}
	if _, err := fmt.Fprintf(w, "\nrecipe of the sandbox\n%s\n", strings.TrimRight(cmp.Or(p.Recipe, "(none was kept)"), "\n")); err != nil {
		return err
	}
	for _, c := range p.Containers {
		if _, err := fmt.Fprintf(w, "\nrecipe of container %s\n%s\n", c.Name, strings.TrimRight(cmp.Or(c.Recipe, "(none was kept)"), "\n")); err != nil {
			return err
		}
	}
	return nil
}

func (p *Pod) addNetwork(root *node) {
	n := p.Network
	switch {
	case n == nil:
		return
	case n.Host:
		root.add("network  the host's")
		return
	}
	k := root.add("network  %s", strings.Join(n.Addresses, ", "))
	host := n.HostVeth
	if n.HostBridge != "" {
		host += " on bridge " + n.HostBridge
	}
	k.add("eth0 %s, mtu %d ─ veth ─ %s, gateway %s", n.MAC, n.MTU, host, strings.Join(n.Gateways, ", "))
	for _, port := range n.Ports {
		k.add("host port %s", port)
	}
}

// addCgroup adds a control group; in is the group it lies in, whose path is
// not said again.
func addCgroup(parent *node, c, in *Cgroup) {
	if c == nil {
		return
	}
	path := c.Path
	if in != nil {
		if rest, ok := strings.CutPrefix(path, in.Path+"/"); ok {
			path = "…/" + shortID(rest)
		}
	}
	k := parent.add("cgroup  %s", path)
	memory := progress.Bytes(int64(c.MemoryBytes))
	if c.MemoryLimit > 0 {
		memory += " of " + progress.Bytes(int64(c.MemoryLimit))
	}
	cpu := c.CPU.Round(time.Millisecond).String()
	if c.CPULimit > 0 {
		cpu += fmt.Sprintf(" (at most %g cores)", c.CPULimit)
	}
	pids := fmt.Sprint(c.PIDs)
	if c.PIDLimit > 0 {
		pids += fmt.Sprintf(" of %d", c.PIDLimit)
	}
	k.add("memory %s, cpu %s, processes %s", memory, cpu, pids)
}

// words are a process in one line.
func (p *Process) words() string {
	text := fmt.Sprintf("pid %d", p.PID)
	if len(p.InPod) > 0 {
		var inside []string
		for _, n := range p.InPod {
			inside = append(inside, fmt.Sprint(n))
		}
		text += fmt.Sprintf(" (inside: %s)", strings.Join(inside, ", then "))
	}
	if len(p.Command) > 0 {
		text += "  " + quote(p.Command)
	}
	return fmt.Sprintf("%s  user %d, %s", text, p.UID, progress.Bytes(int64(p.Memory)))
}

// quote prints a command line short and safe: it is the container's own text.
func quote(args []string) string {
	var out []string
	for _, a := range args {
		if a == "" || strings.ContainsFunc(a, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\'' || r == '"' || r > 0x7e }) {
			a = fmt.Sprintf("%q", a)
		}
		out = append(out, a)
	}
	text := strings.Join(out, " ")
	const most = 60
	if r := []rune(text); len(r) > most {
		text = string(r[:most]) + "…"
	}
	return text
}

func addNamespaces(parent *node, p *Process) {
	var rows [][]string
	for _, ns := range p.Namespaces {
		mark := "own"
		if ns.Shared != "" {
			mark = "= " + ns.Shared
		}
		rows = append(rows, []string{ns.Type, fmt.Sprint(ns.Inode), mark})
	}
	parent.add("namespaces").table(rows)
}

func (c *Container) add(parent *node, in *Cgroup, now time.Time) {
	text := fmt.Sprintf("container %s  %s", c.Name, c.State)
	switch c.State {
	case "Running":
		text += ", " + since(c.StartedAt, now)
	case "Exited":
		text += fmt.Sprintf(" with code %d", c.ExitCode)
		if c.Reason != "" {
			text += " (" + c.Reason + ")"
		}
		text += ", " + since(c.FinishedAt, now) + " ago"
	}
	if c.Attempt > 0 {
		text += fmt.Sprintf(", restart %d", c.Attempt)
	}
	k := parent.add("%s  (%s)", text, shortID(c.ID))
	k.add("image  %s", c.Image)
	if c.Process == nil {
		return
	}
	addChildren(k.add("%s", c.Process.words()), "", c.Process.Children)
	addNamespaces(k, c.Process)
	addCgroup(k, c.Cgroup, in)
	var rows [][]string
	for _, m := range c.Mounts {
		// The controllers of cgroup v1, one mount each, say nothing new.
		if strings.HasPrefix(m.Target, "/sys/fs/cgroup/") {
			continue
		}
		access := "rw"
		if m.ReadOnly {
			access = "ro"
		}
		origin := m.Origin
		if m.Source != "" {
			origin += "  ← " + m.Source
		}
		rows = append(rows, []string{m.Target, access, m.Type, origin})
	}
	mounts := k.add("mounts")
	mounts.table(rows)
	if len(c.Masked) > 0 {
		mounts.add("masked: %s", strings.Join(c.Masked, " "))
	}
	if len(c.ReadOnly) > 0 {
		mounts.add("read-only: %s", strings.Join(c.ReadOnly, " "))
	}
}

func addChildren(parent *node, what string, kids []Process) {
	for _, kid := range kids {
		k := parent.add("%s", strings.TrimSpace(what+"  "+kid.words()))
		addChildren(k, "", kid.Children)
	}
}

// shortID is as much of an ID as people read.
func shortID(id string) string { return id[:min(len(id), 13)] }

// since is a duration in Kubernetes' short form.
func since(t, now time.Time) string {
	if t.IsZero() {
		return "?"
	}
	d := max(now.Sub(t), 0)
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	case d >= 2*time.Minute:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	}
	return fmt.Sprintf("%ds", int(d.Seconds()))
}
