package engine

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"path"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubernetes/pkg/apis/core/v1/helper/qos"

	"unipod.dev/unipod/internal/lifecycle"
	"unipod.dev/unipod/internal/podspec"
)

const (
	// resubscribe is the pause before a broken subscription is renewed.
	resubscribe = time.Second
	// pollInterval replaces the subscription with runtimes that have no
	// events, as kubelet's relist does.
	pollInterval = time.Second
)

// ownRuntime is the name of unipod's runtime.
const ownRuntime = "unipod"

// runtimeInfo is what the engine has to know about its runtime.
type runtimeInfo struct {
	name    string
	systemd bool // cgroup parents are slices
	// parents: it makes and removes the cgroup of a pod itself.
	parents bool
}

// meet asks the runtime who it is.
func (e *Engine) meet(ctx context.Context) error {
	v, err := e.cfg.CRI.Version(ctx, &runtimeapi.VersionRequest{Version: "0.1.0"})
	if err != nil {
		return fmt.Errorf("engine: asking the runtime for its version: %w", err)
	}
	info := runtimeInfo{name: v.RuntimeName, parents: v.RuntimeName == ownRuntime}
	c, err := e.cfg.CRI.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{})
	switch {
	case err == nil:
		info.systemd = c.GetLinux().GetCgroupDriver() == runtimeapi.CgroupDriver_SYSTEMD
	case status.Code(err) != codes.Unimplemented:
		return fmt.Errorf("engine: asking the runtime for its configuration: %w", err)
	}
	e.mu.Lock()
	e.runtime = info
	e.mu.Unlock()
	e.log.Info("runtime", "name", v.RuntimeName, "version", v.RuntimeVersion, "systemd", info.systemd)
	return nil
}

// listen keeps the workers told of what happens in the runtime until ctx ends.
func (e *Engine) listen(ctx context.Context) {
	e.workers.Add(2)
	period := make(chan time.Duration, 1)
	go func() {
		defer e.workers.Done()
		e.relist(ctx, period)
	}()
	go func() {
		defer e.workers.Done()
		e.rotateLogs(ctx)
	}()
	for ctx.Err() == nil {
		err := e.cfg.CRI.ContainerEvents(ctx, e.pokeAll, func(ev *runtimeapi.ContainerEventResponse) error {
			e.poke(PodUID(ev.GetPodSandboxStatus().GetMetadata().GetUid()), ev.GetContainerId())
			return nil
		})
		if ctx.Err() != nil {
			return
		}
		if status.Code(err) == codes.Unimplemented {
			e.log.Info("the runtime has no container events: polling it", "every", pollInterval)
			period <- pollInterval
			<-ctx.Done()
			return
		}
		e.log.Warn("the runtime's events broke off", "err", err)
		timer := e.clock.NewTimer(resubscribe)
		select {
		case <-ctx.Done():
		case <-timer.C():
		}
		timer.Stop()
	}
}

// poke wakes the worker of a pod; an event that names none wakes them all.
func (e *Engine) poke(uid PodUID, container string) {
	e.mu.Lock()
	w, ok := e.pods[uid]
	e.mu.Unlock()
	switch {
	case ok:
		w.poke()
	case uid == "" && container != "":
		e.pokeAll()
	}
}

func (e *Engine) pokeAll() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, w := range e.pods {
		w.poke()
	}
}

// relist is the safety net: now and then it compares what the runtime lists
// with what it listed before, and wakes the pods that differ.
func (e *Engine) relist(ctx context.Context, period <-chan time.Duration) {
	ticker := e.clock.NewTicker(e.cfg.Relist)
	defer func() { ticker.Stop() }()
	last := map[PodUID]uint64{}
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-period:
			ticker.Stop()
			ticker = e.clock.NewTicker(min(p, e.cfg.Relist))
			continue
		case <-ticker.C():
		}
		now, err := e.digests(ctx)
		if err != nil {
			if ctx.Err() == nil {
				e.log.Error("listing the runtime's pods failed", "err", err)
			}
			continue
		}
		for uid, d := range now {
			if last[uid] != d {
				e.poke(uid, "")
			}
		}
		for uid := range last {
			if _, ok := now[uid]; !ok {
				e.poke(uid, "")
			}
		}
		last = now
	}
}

// digests sums up, per pod, the states of its sandboxes and containers.
func (e *Engine) digests(ctx context.Context) (map[PodUID]uint64, error) {
	sandboxes, err := e.cfg.CRI.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	containers, err := e.cfg.CRI.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	lines := map[PodUID][]string{}
	for _, s := range sandboxes.Items {
		uid := PodUID(s.Labels[podspec.LabelPodUID])
		lines[uid] = append(lines[uid], s.Id+s.State.String())
	}
	for _, c := range containers.Containers {
		uid := PodUID(c.Labels[podspec.LabelPodUID])
		lines[uid] = append(lines[uid], c.Id+c.State.String())
	}
	sums := map[PodUID]uint64{}
	for uid, l := range lines {
		slices.Sort(l)
		h := fnv.New64a()
		h.Write([]byte(strings.Join(l, "\n")))
		sums[uid] = h.Sum64()
	}
	return sums, nil
}

// ObjectsChanged tells that ConfigMaps or Secrets of a namespace have changed:
// volumes that show them are brought up to date soon after, and what failed for
// want of them is tried again.
func (e *Engine) ObjectsChanged(namespace string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, w := range e.pods {
		if w.snapshot().Namespace == namespace {
			w.askRefresh()
			w.post(lifecycle.ObjectsChanged{})
		}
	}
}

// RefreshVolumes has a pod's volumes brought up to date: something they show
// is about to expire.
func (e *Engine) RefreshVolumes(uid PodUID) {
	e.mu.Lock()
	w, ok := e.pods[uid]
	e.mu.Unlock()
	if ok {
		w.askRefresh()
	}
}

// cgroupParent is the pod's cgroup as the runtime's driver names it. Kubelet
// makes and removes that cgroup; here the runtime does, and one that does not
// is left to put its containers where it likes.
func (e *Engine) cgroupParent(pod *v1.Pod) string {
	if !e.runtime.parents {
		return ""
	}
	elements := strings.FieldsFunc(e.cfg.CgroupRoot, func(r rune) bool { return r == '/' })
	if class := qos.GetPodQOS(pod); class != v1.PodQOSGuaranteed {
		elements = append(elements, strings.ToLower(string(class)))
	}
	elements = append(elements, "pod"+string(pod.UID))
	if !e.runtime.systemd {
		return "/" + path.Join(elements...)
	}
	for i := range elements {
		elements[i] = strings.ReplaceAll(elements[i], "-", "_")
	}
	return strings.Join(elements, "-") + ".slice"
}

func (e *Engine) services(namespace string) []*v1.Service {
	if e.cfg.Services == nil {
		return nil
	}
	services := slices.Clone(e.cfg.Services(namespace))
	slices.SortFunc(services, func(a, b *v1.Service) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return services
}
