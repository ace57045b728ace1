package runtime

import (
	"context"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestPodRuns(t *testing.T) {
	w := newWorld(t)
	p := w.pod("web")
	id := p.start("app", []string{"sh", "-c", "echo hello; hostname; sleep 1000"})
	if out, code := w.exec(id, "sh", "-c", "echo $FROM; id -u; cat /proc/1/comm"); code != 0 || out != "image\n0\nsleep\n" {
		t.Errorf("exec: %q, exit %d", out, code)
	}
	if _, err := w.StopContainer(context.Background(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 0}); err != nil {
		t.Fatal(err)
	}
	if st := w.status(id); st.ExitCode != 137 || st.Reason != "Error" {
		t.Errorf("killed: exit %d, reason %s", st.ExitCode, st.Reason)
	}
	if out := w.output(id); out != "hello\nweb\n" {
		t.Errorf("log: %q", out)
	}
	out, st := p.run("exit 3")
	if st.ExitCode != 3 || out != "" {
		t.Errorf("exit code %d, output %q", st.ExitCode, out)
	}
	_, err := p.create("none", nil, func(c *runtimeapi.ContainerConfig) { c.Image.Image = "localhost/none" })
	if err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("an image that isn't there: %v", err)
	}
}
