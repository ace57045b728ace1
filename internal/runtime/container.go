package runtime

import (
	"os"
	"path/filepath"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/cgroup"
)

// container is a container as this node knows it.
type container struct {
	id      string
	sandbox *sandbox
	config  *runtimeapi.ContainerConfig
	dir     string // Run/containers/ID
	layer   string // Root/containers/ID

	// op serialises what changes the container: start, stop, remove, update.
	op sync.Mutex

	mu     sync.Mutex // guards what follows
	rec    ContainerRecord
	rootfs *os.File // the mounted root between create and start
	pidfd  *os.File
	pts    *os.File // the container's devpts
	io     *containerIO
	group  *cgroup.Group
	exited chan struct{} // closed once the exit is recorded
	gone   bool          // removed

	usage layerUsage
}

func newContainer(r *Runtime, s *sandbox, rec ContainerRecord, config *runtimeapi.ContainerConfig) *container {
	return &container{
		id:      rec.ID,
		sandbox: s,
		config:  config,
		dir:     filepath.Join(r.cfg.Run, "containers", rec.ID),
		layer:   filepath.Join(r.cfg.Root, "containers", rec.ID),
		rec:     rec,
		exited:  make(chan struct{}),
	}
}

// record is the container as it is now, for who doesn't hold op.
func (c *container) record() ContainerRecord {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec
}

func (c *container) state() runtimeapi.ContainerState {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.state()
}

func (rec *ContainerRecord) state() runtimeapi.ContainerState {
	switch {
	case !rec.FinishedAt.IsZero():
		return runtimeapi.ContainerState_CONTAINER_EXITED
	case !rec.StartedAt.IsZero():
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	return runtimeapi.ContainerState_CONTAINER_CREATED
}

// update changes the record.
func (c *container) update(change func(*ContainerRecord)) error {
	return updateRecord(&c.mu, c.dir, &c.rec, change)
}

// resources are those in force. They are checked when a record is taken up, so
// that they can be read here.
func (rec *ContainerRecord) resources() *runtimeapi.LinuxContainerResources {
	res, _ := unmarshalResources(rec.Resources)
	return res
}

// letGo closes what the node holds of the container.
func (c *container) letGo() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range []**os.File{&c.rootfs, &c.pidfd, &c.pts} {
		if *f != nil {
			(*f).Close()
			*f = nil
		}
	}
	if c.io != nil {
		c.io.close()
	}
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func (c *container) status() *runtimeapi.ContainerStatus {
	rec := c.record()
	st := &runtimeapi.ContainerStatus{
		Id:          rec.ID,
		Metadata:    c.config.Metadata,
		State:       rec.state(),
		CreatedAt:   nanos(rec.CreatedAt),
		StartedAt:   nanos(rec.StartedAt),
		FinishedAt:  nanos(rec.FinishedAt),
		ExitCode:    rec.ExitCode,
		Image:       c.config.Image,
		ImageRef:    rec.ImageRef,
		ImageId:     rec.ImageID,
		Reason:      rec.Reason,
		Message:     rec.Message,
		Labels:      c.config.Labels,
		Annotations: c.config.Annotations,
		Mounts:      c.config.Mounts,
		LogPath:     rec.LogPath,
		StopSignal:  signalEnum(rec.StopSig),
		User: &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{
			Uid: int64(rec.User.UID), Gid: int64(rec.User.GID),
		}},
	}
	for _, g := range rec.User.Groups {
		st.User.Linux.SupplementalGroups = append(st.User.Linux.SupplementalGroups, int64(g))
	}
	if res := rec.resources(); res != nil {
		st.Resources = &runtimeapi.ContainerResources{Linux: res}
	}
	return st
}

func (c *container) listed() *runtimeapi.Container {
	rec := c.record()
	return &runtimeapi.Container{
		Id:           rec.ID,
		PodSandboxId: c.sandbox.id,
		Metadata:     c.config.Metadata,
		Image:        c.config.Image,
		ImageRef:     rec.ImageRef,
		ImageId:      rec.ImageID,
		State:        rec.state(),
		CreatedAt:    nanos(rec.CreatedAt),
		Labels:       c.config.Labels,
		Annotations:  c.config.Annotations,
	}
}
