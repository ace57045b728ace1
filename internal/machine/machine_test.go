package machine

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestPrimary(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want string
	}{
		{"127.0.0.1 ::1 fe80::1", "127.0.0.1"},
		{"192.0.2.7 127.0.0.1 10.88.0.1 fe80::1 2001:db8::7", "192.0.2.7 2001:db8::7"},
		{"2001:db8::7 192.0.2.7 192.0.2.8", "2001:db8::7 192.0.2.7"},
		{"", "127.0.0.1"},
	} {
		var all []netip.Addr
		for _, s := range strings.Fields(tc.in) {
			all = append(all, netip.MustParseAddr(s))
		}
		if got := strings.Join(primary(all), " "); got != tc.want {
			t.Errorf("primary(%s) = %s, want %s", tc.in, got, tc.want)
		}
	}
}

func TestResolver(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	stub := file("stub", "nameserver 127.0.0.53\nsearch example.com\n")
	real := file("real", "nameserver 192.0.2.53\n")
	none := filepath.Join(dir, "none")
	for _, tc := range []struct{ path, behind, want string }{
		{stub, real, "192.0.2.53"},
		{stub, none, "127.0.0.53"},
		{real, stub, "192.0.2.53"},
		{none, real, ""},
	} {
		dns, err := resolver(tc.path, tc.behind)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(dns.Servers, " "); got != tc.want {
			t.Errorf("resolver(%s, %s) = %q, want %q", filepath.Base(tc.path), filepath.Base(tc.behind), got, tc.want)
		}
	}
}

func TestHugePageSizes(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"hugepages-2048kB", "hugepages-1048576kB", "hugepages-64kB", "else"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	got := hugePageSizes(dir)
	slices.Sort(got)
	if want := []string{"1GB", "2MB", "64KB"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestThisMachine(t *testing.T) {
	n, err := Describe(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if n.MemoryCapacity <= 0 || len(n.HostIPs) == 0 || n.Allocatable.Cpu().Value() < 1 || n.Allocatable.StorageEphemeral().Value() <= 0 {
		t.Errorf("incomplete: %+v", n)
	}
}
