package exposition

import (
	"net/http/httptest"
	"testing"

	"k8s.io/component-base/metrics/testutil"
)

func TestPage(t *testing.T) {
	var p Page
	p.Family("b_total", "counter", "two\nlines").Add(1.5, 0, Label{"path", "a\"b\\c\nd"}, Label{"no name", "x"})
	p.Family("b_total", "counter", "").Add(2, 1700000000123)
	p.Family("a", "gauge", "first").Add(1e21, 0)
	p.Family("not a name", "gauge", "").Add(1, 0)
	w := httptest.NewRecorder()
	p.Serve(w)
	want := `# HELP a first
# TYPE a gauge
a 1e+21
# HELP b_total two\nlines
# TYPE b_total counter
b_total{path="a\"b\\c\nd"} 1.5
b_total 2 1700000000123
`
	if w.Body.String() != want {
		t.Errorf("got %q, want %q", w.Body.String(), want)
	}
}

// Whatever a runtime says, the page is one that Prometheus reads.
func FuzzPage(f *testing.F) {
	f.Add("name", "help", "label", "value", 1.0)
	f.Fuzz(func(t *testing.T, name, help, key, value string, figure float64) {
		var p Page
		p.Family(name, "gauge", help).Add(figure, 1, Label{key, value})
		p.Family("other", "gauge", help).Add(1, 1)
		w := httptest.NewRecorder()
		p.Serve(w)
		m := testutil.NewMetrics()
		if err := testutil.ParseMetrics(w.Body.String(), &m); err != nil {
			t.Fatalf("%q: %v", w.Body.String(), err)
		}
		if len(m["other"]) != 1 {
			t.Errorf("lost a figure in %q", w.Body.String())
		}
	})
}
