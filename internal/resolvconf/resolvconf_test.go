package resolvconf

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, c := range []struct{ name, text, want, err string }{
		{
			"usual",
			"# made by hand\nnameserver 10.0.0.1\nsearch example.org corp.example.org.\noptions ndots:2 rotate\nnameserver fe80::1%eth0\n",
			"search example.org corp.example.org\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\noptions ndots:2 rotate\n", "",
		},
		{
			"the last word counts",
			"search a\nsearch b .\noptions ndots:1 edns0\noptions ndots:3\n",
			"search b\noptions ndots:3 edns0\n", "",
		},
		{"other lines", "domain example.org\nsortlist 10.0.0.0\n;nameserver 10.0.0.1\n\tnameserver\t10.0.0.2\n", "nameserver 10.0.0.2\n", ""},
		{"search taken back", "search a\nsearch\n", "", ""},
		{"empty", "", "", ""},
		{"bad", "nameserver\nnameserver a\nnameserver\n", "nameserver a\n", "line 1: nameserver without an address\nline 3: nameserver without an address"},
	} {
		d, err := Parse(strings.NewReader(c.text))
		if got := fmt.Sprint(err); c.err != "" && got != c.err || c.err == "" && err != nil {
			t.Errorf("%s: error %v, want %q", c.name, err, c.err)
		}
		if got := d.String(); got != c.want {
			t.Errorf("%s:\n%swant\n%s", c.name, got, c.want)
		}
	}
}

func TestMerge(t *testing.T) {
	base := Config{Servers: []string{"10.0.0.1"}, Searches: []string{"a", "b"}, Options: []string{"ndots:5", "rotate"}}
	got := base.Merge(Config{Servers: []string{"10.0.0.2", "10.0.0.1"}, Searches: []string{"b", "c"}, Options: []string{"ndots:1", "edns0"}})
	if want := "search a b c\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:1 rotate edns0\n"; got.String() != want {
		t.Errorf("merged\n%swant\n%s", got.String(), want)
	}
	if want := "ndots:5 rotate"; strings.Join(base.Options, " ") != want {
		t.Errorf("the base was changed: %v", base.Options)
	}
}

func TestLimit(t *testing.T) {
	many := func(n int, name func(int) string) []string {
		var all []string
		for i := range n {
			all = append(all, name(i))
		}
		return all
	}
	short := func(i int) string { return fmt.Sprint("d", i) }
	long := func(i int) string { return fmt.Sprintf("%03d%s", i, strings.Repeat("x", 197)) }
	for _, c := range []struct {
		name              string
		d                 Config
		servers, searches int
		warnings          int
	}{
		{"fits", Config{Servers: many(3, short), Searches: many(32, short)}, 3, 32, 0},
		{"servers", Config{Servers: many(4, short)}, 3, 0, 1},
		{"searches", Config{Searches: many(33, short)}, 0, 32, 1},
		{"line", Config{Searches: many(11, long)}, 0, 10, 1}, // 10 × 200 and 9 spaces
		{"one domain", Config{Searches: []string{"a", strings.Repeat("y", 254), "b"}}, 0, 2, 1},
		{"both", Config{Servers: many(9, short), Searches: many(99, short)}, 3, 32, 2},
	} {
		got, warnings := c.d.Limit()
		if len(got.Servers) != c.servers || len(got.Searches) != c.searches || len(warnings) != c.warnings {
			t.Errorf("%s: %d servers, %d searches, warnings %q; want %d, %d and %d", c.name, len(got.Servers), len(got.Searches), warnings, c.servers, c.searches, c.warnings)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("nameserver 10.0.0.1\nsearch a b\noptions ndots:5 rotate\n")
	f.Add("options a:1 a:2 :\nsearch .\n")
	f.Fuzz(func(t *testing.T, text string) {
		d, _ := Parse(strings.NewReader(text))
		limited, _ := d.Limit()
		// What a pod gets must read as what was meant.
		again, err := Parse(strings.NewReader(limited.String()))
		if err != nil {
			t.Fatalf("own text %q: %v", limited.String(), err)
		}
		if slices.Contains(d.Searches, ".") || slices.Contains(d.Servers, "") {
			t.Fatalf("got %+v", d)
		}
		if !slices.Equal(again.Servers, limited.Servers) || !slices.Equal(again.Options, limited.Options) {
			t.Fatalf("%+v became %+v", limited, again)
		}
	})
}

func TestHuge(t *testing.T) {
	if _, err := Parse(strings.NewReader(strings.Repeat("#", MaxSize+1))); err == nil {
		t.Error("a huge file was read")
	}
}
