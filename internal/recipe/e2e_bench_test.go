package recipe_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/pause"
	"unipod.dev/unipod/internal/recipe"
)

// BenchmarkCarryOut measures what a container's recipe takes from the request
// to the execve, without the making of rootfs and devices. The floor is a
// child that does nothing but execve.
func BenchmarkCarryOut(b *testing.B) {
	p := plainPod(b)
	root, _ := rootfs(b, nil)
	_ = root
	spawn := func(r *recipe.Recipe, namespaces uintptr) {
		c, err := p.start(r, nil, pause.SpawnRequest{Cloneflags: namespaces})
		if err != nil {
			b.Fatal(err, callOf(err))
		}
		c.out <- ""
		b.StopTimer()
		c.wait()
		c.Pidfd.Close()
		b.StartTimer()
	}
	b.Run("floor", func(b *testing.B) {
		f := must(unix.Open("/bin/busybox", unix.O_PATH|unix.O_CLOEXEC, 0))
		file := keep(b, osFile(f), nil)
		for b.Loop() {
			w := recipe.New()
			w.Call("exec", unix.SYS_EXECVEAT, w.FD("busybox", file), recipe.Str(""), recipe.Argv{"true"}, recipe.Environ{}, recipe.Int(unix.AT_EMPTY_PATH))
			spawn(must(w.Recipe()), containerNamespaces)
		}
	})
	for _, c := range []struct {
		name   string
		change func(*recipe.ContainerSpec)
	}{
		{"full", func(*recipe.ContainerSpec) {}},
		{"without masks", func(s *recipe.ContainerSpec) { s.MaskedPaths = nil }},
		{"without masks and read-only paths", func(s *recipe.ContainerSpec) { s.MaskedPaths, s.ReadonlyPaths = nil, nil }},
		{"rootfs only", func(s *recipe.ContainerSpec) {
			s.MaskedPaths, s.ReadonlyPaths = nil, nil
			s.Dev, s.Sysfs = nil, ""
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				root, _ := rootfs(b, nil)
				spec := p.spec(root, "")
				spec.Args = []string{"/bin/true"}
				c.change(&spec)
				b.StartTimer()
				spawn(must(recipe.Container(spec)), containerNamespaces)
			}
		})
	}
}
