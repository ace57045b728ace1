package engine

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/cri"
	"unipod.dev/unipod/internal/cri/fakecri"
)

// crowd is a runtime that counts how much it is asked to make at the same time.
type crowd struct {
	cri.Service
	mu        sync.Mutex
	now, most int
}

func (c *crowd) enter() (leave func()) {
	c.mu.Lock()
	c.now++
	c.most = max(c.most, c.now)
	c.mu.Unlock()
	time.Sleep(2 * time.Millisecond) // long enough for others to come, if they may
	return func() {
		c.mu.Lock()
		c.now--
		c.mu.Unlock()
	}
}

func (c *crowd) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	defer c.enter()()
	return c.Service.RunPodSandbox(ctx, req)
}

func (c *crowd) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	defer c.enter()()
	return c.Service.CreateContainer(ctx, req)
}

// TestCrowd: of many pods at once only so many are being made, and all are in
// the end.
func TestCrowd(t *testing.T) {
	c := &crowd{}
	b := newBench(t, clock.RealClock{}, func(cfg *Config, rt *fakecri.Runtime) {
		c.Service = rt
		cfg.CRI = c
	})
	const pods = 100
	for i := range pods {
		b.apply(newPod(fmt.Sprint("p", i), container("app")))
	}
	b.await("all pods to run", func() bool {
		for i := range pods {
			if b.phase(types.UID(fmt.Sprint("uid-p", i))) != v1.PodRunning {
				return false
			}
		}
		return true
	})
	if most := cap(b.making); c.most > most || c.most < 2 {
		t.Errorf("%d were made at once, want at most %d", c.most, most)
	}
}
