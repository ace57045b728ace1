package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// idsPerPod is the size of a pod's ID range. The first range is the host's
// own.
const idsPerPod = 65536

// maxRanges bounds the ranges: IDs are 32 bits wide.
const maxRanges = 1<<32/idsPerPod - 1

// userNamespaces hands out ID ranges to pods with hostUsers: false. A pod's
// range is in the file "userns" of its directory, written before it is used,
// so that it outlives the engine; no two pods share one.
type userNamespaces struct {
	dir   string
	mu    sync.Mutex
	taken map[uint32]PodUID // by range; nil until read
}

type userRange struct {
	HostID uint32 `json:"hostId"`
	Length uint32 `json:"length"`
}

func (u *userNamespaces) file(uid PodUID) string {
	return filepath.Join(u.dir, string(uid), "userns")
}

// load reads what pods hold already.
func (u *userNamespaces) load() error {
	if u.taken != nil {
		return nil
	}
	files, err := filepath.Glob(filepath.Join(u.dir, "*", "userns"))
	if err != nil {
		return err
	}
	taken := map[uint32]PodUID{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		var r userRange
		if err := json.Unmarshal(text, &r); err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
		taken[r.HostID/idsPerPod] = PodUID(filepath.Base(filepath.Dir(f)))
	}
	u.taken = taken
	return nil
}

// get returns the pod's mapping, choosing one at the first call.
func (u *userNamespaces) get(uid PodUID) (*runtimeapi.UserNamespace, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.load(); err != nil {
		return nil, fmt.Errorf("reading the pods' user namespaces: %w", err)
	}
	for n, owner := range u.taken {
		if owner == uid {
			return mapping(n), nil
		}
	}
	for n := uint32(1); n < maxRanges; n++ {
		if _, used := u.taken[n]; used {
			continue
		}
		if err := u.write(uid, userRange{HostID: n * idsPerPod, Length: idsPerPod}); err != nil {
			return nil, fmt.Errorf("recording the pod's user namespace: %w", err)
		}
		u.taken[n] = uid
		return mapping(n), nil
	}
	return nil, errors.New("no free range of user IDs is left")
}

func mapping(n uint32) *runtimeapi.UserNamespace {
	ids := []*runtimeapi.IDMapping{{HostId: n * idsPerPod, ContainerId: 0, Length: idsPerPod}}
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
}

// write records a range so that it survives a crash.
func (u *userNamespaces) write(uid PodUID, r userRange) error {
	file := u.file(uid)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(file+".tmp", file)
}

// release gives the pod's range back.
func (u *userNamespaces) release(uid PodUID) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, file := range []string{u.file(uid), u.file(uid) + ".tmp"} {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for n, owner := range u.taken {
		if owner == uid {
			delete(u.taken, n)
		}
	}
	return nil
}
