package timeline

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	v1 "k8s.io/api/core/v1"
)

// lane is how wide the drawing of the containers' runs is.
const lane = 60

const (
	red    = "31"
	green  = "32"
	yellow = "33"
	bold   = "1"
	dim    = "2"
)

// Write draws the timeline: what became of the pod, one lane per container,
// and a line for everything that happened. colour is for terminals.
func (t *Timeline) Write(w io.Writer, colour bool) error {
	paint := func(code, text string) string {
		if !colour || code == "" {
			return text
		}
		return "\x1b[" + code + "m" + text + "\x1b[0m"
	}
	var out bytes.Buffer
	total := t.End.Sub(t.Created)
	fmt.Fprintf(&out, "%s  %s\n", paint(bold, "pod "+t.Namespace+"/"+t.Name), paint(phaseColour(t.Phase), t.outcome(total)))
	width := len("pod")
	for _, c := range t.Containers {
		width = max(width, utf8.RuneCountInString(c.Name))
	}
	for _, c := range t.Containers {
		cells := t.lane(&c, total)
		fmt.Fprintf(&out, "  %-*s  %s%s%s  %s\n", width, c.Name, paint(dim, "▕"), paint(laneColour(&c), cells), paint(dim, "▏"), c.words())
	}
	out.WriteByte('\n')
	half := len(t.Entries)
	if t.LeftOut > 0 {
		half = len(t.Entries) / 2
	}
	for i, e := range t.Entries {
		if i == half {
			fmt.Fprintf(&out, "%12s  … %d more …\n", "", t.LeftOut)
		}
		subject := e.Container
		if subject == "" {
			subject = "pod"
		}
		text := e.Text
		if e.Count > 1 {
			text += fmt.Sprintf(" (%d times, until +%s)", e.Count, short(e.Last.Sub(t.Created)))
		}
		fmt.Fprintf(&out, "%s  %-*s  %s\n", paint(dim, fmt.Sprintf("%12s", "+"+short(e.Time.Sub(t.Created)))), width, subject, paint(e.colour(), text))
	}
	_, err := w.Write(out.Bytes())
	return err
}

func phaseColour(p v1.PodPhase) string {
	switch p {
	case v1.PodFailed:
		return red
	case v1.PodSucceeded:
		return green
	}
	return ""
}

func laneColour(c *Container) string {
	if c.ExitCode != nil && *c.ExitCode != 0 {
		return red
	}
	return green
}

func (e *Entry) colour() string {
	switch {
	case e.Event == Exited && e.Warning, e.Event == PhaseChanged && e.Warning:
		return red
	case e.Warning:
		return yellow
	case e.Event == PhaseChanged || e.Event == Ready && e.Container == "":
		return bold
	}
	return ""
}

// outcome is the pod's end in words.
func (t *Timeline) outcome(total time.Duration) string {
	text := string(t.Phase)
	if t.Reason != "" {
		text += " (" + t.Reason + ")"
	}
	text += " after " + short(total)
	switch t.Restarts {
	case 0:
	case 1:
		text += ", 1 restart"
	default:
		text += fmt.Sprintf(", %d restarts", t.Restarts)
	}
	return text
}

// words are how a container is now.
func (c *Container) words() string {
	text := c.State
	switch {
	case c.ExitCode != nil && *c.ExitCode == 0 && c.Reason == "Completed":
		text = "completed"
	case c.ExitCode != nil:
		text = fmt.Sprintf("exit %d", *c.ExitCode)
		if c.Reason != "" && c.Reason != "Error" {
			text += " " + c.Reason
		}
	case c.Reason != "":
		text += " " + c.Reason
	}
	if c.Role != RoleApp {
		text = c.Role + ", " + text
	}
	if c.Restarts == 1 {
		text += ", 1 restart"
	} else if c.Restarts > 1 {
		text += fmt.Sprintf(", %d restarts", c.Restarts)
	}
	return text
}

// lane draws when a container ran: thin until it was ready, thick from then
// on, a cross where a run failed. Every run has a cell, however short it was.
func (t *Timeline) lane(c *Container, total time.Duration) string {
	cells := []rune(strings.Repeat(" ", lane))
	at := func(when time.Time) int {
		if total <= 0 {
			return 0
		}
		return min(max(int(int64(lane)*int64(when.Sub(t.Created))/int64(total)), 0), lane-1)
	}
	for _, r := range c.Runs {
		end := t.End
		if !r.End.IsZero() {
			end = r.End
		}
		for i := at(r.Start); i <= at(end); i++ {
			cells[i] = '─'
			if !r.ReadyAt.IsZero() && i >= at(r.ReadyAt) {
				cells[i] = '━'
			}
		}
		if r.ExitCode != nil && *r.ExitCode != 0 {
			cells[at(end)] = '✗'
		}
	}
	return string(cells)
}

// short is a duration with three digits or so.
func short(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}
