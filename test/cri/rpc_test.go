package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// client is the generated client, for what cri.Service doesn't have.
func (n *node) client(t *testing.T) runtimeapi.RuntimeServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+n.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return runtimeapi.NewRuntimeServiceClient(conn)
}

// Sixty-four clients live pods' lives through one socket, while a kubelet
// lists, measures and listens.
func TestManyClients(t *testing.T) {
	n := newNode(t)
	ctx, stop := context.WithCancel(t.Context())
	seen := map[runtimeapi.ContainerEventType]int{}
	listening, heard := make(chan struct{}), make(chan error, 1)
	go func() {
		heard <- n.ContainerEvents(ctx, func() { close(listening) }, func(ev *runtimeapi.ContainerEventResponse) error {
			seen[ev.ContainerEventType]++
			return nil
		})
	}()
	<-listening
	var kubelet, clients sync.WaitGroup
	for _, ask := range []func() error{
		func() error { _, err := n.ListContainers(ctx, &runtimeapi.ListContainersRequest{}); return err },
		func() error { _, err := n.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}); return err },
		func() error {
			_, err := n.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
			return err
		},
		func() error { _, err := n.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{}); return err },
		func() error {
			_, err := n.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
			return err
		},
		func() error { _, err := n.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{}); return err },
	} {
		kubelet.Go(func() {
			for ctx.Err() == nil {
				if err := ask(); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	const many = 64
	for i := range many {
		clients.Go(func() {
			p, err := n.pod(ctx)
			if err != nil {
				t.Error(err)
				return
			}
			id, err := n.create(ctx, p, "trap 'exit 5' TERM; while :; do sleep 0.05; done")
			if err == nil {
				_, err = n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
			}
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := n.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i)}, Timeout: 60})
			if err != nil || string(resp.Stdout) != fmt.Sprintln(i) || resp.ExitCode != int32(i) {
				t.Errorf("exec %d: %v, %v", i, resp, err)
			}
			if _, err := n.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 60}); err != nil {
				t.Error(err)
			} else if st := n.status(id); st.ExitCode != 5 {
				t.Errorf("exit %d", st.ExitCode)
			}
			if _, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
				t.Error(err)
			}
		})
	}
	clients.Wait()
	stop()
	kubelet.Wait()
	<-heard
	for kind, want := range map[runtimeapi.ContainerEventType]int{ // of the pod and of its container
		runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT: 2 * many, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT: 2 * many,
		runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT: 2 * many,
	} {
		if seen[kind] != want {
			t.Errorf("%d events %s, want %d", seen[kind], kind, want)
		}
	}
}

// The answers that only the gRPC face gives.
func TestFace(t *testing.T) {
	n := newNode(t)
	_, id := n.mustStart("sleep 1000")
	c := n.client(t)
	if _, err := c.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: id}); status.Code(err) != codes.Unimplemented {
		t.Errorf("checkpoint: %v", err)
	}
	for what, call := range map[string]func() error{
		"container": func() error {
			_, err := c.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: "none"})
			return err
		},
		"sandbox": func() error {
			_, err := c.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "none"})
			return err
		},
	} {
		if err := call(); status.Code(err) != codes.NotFound {
			t.Errorf("a %s that isn't there: %v", what, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "500"}}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a client's deadline: %v", err)
	}
	stream, err := c.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range m.Containers {
			ids = append(ids, item.Id)
		}
	}
	if len(ids) != 1 || ids[0] != id {
		t.Errorf("streamed %v", ids)
	}
	if n.status(id).State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Error("the container doesn't run any more")
	}
}
