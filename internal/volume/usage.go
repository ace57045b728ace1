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

// Usage is what an emptyDir holds and may hold.
type Usage struct {
	Volume string
	// Bytes are those allocated, Inodes the number of files; a file with
	// several names counts once.
	Bytes  int64
	Inodes int64
	// Limit is the volume's sizeLimit; nil if it has none.
	Limit *resource.Quantity
	// Memory says that the volume is on tmpfs or hugetlbfs, whose limit the
	// kernel keeps.
	Memory bool
}

// Exceeded is the message of the eviction of a pod whose volume is over its
// limit; "" when it isn't.
func (u Usage) Exceeded() string {
	if u.Limit == nil || u.Limit.Sign() <= 0 || u.Bytes <= u.Limit.Value() {
		return ""
	}
	return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", u.Volume, u.Limit.String())
}

// Usages measures the pod's emptyDirs. Reading a tree that containers write
// to, it may be slightly off; it costs a stat per file, so it isn't for every
// second.
func (m *Manager) Usages(ctx context.Context, pod *v1.Pod) ([]Usage, error) {
	var usages []Usage
	used := usedVolumes(pod)
	for _, v := range pod.Spec.Volumes {
		if v.EmptyDir == nil || !used[v.Name] {
			continue
		}
		u := Usage{Volume: v.Name, Limit: v.EmptyDir.SizeLimit, Memory: v.EmptyDir.Medium != v1.StorageMediumDefault}
		dir := filepath.Join(m.Dir, string(pod.UID), "volumes", "kubernetes.io~empty-dir", v.Name)
		if err := measure(ctx, dir, &u); err != nil {
			return nil, fmt.Errorf("measuring volume %q of pod %s/%s: %w", v.Name, pod.Namespace, pod.Name, err)
		}
		usages = append(usages, u)
	}
	return usages, nil
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
	if u.Memory {
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(root.Fd()), &st); err != nil {
			return &os.PathError{Op: "fstatfs", Path: dir, Err: err}
		}
		u.Bytes = int64(st.Blocks-st.Bfree) * st.Bsize
		u.Inodes = int64(st.Files - st.Ffree)
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
