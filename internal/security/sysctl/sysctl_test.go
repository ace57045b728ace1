package sysctl

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		name                 string
		hostNetwork, hostIPC bool
		want                 string // "" = allowed
	}{
		{"net.ipv4.ip_forward", false, false, ""},
		{"net.ipv4.ip_forward", false, true, ""},
		{"net/ipv4/conf/eth0.1/forwarding", false, false, ""},
		{"net.ipv4.ip_forward", true, false, "host's network"},
		{"net/ipv4/ip_forward", true, false, "host's network"},
		{"kernel.shm_rmid_forced", false, false, ""},
		{"kernel.msgmax", true, false, ""},
		{"kernel.shmmax", false, true, "host's IPC"},
		{"kernel/shmmax", false, true, "host's IPC"},
		{"fs.mqueue.queues_max", false, false, ""},
		{"fs.mqueue.queues_max", false, true, "host's IPC"},
		{"kernel.domainname", false, false, ""},
		{"kernel.hostname", false, false, "hostname"},
		{"kernel.core_pattern", false, false, "not in a namespace"},
		{"kernel/core_pattern", false, false, "not in a namespace"},
		{"kernel.shm", false, false, "not in a namespace"},
		{"vm.overcommit_memory", false, false, "not in a namespace"},
		{"net", false, false, "not in a namespace"},
		{"netx.a", false, false, "not in a namespace"},
		{"net..ipv4", false, false, "not a valid name"},
		{"net/../kernel/core_pattern", false, false, "not a valid name"},
		{"net.ipv4.", false, false, "not a valid name"},
		{"", false, false, "not a valid name"},
		{"net." + strings.Repeat("a", 300), false, false, "not a valid name"},
	} {
		err := Check(tt.name, tt.hostNetwork, tt.hostIPC)
		if tt.want == "" {
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) || !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s (host network %v, IPC %v): %v, want %q", tt.name, tt.hostNetwork, tt.hostIPC, err, tt.want)
		}
	}
}

func TestCanonical(t *testing.T) {
	for in, want := range map[string]string{
		"net.ipv4.ip_forward":             "net.ipv4.ip_forward",
		"net/ipv4/ip_forward":             "net.ipv4.ip_forward",
		"net/ipv4/conf/eth0.1/forwarding": "net.ipv4.conf.eth0/1.forwarding",
		"net.ipv4.conf.eth0/1.forwarding": "net.ipv4.conf.eth0/1.forwarding",
		"plain":                           "plain",
	} {
		if got := Canonical(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
