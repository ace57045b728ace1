package podspec

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"
)

// ContainerOptions is what a container depends on beside its pod and the node.
type ContainerOptions struct {
	// RestartCount is the number of earlier runs of this container.
	RestartCount int
	// Image is the runtime's status of the container's image: it says which
	// user runs by default. ImageRef is the reference to create it from.
	Image    *runtimeapi.Image
	ImageRef string
	// Env is the container's environment, from [Environment].
	Env []EnvVar
	// Mounts are made by package volume; Devices and CDIDevices come from
	// device plugins and block volumes.
	Mounts     []*runtimeapi.Mount
	Devices    []*runtimeapi.Device
	CDIDevices []*runtimeapi.CDIDevice
	// UserNS is the pod's ID mapping; nil unless it has hostUsers: false.
	UserNS *runtimeapi.UserNamespace
	// TargetContainerID is the container whose PID namespace an ephemeral
	// container with a target joins.
	TargetContainerID string
}

// ContainerConfig makes the configuration of one run of a container. The error
// is a *[ConfigError].
func ContainerConfig(node *Node, pod *v1.Pod, c *v1.Container, o ContainerOptions) (*runtimeapi.ContainerConfig, error) {
	config, err := containerConfig(node, pod, c, &o)
	if err != nil {
		return nil, &ConfigError{Container: c.Name, Err: err}
	}
	return config, nil
}

func containerConfig(node *Node, pod *v1.Pod, c *v1.Container, o *ContainerOptions) (*runtimeapi.ContainerConfig, error) {
	uid, username := imageUser(o.Image)
	if err := verifyNonRoot(pod, c, uid, username); err != nil {
		return nil, err
	}
	annotations, err := containerAnnotations(pod, c, o.RestartCount)
	if err != nil {
		return nil, err
	}
	security, err := containerSecurity(node, pod, c, o, uid, username)
	if err != nil {
		return nil, err
	}
	signal, err := stopSignal(c)
	if err != nil {
		return nil, err
	}
	if o.UserNS != nil {
		for _, m := range o.Mounts {
			m.UidMappings, m.GidMappings = o.UserNS.Uids, o.UserNS.Gids
		}
	}
	env := make([]*runtimeapi.KeyValue, len(o.Env))
	for i, e := range o.Env {
		env[i] = &runtimeapi.KeyValue{Key: e.Name, Value: []byte(e.Value)}
	}
	expand := expander(o.Env)
	return &runtimeapi.ContainerConfig{
		Metadata:    &runtimeapi.ContainerMetadata{Name: c.Name, Attempt: uint32(o.RestartCount)},
		Image:       &runtimeapi.ImageSpec{Image: o.ImageRef, UserSpecifiedImage: c.Image},
		Command:     expand(c.Command),
		Args:        expand(c.Args),
		WorkingDir:  c.WorkingDir,
		Envs:        env,
		Mounts:      o.Mounts,
		Devices:     o.Devices,
		CDIDevices:  o.CDIDevices,
		Labels:      containerLabels(pod, c),
		Annotations: annotations,
		LogPath:     LogPath(c.Name, o.RestartCount),
		Stdin:       c.Stdin,
		StdinOnce:   c.StdinOnce,
		Tty:         c.TTY,
		StopSignal:  signal,
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       ContainerResources(node, pod, c),
			SecurityContext: security,
		},
	}, nil
}

// expander replaces $(NAME) in a command line by the environment's values;
// unknown names stay as they are.
func expander(env []EnvVar) func([]string) []string {
	values := make(map[string]string, len(env))
	for _, e := range env {
		values[e.Name] = e.Value
	}
	mapping := expansion.MappingFuncFor(values)
	return func(words []string) []string {
		var out []string
		for _, w := range words {
			out = append(out, expansion.Expand(w, mapping))
		}
		return out
	}
}

// stopSignal is the signal that ends the container; the default leaves the
// choice to the image.
func stopSignal(c *v1.Container) (runtimeapi.Signal, error) {
	if c.Lifecycle == nil || c.Lifecycle.StopSignal == nil {
		return runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, nil
	}
	name := string(*c.Lifecycle.StopSignal)
	// The API writes SIGRTMIN+1 where the CRI has SIGNAL_SIGRTMINPLUS1.
	value, ok := runtimeapi.Signal_value["SIGNAL_"+strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(name)]
	if !ok {
		return 0, fmt.Errorf("unknown stop signal %q", name)
	}
	return runtimeapi.Signal(value), nil
}
