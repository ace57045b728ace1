package volume

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

// The first lines of the /etc/hosts that Kubernetes manages; programs look for
// them.
const (
	hostsHeader            = "# Kubernetes-managed hosts file.\n"
	hostsHeaderHostNetwork = "# Kubernetes-managed hosts file (host network).\n"

	// maxHosts bounds what is read of the node's own /etc/hosts, in bytes.
	maxHosts = 10 << 20
)

// writeHosts brings the pod's /etc/hosts up to date and returns its path. It
// is written in place: running containers have it mounted.
func (m *Manager) writeHosts(pod *v1.Pod, o MountOptions) (string, error) {
	content, err := m.hosts(pod, o)
	if err != nil {
		return "", err
	}
	dir, err := m.podDir(pod.UID)
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, "etc-hosts")
	f, err := os.OpenFile(name, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := f.Chmod(0o644); err != nil {
		return "", err
	}
	old, err := io.ReadAll(io.LimitReader(f, int64(len(content))+1))
	if err != nil {
		return "", err
	}
	if bytes.Equal(old, content) {
		return name, nil
	}
	if err := f.Truncate(0); err != nil {
		return "", err
	}
	if _, err := f.WriteAt(content, 0); err != nil {
		return "", err
	}
	return name, f.Close()
}

func (m *Manager) hosts(pod *v1.Pod, o MountOptions) ([]byte, error) {
	var b bytes.Buffer
	if pod.Spec.HostNetwork {
		f, err := os.Open(m.HostsFile)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		b.WriteString(hostsHeaderHostNetwork)
		if _, err := io.Copy(&b, io.LimitReader(f, maxHosts)); err != nil {
			return nil, err
		}
	} else {
		b.WriteString(hostsHeader)
		b.WriteString("127.0.0.1\tlocalhost\n")
		b.WriteString("::1\tlocalhost ip6-localhost ip6-loopback\n")
		b.WriteString("fe00::0\tip6-localnet\n")
		b.WriteString("fe00::0\tip6-mcastprefix\n")
		b.WriteString("fe00::1\tip6-allnodes\n")
		b.WriteString("fe00::2\tip6-allrouters\n")
		names := o.Hostname
		if o.Domain != "" {
			names = o.Hostname + "." + o.Domain + "\t" + o.Hostname
		}
		for _, ip := range o.PodIPs {
			fmt.Fprintf(&b, "%s\t%s\n", ip, names)
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, alias := range pod.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", alias.IP, strings.Join(alias.Hostnames, "\t"))
		}
	}
	return b.Bytes(), nil
}

// newTerminationLog makes the file that one run of a container may leave its
// last words in.
func (m *Manager) newTerminationLog(pod *v1.Pod, c *v1.Container) (string, error) {
	dir, err := m.podDir(pod.UID)
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "containers", c.Name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	var id [4]byte
	rand.Read(id[:])
	f, err := os.OpenFile(filepath.Join(dir, hex.EncodeToString(id[:])), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer f.Close()
	// Any user of the container may write it.
	if err := f.Chmod(0o666); err != nil {
		return "", err
	}
	return f.Name(), f.Close()
}
