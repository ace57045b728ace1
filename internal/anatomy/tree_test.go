package anatomy

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"unipod.dev/unipod/test/golden"
)

var now = time.Date(2026, 11, 23, 15, 0, 0, 0, time.UTC)

// demo is the pod of examples/demo, with every kind of thing a pod can have.
func demo() *Pod {
	shared := func(mnt, cgroup uint64) []Namespace {
		return []Namespace{
			{"net", 4026532201, "pod"}, {"uts", 4026532202, "pod"}, {"ipc", 4026532203, "pod"}, {"pid", 4026532204, "pod"},
			{"mnt", mnt, ""}, {"user", 4026531837, "host"}, {"cgroup", cgroup, ""},
		}
	}
	return &Pod{
		Namespace: "default", Name: "demo", UID: "b3d0", SandboxID: "3f2a91c0e4b1aa00ff", Hostname: "demo", State: "Ready",
		CreatedAt: now.Add(-150 * time.Second),
		Pause: &Process{PID: 4711, InPod: []int{1}, Command: []string{"unipod-pause"}, Memory: 34 << 10,
			Namespaces: []Namespace{{"net", 4026532201, ""}, {"uts", 4026532202, ""}, {"ipc", 4026532203, ""}, {"pid", 4026532204, ""},
				{"mnt", 4026532205, ""}, {"user", 4026531837, "host"}, {"cgroup", 4026531835, "host"}},
			Children: []Process{{PID: 4802, InPod: []int{19}, Command: []string{"sleep", "9"}, Memory: 4096}}},
		Network: &Network{Addresses: []string{"10.88.0.4/16", "fd00:88::4/64"}, Gateways: []string{"10.88.0.1", "fd00:88::1"},
			MAC: "0a:58:0a:58:00:04", MTU: 1500, HostVeth: "veth3f2a91c0", HostBridge: "unipod0", Ports: []string{"*:8080/tcp -> 80"}},
		Cgroup: &Cgroup{Path: "/unipod/burstable/podb3d0/3f2a", MemoryBytes: 3 << 20, CPU: 123456 * time.Microsecond, PIDs: 5},
		Containers: []Container{
			{Name: "prepare", ID: "aaaaaaaaaaaaaaaaaa", Image: "localhost/unipod-demo:1", State: "Exited",
				StartedAt: now.Add(-149 * time.Second), FinishedAt: now.Add(-148 * time.Second), Reason: "Completed", Recipe: " 1  execve(...)\n"},
			{Name: "clock", ID: "bbbbbbbbbbbbbbbbbb", Image: "localhost/unipod-demo:1", State: "Running", Attempt: 2, StartedAt: now.Add(-30 * time.Second),
				Process: &Process{PID: 4720, InPod: []int{7}, Command: []string{"sh", "-c", "while sleep 1; do\n  date\ndone, and a lot more that doesn't fit in a line"},
					UID: 1000, Memory: 300 << 10, Namespaces: shared(4026532301, 4026532302),
					Children: []Process{{PID: 4733, InPod: []int{8}, Command: []string{"sleep", "1"}, UID: 1000, Memory: 8192}}},
				Mounts: []Mount{
					{Target: "/", Type: "overlay", Origin: "image localhost/unipod-demo:1, with a writable layer of its own"},
					{Target: "/proc", Type: "proc", Origin: "of the container's PID namespace"},
					{Target: "/sys/fs/cgroup/memory", Type: "cgroup", Origin: "the container's cgroup"},
					{Target: "/www", Type: "tmpfs", Origin: "emptyDir www", Source: "/var/lib/unipod/pods/b3d0/volumes/kubernetes.io~empty-dir/www"},
					{Target: "/page", Type: "ext4", ReadOnly: true, Origin: "configMap page", Source: "/var/lib/unipod/pods/b3d0/volumes/kubernetes.io~configmap/page"},
				},
				Masked: []string{"/proc/kcore", "/sys/firmware"}, ReadOnly: []string{"/proc/sys"},
				Cgroup: &Cgroup{Path: "/unipod/burstable/podb3d0/3f2a/bbbb", MemoryBytes: 1 << 20, MemoryLimit: 32 << 20, CPU: time.Second, CPULimit: 0.2, PIDs: 2, PIDLimit: 512}},
			{Name: "web", ID: "cccccccccccccccccc", Image: "localhost/unipod-demo:1", State: "Created"},
		},
	}
}

func TestTree(t *testing.T) {
	stopped := &Pod{Namespace: "kube-system", Name: "gone", UID: "u", SandboxID: "0123", State: "NotReady", CreatedAt: now.Add(-72 * time.Hour),
		Network: &Network{Host: true}, Containers: []Container{{Name: "c", ID: "dd", Image: "i", State: "Exited", ExitCode: 137, Reason: "OOMKilled", FinishedAt: now.Add(-3 * time.Hour)}}}
	for _, tc := range []struct {
		golden  string
		pod     *Pod
		recipes bool
	}{{"demo", demo(), true}, {"stopped", stopped, false}} {
		t.Run(tc.golden, func(t *testing.T) {
			var b bytes.Buffer
			if err := tc.pod.Tree(&b, now, tc.recipes); err != nil {
				t.Fatal(err)
			}
			golden.Check(t, "testdata/"+tc.golden+".txt", b.String())
		})
	}
}

// A command line is the container's own text: it can't draw branches or
// colours of its own.
func TestHostileCommand(t *testing.T) {
	p := demo()
	p.Containers[1].Process.Command = []string{"\x1b[2J\n└─ pause", "\u202egnp"}
	p.Containers[1].Mounts[1].Target = "/a\x1b[31m\n└─ pause\t"
	var b bytes.Buffer
	if err := p.Tree(&b, now, false); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(b.String(), "\x1b\u202e") || strings.Contains(b.String(), "\n└─ pause\"") || strings.Contains(b.String(), "\n└─ pause\t") {
		t.Errorf("obeyed:\n%s", b.String())
	}
}

func TestJSONKeepsEverything(t *testing.T) {
	b, err := json.Marshal(demo())
	if err != nil {
		t.Fatal(err)
	}
	var back Pod
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(demo(), &back); diff != "" {
		t.Error(diff)
	}
}
