package manifest

import (
	"strings"
	"testing"
)

// What an API server allows only when it is told to is allowed here.
func TestPrivileged(t *testing.T) {
	objects, err := Loader{}.Load([]string{"-"}, strings.NewReader(`
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  hostNetwork: true
  hostPID: true
  hostIPC: true
  containers:
  - {name: c, image: i, securityContext: {privileged: true}}
`))
	if err != nil {
		t.Fatal(err)
	}
	if p := objects.Pods[0].Spec.Containers[0].SecurityContext.Privileged; p == nil || !*p {
		t.Errorf("privileged: %v", p)
	}
}
