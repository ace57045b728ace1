// Package criserver puts the CRI's gRPC face on a runtime: the sockets that
// kubelet, crictl and critest speak to.
//
// It holds no state and decides nothing: every RPC is the call of the same
// name on cri.Service. The streaming list calls, which are the unary ones cut
// into messages, are all it makes itself.
//
// Floor: 5. It imports cri only.
package criserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/cri"
)

// maxMessage is the largest message in bytes, kubelet's own limit.
const maxMessage = 16 << 20

// listChunk is how many items a message of a streaming list call carries.
const listChunk = 256

// Server serves the CRI on a unix socket.
type Server struct {
	grpc *grpc.Server
	done chan struct{}
}

// Listen serves svc on the unix socket at path, mode 0660 in a directory that
// is there. A socket left by a killed process is replaced; one that somebody
// answers on is not.
func Listen(path string, svc cri.Service) (*Server, error) {
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, fmt.Errorf("another process serves the CRI on %s: %w", path, unix.EADDRINUSE)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("replacing the socket of an earlier node: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("CRI socket: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		l.Close()
		return nil, err
	}
	s := &Server{
		grpc: grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage)),
		done: make(chan struct{}),
	}
	runtimeapi.RegisterRuntimeServiceServer(s.grpc, &runtimeServer{Service: svc})
	runtimeapi.RegisterImageServiceServer(s.grpc, &imageServer{Service: svc})
	go func() {
		defer close(s.done)
		if err := s.grpc.Serve(l); err != nil {
			slog.Error("the CRI is served no longer", "socket", path, "error", err)
		}
	}()
	return s, nil
}

// Close stops serving: calls under way get a moment to finish.
func (s *Server) Close() {
	stopped := make(chan struct{})
	go func() { s.grpc.GracefulStop(); close(stopped) }()
	select {
	case <-stopped:
	case <-time.After(2 * time.Second): // event streams don't end by themselves
		s.grpc.Stop()
		<-stopped
	}
	<-s.done
}

// runtimeServer adds to cri.Runtime what only the gRPC face has.
type runtimeServer struct {
	runtimeFallback
	cri.Service
}

type imageServer struct {
	imageFallback
	cri.Service
}

// The fallbacks answer Unimplemented to what neither the Service nor this
// file has; a level deeper, so that they yield to both.
type (
	runtimeFallback struct {
		runtimeapi.UnimplementedRuntimeServiceServer
	}
	imageFallback struct {
		runtimeapi.UnimplementedImageServiceServer
	}
)

func (s *runtimeServer) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream runtimeapi.RuntimeService_GetContainerEventsServer) error {
	err := s.ContainerEvents(stream.Context(), func() { stream.SendHeader(nil) }, stream.Send)
	if errors.Is(err, context.Canceled) {
		return status.FromContextError(err).Err()
	}
	return err
}

// send cuts items into messages; an empty list is one empty message.
func send[I, M any](items []I, message func([]I) M, out func(M) error) error {
	for {
		n := min(listChunk, len(items))
		if err := out(message(items[:n])); err != nil {
			return err
		}
		if items = items[n:]; len(items) == 0 {
			return nil
		}
	}
}

func (s *runtimeServer) StreamPodSandboxes(req *runtimeapi.StreamPodSandboxesRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	resp, err := s.ListPodSandbox(out.Context(), &runtimeapi.ListPodSandboxRequest{Filter: req.Filter})
	if err != nil {
		return err
	}
	return send(resp.Items, func(p []*runtimeapi.PodSandbox) *runtimeapi.StreamPodSandboxesResponse {
		return &runtimeapi.StreamPodSandboxesResponse{PodSandboxes: p}
	}, out.Send)
}

func (s *runtimeServer) StreamContainers(req *runtimeapi.StreamContainersRequest, out grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	resp, err := s.ListContainers(out.Context(), &runtimeapi.ListContainersRequest{Filter: req.Filter})
	if err != nil {
		return err
	}
	return send(resp.Containers, func(p []*runtimeapi.Container) *runtimeapi.StreamContainersResponse {
		return &runtimeapi.StreamContainersResponse{Containers: p}
	}, out.Send)
}

func (s *runtimeServer) StreamContainerStats(req *runtimeapi.StreamContainerStatsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamContainerStatsResponse]) error {
	resp, err := s.ListContainerStats(out.Context(), &runtimeapi.ListContainerStatsRequest{Filter: req.Filter})
	if err != nil {
		return err
	}
	return send(resp.Stats, func(p []*runtimeapi.ContainerStats) *runtimeapi.StreamContainerStatsResponse {
		return &runtimeapi.StreamContainerStatsResponse{ContainerStats: p}
	}, out.Send)
}

func (s *runtimeServer) StreamPodSandboxStats(req *runtimeapi.StreamPodSandboxStatsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	resp, err := s.ListPodSandboxStats(out.Context(), &runtimeapi.ListPodSandboxStatsRequest{Filter: req.Filter})
	if err != nil {
		return err
	}
	return send(resp.Stats, func(p []*runtimeapi.PodSandboxStats) *runtimeapi.StreamPodSandboxStatsResponse {
		return &runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: p}
	}, out.Send)
}

func (s *runtimeServer) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	resp, err := s.ListPodSandboxMetrics(out.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		return err
	}
	return send(resp.PodMetrics, func(p []*runtimeapi.PodSandboxMetrics) *runtimeapi.StreamPodSandboxMetricsResponse {
		return &runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: p}
	}, out.Send)
}

func (s *imageServer) StreamImages(req *runtimeapi.StreamImagesRequest, out grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	resp, err := s.ListImages(out.Context(), &runtimeapi.ListImagesRequest{Filter: req.Filter})
	if err != nil {
		return err
	}
	return send(resp.Images, func(p []*runtimeapi.Image) *runtimeapi.StreamImagesResponse {
		return &runtimeapi.StreamImagesResponse{Images: p}
	}, out.Send)
}
