package cri_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/cri"
	"unipod.dev/unipod/internal/cri/fakecri"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server serves a fake runtime over gRPC.
type server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	rt *fakecri.Runtime
}

func (s *server) Version(ctx context.Context, r *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return s.rt.Version(ctx, r)
}

func (s *server) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	return s.rt.RunPodSandbox(ctx, r)
}

func (s *server) ListPodSandbox(ctx context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return s.rt.ListPodSandbox(ctx, r)
}

func (s *server) ContainerStatus(ctx context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	return s.rt.ContainerStatus(ctx, r)
}

func (s *server) ImageStatus(context.Context, *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	// Larger than gRPC's default limit of 4 MiB.
	return &runtimeapi.ImageStatusResponse{Info: map[string]string{"big": string(make([]byte, 8<<20))}}, nil
}

func (s *server) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream runtimeapi.RuntimeService_GetContainerEventsServer) error {
	return s.rt.ContainerEvents(stream.Context(), nil, func(ev *runtimeapi.ContainerEventResponse) error { return stream.Send(ev) })
}

func serve(t *testing.T, rt *fakecri.Runtime) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "cri.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	s := &server{rt: rt}
	runtimeapi.RegisterRuntimeServiceServer(g, s)
	runtimeapi.RegisterImageServiceServer(g, s)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return socket
}

func dial(t *testing.T, endpoint string) cri.Service {
	t.Helper()
	s, closer, err := cri.Dial(t.Context(), endpoint)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closer.Close() })
	return s
}

func TestDial(t *testing.T) {
	rt := fakecri.New(clock.RealClock{})
	socket := serve(t, rt)
	for _, endpoint := range []string{socket, "unix://" + socket} {
		s := dial(t, endpoint)
		v, err := s.Version(t.Context(), &runtimeapi.VersionRequest{})
		if err != nil || v.RuntimeName != "fake" {
			t.Errorf("%s: version %v, %v", endpoint, v, err)
		}
		image, err := s.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{})
		if err != nil || len(image.Info["big"]) != 8<<20 {
			t.Errorf("a large answer: %v", err)
		}
		// Codes come through.
		if _, err := s.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: "none"}); status.Code(err) != codes.NotFound {
			t.Errorf("status of an unknown container: %v", err)
		}
		if _, err := s.Attach(t.Context(), &runtimeapi.AttachRequest{}); status.Code(err) != codes.Unimplemented {
			t.Errorf("attach: %v", err)
		}
	}
}

func TestDialFails(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for _, endpoint := range []string{"", "tcp://127.0.0.1:1", "run/x.sock", filepath.Join(t.TempDir(), "none.sock")} {
		if _, _, err := cri.Dial(ctx, endpoint); err == nil {
			t.Errorf("%q: no error", endpoint)
		}
	}
}

func TestEvents(t *testing.T) {
	rt := fakecri.New(clock.RealClock{})
	s := dial(t, serve(t, rt))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	subscribed := make(chan struct{})
	events := make(chan *runtimeapi.ContainerEventResponse, 8)
	ended := make(chan error, 1)
	go func() {
		ended <- s.ContainerEvents(ctx, func() { close(subscribed) }, func(ev *runtimeapi.ContainerEventResponse) error {
			events <- ev
			return nil
		})
	}()
	<-subscribed
	if _, err := s.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Uid: "u1"},
	}}); err != nil {
		t.Fatal(err)
	}
	if ev := <-events; ev.GetPodSandboxStatus().GetMetadata().GetUid() != "u1" {
		t.Errorf("event of pod %v", ev.GetPodSandboxStatus().GetMetadata())
	}
	cancel()
	if err := <-ended; status.Code(err) != codes.Canceled {
		t.Errorf("ended with %v", err)
	}
	// What each returns ends it.
	boom := errors.New("boom")
	go func() {
		ended <- s.ContainerEvents(t.Context(), func() { rt.KillSandboxes() }, func(*runtimeapi.ContainerEventResponse) error { return boom })
	}()
	if err := <-ended; !errors.Is(err, boom) {
		t.Errorf("ended with %v", err)
	}
	rt.NoEvents = true
	if err := s.ContainerEvents(t.Context(), nil, nil); status.Code(err) != codes.Unimplemented {
		t.Errorf("without events: %v", err)
	}
}
