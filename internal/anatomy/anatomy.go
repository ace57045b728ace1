// Package anatomy describes what a running pod is made of, and draws it: the
// pause process and the containers under it, the namespaces of each and which
// are shared, mounts and where they come from, control groups and what they
// use, addresses, and the recipes the containers were made by.
//
// It owns the description ([Pod], whose JSON is what `unipod anatomy -o json`
// prints and stays compatible) and its picture ([Pod.Tree]), both pure;
// package anatomy/local fills it in from the node's records and from /proc.
//
// Floor: 9, a face. Of unipod it imports only progress, for the way it writes
// numbers; anatomy/local alone knows the runtime's records.
package anatomy

import "time"

// Pod is one sandbox of the runtime with all that runs in it.
type Pod struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       string    `json:"uid"`
	SandboxID string    `json:"sandboxID"`
	Hostname  string    `json:"hostname,omitempty"`
	CreatedAt time.Time `json:"createdAt"`
	// State is "Ready" or "NotReady", the CRI's words.
	State string `json:"state"`

	Pause      *Process    `json:"pause,omitempty"` // nil when it is gone
	Network    *Network    `json:"network,omitempty"`
	Cgroup     *Cgroup     `json:"cgroup,omitempty"`
	Containers []Container `json:"containers"`
	// Recipe is the printed list of system calls by which pause made the
	// pod's own world.
	Recipe string `json:"recipe,omitempty"`
}

// Container is one container of the pod, in the order of their making.
type Container struct {
	Name    string `json:"name"`
	ID      string `json:"id"`
	Attempt uint32 `json:"attempt"`
	Image   string `json:"image"`
	ImageID string `json:"imageID"`
	// State is "Created", "Running" or "Exited".
	State      string    `json:"state"`
	ExitCode   int32     `json:"exitCode"`
	Reason     string    `json:"reason,omitempty"`
	StartedAt  time.Time `json:"startedAt,omitzero"`
	FinishedAt time.Time `json:"finishedAt,omitzero"`

	Process *Process `json:"process,omitempty"` // nil unless it runs
	Mounts  []Mount  `json:"mounts,omitempty"`
	Masked  []string `json:"maskedPaths,omitempty"`
	// ReadOnly are the paths below a writable mount that are read-only.
	ReadOnly []string `json:"readonlyPaths,omitempty"`
	Cgroup   *Cgroup  `json:"cgroup,omitempty"`
	// Recipe is the printed list of system calls the container was made by.
	Recipe string `json:"recipe,omitempty"`
}

// Process is the first process of a container, or pause.
type Process struct {
	PID int `json:"pid"` // as the host counts
	// InPod are the numbers of the same process in the PID namespaces below
	// the host's, the outer one first.
	InPod      []int       `json:"pidsInside,omitempty"`
	Command    []string    `json:"command"`
	UID        uint32      `json:"uid"`
	Memory     uint64      `json:"pssBytes"`
	Namespaces []Namespace `json:"namespaces"`
	Children   []Process   `json:"children,omitempty"`
}

// Namespace is one of the namespaces a process is in.
type Namespace struct {
	Type  string `json:"type"` // as in /proc/PID/ns
	Inode uint64 `json:"inode"`
	// Shared is "pod" for the pod's own (pause's), "host" for the host's and
	// empty for one the container has to itself.
	Shared string `json:"shared,omitempty"`
}

// Mount is one line of a container's mount table.
type Mount struct {
	Target   string `json:"target"`
	Type     string `json:"type"`
	ReadOnly bool   `json:"readOnly"`
	Options  string `json:"options"`
	// Origin says where it comes from in the pod's own terms: "emptyDir www".
	Origin string `json:"origin"`
	// Source is the host's path, where there is one.
	Source string `json:"source,omitempty"`
}

// Cgroup is a control group with its use now. Limits of 0 are none.
type Cgroup struct {
	Path        string        `json:"path"`
	MemoryBytes uint64        `json:"memoryBytes"`
	MemoryLimit uint64        `json:"memoryLimitBytes,omitempty"`
	CPU         time.Duration `json:"cpuNanoseconds"`
	CPULimit    float64       `json:"cpuLimitCores,omitempty"`
	PIDs        uint64        `json:"pids"`
	PIDLimit    uint64        `json:"pidLimit,omitempty"`
}

// Network is the pod's place on the network; of a pod on the host's network
// only Host is set.
type Network struct {
	Host       bool     `json:"hostNetwork,omitempty"`
	Addresses  []string `json:"addresses,omitempty"`
	Gateways   []string `json:"gateways,omitempty"`
	MAC        string   `json:"mac,omitempty"`
	MTU        int      `json:"mtu,omitempty"`
	HostVeth   string   `json:"hostVeth,omitempty"`
	HostBridge string   `json:"hostBridge,omitempty"`
	// Ports are "hostIP:hostPort/protocol -> containerPort".
	Ports []string `json:"ports,omitempty"`
}
