package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Usage is what a volume that belongs to its pod holds, and may hold.
type Usage struct {
	Volume string
	// EmptyDir: containers write it. What others show of the API is small.
	EmptyDir bool
	// Bytes are those allocated, Inodes the number of files; a file with
	// several names counts once.
	Bytes  int64
	Inodes int64
	// Limit is the volume's sizeLimit; nil if it has none.
	Limit *resource.Quantity
	// Memory says that the volume is on tmpfs or hugetlbfs, whose limit the
	// kernel keeps. It doesn't count as storage.
	Memory bool
	// The file system the volume is on.
	CapacityBytes, AvailableBytes int64
	CapacityInodes, FreeInodes    int64
}

// Exceeded is the message of the eviction of a pod whose volume is over its
// limit; "" when it isn't.
func (u Usage) Exceeded() string {
	if u.Limit == nil || u.Limit.Sign() <= 0 || u.Bytes <= u.Limit.Value() {
		return ""
	}
	return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", u.Volume, u.Limit.String())
}

// Usages measures the volumes that were made for the pod: emptyDirs and what
// shows API objects, but not what is the host's or an image's. Reading trees
// that containers write to, it may be slightly off; it costs a stat per file,
// so it isn't for every second.
func (m *Manager) Usages(ctx context.Context, pod *v1.Pod) ([]Usage, error) {
	var usages []Usage
	used := usedVolumes(pod)
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		plugin, memory := ownPlugin(v)
		if plugin == "" || !used[v.Name] {
			continue
		}
		u := Usage{Volume: v.Name, Memory: memory}
		if v.EmptyDir != nil {
			u.EmptyDir, u.Limit = true, v.EmptyDir.SizeLimit
		}
		dir := filepath.Join(m.Dir, string(pod.UID), "volumes", "kubernetes.io~"+plugin, v.Name)
		if err := measure(ctx, dir, &u); err != nil {
			return nil, fmt.Errorf("measuring volume %q of pod %s/%s: %w", v.Name, pod.Namespace, pod.Name, err)
		}
		usages = append(usages, u)
	}
	return usages, nil
}

// ownPlugin is the directory of volumes of v's kind if they are their pod's
// own, and whether they are in memory.
func ownPlugin(v *v1.Volume) (plugin string, memory bool) {
	switch {
	case v.EmptyDir != nil:
		return "empty-dir", v.EmptyDir.Medium != v1.StorageMediumDefault
	case v.ConfigMap != nil:
		return "configmap", false
	case v.Secret != nil:
		return "secret", true
	case v.DownwardAPI != nil:
		return "downward-api", true
	case v.Projected != nil:
		return "projected", true
	}
	return "", false
}

func measure(ctx context.Context, dir string, u *Usage) error {
	root, err := openDir(dir)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(root.Fd()), &fs); err != nil {
		return &os.PathError{Op: "fstatfs", Path: dir, Err: err}
	}
	u.CapacityBytes, u.AvailableBytes = int64(fs.Blocks)*fs.Bsize, int64(fs.Bavail)*fs.Bsize
	u.CapacityInodes, u.FreeInodes = int64(fs.Files), int64(fs.Ffree)
	if u.Memory {
		u.Bytes = int64(fs.Blocks-fs.Bfree) * fs.Bsize
		u.Inodes = int64(fs.Files - fs.Ffree)
		return nil
	}
	linked := map[uint64]bool{} // inodes with several names; all on one device
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return &os.PathError{Op: "fstat", Path: dir, Err: err}
	}
	count := func(st *unix.Stat_t) {
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if linked[st.Ino] {
				return
			}
			linked[st.Ino] = true
		}
		u.Bytes += st.Blocks * 512
		u.Inodes++
	}
	count(&st)
	return walk(root, func(_ *os.File, _ string, st *unix.Stat_t) error {
		count(st)
		return ctx.Err()
	})
}
