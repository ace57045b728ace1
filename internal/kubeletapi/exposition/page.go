// Package exposition writes pages of metrics in Prometheus' text format. It owns
// nothing. What names, helps and labels it is given may come from anywhere: a
// page is well-formed whatever they are. A page is used by one goroutine.
//
// Floor: below kubeletapi; it imports nothing of unipod.
package exposition

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Page is a page of metrics. Its zero value is empty.
type Page struct{ families map[string]*Family }

// Family are the figures of one name.
type Family struct {
	kind, help string
	lines      bytes.Buffer
	name       string
}

// Label is one label of a figure.
type Label struct{ Name, Value string }

// Family finds the figures of one name; kind is gauge or counter. Those under
// names that are none are not shown.
func (p *Page) Family(name, kind, help string) *Family {
	if p.families == nil {
		p.families = map[string]*Family{}
	}
	f := p.families[name]
	if f == nil {
		f = &Family{name: name, kind: kind, help: help}
		p.families[name] = f
	}
	return f
}

var (
	metricName  = regexp.MustCompile(`^[a-zA-Z_:][a-zA-Z0-9_:]*$`)
	labelName   = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)
	escapeHelp  = strings.NewReplacer("\\", `\\`, "\n", `\n`)
	escapeValue = strings.NewReplacer("\\", `\\`, "\n", `\n`, `"`, `\"`)
)

// Add adds one figure, with the time of its measurement in milliseconds; zero
// is the time of the scrape.
func (f *Family) Add(value float64, millis int64, labels ...Label) {
	f.lines.WriteString(f.name)
	sep := byte('{')
	for _, l := range labels {
		if !labelName.MatchString(l.Name) {
			continue
		}
		f.lines.WriteByte(sep)
		sep = ','
		fmt.Fprintf(&f.lines, `%s="%s"`, l.Name, escapeValue.Replace(strings.ToValidUTF8(l.Value, "\uFFFD")))
	}
	if sep == ',' {
		f.lines.WriteByte('}')
	}
	f.lines.WriteByte(' ')
	f.lines.WriteString(strconv.FormatFloat(value, 'g', -1, 64))
	if millis > 0 {
		fmt.Fprintf(&f.lines, " %d", millis)
	}
	f.lines.WriteByte('\n')
}

// Serve answers with the page, in order of names.
func (p *Page) Serve(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	for _, name := range slices.Sorted(maps.Keys(p.families)) {
		if !metricName.MatchString(name) {
			continue
		}
		f := p.families[name]
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, escapeHelp.Replace(f.help), name, f.kind)
		_, _ = f.lines.WriteTo(w)
	}
}
