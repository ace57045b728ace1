package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/network"
)

// recordVersion is the version of the records this build writes. A build
// reads every version up to its own.
const recordVersion = 1

// recordName is the file that describes a sandbox or a container in its
// directory below Run. It is written before what it describes is made.
const recordName = "record.json"

// SandboxRecord is what a node that starts anew must know about a sandbox.
// It lives in Run/sandboxes/ID/record.json, mode 0600.
type SandboxRecord struct {
	Version   int             `json:"version"`
	ID        string          `json:"id"`
	Config    json.RawMessage `json:"config"` // runtimeapi.PodSandboxConfig as protojson
	Handler   string          `json:"handler,omitempty"`
	CreatedAt time.Time       `json:"createdAt"`

	// Ready is false while RunPodSandbox is at work: a node that finds it so
	// undoes what there is.
	Ready bool `json:"ready"`
	// StoppedAt is set once the sandbox has ended; its network, processes and
	// cgroups are gone or being removed.
	StoppedAt time.Time `json:"stoppedAt,omitzero"`

	PausePID int                 `json:"pausePID,omitempty"`
	Cgroup   string              `json:"cgroup"` // below the root of every hierarchy
	Network  *network.Attachment `json:"network,omitempty"`
}

// ContainerRecord is the same for a container, in Run/containers/ID.
type ContainerRecord struct {
	Version   int             `json:"version"`
	ID        string          `json:"id"`
	SandboxID string          `json:"sandboxID"`
	Config    json.RawMessage `json:"config"` // runtimeapi.ContainerConfig as protojson
	ImageID   string          `json:"imageID"`
	ImageRef  string          `json:"imageRef"` // repo digest when there is one
	// ImageConfig is kept here: the image may be untagged while the container
	// lives.
	ImageConfig ocispec.ImageConfig `json:"imageConfig"`
	LogPath     string              `json:"logPath,omitempty"`
	User        User                `json:"user"`
	StopSig     string              `json:"stopSignal,omitempty"`
	// The SELinux labels of the container's processes and files; empty where
	// SELinux is off.
	ProcessLabel string `json:"processLabel,omitempty"`
	MountLabel   string `json:"mountLabel,omitempty"`

	// Ready is false while CreateContainer is at work.
	Ready      bool      `json:"ready"`
	CreatedAt  time.Time `json:"createdAt"`
	StartedAt  time.Time `json:"startedAt,omitzero"`
	FinishedAt time.Time `json:"finishedAt,omitzero"`
	PID        int       `json:"pid,omitempty"` // in the node's PID namespace
	ExitCode   int32     `json:"exitCode"`
	Reason     string    `json:"reason,omitempty"`
	Message    string    `json:"message,omitempty"`
	Cgroup     string    `json:"cgroup,omitempty"`
	// Resources are those in force, changed by UpdateContainerResources.
	Resources json.RawMessage `json:"resources,omitempty"`
}

// User is who a container's first process runs as.
type User struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
	Home   string   `json:"home,omitempty"`
}

// writeFile replaces dir/name by data in one step, mode 0600. The directory
// is on tmpfs in production: there is nothing to sync.
func writeFile(dir, name string, data []byte) error {
	tmp := filepath.Join(dir, "."+name+".tmp")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

func writeRecord(dir string, rec any) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", dir, err)
	}
	if err := writeFile(dir, recordName, b); err != nil {
		return fmt.Errorf("recording %s: %w", filepath.Base(dir), err)
	}
	return nil
}

// updateRecord changes a record on disk, in dir, and then in memory, where mu
// guards it.
func updateRecord[T any](mu *sync.Mutex, dir string, rec *T, change func(*T)) error {
	mu.Lock()
	defer mu.Unlock()
	next := *rec
	change(&next)
	if err := writeRecord(dir, &next); err != nil {
		return err
	}
	*rec = next
	return nil
}

// ReadSandboxRecords returns the records of every sandbox below run. It may
// be called by another process than the node, which only reads.
func ReadSandboxRecords(run string) ([]*SandboxRecord, error) {
	return readRecords[SandboxRecord](filepath.Join(run, "sandboxes"))
}

// ReadContainerRecords returns the records of every container below run.
func ReadContainerRecords(run string) ([]*ContainerRecord, error) {
	return readRecords[ContainerRecord](filepath.Join(run, "containers"))
}

func readRecords[T any](dir string) ([]*T, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []*T
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name(), recordName))
		if errors.Is(err, os.ErrNotExist) {
			continue // being made or being removed
		}
		if err != nil {
			return nil, err
		}
		rec := new(T)
		if err := json.Unmarshal(b, rec); err != nil {
			return nil, fmt.Errorf("%s is damaged: %w", filepath.Join(dir, e.Name(), recordName), err)
		}
		out = append(out, rec)
	}
	return out, nil
}

// marshalConfig writes a message of the CRI for a record. A string that isn't
// UTF-8 is refused: read back it would be another.
func marshalConfig(m proto.Message) (json.RawMessage, error) {
	b, err := protojson.Marshal(m)
	if err != nil {
		return nil, invalid("the request can't be recorded: %v", err)
	}
	return b, nil
}

func unmarshalSandboxConfig(raw json.RawMessage) (*runtimeapi.PodSandboxConfig, error) {
	c := &runtimeapi.PodSandboxConfig{}
	return c, protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(raw, c)
}

func unmarshalContainerConfig(raw json.RawMessage) (*runtimeapi.ContainerConfig, error) {
	c := &runtimeapi.ContainerConfig{}
	return c, protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(raw, c)
}

// unmarshalResources are nil when the record has none.
func unmarshalResources(raw json.RawMessage) (*runtimeapi.LinuxContainerResources, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	res := &runtimeapi.LinuxContainerResources{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, res); err != nil {
		return nil, fmt.Errorf("the record's resources are damaged: %w", err)
	}
	return res, nil
}
