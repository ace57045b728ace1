package runtime

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/fault"
	"unipod.dev/unipod/internal/image"
	"unipod.dev/unipod/internal/security/selinux"
	"unipod.dev/unipod/internal/security/users"
)

// CreateContainer implements cri.Runtime: it checks the request, mounts the
// container's root and finds its user in it; processes, mounts and cgroup are
// made by StartContainer.
func (r *Runtime) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (_ *runtimeapi.CreateContainerResponse, err error) {
	defer toGRPC(&err)
	s, err := r.sandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	config, err := withCDI(req.GetConfig())
	if err != nil {
		return nil, err
	}
	if err := checkContainer(config); err != nil {
		return nil, err
	}
	if err := r.checkProfiles(config); err != nil {
		return nil, fmt.Errorf("failed to create container %q: %w", config.Metadata.Name, err)
	}
	if _, err := s.live(); err != nil {
		return nil, err
	}
	img, err := r.cfg.Images.Get(ctx, config.Image.Image)
	if err != nil {
		return nil, fmt.Errorf("failed to resolve image %q: %w", config.Image.Image, err)
	}
	if config, err = r.withImageRefs(ctx, config); err != nil {
		return nil, err
	}
	recorded, err := marshalConfig(config)
	if err != nil {
		return nil, err
	}
	var resources json.RawMessage
	if res := config.GetLinux().GetResources(); res != nil {
		if resources, err = marshalConfig(res); err != nil {
			return nil, err
		}
	}
	id := newID()
	name := containerName(config.Metadata, s.config.Metadata)
	if err := r.reserve("container", name, id); err != nil {
		return nil, err
	}
	rec := ContainerRecord{
		Version:     recordVersion,
		ID:          id,
		SandboxID:   s.id,
		Config:      recorded,
		Resources:   resources,
		ImageID:     img.ID,
		ImageRef:    imageRef(img),
		ImageConfig: img.Spec.Config,
		CreatedAt:   time.Now(),
	}
	if config.LogPath != "" && s.config.LogDirectory != "" {
		rec.LogPath = filepath.Join(s.config.LogDirectory, config.LogPath)
	}
	c := newContainer(r, s, rec, config)
	if err := r.makeContainer(ctx, c, img); err != nil {
		r.release(name)
		return nil, fmt.Errorf("failed to create container %q: %w", config.Metadata.Name, err)
	}
	r.emit(id, s, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

func checkContainer(config *runtimeapi.ContainerConfig) error {
	m := config.GetMetadata()
	if m == nil || m.Name == "" {
		return invalid("container config must include metadata with a name")
	}
	if config.GetImage().GetImage() == "" {
		return invalid("container %q: config must include an image", m.Name)
	}
	for _, arg := range append(append([]string{config.WorkingDir, config.LogPath}, config.Command...), config.Args...) {
		if strings.ContainsRune(arg, 0) {
			return invalid("container %q: command, arguments and working directory can't hold a NUL byte", m.Name)
		}
	}
	for _, e := range config.Envs {
		if e.Key == "" || strings.ContainsAny(e.Key, "=\x00") || strings.ContainsRune(string(e.Value), 0) {
			return invalid("container %q: environment variable %q is malformed", m.Name, e.Key)
		}
	}
	for _, mnt := range config.Mounts {
		if mnt.ContainerPath == "" {
			return invalid("container %q: a mount has no container_path", m.Name)
		}
		if mnt.GetImage().GetImage() == "" && !filepath.IsAbs(mnt.HostPath) {
			return invalid("container %q: mount at %s: host_path %q is not absolute", m.Name, mnt.ContainerPath, mnt.HostPath)
		}
		if mnt.GetImage().GetImage() != "" && !mnt.Readonly {
			return invalid("container %q: mount at %s: an image can only be mounted readonly", m.Name, mnt.ContainerPath)
		}
		if mnt.RecursiveReadOnly && (!mnt.Readonly || mnt.Propagation != runtimeapi.MountPropagation_PROPAGATION_PRIVATE) {
			return invalid("container %q: mount at %s: recursive_read_only needs readonly and private propagation", m.Name, mnt.ContainerPath)
		}
	}
	return nil
}

// withImageRefs returns the request with what its image volumes are, at this
// time, written into it: ContainerStatus tells, and a name may come to mean
// another image.
func (r *Runtime) withImageRefs(ctx context.Context, config *runtimeapi.ContainerConfig) (*runtimeapi.ContainerConfig, error) {
	isImage := func(m *runtimeapi.Mount) bool { return m.GetImage().GetImage() != "" }
	if !slices.ContainsFunc(config.Mounts, isImage) {
		return config, nil
	}
	config = proto.Clone(config).(*runtimeapi.ContainerConfig)
	for _, m := range config.Mounts {
		if !isImage(m) {
			continue
		}
		img, err := r.cfg.Images.Get(ctx, m.Image.Image)
		if err != nil {
			return nil, fmt.Errorf("container %q: mount at %s: failed to resolve image %q: %w", config.Metadata.Name, m.ContainerPath, m.Image.Image, err)
		}
		m.Image.ImageRef = img.ID
	}
	return config, nil
}

// containerName is the name under which a container is reserved:
// containerd's.
func containerName(c *runtimeapi.ContainerMetadata, s *runtimeapi.PodSandboxMetadata) string {
	return fmt.Sprintf("%s_%s_%s_%s_%d", c.Name, s.Name, s.Namespace, s.Uid, c.Attempt)
}

// imageRef is what ContainerStatus names the image by: a digest when it came
// from a registry, its ID else.
func imageRef(img *image.Image) string {
	if len(img.RepoDigests) > 0 {
		return img.RepoDigests[0]
	}
	return img.ID
}

// makeContainer makes the container's directories and mounts its root; on
// error nothing of it is left.
func (r *Runtime) makeContainer(ctx context.Context, c *container, img *image.Image) (err error) {
	var undo undo
	defer func() {
		if err != nil {
			undo.run()
		}
	}()
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		return err
	}
	undo.add(func() { os.RemoveAll(c.dir) })
	fault.Point("create.directory")
	group, err := c.sandbox.group.Child(c.id)
	if err != nil {
		return err
	}
	c.group, c.rec.Cgroup = group, group.Path()
	opts := c.config.GetLinux().GetSecurityContext().GetSelinuxOptions()
	if c.rec.ProcessLabel, c.rec.MountLabel, err = selinux.Labels(opts); err != nil {
		return err
	}
	undo.add(func() { selinux.Release(c.rec.ProcessLabel) })
	if err := writeRecord(c.dir, &c.rec); err != nil {
		return err
	}
	fault.Point("create.recorded")
	for _, d := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(c.layer, d), 0o755); err != nil {
			return fmt.Errorf("making the container's writable layer: %w", err)
		}
	}
	undo.add(func() { os.RemoveAll(c.layer) })
	undo.add(func() {
		ctx, cancel := detached(ctx)
		defer cancel()
		if err := r.cfg.Images.ReleaseLayers(ctx, c.id); err != nil {
			r.log.Warn("releasing an image's layers", "container", c.id, "error", err)
		}
	})
	fault.Point("create.layer")
	if c.rootfs, err = r.mountRootfs(ctx, c); err != nil {
		return err
	}
	fault.Point("create.mounted")
	undo.add(func() { c.rootfs.Close() })
	if err := r.tryImageVolumes(ctx, c); err != nil {
		return err
	}
	if err := c.resolve(img); err != nil {
		return err
	}
	c.rec.Ready = true
	if err := writeRecord(c.dir, &c.rec); err != nil {
		return err
	}
	fault.Point("create.ready")
	r.mu.Lock()
	defer r.mu.Unlock()
	// Under the lock that a removal lists the sandbox's containers with, after
	// it has recorded the sandbox's end: one of the two sees the other.
	if _, err := c.sandbox.live(); err != nil {
		return err
	}
	r.containers[c.id] = c
	return nil
}

// resolve settles what depends on the image: who the process is, and which
// signal ends it.
func (c *container) resolve(img *image.Image) error {
	sc := c.config.GetLinux().GetSecurityContext()
	spec := img.Spec.Config.User
	switch {
	case sc.GetRunAsUser() != nil:
		spec = fmt.Sprint(sc.RunAsUser.Value)
	case sc.GetRunAsUsername() != "":
		spec = sc.RunAsUsername
	}
	if g := sc.GetRunAsGroup(); g != nil {
		name, _, _ := strings.Cut(spec, ":")
		if name == "" {
			return invalid("run_as_group is given without a user")
		}
		spec = fmt.Sprintf("%s:%d", name, g.Value)
	}
	u, err := users.Lookup(c.rootfs, spec)
	if err != nil {
		return err
	}
	user := User{UID: u.UID, GID: u.GID, Home: u.Home}
	add := func(gids ...uint32) {
		for _, g := range gids {
			if !containsGID(user.Groups, g) {
				user.Groups = append(user.Groups, g)
			}
		}
	}
	add(u.GID)
	if sc.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Merge {
		add(u.Groups...)
	}
	for _, g := range sc.GetSupplementalGroups() {
		if g < 0 || g > 1<<32-2 {
			return invalid("supplemental group %d is out of range", g)
		}
		add(uint32(g))
	}
	c.rec.User = user
	c.rec.StopSig = signalName(c.config.StopSignal)
	if c.rec.StopSig == "" {
		c.rec.StopSig = img.Spec.Config.StopSignal
	}
	if c.rec.StopSig == "" {
		c.rec.StopSig = "SIGTERM"
	}
	if _, err := parseSignal(c.rec.StopSig); err != nil {
		return fmt.Errorf("stop signal: %w", err)
	}
	return nil
}

func containsGID(groups []uint32, g uint32) bool {
	for _, have := range groups {
		if have == g {
			return true
		}
	}
	return false
}
