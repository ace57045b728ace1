// Package seccomp turns OCI seccomp profiles into programs the kernel runs:
// RuntimeDefault (containerd's profile) and Localhost (a file on the node).
//
// It is a compiler, not a loader: pause's child installs the program. The
// meaning of a profile is that of runc with libseccomp:
//
//   - Rules of one system call are alternatives, tried in the profile's
//     order; an unconditional rule makes the conditional ones moot. Conditions
//     of one rule must all hold, unless two of them look at the same argument:
//     then each is an alternative.
//   - A rule whose action is the profile's default says nothing. Names unknown
//     to an architecture are passed over there.
//   - A system call newer than every one the profile names gets ENOSYS rather
//     than the default errno, so that programs fall back to what they know.
//   - A call by an architecture that isn't listed kills the thread.
//
// What a profile asks for and can't be had (SCMP_ACT_NOTIFY, unknown fields)
// is an error naming it. Compiled programs are cached by their profile's
// content. All functions are safe for concurrent use.
//
// Floor 1. It imports nothing of unipod.
package seccomp

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"

	containerdseccomp "github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Program is what seccomp(SECCOMP_SET_MODE_FILTER, Flags, Filter) takes. It is
// shared: don't change it.
type Program struct {
	Filter []unix.SockFilter
	Flags  uint32
}

// maxProfile bounds a profile's file; the largest in use have some 20 KB.
const maxProfile = 1 << 20

// cache holds compiled programs by the hash of their profile. Nodes see a
// handful of profiles; the bound is for one that is fed a thousand.
var cache = struct {
	sync.Mutex
	programs map[[sha256.Size]byte]*Program
}{programs: map[[sha256.Size]byte]*Program{}}

const maxCached = 256

func cached(key [sha256.Size]byte, compile func() (*Program, error)) (*Program, error) {
	cache.Lock()
	p := cache.programs[key]
	cache.Unlock()
	if p != nil {
		return p, nil
	}
	p, err := compile()
	if err != nil {
		return nil, err
	}
	cache.Lock()
	defer cache.Unlock()
	if len(cache.programs) >= maxCached {
		clear(cache.programs)
	}
	cache.programs[key] = p
	return p, nil
}

// RuntimeDefault is containerd's default profile for this kernel and a
// process whose bounding set holds caps ("CAP_CHOWN").
func RuntimeDefault(caps []string) (*Program, error) {
	key := sha256.New()
	fmt.Fprintf(key, "default %q", caps)
	return cached([sha256.Size]byte(key.Sum(nil)), func() (*Program, error) {
		p, err := Compile(DefaultProfile(caps))
		if err != nil {
			return nil, fmt.Errorf("seccomp profile RuntimeDefault: %w", err)
		}
		return p, nil
	})
}

// DefaultProfile is the profile that RuntimeDefault compiles.
func DefaultProfile(caps []string) *specs.LinuxSeccomp {
	return containerdseccomp.DefaultProfile(&specs.Spec{
		Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}},
	})
}

// Localhost reads the profile in the file at path, as the CRI's
// localhost_ref names it, for a process whose bounding set holds caps.
func Localhost(path string, caps []string) (*Program, error) {
	b, err := readProfile(path)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile %s: %w", path, err)
	}
	key := sha256.New()
	fmt.Fprintf(key, "file %q ", caps)
	key.Write(b)
	return cached([sha256.Size]byte(key.Sum(nil)), func() (*Program, error) {
		profile, err := Parse(b, caps)
		if err != nil {
			return nil, fmt.Errorf("seccomp profile %s: %w", path, err)
		}
		p, err := Compile(profile)
		if err != nil {
			return nil, fmt.Errorf("seccomp profile %s: %w", path, err)
		}
		return p, nil
	})
}

func readProfile(path string) ([]byte, error) {
	// Not blocking: a fifo would hold up the container's start for ever.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if os.IsNotExist(err) {
		return nil, fmt.Errorf("no such file on this node: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("not a regular file: %w", errdefs.ErrInvalidArgument)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxProfile+1))
	if err == nil && len(b) > maxProfile {
		err = fmt.Errorf("larger than %d bytes: %w", maxProfile, errdefs.ErrInvalidArgument)
	}
	return b, err
}

// strictJSON decodes exactly one JSON value and refuses unknown fields.
func strictJSON(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("something follows the profile: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}
