// Package sysctl decides which kernel parameters a pod may set: those the
// kernel keeps per namespace, and only where the pod has that namespace of its
// own. The rules are runc's; kubelet's own allow-list comes before.
//
// Pure.
//
// Floor 1. It imports nothing of unipod.
package sysctl

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
)

// valid is the API server's idea of a name (k8s.io/kubernetes
// pkg/apis/core/validation, IsValidSysctlName).
var valid = regexp.MustCompile(`^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$`)

// ipc are the parameters of an IPC namespace beside fs.mqueue.*, see
// namespaces(7).
var ipc = map[string]bool{
	"kernel.msgmax": true, "kernel.msgmnb": true, "kernel.msgmni": true, "kernel.sem": true, "kernel.shmall": true,
	"kernel.shmmax": true, "kernel.shmmni": true, "kernel.shm_rmid_forced": true, "kernel.msg_next_id": true,
	"kernel.sem_next_id": true, "kernel.shm_next_id": true,
}

// Check says why a pod may not set the parameter; names are written with dots
// or, as sysctl(8) has it, with slashes. The error is
// errdefs.ErrInvalidArgument.
func Check(name string, hostNetwork, hostIPC bool) error {
	if len(name) > 253 || !valid.MatchString(name) {
		return fmt.Errorf("sysctl %q: not a valid name: %w", name, errdefs.ErrInvalidArgument)
	}
	dotted := Canonical(name)
	var why string
	switch {
	case strings.HasPrefix(dotted, "net."):
		if hostNetwork {
			why = "not allowed with the host's network"
		}
	case ipc[dotted], strings.HasPrefix(dotted, "fs.mqueue."):
		if hostIPC {
			why = "not allowed with the host's IPC"
		}
	case dotted == "kernel.domainname":
		if hostNetwork { // pods on the host's network keep its host name
			why = "not allowed with the host's network"
		}
	case dotted == "kernel.hostname":
		why = "set the pod's hostname instead"
	default:
		why = "not in a namespace of the pod's own, it would change the host's"
	}
	if why != "" {
		return fmt.Errorf("sysctl %q: %s: %w", name, why, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Canonical writes a name with dots between its parts; a dot within a part
// (an interface's name) is then a slash, as in sysctl(8).
func Canonical(name string) string {
	i := strings.IndexAny(name, "./")
	if i < 0 || name[i] == '.' {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name)
}
