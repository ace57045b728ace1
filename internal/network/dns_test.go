package network

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseResolvConf(t *testing.T) {
	for _, c := range []struct{ name, text, want, err string }{
		{
			"usual",
			"# made by hand\nnameserver 10.0.0.1\nsearch example.org corp.example.org.\noptions ndots:2 rotate\nnameserver fe80::1%eth0\n",
			"search example.org corp.example.org\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\noptions ndots:2 rotate\n", "",
		},
		{
			"the last word counts",
			"search a\nsearch b .\noptions ndots:1 edns0\noptions ndots:3\n",
			"search b\noptions edns0 ndots:3\n", "",
		},
		{"other lines", "domain example.org\nsortlist 10.0.0.0\n;nameserver 10.0.0.1\n\tnameserver\t10.0.0.2\n", "nameserver 10.0.0.2\n", ""},
		{"search taken back", "search a\nsearch\n", "", ""},
		{"empty", "", "", ""},
		{"bad", "nameserver\nnameserver ns.example.org\n", "", "line 1: nameserver without an address\nline 2: nameserver \"ns.example.org\" is not an IP address"},
	} {
		d, err := ParseResolvConf(c.text)
		if got := fmt.Sprint(err); c.err != "" && got != c.err || c.err == "" && err != nil {
			t.Errorf("%s: error %v, want %q", c.name, err, c.err)
		}
		if got := d.ResolvConf(); got != c.want {
			t.Errorf("%s:\n%swant\n%s", c.name, got, c.want)
		}
	}
}

func TestHostDNS(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	stub := write("stub", "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n")
	real := write("real", "nameserver 192.0.2.53\nsearch lan\n")
	mixed := write("mixed", "nameserver 127.0.0.53\nnameserver 192.0.2.54\n")
	none := filepath.Join(dir, "none")
	for _, c := range []struct{ first, behind, want string }{
		{stub, real, "search lan\nnameserver 192.0.2.53\n"},
		{stub, none, "search lan\nnameserver 127.0.0.53\noptions edns0 trust-ad\n"},
		{mixed, real, "nameserver 127.0.0.53\nnameserver 192.0.2.54\n"},
		{real, none, "search lan\nnameserver 192.0.2.53\n"},
	} {
		d, err := hostDNS(c.first, c.behind)
		if err != nil {
			t.Fatal(err)
		}
		if got := d.ResolvConf(); got != c.want {
			t.Errorf("from %s and %s:\n%swant\n%s", filepath.Base(c.first), filepath.Base(c.behind), got, c.want)
		}
	}
	if _, err := hostDNS(none, real); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
}

func TestMergeDNS(t *testing.T) {
	base := DNS{Servers: []string{"10.0.0.1"}, Searches: []string{"a", "b"}, Options: []string{"ndots:5", "rotate"}}
	got := base.Merge(DNS{Servers: []string{"10.0.0.2", "10.0.0.1"}, Searches: []string{"b", "c"}, Options: []string{"ndots:1", "edns0"}})
	if want := "search a b c\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions rotate ndots:1 edns0\n"; got.ResolvConf() != want {
		t.Errorf("merged\n%swant\n%s", got.ResolvConf(), want)
	}
	if want := "ndots:5 rotate"; strings.Join(base.Options, " ") != want {
		t.Errorf("the base was changed: %v", base.Options)
	}
}

func TestLimitDNS(t *testing.T) {
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
		d                 DNS
		servers, searches int
		warnings          int
	}{
		{"fits", DNS{Servers: many(3, short), Searches: many(32, short)}, 3, 32, 0},
		{"servers", DNS{Servers: many(4, short)}, 3, 0, 1},
		{"searches", DNS{Searches: many(33, short)}, 0, 32, 1},
		{"line", DNS{Searches: many(11, long)}, 0, 10, 1}, // 10 × 200 and 9 spaces
		{"one domain", DNS{Searches: []string{"a", strings.Repeat("y", 254), "b"}}, 0, 2, 1},
		{"both", DNS{Servers: many(9, short), Searches: many(99, short)}, 3, 32, 2},
	} {
		got, warnings := c.d.Limit()
		if len(got.Servers) != c.servers || len(got.Searches) != c.searches || len(warnings) != c.warnings {
			t.Errorf("%s: %d servers, %d searches, warnings %q; want %d, %d and %d", c.name, len(got.Servers), len(got.Searches), warnings, c.servers, c.searches, c.warnings)
		}
	}
}

func FuzzParseResolvConf(f *testing.F) {
	f.Add("nameserver 10.0.0.1\nsearch a b\noptions ndots:5 rotate\n")
	f.Add("options a:1 a:2 :\nsearch .\n")
	f.Fuzz(func(t *testing.T, text string) {
		d, _ := ParseResolvConf(text)
		limited, _ := d.Limit()
		// What a pod gets must read as what was meant.
		again, err := ParseResolvConf(limited.ResolvConf())
		if err != nil {
			t.Fatalf("own text %q: %v", limited.ResolvConf(), err)
		}
		if !slices.Equal(again.Servers, limited.Servers) || !slices.Equal(again.Options, limited.Options) {
			t.Fatalf("%+v became %+v", limited, again)
		}
	})
}
