package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

// CNIConfig says where a CNI configuration and its plugins are.
type CNIConfig struct {
	ConfDir string   // "" = /etc/cni/net.d; the first file by name counts
	BinDirs []string // nil = /opt/cni/bin
	RunDir  string   // records, cached results and pinned namespaces; empty after a reboot
	Logger  *slog.Logger
}

// CNI gives pods the network of a CNI configuration (as of the CNI
// specification 1.1, https://github.com/containernetworking/cni). Pods'
// namespaces are pinned below RunDir while they have one, because plugins want
// a path. The configuration is read anew for every pod; what a pod was added
// with is recorded, and it is deleted with the same.
type CNI struct {
	podside
	cfg     CNIConfig
	log     *slog.Logger
	lib     libcni.CNI
	records store
	lock    *os.File
	turns   turns
}

var _ Plugin = (*CNI)(nil)

// cniRecord is what has to be known to take a pod's network away.
type cniRecord struct {
	Version    int                 `json:"version"`
	ID         string              `json:"id"`
	Netns      uint64              `json:"netns"`
	Phase      phase               `json:"phase"`
	Network    cniNetwork          `json:"network"`
	Runtime    *libcni.RuntimeConf `json:"runtime"`
	Attachment Attachment          `json:"attachment"`
}

// cniNetwork is a configuration list as it was when the pod was added.
type cniNetwork struct {
	Name         string            `json:"name"`
	CNIVersion   string            `json:"cniVersion"`
	DisableCheck bool              `json:"disableCheck,omitempty"`
	Plugins      []json.RawMessage `json:"plugins"`
}

func keepList(list *libcni.NetworkConfigList) cniNetwork {
	n := cniNetwork{Name: list.Name, CNIVersion: list.CNIVersion, DisableCheck: list.DisableCheck}
	for _, p := range list.Plugins {
		n.Plugins = append(n.Plugins, p.Bytes)
	}
	return n
}

func (n cniNetwork) list() (*libcni.NetworkConfigList, error) {
	list := &libcni.NetworkConfigList{Name: n.Name, CNIVersion: n.CNIVersion, DisableCheck: n.DisableCheck}
	for _, p := range n.Plugins {
		plugin, err := libcni.NetworkPluginConfFromBytes(p)
		if err != nil {
			return nil, fmt.Errorf("recorded CNI network %s: %w", n.Name, err)
		}
		list.Plugins = append(list.Plugins, plugin)
	}
	return list, nil
}

// OpenCNI makes ready for Setup. A configuration need not be there yet, see
// Ready.
func OpenCNI(cfg CNIConfig) (*CNI, error) {
	if cfg.RunDir == "" {
		return nil, fmt.Errorf("CNI: no directory for records given: %w", errdefs.ErrInvalidArgument)
	}
	if cfg.ConfDir == "" {
		cfg.ConfDir = "/etc/cni/net.d"
	}
	if cfg.BinDirs == nil {
		cfg.BinDirs = []string{"/opt/cni/bin"}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	c := &CNI{cfg: cfg, log: cfg.Logger, records: store{filepath.Join(cfg.RunDir, "pods")}}
	cache := filepath.Join(cfg.RunDir, "cache")
	for _, dir := range []string{cfg.RunDir, c.records.dir, cache, c.pins()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("making a directory for CNI: %w", err)
		}
	}
	var err error
	if c.lock, err = lockDir(cfg.RunDir); err != nil {
		return nil, err
	}
	c.lib = libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, cache, nil)
	return c, nil
}

// Close releases what c holds; pods keep their network.
func (c *CNI) Close() error { return c.lock.Close() }

// Ready is nil if there is a usable configuration.
func (c *CNI) Ready(ctx context.Context) error {
	list, err := c.load()
	if err != nil {
		return err
	}
	if _, err := c.lib.ValidateNetworkList(ctx, list); err != nil {
		return fmt.Errorf("CNI network %s: %w", list.Name, err)
	}
	return nil
}

// load reads the configuration that is in force.
func (c *CNI) load() (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(c.cfg.ConfDir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, fmt.Errorf("reading CNI configurations: %w", err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no CNI configuration in %s: %w", c.cfg.ConfDir, errdefs.ErrUnavailable)
	}
	slices.Sort(files)
	file := files[0]
	if filepath.Ext(file) == ".conflist" {
		list, err := libcni.NetworkConfFromFile(file)
		if err != nil {
			return nil, fmt.Errorf("CNI configuration %s: %w", file, err)
		}
		return list, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading a CNI configuration: %w", err)
	}
	conf, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, fmt.Errorf("CNI configuration %s: %w", file, err)
	}
	//lint:ignore SA1019 kubelets' machines still have such files, and containerd takes them
	list, err := libcni.ConfListFromConf(conf)
	if err != nil {
		return nil, fmt.Errorf("CNI configuration %s: %w", file, err)
	}
	return list, nil
}

// Setup adds a pod to the network. See Plugin.
func (c *CNI) Setup(ctx context.Context, req Request) (_ *Attachment, err error) {
	if err := req.validate(); err != nil {
		return nil, err
	}
	inode, err := inodeOf(req.Netns)
	if err != nil {
		return nil, err
	}
	end, err := c.turns.take(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	defer end()
	if r, err := c.record(req.ID); err == nil {
		if r.Phase == ready && r.Netns == inode {
			return &r.Attachment, nil
		}
		if err := c.remove(ctx, r); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}

	list, err := c.load()
	if err != nil {
		return nil, err
	}
	runtime, err := runtimeConf(req, c.pin(req.ID))
	if err != nil {
		return nil, err
	}
	r := &cniRecord{Version: recordVersion, ID: req.ID, Netns: inode, Phase: making, Network: keepList(list), Runtime: runtime}
	if err := c.records.put(r.ID, r); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.remove(context.WithoutCancel(ctx), r))
		}
	}()
	if err := c.pinNetns(req.ID, req.Netns); err != nil {
		return nil, err
	}
	if err := c.Loopback(req.Netns); err != nil {
		return nil, err
	}
	result, err := c.lib.AddNetworkList(ctx, list, r.Runtime)
	if err != nil {
		return nil, fmt.Errorf("CNI network %s: adding pod %s: %w", list.Name, req.ID, err)
	}
	attachment, err := attachmentOf(result, req.Netns)
	if err != nil {
		return nil, fmt.Errorf("CNI network %s: result for pod %s: %w", list.Name, req.ID, err)
	}
	r.Attachment, r.Phase = *attachment, ready
	if err := c.records.put(r.ID, r); err != nil {
		return nil, err
	}
	return attachment, nil
}

// Teardown deletes a pod from the network it was added to. See Plugin.
func (c *CNI) Teardown(ctx context.Context, id string) error {
	end, err := c.turns.take(ctx, id)
	if err != nil {
		return err
	}
	defer end()
	r, err := c.record(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return c.remove(ctx, r)
}

// remove deletes what was added, in full or in part. The caller has the pod's
// turn.
func (c *CNI) remove(ctx context.Context, r *cniRecord) error {
	list, err := r.Network.list()
	if err != nil {
		return err
	}
	runtime := *r.Runtime
	if !isPinned(runtime.NetNS) {
		runtime.NetNS = "" // gone already; plugins are to clean up what they can
	}
	if err := c.lib.DelNetworkList(ctx, list, &runtime); err != nil {
		return fmt.Errorf("CNI network %s: deleting pod %s: %w", list.Name, r.ID, err)
	}
	if err := c.unpin(r.ID); err != nil {
		return err
	}
	return c.records.remove(r.ID)
}

// Reconcile deletes pods not in live and checks the others. See Plugin.
func (c *CNI) Reconcile(ctx context.Context, live map[string]bool) error {
	ids, err := c.records.names()
	if err != nil {
		return err
	}
	var valid []types.GCAttachment
	var errs []error
	for _, id := range ids {
		if !live[id] {
			c.log.Info("deleting pod left over from its CNI network", "pod", id)
			errs = append(errs, c.Teardown(ctx, id))
			continue
		}
		valid = append(valid, types.GCAttachment{ContainerID: id, IfName: podLink})
		if err := c.check(ctx, id); err != nil {
			c.log.Warn("a pod's CNI network is not as it should be", "pod", id, "error", err)
		}
	}
	errs = append(errs, c.unpinStrays(ids))
	// Plugins that can (specification 1.1) forget what no pod has.
	if list, err := c.load(); err == nil {
		if err := c.lib.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
			c.log.Warn("collecting garbage of the CNI network", "network", list.Name, "error", err)
		}
	}
	return errors.Join(errs...)
}

func (c *CNI) check(ctx context.Context, id string) error {
	end, err := c.turns.take(ctx, id)
	if err != nil {
		return err
	}
	defer end()
	r, err := c.record(id)
	if err != nil {
		return err
	}
	list, err := r.Network.list()
	if err != nil {
		return err
	}
	return c.lib.CheckNetworkList(ctx, list, r.Runtime)
}

// Remove takes our files away: the network itself is its plugins'. It fails
// while a pod is connected.
func (c *CNI) Remove(context.Context) error {
	ids, err := c.records.names()
	if err != nil {
		return err
	}
	if len(ids) > 0 {
		return fmt.Errorf("removing the CNI network: %d pods are connected: %w", len(ids), errdefs.ErrFailedPrecondition)
	}
	return errors.Join(
		os.RemoveAll(c.records.dir),
		os.RemoveAll(filepath.Join(c.cfg.RunDir, "cache")),
		os.RemoveAll(c.pins()),
		removeIfThere(c.lock.Name()),
	)
}

func (c *CNI) record(id string) (*cniRecord, error) {
	r := new(cniRecord)
	if err := c.records.get(id, r); err != nil {
		return nil, err
	}
	if r.Version != recordVersion || r.ID != id || r.Runtime == nil {
		return nil, fmt.Errorf("CNI record of pod %s: unexpected version %d or content", id, r.Version)
	}
	return r, nil
}

func (c *CNI) pins() string         { return filepath.Join(c.cfg.RunDir, "netns") }
func (c *CNI) pin(id string) string { return filepath.Join(c.pins(), id) }

// pinNetns gives a pod's namespace a path.
func (c *CNI) pinNetns(id string, ns *os.File) error {
	f, err := os.OpenFile(c.pin(id), os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return fmt.Errorf("pinning a network namespace: %w", err)
	}
	f.Close()
	err = unix.Mount(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), c.pin(id), "", unix.MS_BIND, "")
	if err != nil {
		return fmt.Errorf("pinning network namespace of pod %s: %w", id, err)
	}
	return nil
}

func (c *CNI) unpin(id string) error {
	err := unix.Unmount(c.pin(id), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // not mounted
		return fmt.Errorf("unpinning network namespace of pod %s: %w", id, err)
	}
	return removeIfThere(c.pin(id))
}

// unpinStrays unpins namespaces of pods without a record.
func (c *CNI) unpinStrays(known []string) error {
	entries, err := os.ReadDir(c.pins())
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !slices.Contains(known, e.Name()) {
			errs = append(errs, c.unpin(e.Name()))
		}
	}
	return errors.Join(errs...)
}

func isPinned(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}
