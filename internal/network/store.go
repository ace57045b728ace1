package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// record is what is known of one pod's network, kept in a file of its own.
type record struct {
	Version    int           `json:"version"`
	ID         string        `json:"id"`
	Netns      uint64        `json:"netns"` // inode of the pod's network namespace
	Phase      phase         `json:"phase"`
	Attachment Attachment    `json:"attachment"`
	Ports      []PortMapping `json:"ports,omitempty"`

	// Of this process, not of the file. Guarded by the pod's turn:
	reserved []*reservation // of the host ports
	// the namespace, so that it ends when the reaper says: the kernel would
	// begin at once, in the way of the next pod. nil for a pod adopted.
	held *os.File
	// and by Network.mu:
	mapped    bool // the table is to have entries of this pod
	portsFree bool // its host ports may be given to others
}

const recordVersion = 1

func (r *record) hold(ns *os.File) error {
	fd, err := unix.FcntlInt(ns.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	r.held = os.NewFile(uintptr(fd), ns.Name())
	return nil
}

func (r *record) letGo() {
	if r.held != nil {
		r.held.Close()
		r.held = nil
	}
}

// phase says how much of what a record describes exists.
type phase string

const (
	making phase = "making" // some of it, perhaps
	ready  phase = "ready"  // all of it
	ending phase = "ending" // host ports are free, the link may still be there
)

// store keeps files in one directory; each is replaced as a whole. They need
// not survive a reboot, only the death of this process, so nothing is synced:
// where the directory is no tmpfs that would cost 1 ms and more for each pod.
type store struct{ dir string }

const (
	recordSuffix = ".json"
	newSuffix    = ".new" // being written
)

func (s store) put(name string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return writeFile(s.dir, name+recordSuffix, data, false)
}

func (s store) remove(name string) error {
	err := os.Remove(filepath.Join(s.dir, name+recordSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// get reads what put wrote; fs.ErrNotExist if there is nothing.
func (s store) get(name string, value any) error {
	path := filepath.Join(s.dir, name+recordSuffix)
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, value); err != nil {
		return fmt.Errorf("network record %s is damaged: %w", path, err)
	}
	return nil
}

// names lists the records and removes what is left of writes that a crash
// ended: what they were to replace counts.
func (s store) names() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, e := range entries {
		path := filepath.Join(s.dir, e.Name())
		if strings.HasSuffix(path, newSuffix) {
			if err := os.Remove(path); err != nil {
				return nil, err
			}
			continue
		}
		name, ok := strings.CutSuffix(e.Name(), recordSuffix)
		if !ok {
			return nil, fmt.Errorf("%s is not a network record: remove it", path)
		}
		all = append(all, name)
	}
	return all, nil
}

// records reads every pod's record. One that can't be read is an error: the
// addresses it holds would be given out twice.
func (s store) records() (map[string]*record, error) {
	ids, err := s.names()
	if err != nil {
		return nil, err
	}
	all := make(map[string]*record)
	for _, id := range ids {
		r := new(record)
		if err := s.get(id, r); err != nil {
			return nil, err
		}
		if r.Version != recordVersion || r.ID != id {
			return nil, fmt.Errorf("network record of pod %s: unexpected version %d or ID %q", id, r.Version, r.ID)
		}
		all[id] = r
	}
	return all, nil
}

// writeFile replaces dir/name by data: all of it or, after a crash, none. If
// durable, that is also true of a crash of the machine.
func writeFile(dir, name string, data []byte, durable bool) (err error) {
	tmp := filepath.Join(dir, name+newSuffix)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp)
		}
	}()
	_, err = f.Write(data)
	if err == nil && durable {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", tmp, err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return err
	}
	if !durable {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
