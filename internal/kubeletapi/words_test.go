package kubeletapi

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

func TestSubresources(t *testing.T) {
	for path, want := range map[string]string{
		"/pods": "pods proxy", "/pods/x": "pods proxy", "/podsx": "proxy", "/runningpods/": "pods proxy", "/healthz/ping": "healthz proxy",
		"/stats/summary": "stats", "/metrics": "metrics", "/metrics/cadvisor": "metrics", "/metricsx": "proxy",
		"/exec/a/b/c": "proxy", "/containerLogs/a/b/c": "proxy", "/logs/syslog": "proxy", "/": "proxy", "": "proxy",
	} {
		if got := strings.Join(subresources(path), " "); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
}

// The words are kubelet's.
func TestLogID(t *testing.T) {
	waiting := func(reason string) v1.ContainerState {
		return v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: reason}}
	}
	running := v1.ContainerState{Running: &v1.ContainerStateRunning{}}
	ended := func(id string) v1.ContainerState {
		return v1.ContainerState{Terminated: &v1.ContainerStateTerminated{ContainerID: id}}
	}
	for name, tc := range map[string]struct {
		st       v1.ContainerStatus
		previous bool
		want     string
	}{
		"running":            {st: v1.ContainerStatus{ContainerID: "unipod://b", State: running}, want: "b"},
		"ended":              {st: v1.ContainerStatus{State: ended("unipod://b")}, want: "b"},
		"previous":           {st: v1.ContainerStatus{ContainerID: "unipod://b", State: running, LastTerminationState: ended("unipod://a")}, previous: true, want: "a"},
		"no previous":        {st: v1.ContainerStatus{State: running}, previous: true, want: `previous terminated container "main" in pod "p" not found`},
		"backing off":        {st: v1.ContainerStatus{State: waiting("CrashLoopBackOff"), LastTerminationState: ended("unipod://a")}, want: "a"},
		"creating":           {st: v1.ContainerStatus{State: waiting("ContainerCreating")}, want: `container "main" in pod "p" is waiting to start: ContainerCreating`},
		"no image":           {st: v1.ContainerStatus{State: waiting("ErrImagePull")}, want: `container "main" in pod "p" is waiting to start: image can't be pulled`},
		"no image yet":       {st: v1.ContainerStatus{State: waiting("ImagePullBackOff")}, want: `container "main" in pod "p" is waiting to start: trying and failing to pull image`},
		"ended, nobody knew": {st: v1.ContainerStatus{State: ended("")}, want: `container "main" in pod "p" is terminated`},
		"nothing":            {want: `container "main" in pod "p" is waiting to start - no logs yet`},
	} {
		tc.st.Name = "main"
		pod := &v1.Pod{Status: v1.PodStatus{ContainerStatuses: []v1.ContainerStatus{tc.st}}}
		pod.Name = "p"
		got, err := logID(pod, "main", tc.previous)
		if err != nil {
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
	if _, err := logID(&v1.Pod{}, "other", false); err == nil {
		t.Error("a container without a status has a log")
	}
}
