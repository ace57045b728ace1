package recipe_test

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/internal/pause"
	"unipod.dev/unipod/internal/recipe"
)

// BenchmarkCarryOut measures what a container's and an exec's recipe take, from
// the request to the execve, without the making of rootfs and devices. The
// floor is a child with the same namespaces that does nothing but execve,
// spawned in turn with them; the ratios to it are printed.
func BenchmarkCarryOut(b *testing.B) {
	p := plainPod(b)
	spawn := func(r *recipe.Recipe, request pause.SpawnRequest) time.Duration {
		start := time.Now()
		c, err := p.start(r, nil, request)
		if err != nil {
			b.Fatal(err, callOf(err))
		}
		took := time.Since(start)
		c.out <- ""
		c.wait()
		c.Pidfd.Close()
		return took
	}
	root, _ := rootfs(b, nil)
	home, err := p.launch(p.spec(root, "exec sleep 1000"), containerNamespaces)
	if err != nil {
		b.Fatal(err)
	}
	busybox := keep(b, must(os.OpenFile("/bin/busybox", unix.O_PATH, 0)), nil)
	var floor, full, exec time.Duration
	n := 0
	for b.Loop() {
		n++
		w := recipe.New()
		w.Call("exec", unix.SYS_EXECVEAT, w.FD("busybox", busybox), recipe.Str(""), recipe.Argv{"true"}, recipe.Environ{}, recipe.Int(unix.AT_EMPTY_PATH))
		floor += spawn(must(w.Recipe()), pause.SpawnRequest{Cloneflags: containerNamespaces})

		root, _ := rootfs(b, nil)
		spec := p.spec(root, "")
		spec.Args = []string{"/bin/true"}
		full += spawn(must(recipe.Container(spec)), pause.SpawnRequest{Cloneflags: containerNamespaces})

		score := 0
		pr := process("")
		pr.Args, pr.OOMScoreAdj = []string{"/bin/true"}, &score
		exec += spawn(must(recipe.Exec(recipe.ExecSpec{Process: pr, PIDFD: home.Pidfd, Namespaces: unix.CLONE_NEWNS})),
			pause.SpawnRequest{PIDNamespace: home.Pidfd})
	}
	us := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(n) }
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(us(floor), "floor-µs")
	b.ReportMetric(us(full), "container-µs")
	b.ReportMetric(us(exec), "exec-µs")
	b.ReportMetric(float64(full)/float64(floor), "container/floor")
	b.ReportMetric(float64(exec)/float64(floor), "exec/floor")
}
