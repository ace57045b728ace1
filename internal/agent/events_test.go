package agent

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"unipod.dev/unipod/internal/engine"
)

// TestManyEvents: none of many pods' Events is lost, however many come at once,
// and those of a pod are in order.
func TestManyEvents(t *testing.T) {
	l := newLab(t, nil)
	const pods, each = 200, 20
	uid := func(i int) types.UID { return types.UID(fmt.Sprint("many-", i)) }
	for j := range each {
		for i := range pods {
			pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: l.ns, Name: fmt.Sprint("p", i), UID: uid(i)}}
			l.agent.events.record(pod, &engine.Record{Type: v1.EventTypeNormal, Reason: fmt.Sprint("R", j), Message: "said"})
		}
	}
	var list *v1.EventList
	l.eventually("all Events are there", func() (all bool) {
		var err error
		if list, err = api.CoreV1().Events(l.ns).List(context.Background(), metav1.ListOptions{}); err != nil {
			t.Fatal(err)
		}
		return len(list.Items) == pods*each
	})
	slices.SortFunc(list.Items, func(a, b v1.Event) int {
		x, _ := strconv.Atoi(a.ResourceVersion)
		y, _ := strconv.Atoi(b.ResourceVersion)
		return x - y
	})
	next := map[types.UID]int{}
	for _, e := range list.Items {
		u := e.InvolvedObject.UID
		if e.Reason != fmt.Sprint("R", next[u]) {
			t.Errorf("%s: %s is number %d", u, e.Reason, next[u])
		}
		next[u]++
	}
}
