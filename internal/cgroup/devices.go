package cgroup

import (
	"fmt"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
)

// AnyNumber stands for every major or minor number in a DeviceRule.
const AnyNumber = -1

// DeviceRule lets a container use a device.
type DeviceRule struct {
	Type         byte // 'b' or 'c'
	Major, Minor int64
	Access       string // of "rwm"
}

// String is the rule as v1's devices.allow takes it.
func (r DeviceRule) String() string {
	return fmt.Sprintf("%c %s:%s %s", r.Type, number(r.Major), number(r.Minor), r.Access)
}

func number(n int64) string {
	if n == AnyNumber {
		return "*"
	}
	return strconv.FormatInt(n, 10)
}

func (r DeviceRule) valid() bool {
	for _, a := range r.Access {
		if a != 'r' && a != 'w' && a != 'm' {
			return false
		}
	}
	return (r.Type == 'b' || r.Type == 'c') && r.Access != "" && r.Major >= AnyNumber && r.Minor >= AnyNumber
}

// defaultDevices are what every container may use: any node may be made (it
// can't be opened), and the terminals and memory devices be used. The list
// is containerd's and runc's.
var defaultDevices = []DeviceRule{
	{'c', AnyNumber, AnyNumber, "m"},
	{'b', AnyNumber, AnyNumber, "m"},
	{'c', 1, 3, "rwm"},           // null
	{'c', 1, 5, "rwm"},           // zero
	{'c', 1, 7, "rwm"},           // full
	{'c', 1, 8, "rwm"},           // random
	{'c', 1, 9, "rwm"},           // urandom
	{'c', 5, 0, "rwm"},           // tty
	{'c', 5, 1, "rwm"},           // console
	{'c', 5, 2, "rwm"},           // ptmx
	{'c', 136, AnyNumber, "rwm"}, // pts/*
}

// limitDevices closes the group to all devices but the default ones and
// extra.
func (g *Group) limitDevices(extra []DeviceRule) error {
	for _, r := range extra {
		if !r.valid() {
			return fmt.Errorf("device rule %q: %w", r, errdefs.ErrInvalidArgument)
		}
	}
	rules := append(defaultDevices[:len(defaultDevices):len(defaultDevices)], extra...)
	if g.h.version == 1 {
		return g.limitDevicesV1(rules)
	}
	r := &cgroups.Resources{Devices: []*devices.Rule{{Type: devices.WildcardDevice, Major: AnyNumber, Minor: AnyNumber, Permissions: "rwm"}}}
	for _, d := range rules {
		r.Devices = append(r.Devices, &devices.Rule{Type: devices.Type(d.Type), Major: d.Major, Minor: d.Minor, Permissions: devices.Permissions(d.Access), Allow: true})
	}
	if err := cgroups.DevicesSetV2(g.h.unified.dir+g.path, r); err != nil {
		return fmt.Errorf("limiting devices: %w", err)
	}
	return nil
}

// limitDevicesV1 writes the rules itself: the group is new, so there is no
// state to come from, and the library's reading it before and after would
// cost more than the writing.
func (g *Group) limitDevicesV1(rules []DeviceRule) error {
	for _, t := range g.h.trees {
		if !t.has("devices") {
			continue
		}
		dir := t.dir + g.path
		if err := writeFile(dir+"/devices.deny", "a"); err != nil {
			return fmt.Errorf("limiting devices: %w", err)
		}
		words := make([]string, len(rules))
		for i, r := range rules {
			words[i] = r.String()
		}
		if err := writeFile(dir+"/devices.allow", words...); err != nil {
			return fmt.Errorf("allowing devices: %w", err)
		}
	}
	return nil
}
