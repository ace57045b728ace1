package caps

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const every = 1<<len(names) - 1

func TestSets(t *testing.T) {
	const sysAdmin, chown, netRaw = 1 << unix.CAP_SYS_ADMIN, 1 << unix.CAP_CHOWN, 1 << unix.CAP_NET_RAW
	for _, tt := range []struct {
		name string
		c    Config
		all  uint64
		want uint64
	}{
		{"default", Config{}, every, defaults},
		{"add", Config{Add: []string{"SYS_ADMIN"}}, every, defaults | sysAdmin},
		{"prefix and case", Config{Add: []string{"cap_sys_admin"}}, every, defaults | sysAdmin},
		{"drop", Config{Drop: []string{"CHOWN"}}, every, defaults &^ chown},
		{"drop wins", Config{Add: []string{"CHOWN"}, Drop: []string{"CHOWN"}}, every, defaults &^ chown},
		{"drop ALL", Config{Drop: []string{"ALL"}}, every, 0},
		{"drop all, add one", Config{Drop: []string{"all"}, Add: []string{"NET_RAW"}}, every, netRaw},
		{"add ALL but one", Config{Add: []string{"ALL"}, Drop: []string{"CHOWN"}}, every, every &^ chown},
		{"add ALL, drop ALL", Config{Add: []string{"ALL"}, Drop: []string{"ALL"}}, every, 0},
		{"privileged", Config{Privileged: true}, every, every},
		{"privileged without one", Config{Privileged: true, Drop: []string{"CHOWN"}}, every, every &^ chown},
		{"a node that lacks one", Config{}, every &^ chown, defaults &^ chown},
		{"ALL of a node that lacks one", Config{Add: []string{"ALL"}}, every &^ chown, every &^ chown},
		{"dropping what the node lacks", Config{Drop: []string{"CHOWN"}}, every &^ chown, defaults &^ chown},
	} {
		got, err := tt.c.sets(tt.all)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if want := (Sets{Bounding: tt.want, Effective: tt.want, Permitted: tt.want}); got != want {
			t.Errorf("%s: %v, want %v", tt.name, Names(got.Bounding), Names(tt.want))
		}
	}
	got, err := Config{Drop: []string{"ALL"}, AddAmbient: []string{"NET_RAW"}}.sets(every)
	if want := (Sets{netRaw, netRaw, netRaw, netRaw, netRaw}); err != nil || got != want {
		t.Errorf("ambient: %+v, %v", got, err)
	}
	got, err = Config{AddAmbient: []string{"NET_RAW"}, Drop: []string{"NET_RAW"}}.sets(every)
	if err != nil || got.Ambient != 0 || got.Bounding&netRaw != 0 {
		t.Errorf("a dropped ambient capability: %+v, %v", got, err)
	}
}

func TestErrors(t *testing.T) {
	_, err := Config{Add: []string{"SYS_ADMINN"}}.sets(every)
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), `capabilities.add: unknown capability "SYS_ADMINN"`) {
		t.Errorf("unknown capability: %v", err)
	}
	_, err = Config{Add: []string{"SYS_RESOURCE"}}.sets(every &^ (1 << unix.CAP_SYS_RESOURCE))
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "CAP_SYS_RESOURCE is not available") {
		t.Errorf("unavailable capability: %v", err)
	}
	if _, err := (Config{Drop: []string{"NOPE"}}).sets(every); !errdefs.IsInvalidArgument(err) {
		t.Errorf("unknown capability dropped: %v", err)
	}
}

// TestAgainstKernel holds the table against the kernel's last capability.
func TestAgainstKernel(t *testing.T) {
	b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		t.Fatal(err)
	}
	// Every kernel of 5.9 or newer has at least the table's.
	if last, err := strconv.Atoi(strings.TrimSpace(string(b))); err != nil || last < len(names)-1 {
		t.Errorf("the kernel's last capability is %s, the table's %d", b, len(names)-1)
	}
	if n, ok := number("CAP_CHECKPOINT_RESTORE"); !ok || n != unix.CAP_CHECKPOINT_RESTORE {
		t.Errorf("CAP_CHECKPOINT_RESTORE is %d", n)
	}
	if n, _ := number("CAP_AUDIT_READ"); n != unix.CAP_AUDIT_READ {
		t.Errorf("CAP_AUDIT_READ is %d", n)
	}
	if All()&(1<<unix.CAP_CHOWN) == 0 {
		t.Error("All lacks CAP_CHOWN")
	}
}
