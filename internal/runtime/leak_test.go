package runtime

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// noLeaks wants that at the test's end, when every world made after this call
// is closed, there is nothing that wasn't there before: descriptors,
// goroutines, mounts, veths, control groups.
func noLeaks(t *testing.T) {
	t.Helper()
	goroutines := goleak.IgnoreCurrent()
	before := held(t)
	t.Cleanup(func() {
		if t.Failed() {
			return // the failure is the story
		}
		if err := goleak.Find(goroutines); err != nil {
			t.Errorf("goroutines: %v", err)
		}
		var left map[string][]string
		for range 100 { // a veth goes behind the answer
			left = map[string][]string{}
			for kind, now := range held(t) {
				for _, item := range now {
					if i := slices.Index(before[kind], item); i >= 0 {
						continue
					}
					left[kind] = append(left[kind], item)
				}
			}
			if len(left) == 0 {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		for kind, items := range left {
			t.Errorf("%s left: %s", kind, strings.Join(items, "\n\t"))
		}
	})
}

// held is what the process and its namespaces hold, by kind.
func held(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err != nil || strings.HasPrefix(to, "anon_inode:[event") || strings.HasPrefix(to, "/proc/") && strings.HasSuffix(to, "/fd") {
			continue // the poller's own, and the directory being read
		}
		if to == os.DevNull || to == "/sys/fs/cgroup" || strings.HasPrefix(to, "/memfd:") || strings.Contains(to, "/.fsverity-check-") {
			continue // pause's and the cgroup library's, opened once; containerd's, closed with the garbage
		}
		out["descriptors"] = append(out["descriptors"], fd.Name()+" "+to)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		out["mounts"] = append(out["mounts"], f[0]+" "+f[4])
	}
	links, err := exec.Command("ip", "-o", "link", "show").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(links)) {
		out["links"] = append(out["links"], strings.Fields(line)[1])
	}
	groups, err := filepath.Glob("/sys/fs/cgroup/*/up*")
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		// Others' tests have theirs.
		if mine(g) {
			out["control groups"] = append(out["control groups"], g)
		}
	}
	return out
}

// mine tells whether this process made the world that a control group is
// named after.
func mine(group string) bool {
	_, ours := worlds.Load(filepath.Base(group))
	return ours
}
