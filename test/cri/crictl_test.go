package cri

import (
	"os"
	"os/exec"
	"testing"

	"unipod.dev/unipod/test/harness"
)

// Every command of crictl, by the script that is there for people too.
// $CRICTL names a binary that is there already.
func TestCrictl(t *testing.T) {
	for _, tool := range []string{"docker-registry", "jq", "curl", "script"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("the script needs %s, which is not installed", tool)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{self}
	if crictl := os.Getenv("CRICTL"); crictl != "" {
		args = append(args, crictl)
	}
	cmd := exec.Command("../crictl/run.sh", args...)
	cmd.Env = append(os.Environ(), harness.AsUnipod)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
