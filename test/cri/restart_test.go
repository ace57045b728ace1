package cri

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A node killed at any time under load, again and again: its successor
// answers truthfully about everything its predecessors acknowledged.
func TestKilledUnderLoad(t *testing.T) {
	n := newNode(t)
	_, counter := n.mustStart("i=0; while true; do echo $i; i=$((i+1)); sleep 0.02; done")
	_, reader := n.mustStart("while read l; do echo got $l; done; echo end of input", func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
	type ended struct {
		code int32
	}
	known := map[string]ended{}
	for round := range 6 {
		var mu sync.Mutex
		acknowledged := map[string]int32{} // started; the code it will end with
		removed := map[string]bool{}
		ctx, stop := context.WithCancel(context.Background())
		var load sync.WaitGroup
		for worker := range 4 {
			load.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					code := int32(1 + rand.IntN(100))
					p, err := n.pod(ctx)
					if err != nil {
						return
					}
					id, err := n.create(ctx, p, fmt.Sprintf("sleep 0.%d; echo bye %d; exit %d", rand.IntN(9), code, code))
					if err != nil {
						return
					}
					if _, err := n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
						return
					}
					mu.Lock()
					acknowledged[id] = code
					mu.Unlock()
					if worker == 0 && i > 0 {
						n.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: counter, Cmd: []string{"sleep", "100"}, Timeout: 100})
					}
					if i%3 == 2 {
						mu.Lock()
						removed[id] = true // or on the way to it
						mu.Unlock()
						if _, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
							return
						}
					}
				}
			})
		}
		time.Sleep(time.Duration(100+rand.IntN(700)) * time.Millisecond)
		n.end(syscall.SIGKILL)
		stop()
		load.Wait()
		time.Sleep(time.Duration(rand.IntN(1200)) * time.Millisecond) // nobody watches
		down := time.Now()
		n.start()

		for id, code := range acknowledged {
			if removed[id] {
				continue
			}
			st := n.wait(id)
			if out := n.output(id); st.ExitCode != code || out != fmt.Sprintf("bye %d\n", code) {
				t.Errorf("round %d: container %s ended with %d, want %d; its log %q", round, id[:12], st.ExitCode, code, out)
			}
			if st.FinishedAt < st.StartedAt || st.StartedAt < st.CreatedAt || st.FinishedAt-st.StartedAt > int64(1500*time.Millisecond) && st.FinishedAt < down.UnixNano() {
				t.Errorf("round %d: created %d, started %d, finished %d", round, st.CreatedAt, st.StartedAt, st.FinishedAt)
			}
			known[id] = ended{code: code}
		}
		for id, was := range known { // and those of earlier rounds, still
			if st := n.status(id); st.ExitCode != was.code {
				t.Errorf("round %d: container %s had ended with %d, now %d", round, id[:12], was.code, st.ExitCode)
			}
		}
		if len(acknowledged) == 0 {
			t.Logf("round %d: killed before anything was started", round)
		}
		// What runs since before the first death is as it was.
		if st := n.status(counter); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Fatalf("round %d: the counter is %s", round, st.State)
		}
		resp, err := n.ExecSync(context.Background(), &runtimeapi.ExecSyncRequest{ContainerId: counter, Cmd: []string{"sh", "-c", "echo in; exit 4"}, Timeout: 30})
		if err != nil || string(resp.Stdout) != "in\n" || resp.ExitCode != 4 {
			t.Errorf("round %d: exec: %v, %v", round, resp, err)
		}
		word := fmt.Sprintf("word%d", round)
		n.attach(t, overSPDY, reader, word+"\n")
		for i := 0; !strings.Contains(n.output(reader), "got "+word+"\n"); i++ {
			if i == 500 {
				t.Fatalf("round %d: input doesn't arrive: %q", round, n.output(reader))
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	if len(known) < 10 {
		t.Errorf("only %d containers were looked at", len(known))
	}
	if _, err := n.StopContainer(context.Background(), &runtimeapi.StopContainerRequest{ContainerId: counter}); err != nil {
		t.Fatal(err)
	}
	want := 0
	for line := range strings.Lines(n.output(counter)) {
		if line != strconv.Itoa(want)+"\n" {
			t.Fatalf("the log lost or doubled a line: %q where %d should be", line, want)
		}
		want++
	}
}

// A pod that ends while nobody watches is found ended.
func TestPodEndsUnwatched(t *testing.T) {
	n := newNode(t)
	p, id := n.mustStart("sleep 1000")
	info, err := n.PodSandboxStatus(context.Background(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	pid := pausePID(t, info.Info["info"])
	n.end(syscall.SIGKILL)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.start()
	if st := n.wait(id); st.ExitCode == 0 {
		t.Errorf("the killed container ended with %d", st.ExitCode)
	}
	st, err := n.PodSandboxStatus(context.Background(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil || st.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("the sandbox is %v, %v", st, err)
	}
}
