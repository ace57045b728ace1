// Package bench measures how long pods take, of any runtime that speaks the
// CRI, beside the floor: the bare system calls that a pod can't do without,
// made in the same run on the same machine.
//
// It promises that what it makes it removes, that figures are of whole
// operations as a caller sees them, and that a run that fails in part says so
// instead of leaving a column empty. It owns the pods whose namespace is
// [Namespace].
//
// Floor: 9, a face. It knows the CRI and, for the floor and the peers' own
// commands, the machine.
package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/cri"
)

// Namespace is that of the pods a bench makes.
const Namespace = "unipod-bench"

// Options say how much is measured.
type Options struct {
	Pods     int    // one after another, for the phases
	Burst    int    // Parallel at a time, for pods per second; 0 leaves it out
	Parallel int    // pods started at the same time
	Hold     int    // pods held for the memory figure; 0 leaves it out
	Image    string // present in the runtime, with sleep and true in it
	Pulls    int    // of the image Pull, which is removed after each; 0 leaves it out
	Pull     string
}

// A Subject is a runtime to be measured.
type Subject struct {
	Name    string
	Service cri.Service
	// PID is the runtime's own process, whose growth is the pods' too; 0 when
	// it isn't known.
	PID int
}

// Figures are what was measured of one subject.
type Figures struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`

	Sandbox Times `json:"runPodSandbox,omitzero"`
	Create  Times `json:"createContainer,omitzero"`
	Start   Times `json:"startContainer,omitzero"`
	// PodStart is the three before, of each pod together.
	PodStart Times `json:"podStart,omitzero"`
	Exec     Times `json:"execSync,omitzero"`
	// Stop is stopping and removing the container and the sandbox.
	Stop Times `json:"stop,omitzero"`

	PodsPerSecond float64 `json:"podsPerSecond,omitempty"`
	Held          *Held   `json:"held,omitempty"`
	// Pull is pulling and unpacking the image of the run; see [Registry].
	Pull Times `json:"pull,omitzero"`

	// Failed says what could not be measured, and why.
	Failed []string `json:"failed,omitempty"`
}

// Held is what many pods at the same time took.
type Held struct {
	Pods    int     `json:"pods"`    // all of them ready, their containers running
	Seconds float64 `json:"seconds"` // from the first request to the last answer
	// PauseBytes is the proportional set size of all processes that a pod adds
	// (pause, a shim), but for its containers' own; NodeBytes is the runtime's
	// growth. Both are a pod's share.
	PauseBytes int64 `json:"pauseBytesPerPod"`
	NodeBytes  int64 `json:"nodeBytesPerPod"`
	// NodeRSS is all of the runtime's process; 0 when it is this one, whose
	// memory is the bench's too.
	NodeRSS int64 `json:"nodeRSSBytes,omitempty"`
}

// BytesPerPod is what a pod costs in memory beside the application's own.
func (h *Held) BytesPerPod() int64 { return h.PauseBytes + h.NodeBytes }

// Measure measures a subject. An error means that nothing was measured.
func Measure(ctx context.Context, s Subject, o Options) (f *Figures, err error) {
	f = &Figures{Name: s.Name}
	v, err := s.Service.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return nil, fmt.Errorf("%s doesn't answer: %w", s.Name, err)
	}
	f.Version = v.GetRuntimeName() + " " + v.GetRuntimeVersion()
	logs, err := os.MkdirTemp("", "unipod-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(logs)) }()
	m := &measurer{Subject: s, opts: o, logs: logs}
	// The first pod makes what all share: bridge, cgroup parents, caches.
	if _, err := m.pod(ctx, "warm"); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", s.Name, err), m.sweep(context.WithoutCancel(ctx)))
	}
	// Memory first: later the runtime has grown already, for pods that are gone.
	for _, part := range []struct {
		name string
		do   func(context.Context, *Figures) error
	}{{"memory", m.memory}, {"phases", m.phases}, {"pods per second", m.burst}, {"pull", m.pull}} {
		if perr := part.do(ctx, f); perr != nil {
			f.Failed = append(f.Failed, part.name+": "+perr.Error())
			if serr := m.sweep(context.WithoutCancel(ctx)); serr != nil {
				return f, serr
			}
		}
	}
	return f, ctx.Err()
}

type measurer struct {
	Subject
	opts Options
	logs string
}

// running is a pod of the bench.
type running struct {
	config             *runtimeapi.PodSandboxConfig
	sandbox, container string
	ran, created, up   time.Duration // of the three phases
}

// start makes a pod with one container that sleeps.
func (m *measurer) start(ctx context.Context, name string) (*running, error) {
	p := &running{config: &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: Namespace, Uid: Namespace + "-" + name},
		Hostname:     name,
		LogDirectory: filepath.Join(m.logs, name),
		DnsConfig:    &runtimeapi.DNSConfig{},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
		}},
	}}
	at := time.Now()
	lap := func() time.Duration {
		d := time.Since(at)
		at = at.Add(d)
		return d
	}
	r, err := m.Service.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		return nil, err
	}
	p.ran, p.sandbox = lap(), r.GetPodSandboxId()
	c, err := m.Service.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: p.sandbox, SandboxConfig: p.config,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "c"},
			Image:    &runtimeapi.ImageSpec{Image: m.opts.Image},
			Command:  appCommand,
			LogPath:  "c.log",
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			}},
		},
	})
	if err != nil {
		return p, err
	}
	p.created, p.container = lap(), c.GetContainerId()
	if _, err := m.Service.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: p.container}); err != nil {
		return p, err
	}
	p.up = lap()
	return p, nil
}

// remove ends a pod and takes it away.
func (m *measurer) remove(ctx context.Context, p *running) (time.Duration, error) {
	at := time.Now()
	if p.container != "" {
		if _, err := m.Service.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: p.container}); err != nil {
			return 0, err
		}
		if _, err := m.Service.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: p.container}); err != nil {
			return 0, err
		}
	}
	if _, err := m.Service.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.sandbox}); err != nil {
		return 0, err
	}
	_, err := m.Service.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.sandbox})
	return time.Since(at), err
}

// pod is one pod's life: start, exec, end.
func (m *measurer) pod(ctx context.Context, name string) (*life, error) {
	p, err := m.start(ctx, name)
	if err != nil {
		return nil, err
	}
	at := time.Now()
	answer, err := m.Service.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"true"}, Timeout: 10})
	if err != nil {
		return nil, err
	}
	l := &life{running: *p, exec: time.Since(at)}
	if answer.GetExitCode() != 0 {
		return nil, fmt.Errorf("true exited with code %d: %s", answer.GetExitCode(), answer.GetStderr())
	}
	l.stop, err = m.remove(ctx, p)
	return l, err
}

type life struct {
	running
	exec, stop time.Duration
}

// phases measures pods one after another.
func (m *measurer) phases(ctx context.Context, f *Figures) error {
	var ran, created, up, all, exec, stop []time.Duration
	for i := range m.opts.Pods {
		l, err := m.pod(ctx, fmt.Sprintf("serial-%d", i))
		if err != nil {
			return err
		}
		ran, created, up = append(ran, l.ran), append(created, l.created), append(up, l.up)
		all, exec, stop = append(all, l.ran+l.created+l.up), append(exec, l.exec), append(stop, l.stop)
	}
	f.Sandbox, f.Create, f.Start, f.PodStart = TimesOf(ran), TimesOf(created), TimesOf(up), TimesOf(all)
	f.Exec, f.Stop = TimesOf(exec), TimesOf(stop)
	return nil
}

// hold starts n pods, up to parallel at a time, and returns how long it took.
// The pods started so far are returned with an error too.
func (m *measurer) hold(ctx context.Context, prefix string, n, parallel int) ([]*running, time.Duration, error) {
	pods := make([]*running, n)
	at := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i := range n {
		g.Go(func() (err error) {
			pods[i], err = m.start(gctx, fmt.Sprintf("%s-%d", prefix, i))
			return err
		})
	}
	err := g.Wait()
	return pods, time.Since(at), err
}

// drop removes pods, up to parallel at a time.
func (m *measurer) drop(ctx context.Context, pods []*running, parallel int) error {
	var g errgroup.Group
	g.SetLimit(parallel)
	for _, p := range pods {
		g.Go(func() error {
			if p == nil {
				return nil
			}
			_, err := m.remove(ctx, p)
			return err
		})
	}
	return g.Wait()
}

func (m *measurer) burst(ctx context.Context, f *Figures) error {
	if m.opts.Burst == 0 {
		return nil
	}
	pods, took, err := m.hold(ctx, "burst", m.opts.Burst, m.opts.Parallel)
	if err == nil {
		f.PodsPerSecond = float64(m.opts.Burst) / took.Seconds()
	}
	return errors.Join(err, m.drop(context.WithoutCancel(ctx), pods, m.opts.Parallel))
}

// memory measures what pods add to the machine's processes.
func (m *measurer) memory(ctx context.Context, f *Figures) error {
	if m.opts.Hold == 0 {
		return nil
	}
	before, err := runtimeMemory(m.PID)
	if err != nil {
		return err
	}
	pods, took, err := m.hold(ctx, "hold", m.opts.Hold, m.opts.Parallel)
	if err == nil {
		f.Held = &Held{Pods: len(pods), Seconds: took.Seconds()}
		err = m.weigh(ctx, f.Held, pods, before)
	}
	return errors.Join(err, m.drop(context.WithoutCancel(ctx), pods, m.opts.Parallel))
}

// weigh makes sure that all pods are there and fills in what they weigh.
func (m *measurer) weigh(ctx context.Context, h *Held, pods []*running, before int64) error {
	if err := m.allRun(ctx, pods); err != nil {
		return err
	}
	after, err := runtimeMemory(m.PID)
	if err != nil {
		return err
	}
	if m.PID != 0 && m.PID != os.Getpid() {
		if h.NodeRSS, err = residentMemory(m.PID); err != nil {
			return err
		}
	}
	var ids []string
	for _, p := range pods {
		ids = append(ids, p.sandbox)
	}
	own, err := podMemory(ids)
	h.PauseBytes, h.NodeBytes = own/int64(len(pods)), max(after-before, 0)/int64(len(pods))
	return err
}

// allRun is an error unless the runtime says of every pod that it is ready and
// of every container that it runs.
func (m *measurer) allRun(ctx context.Context, pods []*running) error {
	sandboxes, err := m.Service.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY},
	}})
	if err != nil {
		return err
	}
	containers, err := m.Service.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	}})
	if err != nil {
		return err
	}
	up := map[string]bool{}
	for _, s := range sandboxes.GetItems() {
		up[s.Id] = true
	}
	for _, c := range containers.GetContainers() {
		up[c.Id] = true
	}
	for _, p := range pods {
		if !up[p.sandbox] || !up[p.container] {
			return fmt.Errorf("pod %s: sandbox ready %t, container running %t", p.config.Metadata.Name, up[p.sandbox], up[p.container])
		}
	}
	return nil
}

// sweep removes whatever the bench left in the runtime.
func (m *measurer) sweep(ctx context.Context) error {
	list, err := m.Service.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, s := range list.GetItems() {
		if s.GetMetadata().GetNamespace() != Namespace {
			continue
		}
		if _, serr := m.Service.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.Id}); serr != nil {
			err = errors.Join(err, serr)
			continue
		}
		_, rerr := m.Service.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id})
		err = errors.Join(err, rerr)
	}
	return err
}
