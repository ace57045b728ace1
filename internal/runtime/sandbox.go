package runtime

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/cgroup"
	"unipod.dev/unipod/internal/pause"
	"unipod.dev/unipod/internal/recipe"
)

// sandbox is a pod's sandbox as this node knows it.
type sandbox struct {
	r      *Runtime
	id     string
	config *runtimeapi.PodSandboxConfig
	dir    string // Run/sandboxes/ID
	name   string // reserved

	// op serialises what changes the sandbox: run, stop, remove, update.
	op    sync.Mutex
	setup *recipe.Recipe // until it is printed
	gone  bool           // removed

	mu    sync.Mutex // guards what follows
	rec   SandboxRecord
	conn  *pause.Conn // nil once stopped
	execs map[string]chan<- pause.Exit
	group *cgroup.Group // the pod's
	stops bool          // StopPodSandbox is at work: the end of pause is expected
	dead  bool          // pause is gone, what it held is being ended
	ended chan struct{} // closed once pause is gone and the containers' ends are recorded
}

func newSandbox(r *Runtime, rec SandboxRecord, config *runtimeapi.PodSandboxConfig) *sandbox {
	return &sandbox{
		r:      r,
		id:     rec.ID,
		config: config,
		dir:    filepath.Join(r.cfg.Run, "sandboxes", rec.ID),
		name:   sandboxName(config.Metadata),
		rec:    rec,
		execs:  map[string]chan<- pause.Exit{},
		ended:  make(chan struct{}),
	}
}

// sandboxName is the name under which a sandbox is reserved: containerd's.
func sandboxName(m *runtimeapi.PodSandboxMetadata) string {
	return fmt.Sprintf("%s_%s_%s_%d", m.Name, m.Namespace, m.Uid, m.Attempt)
}

func (s *sandbox) namespaces() *runtimeapi.NamespaceOption {
	if ns := s.config.GetLinux().GetSecurityContext().GetNamespaceOptions(); ns != nil {
		return ns
	}
	return &runtimeapi.NamespaceOption{}
}

func (s *sandbox) hostNetwork() bool {
	return s.namespaces().Network == runtimeapi.NamespaceMode_NODE
}

func (s *sandbox) hostPID() bool { return s.namespaces().Pid == runtimeapi.NamespaceMode_NODE }

func (s *sandbox) hostIPC() bool { return s.namespaces().Ipc == runtimeapi.NamespaceMode_NODE }

// userNS tells whether the pod has a user namespace of its own.
func (s *sandbox) userNS() bool {
	u := s.namespaces().UsernsOptions
	return u != nil && u.Mode == runtimeapi.NamespaceMode_POD && len(u.Uids) > 0
}

// update changes the record.
func (s *sandbox) update(change func(*SandboxRecord)) error {
	return updateRecord(&s.mu, s.dir, &s.rec, change)
}

// live returns the connection to the sandbox's pause, or an error when the
// sandbox has ended.
func (s *sandbox) live() (*pause.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil || !s.rec.StoppedAt.IsZero() || s.isEnded() {
		return nil, fmt.Errorf("sandbox %q is not running", s.id)
	}
	return s.conn, nil
}

// nsFile opens a namespace of pause's: "net", "user", "ipc", "uts", "pid".
func (s *sandbox) nsFile(kind string) (*os.File, error) {
	conn, err := s.live()
	if err != nil {
		return nil, err
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", conn.PID(), kind))
	if err != nil {
		return nil, fmt.Errorf("opening the %s namespace of sandbox %s: %w", kind, s.id, err)
	}
	return f, nil
}

// disconnect drops the connection; the pod lives on.
func (s *sandbox) disconnect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.Close()
	}
}

// watch carries exits from pause to whom they concern until pause is gone or
// the node closes. It runs in a goroutine of its own.
func (s *sandbox) watch(conn *pause.Conn) {
	for {
		for e := range conn.Exits() {
			s.exit(conn, e)
		}
		select {
		case <-s.r.closing:
			return
		case <-conn.Done():
			s.died()
			return
		case <-time.After(100 * time.Millisecond):
		}
		// Pause lives but the connection ended: take it up again.
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		next, err := pause.Connect(ctx, s.dir)
		cancel()
		if err != nil {
			select {
			case <-conn.Done():
			default:
				s.r.log.Error("lost the pod's pause process; ending the pod", "sandbox", s.id, "error", err)
				conn.Terminate()
				<-conn.Done()
			}
			s.died()
			return
		}
		s.mu.Lock()
		s.conn = next
		s.mu.Unlock()
		conn.Close()
		conn = next
	}
}

func (s *sandbox) exit(conn *pause.Conn, e pause.Exit) {
	s.mu.Lock()
	waiter := s.execs[e.ID]
	delete(s.execs, e.ID)
	s.mu.Unlock()
	if waiter != nil {
		waiter <- e // buffered
		s.forget(conn, e.ID)
		return
	}
	s.r.mu.Lock()
	c := s.r.containers[e.ID]
	s.r.mu.Unlock()
	if c == nil {
		s.forget(conn, e.ID) // an exec whose client went, or of an earlier node
		return
	}
	// Draining the log of one container must not delay the exit of another.
	s.r.background.Go(func() {
		c.finish(exitCode(e.Status), e.At)
		s.forget(conn, e.ID)
	})
}

func (s *sandbox) forget(conn *pause.Conn, id string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := conn.Release(ctx, id); err != nil {
		s.mu.Lock()
		stops := s.stops
		s.mu.Unlock()
		select {
		case <-conn.Done():
		case <-s.r.closing:
		default:
			if stops {
				return // pause is being ended, and what it kept with it
			}
			s.r.log.Warn("releasing an ended process", "sandbox", s.id, "id", id, "error", err)
		}
	}
}

// died records the end of a pod whose pause is gone: the kernel has ended its
// processes with it (in a host PID pod the cgroup is killed).
func (s *sandbox) died() {
	now := time.Now()
	s.mu.Lock()
	unexpected := !s.stops
	// From here on it isn't ready: whoever sees a container's end must not take
	// the sandbox for one to restart it in.
	s.dead = true
	for id, w := range s.execs {
		delete(s.execs, id)
		close(w)
	}
	group, conn := s.group, s.conn
	s.mu.Unlock()
	if group != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		if err := group.Kill(ctx); err != nil {
			s.r.log.Warn("killing what is left of a pod", "sandbox", s.id, "error", err)
		}
		cancel()
	}
	if conn != nil {
		conn.Close()
	}
	for _, c := range s.r.containersOf(s.id) {
		c.op.Lock() // a start still at work ends first; later ones have no pause
		running := c.state() == runtimeapi.ContainerState_CONTAINER_RUNNING
		c.op.Unlock()
		if running {
			c.finish(killedExitCode, now)
		}
	}
	close(s.ended)
	if unexpected {
		s.r.log.Warn("the pod's pause process ended; the pod ended with it", "sandbox", s.id)
		s.r.emit(s.id, s, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	}
}

func (s *sandbox) isEnded() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

func (s *sandbox) state() runtimeapi.PodSandboxState {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rec.Ready && s.rec.StoppedAt.IsZero() && !s.dead && !s.isEnded() {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

func (s *sandbox) status() *runtimeapi.PodSandboxStatus {
	state := s.state()
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &runtimeapi.PodSandboxStatus{
		Id:             s.id,
		Metadata:       s.config.Metadata,
		State:          state,
		CreatedAt:      nanos(s.rec.CreatedAt),
		Labels:         s.config.Labels,
		Annotations:    s.config.Annotations,
		RuntimeHandler: s.rec.Handler,
		Network:        &runtimeapi.PodSandboxNetworkStatus{},
		Linux:          &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: s.namespaces()}},
	}
	if a := s.rec.Network; a != nil && state == runtimeapi.PodSandboxState_SANDBOX_READY {
		for i, ip := range a.IPs {
			if i == 0 {
				st.Network.Ip = ip.Addr().String()
				continue
			}
			st.Network.AdditionalIps = append(st.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip.Addr().String()})
		}
	}
	return st
}

func (s *sandbox) createdAt() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rec.CreatedAt
}

func (s *sandbox) listed() *runtimeapi.PodSandbox {
	state := s.state()
	s.mu.Lock()
	defer s.mu.Unlock()
	return &runtimeapi.PodSandbox{
		Id:             s.id,
		Metadata:       s.config.Metadata,
		State:          state,
		CreatedAt:      nanos(s.rec.CreatedAt),
		Labels:         s.config.Labels,
		Annotations:    s.config.Annotations,
		RuntimeHandler: s.rec.Handler,
	}
}
