package seccomp

import (
	"fmt"
	"runtime"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// file is a profile as it is written: the OCI runtime specification's, with
// what Docker's and Podman's default.json add to it, which is conditional on
// the machine and the container.
type file struct {
	DefaultAction    specs.LinuxSeccompAction `json:"defaultAction"`
	DefaultErrnoRet  *uint                    `json:"defaultErrnoRet"`
	DefaultErrno     string                   `json:"defaultErrno"`
	Architectures    []specs.Arch             `json:"architectures"`
	ArchMap          []archMap                `json:"archMap"`
	Flags            []specs.LinuxSeccompFlag `json:"flags"`
	ListenerPath     string                   `json:"listenerPath"`
	ListenerMetadata string                   `json:"listenerMetadata"`
	Syscalls         []fileSyscall            `json:"syscalls"`
}

type archMap struct {
	Architecture     specs.Arch   `json:"architecture"`
	SubArchitectures []specs.Arch `json:"subArchitectures"`
}

type fileSyscall struct {
	Name     string                   `json:"name"`
	Names    []string                 `json:"names"`
	Action   specs.LinuxSeccompAction `json:"action"`
	ErrnoRet *uint                    `json:"errnoRet"`
	Errno    string                   `json:"errno"`
	Args     []specs.LinuxSeccompArg  `json:"args"`
	Comment  string                   `json:"comment"`
	Includes *filter                  `json:"includes"`
	Excludes *filter                  `json:"excludes"`
}

// filter selects rules; every given part must hold.
type filter struct {
	Arches    []string `json:"arches"` // as GOARCH
	Caps      []string `json:"caps"`
	MinKernel string   `json:"minKernel"`
}

// Parse reads a profile in OCI's or Docker's JSON and resolves what depends
// on the machine or on caps, the container's bounding set ("CAP_CHOWN").
func Parse(b []byte, caps []string) (*specs.LinuxSeccomp, error) {
	var f file
	if err := strictJSON(b, &f); err != nil {
		return nil, err
	}
	if len(f.Architectures) > 0 && len(f.ArchMap) > 0 {
		return nil, fmt.Errorf("architectures and archMap exclude each other: %w", errdefs.ErrInvalidArgument)
	}
	out := &specs.LinuxSeccomp{
		DefaultAction: f.DefaultAction, Architectures: f.Architectures, Flags: f.Flags,
		ListenerPath: f.ListenerPath, ListenerMetadata: f.ListenerMetadata,
	}
	var err error
	if out.DefaultErrnoRet, err = errnoOf("defaultErrno", f.DefaultErrnoRet, f.DefaultErrno); err != nil {
		return nil, err
	}
	native := nativeArch()
	for _, m := range f.ArchMap {
		if m.Architecture == native {
			out.Architectures = append([]specs.Arch{native}, m.SubArchitectures...)
		}
	}
	for i, s := range f.Syscalls {
		where := fmt.Sprintf("syscalls[%d]", i)
		use, err := s.applies(where, caps)
		if err != nil {
			return nil, err
		}
		if !use {
			continue
		}
		names := s.Names
		if s.Name != "" {
			if len(names) > 0 {
				return nil, fmt.Errorf("%s: name and names exclude each other: %w", where, errdefs.ErrInvalidArgument)
			}
			names = []string{s.Name}
		}
		errno, err := errnoOf(where+".errno", s.ErrnoRet, s.Errno)
		if err != nil {
			return nil, err
		}
		out.Syscalls = append(out.Syscalls, specs.LinuxSyscall{Names: names, Action: s.Action, ErrnoRet: errno, Args: s.Args})
	}
	return out, nil
}

// errnoOf brings the two ways to write an errno together.
func errnoOf(where string, ret *uint, name string) (*uint, error) {
	if name == "" {
		return ret, nil
	}
	for e := unix.Errno(1); e < 134; e++ {
		if unix.ErrnoName(e) == name {
			n := uint(e)
			if ret != nil && *ret != n {
				return nil, fmt.Errorf("%s %q contradicts %sRet %d: %w", where, name, where, *ret, errdefs.ErrInvalidArgument)
			}
			return &n, nil
		}
	}
	return nil, fmt.Errorf("%s %q is no errno: %w", where, name, errdefs.ErrInvalidArgument)
}

func (s *fileSyscall) applies(where string, caps []string) (bool, error) {
	if f := s.Includes; f != nil {
		if len(f.Arches) > 0 && !slices.Contains(f.Arches, runtime.GOARCH) {
			return false, nil
		}
		for _, c := range f.Caps {
			if !slices.Contains(caps, c) {
				return false, nil
			}
		}
		if f.MinKernel != "" {
			new, err := kernelAtLeast(f.MinKernel)
			if err != nil {
				return false, fmt.Errorf("%s.includes.minKernel: %w", where, err)
			}
			if !new {
				return false, nil
			}
		}
	}
	if f := s.Excludes; f != nil {
		if slices.Contains(f.Arches, runtime.GOARCH) || slices.ContainsFunc(f.Caps, func(c string) bool { return slices.Contains(caps, c) }) {
			return false, nil
		}
		if f.MinKernel != "" {
			new, err := kernelAtLeast(f.MinKernel)
			if err != nil {
				return false, fmt.Errorf("%s.excludes.minKernel: %w", where, err)
			}
			return !new, nil
		}
	}
	return true, nil
}

// kernelAtLeast compares the running kernel with "4.8".
func kernelAtLeast(want string) (bool, error) {
	var wantMajor, wantMinor, major, minor int
	if n, err := fmt.Sscanf(want, "%d.%d", &wantMajor, &wantMinor); n != 2 || err != nil {
		return false, fmt.Errorf("%q is no kernel version: %w", want, errdefs.ErrInvalidArgument)
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return false, err
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		return false, fmt.Errorf("this kernel's version: %w", err)
	}
	return major > wantMajor || major == wantMajor && minor >= wantMinor, nil
}
