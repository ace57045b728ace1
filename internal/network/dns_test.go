package network

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

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
		if got := d.String(); got != c.want {
			t.Errorf("from %s and %s:\n%swant\n%s", filepath.Base(c.first), filepath.Base(c.behind), got, c.want)
		}
	}
	for text, want := range map[string]string{
		"nameserver ns.example.org\n": `nameserver "ns.example.org" is not an IP address`,
		"nameserver\n":                "line 1: nameserver without an address",
	} {
		if _, err := hostDNS(write("bad", text), none); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if _, err := hostDNS(none, real); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
}
