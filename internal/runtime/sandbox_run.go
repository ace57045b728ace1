package runtime

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/cgroup"
	"unipod.dev/unipod/internal/fault"
	"unipod.dev/unipod/internal/network"
	"unipod.dev/unipod/internal/pause"
	"unipod.dev/unipod/internal/recipe"
	"unipod.dev/unipod/internal/security/sysctl"
)

// defaultShmSize is the size of a pod's /dev/shm in bytes, as everywhere.
const defaultShmSize = 64 << 20

// Handler is the name of the runtime handler that is ours; "" means it too.
const Handler = "unipod"

// RunPodSandbox implements cri.Runtime.
func (r *Runtime) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (_ *runtimeapi.RunPodSandboxResponse, err error) {
	defer toGRPC(&err)
	config := req.GetConfig()
	if err := r.checkSandbox(config, req.GetRuntimeHandler()); err != nil {
		return nil, err
	}
	recorded, err := marshalConfig(config)
	if err != nil {
		return nil, err
	}
	id := newID()
	name := sandboxName(config.Metadata)
	if err := r.reserve("sandbox", name, id); err != nil {
		return nil, err
	}
	s := newSandbox(r, SandboxRecord{
		Version:   recordVersion,
		ID:        id,
		Config:    recorded,
		Handler:   req.GetRuntimeHandler(),
		CreatedAt: time.Now(),
	}, config)
	s.op.Lock()
	defer s.op.Unlock()
	if err := r.startSandbox(ctx, s); err != nil {
		r.release(name)
		return nil, fmt.Errorf("failed to start sandbox %q: %w", config.Metadata.Name, err)
	}
	r.log.Info("sandbox started", "pod", config.Metadata.Namespace+"/"+config.Metadata.Name, "uid", config.Metadata.Uid, "sandbox", id)
	r.emit(id, s, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	r.emit(id, s, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

func (r *Runtime) checkSandbox(config *runtimeapi.PodSandboxConfig, handler string) error {
	m := config.GetMetadata()
	if m == nil {
		return invalid("sandbox config has no metadata")
	}
	if m.Name == "" || m.Uid == "" {
		return invalid("sandbox config must include a name and a uid in its metadata")
	}
	if handler != "" && handler != Handler {
		return fmt.Errorf("failed to get sandbox runtime: no runtime for %q is configured: %w", handler, errdefs.ErrNotFound)
	}
	if strings.ContainsRune(config.LogDirectory, 0) || strings.ContainsRune(config.Hostname, 0) {
		return invalid("sandbox config holds a NUL byte")
	}
	if len(config.Hostname) > 64 {
		return invalid("hostname %q is longer than 64 bytes", config.Hostname)
	}
	sc := config.GetLinux().GetSecurityContext()
	ns := sc.GetNamespaceOptions()
	for key := range config.GetLinux().GetSysctls() {
		if err := sysctl.Check(key, ns.GetNetwork() == runtimeapi.NamespaceMode_NODE, ns.GetIpc() == runtimeapi.NamespaceMode_NODE); err != nil {
			return err
		}
	}
	return checkUserNS(ns)
}

func checkUserNS(ns *runtimeapi.NamespaceOption) error {
	u := ns.GetUsernsOptions()
	switch {
	case u == nil || u.Mode == runtimeapi.NamespaceMode_NODE:
		return nil
	case u.Mode != runtimeapi.NamespaceMode_POD:
		return invalid("unsupported user namespace mode %s", u.Mode)
	case len(u.Uids) != 1 || len(u.Gids) != 1:
		return invalid("a user namespace needs exactly one mapping of uids and one of gids, got %d and %d", len(u.Uids), len(u.Gids))
	case ns.Network == runtimeapi.NamespaceMode_NODE || ns.Pid == runtimeapi.NamespaceMode_NODE || ns.Ipc == runtimeapi.NamespaceMode_NODE:
		return invalid("a pod with a user namespace can't share the host's network, PID or IPC namespace")
	}
	return nil
}

// startSandbox makes the sandbox; on error nothing of it is left.
func (r *Runtime) startSandbox(ctx context.Context, s *sandbox) (err error) {
	var undo undo
	defer func() {
		if err != nil {
			undo.run()
		}
	}()
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return fmt.Errorf("making the sandbox's directory: %w", err)
	}
	undo.add(func() { os.RemoveAll(s.dir) })
	fault.Point("sandbox.directory")

	if s.group, err = r.cfg.Cgroups.Pod(s.config.GetLinux().GetCgroupParent(), s.id); err != nil {
		return err
	}
	s.rec.Cgroup = s.group.Path()
	if err := writeRecord(s.dir, &s.rec); err != nil {
		return err
	}
	fault.Point("sandbox.recorded")
	if err := s.group.Create(s.resources(s.config.GetLinux().GetResources(), s.config.GetLinux().GetOverhead())); err != nil {
		return err
	}
	fault.Point("sandbox.cgroup")
	undo.add(func() { s.removeGroup() })
	if err := s.writeFiles(); err != nil {
		return err
	}
	wire := s.wiring(ctx)
	conn, err := s.startPause(ctx, wire.born)
	if err == nil {
		undo.add(func() {
			conn.Terminate()
			<-conn.Done()
			conn.Close()
		})
		s.conn = conn
	}
	fault.Point("sandbox.pause")
	attachment, nerr := wire.wait()
	if attachment != nil {
		undo.add(func() {
			ctx, cancel := detached(ctx)
			defer cancel()
			if err := r.cfg.Network.Teardown(ctx, s.id); err != nil {
				r.log.Warn("undoing the network of a failed sandbox", "sandbox", s.id, "error", err)
			}
		})
	}
	if err != nil {
		return err
	}
	if nerr != nil {
		return fmt.Errorf("failed to setup network for sandbox: %w", nerr)
	}
	s.rec.Network = attachment
	fault.Point("sandbox.network")
	s.rec.PausePID = conn.PID()
	s.rec.Ready = true
	if err := writeRecord(s.dir, &s.rec); err != nil {
		return err
	}
	fault.Point("sandbox.ready")
	r.mu.Lock()
	r.sandboxes[s.id] = s
	r.mu.Unlock()
	r.background.Go(func() { s.watch(conn) })
	r.background.Go(func() {
		s.op.Lock()
		defer s.op.Unlock()
		if !s.gone {
			r.keepRecipe(s.dir, s.setup)
		}
		s.setup = nil
	})
	return nil
}

// resources are the limits of the pod as a whole: its own and what running it
// costs. A kubelet has set them on the group it named as parent; what it tells
// the runtime is a sum over containers that may have no limit, not a limit.
func (s *sandbox) resources(own, over *runtimeapi.LinuxContainerResources) cgroup.Resources {
	if !s.group.Ours() {
		return cgroup.Resources{}
	}
	res := cgroup.FromCRI(own)
	if over.GetMemoryLimitInBytes() > 0 && res.Memory > 0 {
		res.Memory += over.MemoryLimitInBytes
		res.MemorySwap += over.MemoryLimitInBytes
	}
	if over.GetCpuShares() > 0 && res.CPUShares > 0 {
		res.CPUShares += uint64(over.CpuShares)
	}
	if over.GetCpuQuota() > 0 && res.CPUQuota > 0 {
		res.CPUQuota += over.CpuQuota
	}
	return res
}

// hostname is what the pod's UTS namespace is given, "" for the host's.
func (s *sandbox) hostname() (string, error) {
	if s.hostNetwork() {
		return "", nil
	}
	if s.config.Hostname != "" {
		return s.config.Hostname, nil
	}
	return os.Hostname()
}

// writeFiles makes what is mounted at /etc/hostname, /etc/resolv.conf and,
// where kubelet brings none, /etc/hosts.
func (s *sandbox) writeFiles() error {
	hostname, err := s.hostname()
	if err == nil && hostname == "" {
		hostname, err = os.Hostname()
	}
	if err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	dns, err := s.dns()
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{"hostname": []byte(hostname + "\n"), "hosts": hosts, "resolv.conf": []byte(dns.String())} {
		// 0644: processes of any user in the pod read them; the directory
		// above is 0700.
		if err := os.WriteFile(filepath.Join(s.dir, name), content, 0o644); err != nil {
			return fmt.Errorf("writing the pod's %s: %w", name, err)
		}
	}
	return nil
}

// dns is what the request says about names, or, when it says nothing, the
// host's.
func (s *sandbox) dns() (network.DNS, error) {
	d := s.config.DnsConfig
	if len(d.GetServers())+len(d.GetSearches())+len(d.GetOptions()) == 0 {
		return network.HostDNS()
	}
	return network.DNS{Servers: d.GetServers(), Searches: d.GetSearches(), Options: d.GetOptions()}, nil
}

// wiring makes the pod's network while pause sets itself up.
type wiring struct {
	s          *sandbox
	ctx        context.Context
	done       chan struct{} // nil if it was never begun
	attachment *network.Attachment
	err        error
}

func (s *sandbox) wiring(ctx context.Context) *wiring { return &wiring{s: s, ctx: ctx} }

// born is called when the pod's network namespace is there.
func (w *wiring) born(pid int) {
	if w.s.hostNetwork() {
		return
	}
	w.done = make(chan struct{})
	go func() {
		defer close(w.done)
		w.attachment, w.err = w.s.setupNetwork(w.ctx, pid)
	}()
	if len(w.s.config.GetLinux().GetSysctls()) > 0 {
		<-w.done // they may be an interface's
	}
}

func (w *wiring) wait() (*network.Attachment, error) {
	if w.done != nil {
		<-w.done
	}
	return w.attachment, w.err
}

func (s *sandbox) startPause(ctx context.Context, born func(pid int)) (*pause.Conn, error) {
	cfg := pause.Config{Dir: s.dir, Cloneflags: unix.CLONE_NEWNS, Born: born}
	spec := recipe.SandboxSpec{ShmSize: defaultShmSize, Sysctls: s.config.GetLinux().GetSysctls()}
	hostname, err := s.hostname()
	if err != nil {
		return nil, err
	}
	spec.Hostname = hostname
	if !s.hostNetwork() {
		cfg.Cloneflags |= unix.CLONE_NEWNET | unix.CLONE_NEWUTS
	}
	if s.hostIPC() {
		spec.ShmSize, spec.HostIPCShm = 0, true
	} else {
		cfg.Cloneflags |= unix.CLONE_NEWIPC
	}
	if !s.hostPID() {
		cfg.Cloneflags |= unix.CLONE_NEWPID
	}
	if s.userNS() {
		u := s.namespaces().UsernsOptions
		cfg.Cloneflags |= unix.CLONE_NEWUSER
		cfg.UIDMap, cfg.GIDMap = sysMap(u.Uids), sysMap(u.Gids)
		spec.UserNS = true
	}
	place, err := openPlace(s.group, false)
	if err != nil {
		return nil, err
	}
	defer place.close()
	cfg.Cgroup, spec.CgroupProcs = place.dir, place.procs
	setup, err := recipe.Sandbox(spec)
	if err != nil {
		return nil, err
	}
	cfg.Setup = setup
	conn, err := pause.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	s.setup = setup
	return conn, nil
}

func sysMap(m []*runtimeapi.IDMapping) []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, len(m))
	for i, e := range m {
		out[i] = syscall.SysProcIDMap{ContainerID: int(e.ContainerId), HostID: int(e.HostId), Size: int(e.Length)}
	}
	return out
}

func (s *sandbox) setupNetwork(ctx context.Context, pid int) (*network.Attachment, error) {
	netns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, err
	}
	defer netns.Close()
	m := s.config.Metadata
	d := s.config.DnsConfig
	req := network.Request{
		ID: s.id, Netns: netns, Name: m.Name, Namespace: m.Namespace, UID: m.Uid,
		Annotations: s.config.Annotations, CgroupParent: s.config.GetLinux().GetCgroupParent(),
		DNS: network.DNS{Servers: d.GetServers(), Searches: d.GetSearches(), Options: d.GetOptions()},
	}
	for _, p := range s.config.PortMappings {
		if p.HostPort <= 0 {
			continue
		}
		pm := network.PortMapping{
			Protocol:      network.Protocol(p.Protocol.String()),
			HostPort:      uint16(p.HostPort),
			ContainerPort: uint16(p.ContainerPort),
		}
		if p.HostPort > 65535 || p.ContainerPort < 1 || p.ContainerPort > 65535 {
			return nil, invalid("port mapping %d:%d is out of range", p.HostPort, p.ContainerPort)
		}
		if p.HostIp != "" {
			if pm.HostIP, err = netip.ParseAddr(p.HostIp); err != nil {
				return nil, invalid("host IP %q of port %d", p.HostIp, p.HostPort)
			}
		}
		req.Ports = append(req.Ports, pm)
	}
	return s.r.cfg.Network.Setup(ctx, req)
}
