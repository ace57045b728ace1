package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCDI(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "lib"), []byte("driver"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll("/var/run/cdi", 0o755); err != nil {
		t.Fatal(err)
	}
	spec := "/var/run/cdi/unipod-test.json"
	err := os.WriteFile(spec, []byte(`{"cdiVersion":"0.6.0","kind":"unipod.test/dev","devices":[{"name":"one","containerEdits":{
		"env":["CDI=yes"],
		"deviceNodes":[{"path":"/dev/cdi-one","hostPath":"/dev/zero","permissions":"rw"}],
		"mounts":[{"hostPath":"`+dir+`/lib","containerPath":"/usr/lib/driver","options":["ro","bind"]}]}}]}`), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(spec) })
	p := w.pod("cdi")
	with := func(name string) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) { c.CDIDevices = []*runtimeapi.CDIDevice{{Name: name}} }
	}
	out, st := p.run(`echo $CDI; cat /usr/lib/driver; echo; head -c 3 /dev/cdi-one | od -An -tx1; touch /usr/lib/driver 2>&1 | grep -c Read-only`, with("unipod.test/dev=one"))
	if got := strings.Join(strings.Fields(out), " "); got != "yes driver 00 00 00 1" {
		t.Errorf("with the device: exit %d, %q", st.ExitCode, out)
	}
	if _, err := p.create("none", []string{"true"}, with("unipod.test/dev=two")); err == nil || !strings.Contains(err.Error(), "unipod.test/dev=two") {
		t.Errorf("a device that isn't there: %v", err)
	}
}
