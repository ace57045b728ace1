package runtime

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// eventBacklog is how many events a subscriber may lag behind before it is
// told to start over: a slow one must hold neither memory nor containers.
const eventBacklog = 4096

// eventHub hands container events to subscribers.
type eventHub struct {
	mu     sync.Mutex
	subs   map[*subscriber]struct{}
	closed bool
}

type subscriber struct {
	events chan *runtimeapi.ContainerEventResponse
	err    error // set before events is closed
}

func newEventHub() *eventHub { return &eventHub{subs: map[*subscriber]struct{}{}} }

func (h *eventHub) subscribe() (*subscriber, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, errClosing
	}
	s := &subscriber{events: make(chan *runtimeapi.ContainerEventResponse, eventBacklog)}
	h.subs[s] = struct{}{}
	return s, nil
}

func (h *eventHub) drop(s *subscriber, err error) {
	if _, there := h.subs[s]; there {
		delete(h.subs, s)
		s.err = err
		close(s.events)
	}
}

func (h *eventHub) unsubscribe(s *subscriber) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drop(s, nil)
}

// wanted tells whether anybody listens, so that nothing is computed for
// nobody.
func (h *eventHub) wanted() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.subs) > 0
}

func (h *eventHub) publish(ev *runtimeapi.ContainerEventResponse) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		select {
		case s.events <- ev:
		default:
			h.drop(s, errLagging)
		}
	}
}

func (h *eventHub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for s := range h.subs {
		h.drop(s, errClosing)
	}
}

var (
	errClosing = errUnavailable("the runtime is shutting down")
	errLagging = errUnavailable("the subscriber lags too far behind the container events; subscribe again and list")
)

type errUnavailable string

func (e errUnavailable) Error() string { return string(e) }
func (e errUnavailable) Unwrap() error { return errdefs.ErrUnavailable }

// ContainerEvents implements cri.Runtime.
func (r *Runtime) ContainerEvents(ctx context.Context, subscribed func(), each func(*runtimeapi.ContainerEventResponse) error) (err error) {
	defer toGRPC(&err)
	s, err := r.events.subscribe()
	if err != nil {
		return err
	}
	defer r.events.unsubscribe(s)
	if subscribed != nil {
		subscribed()
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case ev, ok := <-s.events:
			if !ok {
				return s.err
			}
			if err := each(ev); err != nil {
				return err
			}
		}
	}
}

// emit tells subscribers about a container (or a sandbox, which is an event
// about the container of that ID) with the state of the whole pod.
func (r *Runtime) emit(id string, s *sandbox, kind runtimeapi.ContainerEventType) {
	if !r.events.wanted() {
		return
	}
	ev := &runtimeapi.ContainerEventResponse{
		ContainerId:        id,
		ContainerEventType: kind,
		CreatedAt:          time.Now().UnixNano(),
		PodSandboxStatus:   s.status(),
	}
	for _, c := range r.containersOf(s.id) {
		ev.ContainersStatuses = append(ev.ContainersStatuses, c.status())
	}
	r.events.publish(ev)
}
