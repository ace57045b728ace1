package pause

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The floor: what the kernel alone takes to clone a process into new namespaces,
// execute a static program that ends at once (pause without a socket), and reap
// it.
func bareClone(b *testing.B, flags uintptr) {
	program, err := program()
	if err != nil {
		b.Fatal(err)
	}
	pid, err := syscall.ForkExec(fmt.Sprintf("/proc/self/fd/%d", program.Fd()), []string{"floor"},
		&syscall.ProcAttr{Env: []string{}, Sys: &syscall.SysProcAttr{Cloneflags: flags}})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
		b.Fatal(err)
	}
}

// run the program that the floor runs.
func trueRecipe(b *testing.B) *blob {
	program, err := program()
	if err != nil {
		b.Fatal(err)
	}
	r := new(blob)
	r.call(unix.SYS_EXECVEAT, r.file(program), r.str(""), r.strs("true"), r.strs(), unix.AT_EMPTY_PATH)
	return r
}

// A pod with one container that ends at once, beside its floor: the two bare
// clones, run in turn with it.
func BenchmarkStartSpawnExit(b *testing.B) {
	recipe := trueRecipe(b)
	dir := b.TempDir()
	var floor, ours time.Duration
	for b.Loop() {
		begin := time.Now()
		bareClone(b, podNamespaces)
		bareClone(b, unix.CLONE_NEWPID|unix.CLONE_NEWNS)
		floor += time.Since(begin)

		begin = time.Now()
		c, err := Start(b.Context(), Config{Dir: dir, Cloneflags: podNamespaces})
		if err != nil {
			b.Fatal(err)
		}
		p, err := c.Spawn(b.Context(), SpawnRequest{ID: "x", Recipe: recipe, Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS})
		if err != nil {
			b.Fatal(err)
		}
		<-c.Exits()
		ours += time.Since(begin)
		p.Pidfd.Close()
		c.Terminate()
		<-c.Done()
		c.Close()
	}
	b.ReportMetric(float64(ours.Nanoseconds())/float64(b.N), "ns/pod")
	b.ReportMetric(float64(floor.Nanoseconds())/float64(b.N), "ns/floor")
	b.ReportMetric(float64(ours)/float64(floor), "×floor")
}

// Eight at a time: ns/op is the time per pod.
func BenchmarkStartParallel(b *testing.B) {
	b.SetParallelism(8 / min(8, runtime.GOMAXPROCS(0)))
	b.RunParallel(func(pb *testing.PB) {
		dir := b.TempDir()
		for pb.Next() {
			c, err := Start(b.Context(), Config{Dir: dir, Cloneflags: podNamespaces})
			if err != nil {
				b.Error(err)
				return
			}
			c.Terminate()
			<-c.Done()
			c.Close()
		}
	})
}

func benchmarkStart(b *testing.B, cfg Config) {
	cfg.Dir = b.TempDir()
	for b.Loop() {
		c, err := Start(b.Context(), cfg)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		c.Terminate()
		<-c.Done()
		c.Close()
		b.StartTimer()
	}
}

func BenchmarkStart(b *testing.B) { benchmarkStart(b, Config{Cloneflags: podNamespaces}) }

func BenchmarkStartHost(b *testing.B) { benchmarkStart(b, Config{Cloneflags: unix.CLONE_NEWPID}) }

func BenchmarkStartUserNS(b *testing.B) {
	m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
	benchmarkStart(b, Config{Cloneflags: podNamespaces | unix.CLONE_NEWUSER, UIDMap: m, GIDMap: m})
}

// One exec in a running pod: spawn, end, release.
func BenchmarkSpawnExitRelease(b *testing.B) {
	c := start(b, Config{})
	recipe := trueRecipe(b)
	for b.Loop() {
		p, err := c.Spawn(b.Context(), SpawnRequest{ID: "x", Recipe: recipe})
		if err != nil {
			b.Fatal(err)
		}
		<-c.Exits()
		p.Pidfd.Close()
		if err := c.Release(b.Context(), "x"); err != nil {
			b.Fatal(err)
		}
	}
}

// What a pod costs in memory, beside the app's own: pause with its page tables
// aside (PSS), and the node's share of the connection. The containers of the
// pods are one sleeping process each.
func BenchmarkMemory(b *testing.B) {
	const pods = 100
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	recipe := new(blob)
	recipe.exec("/bin/sleep", "1000")
	for b.Loop() {
		before := heap()
		conns := make([]*Conn, pods)
		for i := range conns {
			conns[i] = start(b, Config{})
			p, err := conns[i].Spawn(b.Context(), SpawnRequest{ID: "x", Recipe: recipe})
			if err != nil {
				b.Fatal(err)
			}
			p.Pidfd.Close()
		}
		b.ReportMetric(float64(heap()-before)/pods/1024, "KB-node/pod")
		pss := 0
		for _, c := range conns {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", c.PID()))
			if err != nil {
				b.Fatal(err)
			}
			_, rest, _ := strings.Cut(string(text), "\nPss:")
			var kb int
			if _, err := fmt.Sscan(rest, &kb); err != nil {
				b.Fatal(err)
			}
			pss += kb
		}
		b.ReportMetric(float64(pss)/pods, "KB-pause/pod")
		for _, c := range conns {
			end(b, c)
		}
	}
}
