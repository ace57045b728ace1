// Package local fills an anatomy in from this machine: the records the node
// keeps in its Run directory, /proc, /sys and the control groups.
//
// It asks the node nothing and changes nothing, so it works beside a node of
// any age, and shows what is there rather than what the node believes. A pod
// that ends while it is looked at is shown as far as it was seen. It needs
// root, as the records do.
//
// Floor: 10, the one face that reads the runtime's records.
package local

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/anatomy"
	"unipod.dev/unipod/internal/runtime"
)

// Read describes the pod that name means: "name", "namespace/name", a UID, or
// the beginning of a sandbox ID. Of several sandboxes of one pod the newest is
// meant. run is the node's Run directory. An unknown pod is
// errdefs.ErrNotFound, an ambiguous name errdefs.ErrInvalidArgument.
func Read(run, name string) (*anatomy.Pod, error) {
	records, err := runtime.ReadSandboxRecords(run)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("reading the pods in %s: %w (run as root)", run, err)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the pods in %s: %w", run, err)
	}
	rec, config, err := find(records, name)
	if err != nil {
		return nil, err
	}
	containers, err := runtime.ReadContainerRecords(run)
	if err != nil {
		return nil, fmt.Errorf("reading the containers in %s: %w", run, err)
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	self, err := openProc(os.Getpid())
	if err != nil {
		return nil, err
	}
	defer self.close()
	host, err := self.namespaces()
	if err != nil {
		return nil, err
	}
	r := &reader{run: run, host: host, groups: findHierarchy(parseMountinfo(table)), first: map[int]bool{}}
	return r.pod(rec, config, containers)
}

// find picks the sandbox that name means.
func find(records []*runtime.SandboxRecord, name string) (*runtime.SandboxRecord, *runtimeapi.PodSandboxConfig, error) {
	type candidate struct {
		rec    *runtime.SandboxRecord
		config *runtimeapi.PodSandboxConfig
	}
	var found []candidate
	for _, rec := range records {
		config := &runtimeapi.PodSandboxConfig{}
		if err := unmarshal(rec.Config, config); err != nil {
			return nil, nil, fmt.Errorf("record of sandbox %.13s: %w", rec.ID, err)
		}
		m := config.GetMetadata()
		if name == m.GetName() || name == m.GetNamespace()+"/"+m.GetName() || name == m.GetUid() ||
			(len(name) >= 4 && strings.HasPrefix(rec.ID, name)) {
			found = append(found, candidate{rec, config})
		}
	}
	if len(found) == 0 {
		return nil, nil, fmt.Errorf("pod %q: %w on this node (unipod ps lists the pods)", name, errdefs.ErrNotFound)
	}
	// A sandbox made anew leaves the old one behind for a while.
	newest := slices.MaxFunc(found, func(a, b candidate) int { return a.rec.CreatedAt.Compare(b.rec.CreatedAt) })
	for _, c := range found {
		if c.config.GetMetadata().GetUid() != newest.config.GetMetadata().GetUid() {
			return nil, nil, fmt.Errorf("pod %q means several pods; name one as namespace/name or by its UID: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	return newest.rec, newest.config, nil
}

// unmarshal reads a CRI message as a record holds it, of a newer build too.
func unmarshal(raw []byte, m proto.Message) error {
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(raw, m)
}

// reader looks at one pod.
type reader struct {
	run    string
	host   map[string]uint64
	groups hierarchy
	first  map[int]bool // the first processes of the containers
}

func (r *reader) pod(rec *runtime.SandboxRecord, config *runtimeapi.PodSandboxConfig, containers []*runtime.ContainerRecord) (*anatomy.Pod, error) {
	m := config.GetMetadata()
	out := &anatomy.Pod{
		Namespace: m.GetNamespace(), Name: m.GetName(), UID: m.GetUid(), SandboxID: rec.ID,
		Hostname: config.GetHostname(), CreatedAt: rec.CreatedAt, State: "Ready",
		Network: networkOf(rec, config), Cgroup: r.groups.read(rec.Cgroup), Containers: []anatomy.Container{},
	}
	if !rec.Ready || !rec.StoppedAt.IsZero() {
		out.State = "NotReady"
	}
	out.Recipe = r.recipe("sandboxes", rec.ID)

	var pod map[string]uint64
	pause, err := r.process(rec.PausePID, rec.Cgroup)
	if err != nil {
		return nil, err
	}
	if pause != nil {
		defer pause.close()
		if pod, err = pause.namespaces(); err == nil {
			out.Pause, err = pause.describe(nil, r.host)
		}
		if gone(err) {
			out.Pause, out.State = nil, "NotReady"
		} else if err != nil {
			return nil, err
		}
	} else {
		out.State = "NotReady"
	}

	containers = slices.DeleteFunc(containers, func(c *runtime.ContainerRecord) bool { return c.SandboxID != rec.ID })
	slices.SortFunc(containers, func(a, b *runtime.ContainerRecord) int { return a.CreatedAt.Compare(b.CreatedAt) })
	for _, c := range containers {
		r.first[c.PID] = true
	}
	for _, c := range containers {
		described, err := r.container(c, pod)
		if err != nil {
			return nil, err
		}
		out.Containers = append(out.Containers, *described)
	}
	if out.Pause != nil {
		out.Pause.Children = r.children(pause, pod)
	}
	return out, nil
}

func (r *reader) container(rec *runtime.ContainerRecord, pod map[string]uint64) (*anatomy.Container, error) {
	config := &runtimeapi.ContainerConfig{}
	if err := unmarshal(rec.Config, config); err != nil {
		return nil, fmt.Errorf("record of container %.13s: %w", rec.ID, err)
	}
	image := config.GetImage().GetUserSpecifiedImage()
	if image == "" {
		image = config.GetImage().GetImage()
	}
	out := &anatomy.Container{
		Name: config.GetMetadata().GetName(), ID: rec.ID, Attempt: config.GetMetadata().GetAttempt(),
		Image: image, ImageID: rec.ImageID, State: "Created",
		ExitCode: rec.ExitCode, Reason: rec.Reason, StartedAt: rec.StartedAt, FinishedAt: rec.FinishedAt,
		Recipe: r.recipe("containers", rec.ID),
	}
	switch {
	case !rec.FinishedAt.IsZero():
		out.State = "Exited"
		return out, nil
	case rec.StartedAt.IsZero():
		return out, nil
	}
	out.State = "Running"
	p, err := r.process(rec.PID, rec.Cgroup)
	if err != nil || p == nil {
		return out, err
	}
	defer p.close()
	if out.Process, err = p.describe(pod, r.host); err != nil {
		return out, ifNotGone(err)
	}
	out.Process.Children = r.children(p, pod)
	out.Cgroup = r.groups.read(rec.Cgroup)
	table, err := p.dir.ReadFile("mountinfo")
	if err != nil {
		return out, ifNotGone(err)
	}
	out.Mounts, out.Masked, out.ReadOnly = mounts(parseMountinfo(table), config, image)
	return out, nil
}

// process opens the process of a record; nil when it has ended.
func (r *reader) process(pid int, group string) (*proc, error) {
	if pid <= 0 {
		return nil, nil
	}
	p, err := openProc(pid)
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !p.in(group) { // the number is somebody else's now
		p.close()
		return nil, nil
	}
	return p, nil
}

// children describes what runs below a process, but for the first processes
// of containers, which have their own place.
func (r *reader) children(p *proc, pod map[string]uint64) []anatomy.Process {
	var all []anatomy.Process
	for _, pid := range p.children() {
		if r.first[pid] {
			continue
		}
		kid, err := openProc(pid)
		if err != nil {
			continue // it has ended
		}
		if d, err := kid.describe(pod, r.host); err == nil {
			d.Namespaces = nil // its container's
			d.Children = r.children(kid, pod)
			all = append(all, *d)
		}
		kid.close()
	}
	return all
}

func (r *reader) recipe(kind, id string) string {
	b, err := os.ReadFile(filepath.Join(r.run, kind, id, "recipe.txt"))
	if err != nil {
		return "" // not made yet, or by a build that kept none
	}
	return string(b)
}

// gone reports an error that only says that a process has ended.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

func ifNotGone(err error) error {
	if gone(err) {
		return nil
	}
	return err
}

// networkOf describes the pod's place on the network.
func networkOf(rec *runtime.SandboxRecord, config *runtimeapi.PodSandboxConfig) *anatomy.Network {
	if config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE {
		return &anatomy.Network{Host: true}
	}
	a := rec.Network
	if a == nil {
		return nil
	}
	out := &anatomy.Network{MAC: a.MAC, MTU: a.MTU, HostVeth: a.HostVeth}
	for _, ip := range a.IPs {
		out.Addresses = append(out.Addresses, ip.String())
	}
	for _, g := range a.Gateways {
		out.Gateways = append(out.Gateways, g.String())
	}
	if bridge, err := os.Readlink(filepath.Join("/sys/class/net", filepath.Base(a.HostVeth), "master")); err == nil {
		out.HostBridge = filepath.Base(bridge)
	}
	for _, p := range config.GetPortMappings() {
		if p.HostPort == 0 {
			continue
		}
		host := p.HostIp
		if host == "" {
			host = "*"
		}
		out.Ports = append(out.Ports, fmt.Sprintf("%s:%d/%s -> %d", host, p.HostPort, strings.ToLower(p.Protocol.String()), p.ContainerPort))
	}
	return out
}
