package engine

import (
	"context"
	"fmt"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// TestSlowReader: a reader that does not read costs no more than so much, and
// still learns how every pod is now and which are gone.
func TestSlowReader(t *testing.T) {
	var h hub
	w := h.register()
	pod := func(i, version int) *v1.Pod {
		return &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(fmt.Sprint(i)), ResourceVersion: fmt.Sprint(version)}}
	}
	const pods, versions = 10, 10000
	for v := range versions {
		for i := range pods {
			h.publish(Event{Type: StatusChanged, Pod: pod(i, v)})
			h.publish(Event{Type: Recorded, Pod: pod(i, v), Record: &Record{Message: fmt.Sprint(v)}})
		}
	}
	h.publish(Event{Type: Removed, Pod: pod(0, versions)})
	if len(w.queue) > 3*maxBacklog {
		t.Errorf("the backlog holds %d events", len(w.queue))
	}
	ctx, cancel := context.WithCancel(t.Context())
	events := h.deliver(ctx, w)
	last := map[types.UID]string{}
	for ev := range events {
		if ev.Type == StatusChanged {
			if old := last[ev.Pod.UID]; len(old) > len(ev.Pod.ResourceVersion) {
				t.Errorf("status %s after %s", ev.Pod.ResourceVersion, old)
			}
			last[ev.Pod.UID] = ev.Pod.ResourceVersion
		}
		if ev.Type == Removed {
			break
		}
	}
	cancel()
	for range events {
	}
	for i := range pods {
		if got := last[types.UID(fmt.Sprint(i))]; got != fmt.Sprint(versions-1) {
			t.Errorf("pod %d was last seen at version %s", i, got)
		}
	}
	if len(h.watchers) != 0 {
		t.Error("the watcher is not forgotten")
	}
}
