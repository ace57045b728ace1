package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// Of many who make the same sandbox or container at once one succeeds, and
// the others are told so.
func TestSameTwice(t *testing.T) {
	noLeaks(t)
	w := newWorld(t)
	race := func(call func() error) {
		t.Helper()
		var wg sync.WaitGroup
		var made, exists atomic.Int32
		for range 8 {
			wg.Go(func() {
				switch err := call(); {
				case err == nil:
					made.Add(1)
				case status.Code(err) == codes.AlreadyExists:
					exists.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if made.Load() != 1 || exists.Load() != 7 {
			t.Errorf("made %d times, refused %d times", made.Load(), exists.Load())
		}
	}
	config := podConfig(w, "one")
	race(func() error {
		_, err := w.RunPodSandbox(context.Background(), &runtimeapi.RunPodSandboxRequest{Config: config})
		return err
	})
	all := w.allSandboxes()
	if len(all) != 1 {
		t.Fatalf("%d sandboxes", len(all))
	}
	p := &pod{w: w, id: all[0].id, config: config}
	cc := p.containerConfig("one", []string{"sleep", "1000"})
	race(func() error {
		_, err := w.CreateContainer(context.Background(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: cc, SandboxConfig: config})
		return err
	})
	// The name is free again once its bearer is gone.
	w.clear()
	w.pod("one")
}

// A client that goes away in the middle of a call leaves a whole sandbox or
// container, or none.
func TestVanishingClients(t *testing.T) {
	noLeaks(t)
	w := newWorld(t)
	p := w.pod("steady")
	app := p.start("app", []string{"sleep", "1000"})
	for i := range 60 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.IntN(20000))*time.Microsecond)
		switch i % 3 {
		case 0:
			c := podConfig(w, fmt.Sprintf("gone%d", i))
			_, err := w.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: c})
			if n := len(w.allSandboxes()); err != nil && n != 1 || err == nil && n != 2 {
				t.Errorf("RunPodSandbox: %v, and there are %d sandboxes", err, n)
			}
			for _, s := range w.allSandboxes() {
				if s.id != p.id {
					if _, err := w.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.id}); err != nil {
						t.Error(err)
					}
				}
			}
		case 1:
			id, err := p.create("gone", []string{"sleep", "1000"})
			if err != nil {
				t.Fatal(err)
			}
			_, err = w.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
			want := runtimeapi.ContainerState_CONTAINER_RUNNING
			if err != nil {
				want = runtimeapi.ContainerState_CONTAINER_EXITED
			}
			if st := w.status(id); st.State != want {
				t.Errorf("StartContainer: %v, and it is %s", err, st.State)
			}
			if _, err := w.RemoveContainer(context.Background(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
				t.Error(err)
			}
		case 2:
			if resp, err := w.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: app, Cmd: []string{"sleep", "1000"}}); err == nil {
				t.Errorf("ExecSync outlived its client: %v", resp)
			}
		}
		cancel()
	}
	// Only the container's own process is left in the pod.
	c, err := w.container(app)
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		if pids, err := c.group.PIDs(); err == nil && len(pids) == 1 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if pids, err := c.group.PIDs(); err != nil || len(pids) != 1 {
		t.Errorf("processes %v, %v", pids, err)
	}
	s, _ := w.sandbox(p.id)
	n := 0
	for range 200 { // what was killed is released behind the answer
		held, err := s.conn.Children(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for _, ch := range held {
			ch.Pidfd.Close()
			for _, f := range ch.Keep {
				f.Close()
			}
		}
		if n = len(held); n == 1 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("pause holds %d children", n)
}

// Starting, stopping and removing one container from many sides: whatever
// comes first, nothing is left of it.
func TestStartStopRemoveRace(t *testing.T) {
	noLeaks(t)
	w := newWorld(t)
	for range 12 {
		p := w.pod("race")
		var ids []string
		for range 3 {
			id, err := p.create("c", []string{"sleep", "1000"})
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		var wg sync.WaitGroup
		pause := func() { time.Sleep(time.Duration(rand.IntN(4000)) * time.Microsecond) }
		for i, id := range ids {
			wg.Go(func() {
				pause()
				w.StartContainer(context.Background(), &runtimeapi.StartContainerRequest{ContainerId: id})
			})
			wg.Go(func() {
				pause()
				w.StopContainer(context.Background(), &runtimeapi.StopContainerRequest{ContainerId: id})
			})
			wg.Go(func() {
				pause()
				if i > 0 {
					if _, err := w.RemoveContainer(context.Background(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
						t.Errorf("RemoveContainer: %v", err)
					}
				}
			})
		}
		for range 2 {
			wg.Go(func() { // one more is born while the pod goes
				pause()
				p := *p
				p.n = rand.IntN(1 << 20)
				p.create("late", []string{"sleep", "1000"})
			})
			wg.Go(func() {
				pause()
				if _, err := w.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
					t.Errorf("RemovePodSandbox: %v", err)
				}
			})
		}
		wg.Wait()
		for _, c := range w.allContainers() {
			t.Errorf("container %s is left, %s", c.config.Metadata.Name, c.state())
		}
		if len(w.names) > 0 || len(w.allSandboxes()) > 0 {
			t.Errorf("%d sandboxes and the names %v are left", len(w.allSandboxes()), w.names)
		}
		for _, dir := range []string{w.cfg.Run + "/sandboxes", w.cfg.Run + "/containers", w.cfg.Root + "/containers"} {
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("%s still holds %v", dir, left)
			}
		}
		if t.Failed() {
			return
		}
	}
}

// gated is a client that takes nothing until it is opened.
type gated struct {
	open chan struct{}
	n    atomic.Int64
}

func (g *gated) Write(p []byte) (int, error) {
	<-g.open
	g.n.Add(int64(len(p)))
	return len(p), nil
}
func (g *gated) Close() error { return nil }

type screen struct {
	mu sync.Mutex
	bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Buffer.Write(p)
}
func (s *screen) Close() error { return nil }
func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.String()
}

// A client that takes nothing holds up neither the container nor the other
// clients nor the log; it is cut off with a word.
func TestSlowAttach(t *testing.T) {
	noLeaks(t)
	w := newWorld(t)
	p := w.pod("slow")
	id := p.start("app", []string{"sh", "-c", "head -c 1 >/dev/null; dd if=/dev/zero bs=32k count=2000 2>/dev/null | tr '\\0' 'x'; echo; echo the end"},
		func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
	slow, quick := &gated{open: make(chan struct{})}, &gated{open: make(chan struct{})}
	close(quick.open)
	slowErr, quickErr := make(chan error, 1), make(chan error, 1)
	in, feed := io.Pipe()
	go func() {
		slowErr <- streamRuntime{w.Runtime}.Attach(context.Background(), id, nil, slow, nil, false, nil)
	}()
	go func() {
		quickErr <- streamRuntime{w.Runtime}.Attach(context.Background(), id, in, quick, nil, false, nil)
	}()
	c, err := w.container(id)
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		c.io.mu.Lock()
		n := len(c.io.attached)
		c.io.mu.Unlock()
		if n == 2 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if _, err := feed.Write([]byte("g")); err != nil {
		t.Fatal(err)
	}
	if st := w.wait(id); st.ExitCode != 0 {
		t.Errorf("the container: exit %d", st.ExitCode)
	}
	feed.Close()
	const all = 2000*32<<10 + len("\nthe end\n")
	if err := <-quickErr; err == nil && quick.n.Load() != int64(all) {
		t.Errorf("the quick client got %d bytes of %d and no word", quick.n.Load(), all)
	}
	if out := w.output(id); len(out) < all || !strings.HasSuffix(out, "the end\n") {
		t.Errorf("the log holds %d bytes", len(out))
	}
	close(slow.open)
	if err := <-slowErr; err == nil || !strings.Contains(err.Error(), "too slow") {
		t.Errorf("the slow client: %v", err)
	}
}

// Input through attach: every attach's bytes arrive, and with stdinOnce the
// first one's end is the container's.
func TestAttachStdin(t *testing.T) {
	noLeaks(t)
	w := newWorld(t)
	p := w.pod("stdin")
	attach := func(id, text string) string {
		t.Helper()
		var out screen
		if err := (streamRuntime{w.Runtime}).Attach(t.Context(), id, strings.NewReader(text), nil, nil, false, nil); err != nil {
			t.Errorf("attach: %v", err)
		}
		return out.text()
	}
	id := p.start("open", []string{"sh", "-c", "while read l; do echo got $l; [ $l = end ] && exit 5; done"}, func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
	attach(id, "one\n")
	attach(id, "two\nend\n")
	if st := w.wait(id); st.ExitCode != 5 || w.output(id) != "got one\ngot two\ngot end\n" {
		t.Errorf("exit %d, %q", st.ExitCode, w.output(id))
	}
	id = p.start("once", []string{"sh", "-c", "cat; echo end"}, func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce = true, true })
	attach(id, "all there is\n")
	if st := w.wait(id); st.ExitCode != 0 || w.output(id) != "all there is\nend\n" {
		t.Errorf("exit %d, %q", st.ExitCode, w.output(id))
	}
}

func TestTerminal(t *testing.T) {
	noLeaks(t)
	w := newWorld(t)
	p := w.pod("tty")
	id := p.start("app", []string{"sh", "-c", "tty; stty size; echo ready; read l; echo \"got $l\"; stty size; sleep 1000"}, func(c *runtimeapi.ContainerConfig) { c.Stdin, c.Tty = true, true })
	w.waitLog(t, id, "ready")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	in, feed := io.Pipe()
	var out screen
	resize := make(chan remotecommand.TerminalSize, 1)
	done := make(chan error, 1)
	go func() {
		done <- streamRuntime{w.Runtime}.Attach(ctx, id, in, &out, nil, true, resize)
	}()
	resize <- remotecommand.TerminalSize{Width: 101, Height: 33}
	time.Sleep(50 * time.Millisecond)
	feed.Write([]byte("hello\n"))
	w.waitLog(t, id, "33 101")
	if !strings.Contains(out.text(), "got hello") {
		t.Errorf("the client saw %q", out.text())
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("attach: %v", err)
	}
	feed.Close()
	var shell screen
	err := streamRuntime{w.Runtime}.Exec(t.Context(), id, []string{"sh", "-c", "tty; test -t 1 && echo terminal; exit 6"}, nil, &shell, nil, true, nil)
	var exit interface{ ExitStatus() int }
	if !errors.As(err, &exit) || exit.ExitStatus() != 6 || shell.text() != "/dev/pts/1\r\nterminal\r\n" {
		t.Errorf("exec with a terminal: %v, %q", err, shell.text())
	}
}

// Output without end costs no memory, and the command that makes it dies with
// its time or its client.
func TestEndlessOutput(t *testing.T) {
	noLeaks(t)
	w := newWorld(t)
	p := w.pod("yes")
	id := p.start("app", []string{"sleep", "1000"})
	c, err := w.container(id)
	if err != nil {
		t.Fatal(err)
	}
	alone := func() {
		t.Helper()
		var pids []int
		for range 300 {
			if pids, _ = c.group.PIDs(); len(pids) == 1 {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("processes left: %v", pids)
	}
	heap := func() uint64 {
		goruntime.GC()
		var m goruntime.MemStats
		goruntime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	_, err = w.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "yes & sh -c 'sh -c \"sleep 500\"; :' & yes"}, Timeout: 1})
	if status.Code(err) != codes.DeadlineExceeded && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ExecSync: %v", err)
	}
	alone()
	ctx, cancel := context.WithCancel(t.Context())
	var taken atomic.Int64
	peak := uint64(0)
	err = streamRuntime{w.Runtime}.Exec(ctx, id, []string{"yes"}, nil, writerFunc(func(b []byte) (int, error) {
		if n := taken.Add(int64(len(b))); n > 200<<20 {
			peak = heap()
			cancel()
			return 0, io.ErrClosedPipe
		}
		return len(b), nil
	}), nil, false, nil)
	cancel()
	if err == nil {
		t.Error("an exec outlived its client")
	}
	alone()
	if peak > before+(48<<20) {
		t.Errorf("the heap grew from %d to %d bytes", before, peak)
	}
	// What is kept of a command's output has an end.
	resp, err := w.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"head", "-c", "20000000", "/dev/zero"}})
	if err != nil || len(resp.Stdout) != maxSyncOutput || resp.ExitCode != 0 {
		t.Errorf("20 MB of output: %v, %d bytes", err, len(resp.GetStdout()))
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
func (f writerFunc) Close() error                { return nil }

// Sixty-four calls of every kind at a time.
func TestManyCalls(t *testing.T) {
	noLeaks(t)
	w := newWorld(t)
	bg := context.Background()
	var pods []*pod
	var apps []string
	for i := range 3 {
		p := w.pod("base" + strconv.Itoa(i))
		pods = append(pods, p)
		apps = append(apps, p.start("app", []string{"sh", "-c", "while :; do echo tick; sleep 0.1; done"}))
	}
	app := func() string { return apps[rand.IntN(len(apps))] }
	base := func() string { return pods[rand.IntN(len(pods))].id }
	ctx, stop := context.WithCancel(bg)
	var events atomic.Int64
	var listeners sync.WaitGroup
	for range 4 {
		listeners.Go(func() {
			w.ContainerEvents(ctx, nil, func(*runtimeapi.ContainerEventResponse) error { events.Add(1); return nil })
		})
	}
	var serial atomic.Int64
	calls := []func() error{
		func() error { _, err := w.Status(bg, &runtimeapi.StatusRequest{Verbose: true}); return err },
		func() error { _, err := w.ListContainers(bg, nil); return err },
		func() error { _, err := w.ListPodSandbox(bg, nil); return err },
		func() error { _, err := w.ListContainerStats(bg, nil); return err },
		func() error { _, err := w.ListPodSandboxStats(bg, nil); return err },
		func() error { _, err := w.ListPodSandboxMetrics(bg, nil); return err },
		func() error { _, err := w.ListImages(bg, nil); return err },
		func() error { _, err := w.ImageFsInfo(bg, nil); return err },
		func() error {
			_, err := w.PodSandboxStats(bg, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: base()})
			return err
		},
		func() error {
			_, err := w.PodSandboxStatus(bg, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: base(), Verbose: true})
			return err
		},
		func() error {
			_, err := w.ContainerStatus(bg, &runtimeapi.ContainerStatusRequest{ContainerId: app(), Verbose: true})
			return err
		},
		func() error {
			_, err := w.ReopenContainerLog(bg, &runtimeapi.ReopenContainerLogRequest{ContainerId: app()})
			return err
		},
		func() error {
			_, err := w.UpdateContainerResources(bg, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: app(), Linux: &runtimeapi.LinuxContainerResources{CpuShares: 100 + rand.Int64N(900)}})
			return err
		},
		func() error {
			n := strconv.Itoa(rand.IntN(100))
			resp, err := w.ExecSync(bg, &runtimeapi.ExecSyncRequest{ContainerId: app(), Cmd: []string{"sh", "-c", "echo " + n + "; exit " + n}})
			if err == nil && (string(resp.Stdout) != n+"\n" || strconv.Itoa(int(resp.ExitCode)) != n) {
				err = fmt.Errorf("exec gave %q and %d for %s", resp.Stdout, resp.ExitCode, n)
			}
			return err
		},
		func() error { // a whole life
			n := serial.Add(1)
			c := podConfig(w, fmt.Sprintf("life%d", n))
			s, err := w.RunPodSandbox(bg, &runtimeapi.RunPodSandboxRequest{Config: c})
			if err != nil {
				return err
			}
			p := &pod{w: w, id: s.PodSandboxId, config: c}
			id, err := p.create("a", []string{"sh", "-c", "echo " + strconv.Itoa(int(n)) + "; exit 3"})
			if err != nil {
				return err
			}
			if _, err := w.StartContainer(bg, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
				return err
			}
			for range 2000 {
				st, err := w.ContainerStatus(bg, &runtimeapi.ContainerStatusRequest{ContainerId: id})
				if err != nil {
					return err
				}
				if st.Status.State == runtimeapi.ContainerState_CONTAINER_EXITED {
					if st.Status.ExitCode != 3 || w.output(id) != strconv.Itoa(int(n))+"\n" {
						return fmt.Errorf("life %d: exit %d, log %q", n, st.Status.ExitCode, w.output(id))
					}
					break
				}
				time.Sleep(5 * time.Millisecond)
			}
			if _, err := w.StopPodSandbox(bg, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
				return err
			}
			_, err = w.RemovePodSandbox(bg, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
			return err
		},
	}
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			for n := range 6 {
				if err := calls[(i+n)%len(calls)](); err != nil {
					t.Errorf("call %d: %v", (i+n)%len(calls), err)
				}
			}
		})
	}
	wg.Wait()
	stop()
	listeners.Wait()
	if events.Load() == 0 {
		t.Error("no events")
	}
	for _, id := range apps {
		if st := w.status(id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("%s is %s", id, st.State)
		}
	}
}
