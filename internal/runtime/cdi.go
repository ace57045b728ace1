package runtime

import (
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/device/cdi"
)

// withCDI returns the request with what its CDI devices stand for written
// out, so that nothing later (a restarted node, an exec) needs to know of
// them: the specifications may have changed by then.
func withCDI(config *runtimeapi.ContainerConfig) (*runtimeapi.ContainerConfig, error) {
	if len(config.CDIDevices) == 0 {
		return config, nil
	}
	names := make([]string, len(config.CDIDevices))
	for i, d := range config.CDIDevices {
		names[i] = d.Name
	}
	user := config.GetLinux().GetSecurityContext()
	edits, err := cdi.Resolve(nil, names, uint32(user.GetRunAsUser().GetValue()), uint32(user.GetRunAsGroup().GetValue()))
	if err != nil {
		return nil, err
	}
	config = proto.Clone(config).(*runtimeapi.ContainerConfig)
	for _, kv := range edits.Env {
		key, value, _ := strings.Cut(kv, "=")
		config.Envs = append(config.Envs, &runtimeapi.KeyValue{Key: key, Value: []byte(value)})
	}
	for _, n := range edits.Nodes {
		host := n.HostPath
		if host == "" {
			host = n.Path
		}
		config.Devices = append(config.Devices, &runtimeapi.Device{HostPath: host, ContainerPath: n.Path, Permissions: n.Access})
	}
	for _, m := range edits.Mounts {
		mount := &runtimeapi.Mount{HostPath: m.HostPath, ContainerPath: m.ContainerPath}
		for _, o := range m.Options {
			if o == "ro" {
				mount.Readonly = true
				continue
			}
			mount.MountOptions = append(mount.MountOptions, o)
		}
		config.Mounts = append(config.Mounts, mount)
	}
	if len(edits.Groups) > 0 {
		if config.Linux == nil {
			config.Linux = &runtimeapi.LinuxContainerConfig{}
		}
		if config.Linux.SecurityContext == nil {
			config.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{}
		}
		sc := config.Linux.SecurityContext
		for _, g := range edits.Groups {
			sc.SupplementalGroups = append(sc.SupplementalGroups, int64(g))
		}
	}
	return config, nil
}
