// Package apparmor makes sure that the AppArmor profile a container shall
// enter is in the kernel.
//
// Entering it is the recipe's: the name is written to attr/exec before execve.
// Functions are safe for concurrent use.
//
// Floor 1. It imports nothing of unipod.
package apparmor

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"

	containerdapparmor "github.com/containerd/containerd/v2/contrib/apparmor"
	"github.com/containerd/errdefs"
)

// DefaultProfile is the name of the profile that RuntimeDefault means.
const DefaultProfile = "cri-unipod.apparmor.d"

// profiles lists what the kernel has loaded, one "name (mode)" a line.
const profiles = "/sys/kernel/security/apparmor/profiles"

// Enabled says whether the kernel confines by AppArmor.
var Enabled = sync.OnceValue(func() bool {
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	if err != nil || !strings.HasPrefix(string(b), "Y") {
		return false
	}
	_, err = os.Stat(profiles)
	return err == nil
})

var (
	loading sync.Mutex
	warn    sync.Once
)

// EnsureDefault loads the default profile, containerd's, unless it is loaded,
// and returns its name. Many machines have AppArmor in their kernel and
// nothing to load profiles with: there it returns "", and containers are not
// confined, as with containerd.
func EnsureDefault() (string, error) {
	loading.Lock()
	defer loading.Unlock()
	loaded, err := isLoaded(DefaultProfile)
	if err != nil {
		return "", err
	}
	if loaded {
		return DefaultProfile, nil
	}
	if _, err := exec.LookPath("apparmor_parser"); err != nil {
		warn.Do(func() {
			slog.Warn("containers are not confined by AppArmor: apparmor_parser, which loads the default profile, is not installed (Debian: apt install apparmor)")
		})
		return "", nil
	}
	if err := containerdapparmor.LoadDefaultProfile(DefaultProfile); err != nil {
		return "", fmt.Errorf("loading AppArmor profile %s: %w", DefaultProfile, err)
	}
	return DefaultProfile, nil
}

// EnsureLoaded checks that a profile is in the kernel: those of localhost_ref
// are the administrator's to load. One that isn't is errdefs.ErrNotFound.
func EnsureLoaded(name string) error {
	if !Enabled() {
		return fmt.Errorf("AppArmor profile %q: AppArmor is not enabled on this machine: %w", name, errdefs.ErrFailedPrecondition)
	}
	if name == "" {
		return fmt.Errorf("AppArmor profile: localhost_ref is empty: %w", errdefs.ErrInvalidArgument)
	}
	loaded, err := isLoaded(name)
	if err != nil {
		return err
	}
	if !loaded {
		return fmt.Errorf("AppArmor profile %q is not loaded on this machine (apparmor_parser -r FILE loads it): %w", name, errdefs.ErrNotFound)
	}
	return nil
}

func isLoaded(name string) (bool, error) {
	f, err := os.Open(profiles)
	if err != nil {
		return false, fmt.Errorf("listing AppArmor profiles: %w", err)
	}
	defer f.Close()
	found, err := contains(f, name)
	if err != nil {
		return false, fmt.Errorf("listing AppArmor profiles: %w", err)
	}
	return found, nil
}

// contains finds a profile in the kernel's list. A name may have spaces and
// parentheses: what follows the last " (" is the mode.
func contains(r io.Reader, name string) (bool, error) {
	b := bufio.NewReader(r)
	for {
		line, err := b.ReadString('\n')
		if i := strings.LastIndex(line, " ("); i >= 0 && line[:i] == name {
			return true, nil
		}
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
}
