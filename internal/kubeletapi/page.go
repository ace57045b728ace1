package kubeletapi

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

// page is a page of metrics in Prometheus' text format. Its zero value is
// empty.
type page struct{ families map[string]*family }

type family struct {
	kind, help string
	lines      bytes.Buffer
	name       string
}

type label struct{ name, value string }

// family finds the metrics of one name. Names that are none are kept apart and
// not shown: a runtime may say anything.
func (p *page) family(name, kind, help string) *family {
	if p.families == nil {
		p.families = map[string]*family{}
	}
	f := p.families[name]
	if f == nil {
		f = &family{name: name, kind: kind, help: help}
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

// add adds one figure, with the time of its measurement in milliseconds; zero
// is the time of the scrape.
func (f *family) add(value float64, millis int64, labels ...label) {
	f.lines.WriteString(f.name)
	sep := byte('{')
	for _, l := range labels {
		if !labelName.MatchString(l.name) {
			continue
		}
		f.lines.WriteByte(sep)
		sep = ','
		fmt.Fprintf(&f.lines, `%s="%s"`, l.name, escapeValue.Replace(strings.ToValidUTF8(l.value, "\uFFFD")))
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

func (p *page) serve(w http.ResponseWriter) {
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
