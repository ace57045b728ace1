// Package cdi resolves the names of CDI devices ("vendor.com/class=name") to
// what a container gets for them: device nodes, mounts, environment, groups.
// See https://github.com/cncf-tags/container-device-interface.
//
// The specifications are files of the administrator's, /etc/cdi and
// /var/run/cdi; they are read anew at each call, of which there are few. What
// one asks for and can't be had (hooks) is an error naming it.
//
// Floor 1. It imports internal/device.
package cdi

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"

	"unipod.dev/unipod/internal/device"
)

// Edits are what devices add to a container.
type Edits struct {
	Env    []string
	Groups []uint32
	Nodes  []device.Node
	Mounts []Mount
}

// Mount is a path of the host's to be bound into the container. Options are
// those of mount(8) beside bind and rbind: "ro", "nosuid", ...
type Mount struct {
	HostPath, ContainerPath string
	Options                 []string
}

// Resolve finds devices by name in dirs, of which later ones win; none are
// the usual ones. An unknown device is errdefs.ErrNotFound. uid and gid are
// the container's user, who gets devices that name no owner.
func Resolve(dirs, names []string, uid, gid uint32) (*Edits, error) {
	if len(names) == 0 {
		return &Edits{}, nil
	}
	for _, n := range names {
		if _, _, _, err := parser.ParseQualifiedName(n); err != nil {
			return nil, fmt.Errorf("CDI device %q: %w: %w", n, errdefs.ErrInvalidArgument, err)
		}
	}
	if len(dirs) == 0 {
		dirs = cdi.DefaultSpecDirs
	}
	cache, err := cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(dirs...))
	if err != nil {
		return nil, fmt.Errorf("reading CDI specifications: %w", err)
	}
	spec := &specs.Spec{Process: &specs.Process{User: specs.User{UID: uid, GID: gid}}, Linux: &specs.Linux{}}
	unknown, err := cache.InjectDevices(spec, names...)
	if len(unknown) > 0 {
		return nil, fmt.Errorf("CDI devices %s: not in %s%s: %w", strings.Join(unknown, ", "), strings.Join(dirs, ", "), broken(cache), errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("CDI devices %s: %w", strings.Join(names, ", "), err)
	}
	edits, err := translate(spec)
	if err != nil {
		return nil, fmt.Errorf("CDI devices %s: %w", strings.Join(names, ", "), err)
	}
	hosts := hostPaths(cache, names)
	for i := range edits.Nodes {
		edits.Nodes[i].HostPath = hosts[edits.Nodes[i].Path]
	}
	return edits, nil
}

// hostPaths are the nodes' paths on the host by those in the container, which
// the OCI's terms don't tell.
func hostPaths(cache *cdi.Cache, names []string) map[string]string {
	hosts := map[string]string{}
	for _, name := range names {
		d := cache.GetDevice(name)
		for _, n := range slices.Concat(d.GetSpec().ContainerEdits.DeviceNodes, d.ContainerEdits.DeviceNodes) {
			if hosts[n.Path] = n.HostPath; n.HostPath == "" {
				hosts[n.Path] = n.Path
			}
		}
	}
	return hosts
}

// broken tells of files that could not be read: the device may be in one.
func broken(cache *cdi.Cache) string {
	var list []string
	for file, errs := range cache.GetErrors() {
		if !errors.Is(errors.Join(errs...), os.ErrNotExist) {
			list = append(list, fmt.Sprintf("%s: %v", file, errors.Join(errs...)))
		}
	}
	if len(list) == 0 {
		return ""
	}
	slices.Sort(list)
	return " (unreadable: " + strings.Join(list, "; ") + ")"
}

func translate(spec *specs.Spec) (*Edits, error) {
	unsupported := func(what string) error {
		return fmt.Errorf("their specification has %s, which are not supported: %w", what, errdefs.ErrNotImplemented)
	}
	switch {
	case spec.Hooks != nil:
		return nil, unsupported("hooks")
	case spec.Linux.IntelRdt != nil:
		return nil, unsupported("Intel RDT classes")
	case len(spec.Linux.NetDevices) > 0:
		return nil, unsupported("network devices")
	}
	edits := &Edits{Env: spec.Process.Env, Groups: spec.Process.User.AdditionalGids}
	for _, m := range spec.Mounts {
		if m.Type != "" && m.Type != "bind" {
			return nil, unsupported("mounts of type " + m.Type)
		}
		options := slices.DeleteFunc(m.Options, func(o string) bool { return o == "bind" || o == "rbind" })
		edits.Mounts = append(edits.Mounts, Mount{HostPath: m.Source, ContainerPath: m.Destination, Options: options})
	}
	for _, d := range spec.Linux.Devices {
		if d.Type != "c" && d.Type != "b" {
			return nil, unsupported("devices of type " + d.Type)
		}
		n := device.Node{Path: d.Path, Type: d.Type[0], Major: uint32(d.Major), Minor: uint32(d.Minor), Mode: 0o666, Access: access(spec, &d)}
		if d.FileMode != nil {
			n.Mode = d.FileMode.Perm()
		}
		if d.UID != nil {
			n.UID = *d.UID
		}
		if d.GID != nil {
			n.GID = *d.GID
		}
		edits.Nodes = append(edits.Nodes, n)
	}
	return edits, nil
}

// access finds a device's rule.
func access(spec *specs.Spec, d *specs.LinuxDevice) string {
	if spec.Linux.Resources != nil {
		for _, r := range spec.Linux.Resources.Devices {
			if r.Allow && r.Type == d.Type && r.Major != nil && r.Minor != nil && *r.Major == d.Major && *r.Minor == d.Minor {
				return r.Access
			}
		}
	}
	return ""
}
