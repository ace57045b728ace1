package apparmor

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestContains(t *testing.T) {
	const list = "docker-default (enforce)\n/usr/bin/man (complain)\nwith (odd) name (enforce)\nlast (kill)"
	for name, want := range map[string]bool{
		"docker-default": true, "/usr/bin/man": true, "with (odd) name": true, "last": true,
		"docker": false, "with": false, "": false, "docker-default (enforce)": false,
	} {
		if got, err := contains(strings.NewReader(list), name); err != nil || got != want {
			t.Errorf("%q: %v, %v; want %v", name, got, err, want)
		}
	}
}

func TestDisabled(t *testing.T) {
	if Enabled() {
		t.Skip("AppArmor is enabled here: TestEnabled runs instead")
	}
	if err := EnsureLoaded("x"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "not enabled") {
		t.Errorf("EnsureLoaded: %v", err)
	}
}

// TestEnabled loads the default profile into the kernel and enters it.
func TestEnabled(t *testing.T) {
	if !Enabled() {
		t.Skip("AppArmor is not enabled in this kernel (test/vm/run.sh -a apparmor=1 -a security=apparmor runs this test)")
	}
	if err := EnsureLoaded("no-such-profile"); !errdefs.IsNotFound(err) {
		t.Errorf("a profile that isn't loaded: %v", err)
	}
	if _, err := exec.LookPath("apparmor_parser"); err != nil {
		if name, err := EnsureDefault(); name != "" || err != nil {
			t.Errorf("without apparmor_parser: %q, %v", name, err)
		}
		t.Skip("apparmor_parser is not installed")
	}
	for range 2 {
		name, err := EnsureDefault()
		if err != nil || name != DefaultProfile {
			t.Fatalf("%q, %v", name, err)
		}
	}
	if err := EnsureLoaded(DefaultProfile); err != nil {
		t.Error(err)
	}
	out, err := exec.Command("/bin/sh", "-c", "echo 'exec "+DefaultProfile+"' >/proc/self/attr/exec; exec cat /proc/self/attr/current").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != DefaultProfile+" (enforce)" {
		t.Errorf("a process that entered it is in %q, %v", out, err)
	}
	dir := t.TempDir()
	out, err = exec.Command("/bin/sh", "-c", "echo 'exec "+DefaultProfile+"' >/proc/self/attr/exec; exec mount -t tmpfs tmpfs "+dir).CombinedOutput()
	if err == nil {
		t.Errorf("the profile let a process mount: %s", out)
	}
	if err := os.WriteFile(dir+"/x", nil, 0o600); err != nil {
		t.Error(err)
	}
}
