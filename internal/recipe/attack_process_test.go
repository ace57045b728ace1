package recipe_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/pause"
	"unipod.dev/unipod/internal/recipe"
	"unipod.dev/unipod/internal/sys"
)

// TestProcRedirects: CVE-2019-16884, CVE-2019-19921, CVE-2025-52881. The image
// brings files where a runtime writes labels and scores.
func TestProcRedirects(t *testing.T) {
	p := plainPod(t)
	fakes := []string{"self/attr/exec", "self/attr/apparmor/exec", "thread-self/attr/exec", "self/oom_score_adj", "sys/net/ipv4/ip_forward", "sysrq-trigger"}
	root, upper := rootfs(t, func(upper string) {
		for _, f := range fakes {
			os.MkdirAll(filepath.Dir(filepath.Join(upper, "proc", f)), 0o755)
			os.WriteFile(filepath.Join(upper, "proc", f), []byte("fake"), 0o666)
		}
	})
	score := 444
	spec := p.spec(root, "cat /proc/self/oom_score_adj; exec sleep 100")
	spec.OOMScoreAdj = &score
	c, err := p.launch(spec, containerNamespaces)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", c.PID)); err != nil || string(b) != "444\n" {
		t.Errorf("oom_score_adj is %s, %v", b, err)
	}
	for _, f := range fakes {
		if b, _ := os.ReadFile(filepath.Join(upper, "proc", f)); string(b) != "fake" {
			t.Errorf("the image's %s was written: %q", f, b)
		}
	}
	// A running container mounts fakes over its own /proc before an exec.
	score = 555
	pr := process(`mount -t tmpfs none /proc; mkdir -p /proc/self/attr /proc/thread-self/attr/apparmor
		for f in self/oom_score_adj thread-self/attr/exec thread-self/attr/apparmor/exec; do echo fake >/proc/$f; done`)
	run, err := p.exec(c, pr, nil)
	if err != nil {
		t.Fatal(err)
	}
	run.wait()
	pr = process("cat /proc/self/oom_score_adj; umount /proc; cat /proc/self/oom_score_adj")
	pr.OOMScoreAdj = &score
	if run, err = p.exec(c, pr, nil); err != nil {
		t.Fatal(err)
	}
	if got := run.wait(); got.out != "fake\n555\n" {
		t.Errorf("%+v", got)
	}
	if !hasAppArmor() {
		// The label goes to the kernel, which knows no such file here, and not
		// to the file the image has there.
		root, upper := rootfs(t, func(upper string) {
			os.MkdirAll(upper+"/proc/thread-self/attr/apparmor", 0o755)
			os.WriteFile(upper+"/proc/thread-self/attr/apparmor/exec", []byte("fake"), 0o666)
		})
		spec := p.spec(root, "")
		spec.AppArmor = "unipod-default"
		if got := p.refuses(spec); !strings.HasPrefix(got, "setting AppArmor profile unipod-default: ") {
			t.Error(got)
		}
		if b, _ := os.ReadFile(upper + "/proc/thread-self/attr/apparmor/exec"); string(b) != "fake" {
			t.Errorf("the image's attr/exec was written: %q", b)
		}
	}
	unix.PidfdSendSignal(int(c.Pidfd.Fd()), unix.SIGKILL, nil, 0)
	c.wait()
}

// TestWorkingDirectoryTricks: CVE-2024-21626. The working directory is a
// descriptor somebody left open, directly or by a link.
func TestWorkingDirectoryTricks(t *testing.T) {
	p := plainPod(t)
	host, untouched := hostDir(t)
	// A container whose kept descriptor is a directory of the host: pause has
	// it open, and so has every child before its execve.
	root, _ := rootfs(t, nil)
	sleeper, err := recipe.Container(p.spec(root, "exec sleep 100"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.start(sleeper, nil, pause.SpawnRequest{Cloneflags: containerNamespaces, Keep: []*os.File{keep(t, must(os.Open(host)), nil)}})
	if err != nil {
		t.Fatal(err)
	}
	inherited := false
	for n := range 24 {
		to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", p.conn.PID(), n))
		inherited = inherited || to == host
	}
	if !inherited {
		t.Error("pause doesn't have the directory open: nothing is tested")
	}
	start := func(cwd, link string) (result, error) {
		root, _ := rootfs(t, func(upper string) {
			if link != "" {
				os.Symlink(link, upper+"/wd")
			}
		})
		spec := p.spec(root, "/bin/busybox pwd; cat ../../../../../../../../etc/passwd; ls -i -d /proc/self/cwd/../../../../.. / | awk '{ print $1 }' | tr '\\n' ' '")
		spec.Cwd = cwd
		c, err := p.launch(spec, containerNamespaces)
		if err != nil {
			return result{}, err
		}
		return c.wait(), nil
	}
	for n := range 24 {
		for _, path := range []string{fmt.Sprintf("/proc/self/fd/%d", n), fmt.Sprintf("/proc/1/fd/%d", n), fmt.Sprintf("/proc/thread-self/fd/%d", n)} {
			if _, err := start(path, ""); err == nil {
				t.Fatalf("started in %s", path)
			}
			if n%8 == 0 {
				if _, err := start("/wd", path); err == nil {
					t.Fatalf("started in a link to %s", path)
				}
			}
		}
	}
	for _, link := range []string{host, "../../../../.." + host, "/.."} {
		got, err := start("/wd", link)
		if err != nil {
			if !errors.Is(err, unix.ENOENT) {
				t.Errorf("%s: %v", link, err)
			}
			continue
		}
		if f := strings.Fields(got.out); len(f) < 4 || f[0] != "/" || f[1] != "root:x:0:0::/root:/bin/sh" || f[len(f)-1] != f[len(f)-2] {
			t.Errorf("%s: %q", link, got.out)
		}
	}
	untouched()

	// An exec, after the container has exchanged the directory.
	for n := range 24 {
		run, err := p.exec(c, process(fmt.Sprintf("rm -f /wd; ln -s /proc/self/fd/%d /wd", n)), nil)
		if err != nil {
			t.Fatal(err)
		}
		run.wait()
		pr := process("/bin/busybox pwd")
		pr.Cwd = "/wd"
		if run, err = p.exec(c, pr, nil); err == nil {
			t.Errorf("exec started in descriptor %d: %+v", n, run.wait())
		}
	}
}

// TestLeakedDescriptors: CVE-2016-9962, CVE-2024-21626.
func TestLeakedDescriptors(t *testing.T) {
	p := plainPod(t)
	const list = "for f in /proc/$$/fd/*; do test -L $f && echo ${f##*/}; done; true"
	root, _ := rootfs(t, nil)
	spec := p.spec(root, list)
	for i := range 20 {
		spec.Mounts = append(spec.Mounts, recipe.Mount{Source: bind(t, t.TempDir()), Target: fmt.Sprint("/m/", i)})
	}
	p.expect(spec, "0\n1\n2\n")

	root, _ = rootfs(t, nil)
	r, err := recipe.Container(p.spec(root, "exec sleep 100"))
	if err != nil {
		t.Fatal(err)
	}
	kept := keep(t, must(os.Open("/etc/passwd")), nil)
	c, err := p.start(r, nil, pause.SpawnRequest{Cloneflags: containerNamespaces, Keep: []*os.File{kept, kept}})
	if err != nil {
		t.Fatal(err)
	}
	score := 1
	pr := process(list)
	pr.OOMScoreAdj = &score
	run, err := p.exec(c, pr, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := run.wait(); got.out != "0\n1\n2\n" {
		t.Errorf("exec has %q", got.out)
	}
}

// TestRuntimeBinary: CVE-2019-5736. In a pod that shares its PID namespace,
// root with all capabilities tries to write to what pause runs, and to what
// runs when the image's command is /proc/self/exe.
func TestRuntimeBinary(t *testing.T) {
	p := plainPod(t)
	before := must(os.ReadFile(fmt.Sprintf("/proc/%d/exe", p.conn.PID())))
	root, _ := rootfs(t, nil)
	c, err := p.launch(p.spec(root, `
		for how in 1 0; do
			echo overwritten 2>/dev/null >/proc/1/exe && echo "written by >"
			echo overwritten 2>/dev/null >>/proc/1/exe && echo "written by >>"
			dd if=/bin/sh of=/proc/1/exe conv=notrunc 2>/dev/null && echo "written by dd"
			exec 5</proc/1/exe && echo overwritten 2>/dev/null >/proc/self/fd/5 && echo "written by descriptor"
			chmod 777 /proc/1/exe 2>/dev/null
		done
		wc -c </proc/1/exe`), unix.CLONE_NEWNS)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.wait().out, fmt.Sprintln(len(before)); got != want && got != "" {
		t.Errorf("%q, want %q or nothing", got, want)
	}
	if after := must(os.ReadFile(fmt.Sprintf("/proc/%d/exe", p.conn.PID()))); !bytes.Equal(before, after) {
		t.Error("pause's program was changed")
	}

	root, _ = rootfs(t, nil)
	spec := p.spec(root, "")
	spec.Args = []string{"/proc/self/exe"}
	c, err = p.launch(spec, containerNamespaces)
	if err == nil {
		// pause itself, without its sockets: it ends.
		if got := c.wait(); got.out != "" {
			t.Errorf("%+v", got)
		}
	}
	// Other pods start as before.
	root, _ = rootfs(t, nil)
	p = plainPod(t)
	p.expect(p.spec(root, "echo fine"), "fine\n")
}

// TestSwappedDirectories: CVE-2021-30465, CVE-2023-28842 and all of TOCTOU. A
// volume shared with a container that exchanges directories with links to the
// host, as fast as it can, while containers are started that mount inside it.
func TestSwappedDirectories(t *testing.T) {
	p := plainPod(t)
	host, untouched := hostDir(t)
	outer := t.TempDir() // the volume is a part of it, so that "..", if it worked, would find host's neighbour
	volume := outer + "/volume"
	os.MkdirAll(volume+"/a", 0o755)
	neighbour := outer + "/neighbour"
	os.Mkdir(neighbour, 0o700)
	inner := t.TempDir()
	os.WriteFile(inner+"/v", []byte("volume\n"), 0o644)

	var swapping sync.WaitGroup
	stop := make(chan struct{})
	for i, link := range []string{host, "../neighbour", "../../../../../../../../../.." + host, "/proc/1/root" + host} {
		b := fmt.Sprintf("%s/b%d", volume, i)
		if err := os.Symlink(link, b); err != nil {
			t.Fatal(err)
		}
		swapping.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					unix.Renameat2(unix.AT_FDCWD, volume+"/a", unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
				}
			}
		})
	}
	started := 0
	for i := range 60 {
		root, _ := rootfs(t, nil)
		spec := p.spec(root, "cat /proc/mounts")
		spec.Dev, spec.Devpts, spec.Sysfs, spec.MaskedPaths, spec.ReadonlyPaths = nil, nil, "", nil, nil
		spec.Mounts = []recipe.Mount{
			{Source: bind(t, volume), Target: "/vol"},
			{Source: bind(t, inner), Target: fmt.Sprintf("/vol/a/made%d/deep", i%10)},
			{Source: bind(t, inner+"/v"), Target: "/vol/a/file", File: true},
		}
		spec.Cwd = "/vol/a"
		if c, err := p.launch(spec, containerNamespaces); err == nil {
			started++
			c.wait()
		} else if se := (*recipe.StepError)(nil); !errors.As(err, &se) {
			t.Fatal(err)
		}
	}
	close(stop)
	swapping.Wait()
	untouched()
	if names := must(os.ReadDir(neighbour)); len(names) != 0 {
		t.Errorf("made outside the volume: %v", names)
	}
	t.Logf("%d of 60 containers found the directory in place", started)
	if b := must(os.ReadFile("/proc/self/mountinfo")); bytes.Contains(b, []byte(host)) || bytes.Contains(b, []byte(volume)) {
		t.Error("something was mounted on the host")
	}
}

// TestMountsStayInside: nothing that a container mounts, even on a volume
// that is a shared mount, is seen by pause, by another container or, unless
// the mount was given shared, by the host.
func TestMountsStayInside(t *testing.T) {
	p := plainPod(t)
	volume := t.TempDir()
	private := bind(t, volume)
	if err := sys.SetMountAttr(private, true, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		t.Fatal(err)
	}
	root, _ := rootfs(t, nil)
	spec := p.spec(root, "mkdir /vol/m; mount -t tmpfs seen /vol/m; mount -t tmpfs seen /tmp; grep -c seen /proc/mounts; exec sleep 100")
	spec.Mounts = []recipe.Mount{{Source: private, Target: "/vol"}}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	spec.Stdout = write
	if _, err := p.launch(spec, containerNamespaces); err != nil {
		t.Fatal(err)
	}
	write.Close()
	b := make([]byte, 2)
	if _, err := read.Read(b); err != nil || string(b) != "2\n" {
		t.Fatalf("%q, %v", b, err)
	}
	for _, of := range []string{"self", fmt.Sprint(p.conn.PID())} {
		if b := must(os.ReadFile("/proc/" + of + "/mountinfo")); bytes.Contains(b, []byte("seen")) {
			t.Errorf("process %s sees the container's mount", of)
		}
	}
}

// TestHostIsLeft: pause is started where all mounts are shared and the session
// keyring holds a key; neither reaches the pod, nor the pod's mounts the host.
func TestHostIsLeft(t *testing.T) {
	requireRoot(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		check := func(err error) {
			if err != nil {
				t.Error(err)
				runtime.Goexit()
			}
		}
		check(unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS))
		check(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")) // from the machine's
		check(unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""))
		_, err := unix.KeyctlJoinSessionKeyring("recipe-test")
		check(err)
		key, err := unix.AddKey("user", "recipe-test-key", []byte("secret"), unix.KEY_SPEC_SESSION_KEYRING)
		check(err)
		check(unix.KeyctlSetperm(key, 0x3f000000)) // for those who possess it only
		if b := must(os.ReadFile("/proc/keys")); !bytes.Contains(b, []byte("recipe-test-key")) {
			t.Errorf("the key isn't there to begin with:\n%s", b)
		}
		const table = "/proc/thread-self/mountinfo"
		before := must(os.ReadFile(table))
		for _, userns := range []bool{false, true} {
			p := newPod(t, recipe.SandboxSpec{Hostname: "pod", ShmSize: 1 << 20, UserNS: userns}, podNamespaces)
			var spec recipe.ContainerSpec
			if userns {
				spec = p.spec(mappedRootfs(t), "")
				spec.UserNS, spec.Devpts = true, nil
			} else {
				root, _ := rootfs(t, nil)
				spec = p.spec(root, "")
			}
			spec.Args[2] = "grep -c recipe-test-key /proc/keys; mount -t tmpfs seen /tmp; grep -e shared: -e master: /proc/self/mountinfo; true"
			spec.MaskedPaths = nil
			p.expect(spec, "0\n")
			// (Mounts may vanish: others remove what they are on.)
			for line := range strings.Lines(string(must(os.ReadFile(table)))) {
				if !bytes.Contains(before, []byte(line)) {
					t.Errorf("the host has a new mount: %s", line)
				}
			}
		}
	}()
	<-done
}

// TestPauseIsOutOfReach: root with a container's usual capabilities can neither
// look into pause's memory and descriptors nor enter its root.
func TestPauseIsOutOfReach(t *testing.T) {
	p := plainPod(t)
	root, _ := rootfs(t, nil)
	spec := p.spec(root, `for f in mem root/r exe cwd environ fd/0 maps; do
		cat /proc/1/$f >/dev/null 2>&1 && echo "reads $f"; ls /proc/1/$f/ >/dev/null 2>&1 && echo "lists $f"; done; true`)
	const caps = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_KILL // as containers have by default
	spec.Bounding, spec.Permitted, spec.Effective = caps, caps, caps
	c, err := p.launch(spec, unix.CLONE_NEWNS)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.wait(); got.out != "" || got.code != 0 {
		t.Errorf("%+v", got)
	}
}
