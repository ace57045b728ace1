package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/recipe"
	"unipod.dev/unipod/internal/security/apparmor"
	"unipod.dev/unipod/internal/security/caps"
	"unipod.dev/unipod/internal/security/seccomp"
)

// defaultPath is what a container without a PATH gets: every runtime's.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// processArgs is the command line: the request's command or the image's
// entrypoint, then the request's arguments or, only with the image's
// entrypoint, the image's.
func processArgs(config *runtimeapi.ContainerConfig, img *ocispec.ImageConfig) ([]string, error) {
	command, args := config.Command, config.Args
	if len(command) == 0 {
		if len(args) == 0 {
			args = img.Cmd
		}
		command = img.Entrypoint
	}
	all := slices.Concat(command, args)
	if len(all) == 0 || all[0] == "" && len(all) == 1 {
		return nil, invalid("no command specified: neither the container nor its image names one")
	}
	return all, nil
}

// environ is the environment: the host name, the image's variables, the
// request's over them, and what every process expects.
func environ(config *runtimeapi.ContainerConfig, img *ocispec.ImageConfig, hostname, home string) []string {
	var env []string
	at := map[string]int{}
	set := func(kv string) {
		key, _, _ := strings.Cut(kv, "=")
		if i, ok := at[key]; ok {
			env[i] = kv
			return
		}
		at[key] = len(env)
		env = append(env, kv)
	}
	set("PATH=" + defaultPath)
	set("HOSTNAME=" + hostname)
	if config.Tty {
		set("TERM=xterm")
	}
	for _, kv := range img.Env {
		if strings.Contains(kv, "=") && !strings.ContainsRune(kv, 0) {
			set(kv)
		}
	}
	for _, e := range config.Envs {
		set(e.Key + "=" + string(e.Value))
	}
	if _, ok := at["HOME"]; !ok {
		set("HOME=" + home)
	}
	return env
}

// process is what every process of the container has in common: its first
// one and those of exec.
func (r *Runtime) process(c *container, args []string) (recipe.Process, error) {
	rec := c.record()
	img := &rec.ImageConfig
	p := recipe.Process{Args: args, Cwd: "/"}
	hostname, err := c.sandbox.hostname()
	if err == nil && hostname == "" {
		hostname, err = os.Hostname()
	}
	if err != nil {
		return p, err
	}
	p.Env = environ(c.config, img, hostname, rec.User.Home)
	for _, dir := range []string{img.WorkingDir, c.config.WorkingDir} {
		if dir != "" {
			p.Cwd = dir
		}
	}
	if score := c.config.GetLinux().GetResources().GetOomScoreAdj(); score != 0 {
		v := int(score)
		p.OOMScoreAdj = &v
	}
	return p, r.secure(&p, c.config, rec.User)
}

// secure fills in what a process may do.
func (r *Runtime) secure(p *recipe.Process, config *runtimeapi.ContainerConfig, u User) error {
	sc := config.GetLinux().GetSecurityContext()
	p.UID, p.GID, p.Groups = u.UID, u.GID, u.Groups
	p.NoNewPrivs = sc.GetNoNewPrivs()
	cp := sc.GetCapabilities()
	sets, err := caps.For(caps.Config{
		Add: cp.GetAddCapabilities(), Drop: cp.GetDropCapabilities(), AddAmbient: cp.GetAddAmbientCapabilities(),
		Privileged: sc.GetPrivileged(),
	})
	if err != nil {
		return err
	}
	p.Bounding, p.Effective, p.Permitted, p.Inheritable, p.Ambient = sets.Bounding, sets.Effective, sets.Permitted, sets.Inheritable, sets.Ambient
	if prog, err := r.seccompProgram(sc, sets); err != nil {
		return err
	} else if prog != nil {
		p.Seccomp, p.SeccompFlags = prog.Filter, prog.Flags
	}
	if p.AppArmor, err = appArmorProfile(sc); err != nil {
		return err
	}
	return nil
}

func (r *Runtime) seccompProgram(sc *runtimeapi.LinuxContainerSecurityContext, sets caps.Sets) (*seccomp.Program, error) {
	profile, err := seccompProfile(sc)
	if err != nil {
		return nil, err
	}
	if sc.GetPrivileged() || profile == nil {
		return nil, nil
	}
	held := caps.Names(sets.Bounding)
	switch profile.ProfileType {
	case runtimeapi.SecurityProfile_Unconfined:
		return nil, nil
	case runtimeapi.SecurityProfile_RuntimeDefault:
		return seccomp.RuntimeDefault(held)
	case runtimeapi.SecurityProfile_Localhost:
		ref := strings.TrimPrefix(profile.LocalhostRef, "localhost/")
		if ref == "" {
			return nil, invalid("seccomp profile Localhost needs a localhost_ref")
		}
		if !filepath.IsAbs(ref) {
			ref = filepath.Join(r.cfg.SeccompProfileRoot, filepath.Clean("/"+ref))
		}
		return seccomp.Localhost(ref, held)
	}
	return nil, invalid("unknown seccomp profile type %d", profile.ProfileType)
}

// appArmorProfile returns the name of the profile to enter at exec, "" for
// none.
func appArmorProfile(sc *runtimeapi.LinuxContainerSecurityContext) (string, error) {
	//lint:ignore SA1019 it is what an older client says
	profile, err := namedProfile(sc.GetApparmor(), sc.GetApparmorProfile())
	if err != nil {
		return "", fmt.Errorf("AppArmor: %w", err)
	}
	if !apparmor.Enabled() {
		if profile != nil && profile.ProfileType == runtimeapi.SecurityProfile_Localhost {
			return "", fmt.Errorf("AppArmor profile %q: AppArmor is not enabled on this machine", profile.LocalhostRef)
		}
		return "", nil
	}
	switch {
	case profile == nil || profile.ProfileType == runtimeapi.SecurityProfile_RuntimeDefault:
		if sc.GetPrivileged() {
			return "", nil
		}
		return apparmor.EnsureDefault()
	case profile.ProfileType == runtimeapi.SecurityProfile_Unconfined:
		return "", nil
	}
	name := strings.TrimPrefix(profile.LocalhostRef, "localhost/")
	return name, apparmor.EnsureLoaded(name)
}

func seccompProfile(sc *runtimeapi.LinuxContainerSecurityContext) (*runtimeapi.SecurityProfile, error) {
	//lint:ignore SA1019 it is what an older client says
	profile, err := namedProfile(sc.GetSeccomp(), sc.GetSeccompProfilePath())
	if err != nil {
		return nil, fmt.Errorf("seccomp: %w", err)
	}
	return profile, nil
}

// namedProfile is the profile that a request names, nil for none: in its own
// field or, as older clients do, by a string.
func namedProfile(profile *runtimeapi.SecurityProfile, old string) (*runtimeapi.SecurityProfile, error) {
	if profile != nil || old == "" {
		return profile, nil
	}
	name, local := strings.CutPrefix(old, "localhost/")
	switch {
	case local:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: name}, nil
	case old == "runtime/default" || old == "docker/default":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case old == "unconfined":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
	}
	return nil, invalid("profile %q is none of runtime/default, unconfined and localhost/NAME", old)
}

// checkProfiles finds what is wrong with the profiles that a request names,
// before anything is made for it.
func (r *Runtime) checkProfiles(config *runtimeapi.ContainerConfig) error {
	sc := config.GetLinux().GetSecurityContext()
	if _, err := appArmorProfile(sc); err != nil {
		return err
	}
	profile, err := seccompProfile(sc)
	if err != nil {
		return err
	}
	if profile.GetProfileType() != runtimeapi.SecurityProfile_Localhost {
		return nil // the default's program is there, and takes time to make
	}
	_, err = r.seccompProgram(sc, caps.Sets{})
	return err
}
