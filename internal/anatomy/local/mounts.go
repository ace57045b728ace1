package local

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/anatomy"
)

// A mountLine is a line of /proc/PID/mountinfo, see proc_pid_mountinfo(5).
type mountLine struct {
	root, target, options, fstype, source, super string
}

// parseMountinfo reads a mount table. Lines it can't read are left out: the
// container may have mounted anything.
func parseMountinfo(b []byte) []mountLine {
	var all []mountLine
	for line := range strings.Lines(string(b)) {
		left, right, ok := strings.Cut(strings.TrimSpace(line), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 2 {
			continue
		}
		m := mountLine{root: unescape(l[3]), target: unescape(l[4]), options: l[5], fstype: r[0], source: unescape(r[1])}
		if len(r) > 2 {
			m.super = r[2]
		}
		all = append(all, m)
	}
	return all
}

// unescape undoes the octal escapes of space, tab, newline and backslash.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mounts sorts a container's mount table into mounts with their origin, paths
// that are masked and paths that are read-only.
func mounts(table []mountLine, config *runtimeapi.ContainerConfig, image string) (all []anatomy.Mount, masked, readonly []string) {
	asked := map[string]*runtimeapi.Mount{}
	for _, m := range config.GetMounts() {
		asked[path.Clean(m.ContainerPath)] = m
	}
	sc := config.GetLinux().GetSecurityContext()
	for _, l := range table {
		if asked[l.target] == nil && l.target != "/" {
			if slices.Contains(sc.GetMaskedPaths(), l.target) {
				masked = append(masked, l.target)
				continue
			}
			if slices.Contains(sc.GetReadonlyPaths(), l.target) {
				readonly = append(readonly, l.target)
				continue
			}
		}
		m := anatomy.Mount{Target: l.target, Type: l.fstype, Options: l.options, ReadOnly: slices.Contains(strings.Split(l.options, ","), "ro")}
		m.Origin, m.Source = origin(l, asked[l.target], image)
		all = append(all, m)
	}
	slices.SortStableFunc(all, func(a, b anatomy.Mount) int { return cmp.Compare(a.Target, b.Target) })
	slices.Sort(masked)
	slices.Sort(readonly)
	return all, masked, readonly
}

// origin says in a pod's terms where a mount comes from.
func origin(l mountLine, asked *runtimeapi.Mount, image string) (what, source string) {
	if asked != nil {
		if img := asked.GetImage().GetImage(); img != "" {
			return "image " + img, ""
		}
		return volume(asked.HostPath), asked.HostPath
	}
	switch {
	case l.target == "/":
		return "image " + image + ", with a writable layer of its own", ""
	case l.target == "/dev/shm" || l.target == "/dev/mqueue":
		return "the pod's", ""
	case l.target == "/etc/hostname":
		return "the pod's host name", ""
	case l.target == "/etc/resolv.conf":
		return "the pod's resolver configuration", ""
	case l.target == "/proc":
		return "of the container's PID namespace", ""
	case l.target == "/sys":
		return "of the pod's network namespace", ""
	case strings.HasPrefix(l.target, "/sys/fs/cgroup"):
		return "the container's cgroup", ""
	case l.target == "/dev" || strings.HasPrefix(l.target, "/dev/"):
		return "the container's own", ""
	}
	return fmt.Sprintf("mounted inside, of %s", l.source), ""
}

// volume names a volume by kubelet's directory layout, which the engine
// keeps: .../pods/UID/volumes/kubernetes.io~TYPE/NAME.
func volume(host string) string {
	parts := strings.Split(host, "/")
	for i, part := range parts {
		if kind, ok := strings.CutPrefix(part, "kubernetes.io~"); ok && i+1 < len(parts) {
			return volumeKinds(kind) + " " + parts[i+1]
		}
		if part == "volume-subpaths" && i+1 < len(parts) {
			return "part of volume " + parts[i+1]
		}
	}
	switch {
	case path.Base(host) == "etc-hosts":
		return "the pod's hosts file"
	case strings.Contains(host, "/pods/") && strings.Contains(host, "/containers/"):
		return "termination message"
	}
	return "hostPath"
}

// volumeKinds gives a plugin's directory the name its users know.
func volumeKinds(plugin string) string {
	switch plugin {
	case "empty-dir":
		return "emptyDir"
	case "configmap":
		return "configMap"
	case "downward-api":
		return "downwardAPI"
	}
	return plugin
}
