package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxMessage is the size of the largest answer taken, in bytes: kubelet's.
const maxMessage = 16 << 20

// Dial connects to the CRI socket at endpoint ("unix:///run/x.sock" or an
// absolute path) and returns when it is connected. The runtime may go away and
// come back; calls meanwhile fail with codes.Unavailable. Close the Closer when
// the Service is not needed any more.
func Dial(ctx context.Context, endpoint string) (Service, io.Closer, error) {
	path, err := socketPath(endpoint)
	if err != nil {
		return nil, nil, err
	}
	conn, err := grpc.NewClient("passthrough:///"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the socket's permissions are the credentials
		grpc.WithAuthority("localhost"),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
	)
	if err != nil {
		return nil, nil, fmt.Errorf("connecting to the container runtime at %s: %w", endpoint, err)
	}
	r := &remote{
		RuntimeServiceClient: runtimeapi.NewRuntimeServiceClient(conn),
		ImageServiceClient:   runtimeapi.NewImageServiceClient(conn),
	}
	s := service{r}
	if _, err := s.Version(ctx, &runtimeapi.VersionRequest{}); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("connecting to the container runtime at %s: %w", endpoint, err), conn.Close())
	}
	return s, conn, nil
}

func socketPath(endpoint string) (string, error) {
	path := strings.TrimPrefix(endpoint, "unix://")
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("container runtime endpoint %q is no unix socket: want unix:///path or /path", endpoint)
	}
	return path, nil
}

// remote is the generated clients, whose methods differ from Service's only in
// their call options.
type remote struct {
	runtimeapi.RuntimeServiceClient
	runtimeapi.ImageServiceClient
}

type service struct{ r *remote }

func (s service) ContainerEvents(ctx context.Context, subscribed func(), each func(*runtimeapi.ContainerEventResponse) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.r.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		return err
	}
	// The subscription stands when the server's headers are here. Some servers
	// send none before their first event; a second is time enough for them.
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		header := make(chan struct{})
		go func() {
			defer close(header)
			_, _ = stream.Header() // an error ends Recv as well
		}()
		select {
		case <-header:
		case <-time.After(time.Second):
		}
		if ctx.Err() == nil && stream.Context().Err() == nil && subscribed != nil {
			subscribed()
		}
		<-header
	}()
	defer func() { cancel(); <-settled }()
	for {
		ev, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := each(ev); err != nil {
			return err
		}
	}
}
