// Package probe asks a container how it is: it carries out one probe of a pod's
// spec (exec, httpGet, tcpSocket or grpc) or one lifecycle hook, and says what
// came of it in kubelet's words.
//
// It keeps no state and knows no schedule: thresholds are lifecycle's, timing
// the engine's. The network's side is done by Kubernetes' own pkg/probe, so
// redirects, TLS, user agent and messages are the same; requests are made from
// the node's network namespace, never through a proxy. What a container
// answers is read to a limit and ends in an event's message at most.
//
// Floor 5: imports the CRI line only.
package probe

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubernetes/pkg/probe"
	grpcprobe "k8s.io/kubernetes/pkg/probe/grpc"
	httpprobe "k8s.io/kubernetes/pkg/probe/http"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"

	"unipod.dev/unipod/internal/cri"
)

const (
	// attempts is how often a probe is tried that could not be carried out.
	attempts = 3
	// maxOutput is what an event shows of an exec probe's output, in bytes.
	maxOutput = 10 << 10
)

// Prober carries out probes and hooks. It is safe for concurrent use.
type Prober struct {
	runtime   cri.Runtime
	transport *http.Transport // HTTP/1.1, and HTTP/2 over TLS
	h2c       *http.Transport // HTTP/2 without TLS
	grpc      grpcprobe.Prober
}

// New returns a Prober that executes commands through runtime.
func New(runtime cri.Runtime) *Prober {
	base := func() *http.Transport {
		return &http.Transport{
			DisableKeepAlives:     true,
			DisableCompression:    true,
			DialContext:           probe.ProbeDialer().DialContext,
			TLSHandshakeTimeout:   10 * time.Second,
			ExpectContinueTimeout: time.Second,
		}
	}
	p := &Prober{runtime: runtime, transport: base(), h2c: base(), grpc: grpcprobe.New()}
	// A probe asks whether the container answers, not who it is.
	p.transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // as kubelet's
	p.transport.ForceAttemptHTTP2 = true
	p.h2c.Protocols = new(http.Protocols)
	p.h2c.Protocols.SetUnencryptedHTTP2(true)
	return p
}

// Target is the container asked.
type Target struct {
	ContainerID string
	Container   *v1.Container
	PodIP       string
}

// Outcome is what one probe came to.
type Outcome struct {
	Success bool
	// Reason and Message are a Warning event worth recording: Unhealthy or
	// ProbeWarning. Empty when there is none.
	Reason, Message string
	// Void: the probe could not be carried out and counts for nothing.
	Void bool
}

// Probe carries out one probe of a kind ("Liveness", "Readiness", "Startup").
// It takes as long as spec.TimeoutSeconds; when ctx ends first, the outcome is
// void.
func (p *Prober) Probe(ctx context.Context, kind string, spec *v1.Probe, t Target) Outcome {
	var result probe.Result
	var output string
	var err error
	for range attempts {
		result, output, err = p.once(ctx, spec, t)
		if err == nil || ctx.Err() != nil {
			break
		}
	}
	switch {
	case ctx.Err() != nil:
		return Outcome{Void: true}
	case err != nil:
		return Outcome{Void: true, Reason: "Unhealthy", Message: fmt.Sprintf("%s probe errored and resulted in %s state: %s", kind, result, err)}
	case result == probe.Success:
		return Outcome{Success: true}
	case result == probe.Warning:
		return Outcome{Success: true, Reason: "ProbeWarning", Message: fmt.Sprintf("%s probe warning: %s", kind, output)}
	}
	return Outcome{Reason: "Unhealthy", Message: fmt.Sprintf("%s probe failed: %s", kind, output)}
}

func (p *Prober) once(ctx context.Context, spec *v1.Probe, t Target) (probe.Result, string, error) {
	timeout := time.Duration(max(spec.TimeoutSeconds, 1)) * time.Second
	switch {
	case spec.Exec != nil:
		return p.exec(ctx, expand(spec.Exec.Command, t.Container.Env), timeout, t)
	case spec.HTTPGet != nil:
		return p.http(ctx, spec.HTTPGet, timeout, t)
	case spec.TCPSocket != nil:
		return tcp(ctx, spec.TCPSocket, timeout, t)
	case spec.GRPC != nil:
		service := ""
		if spec.GRPC.Service != nil {
			service = *spec.GRPC.Service
		}
		opts := grpcprobe.ProbeOptions{UseTLS: spec.GRPC.Mode != nil && *spec.GRPC.Mode == v1.GRPCProbeModeTLS}
		return p.grpc.Probe(t.PodIP, service, int(spec.GRPC.Port), timeout, opts)
	}
	return probe.Unknown, "", fmt.Errorf("missing probe handler for container %s", t.Container.Name)
}

// expand replaces $(VAR) by the variables that the spec gives a value, as far
// as kubelet does for probes: without valueFrom.
func expand(command []string, env []v1.EnvVar) []string {
	values := map[string]string{}
	for _, e := range env {
		values[e.Name] = e.Value
	}
	mapping := expansion.MappingFuncFor(values)
	out := make([]string, len(command))
	for i, word := range command {
		out[i] = expansion.Expand(word, mapping)
	}
	return out
}

func (p *Prober) exec(ctx context.Context, command []string, timeout time.Duration, t Target) (probe.Result, string, error) {
	output, code, err := p.run(ctx, t.ContainerID, command, timeout)
	switch {
	case status.Code(err) == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded):
		return probe.Failure, fmt.Sprintf("command timed out: %q timed out after %s", strings.Join(command, " "), timeout), nil
	case err != nil:
		return probe.Unknown, "", err
	case code != 0:
		return probe.Failure, string(output), nil
	}
	return probe.Success, string(output), nil
}

// run executes a command in a container; zero means no timeout. The output is
// standard output, then standard error, cut to a limit.
func (p *Prober) run(ctx context.Context, id string, command []string, timeout time.Duration) ([]byte, int32, error) {
	resp, err := p.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{
		ContainerId: id, Cmd: command, Timeout: int64(timeout / time.Second),
	})
	if err != nil {
		return nil, 0, err
	}
	output := append(bytes.Clone(resp.Stdout), resp.Stderr...)
	return output[:min(len(output), maxOutput)], resp.ExitCode, nil
}

func (p *Prober) http(ctx context.Context, get *v1.HTTPGetAction, timeout time.Duration, t Target) (probe.Result, string, error) {
	req, err := httpprobe.NewRequestForHTTPGetAction(get, t.Container, t.PodIP, "probe")
	if err != nil {
		return probe.Unknown, "", err
	}
	client := &http.Client{Timeout: timeout, Transport: p.transport, CheckRedirect: httpprobe.RedirectChecker(false)}
	if get.Protocol != nil && *get.Protocol == v1.HTTPProtocolHTTP2 {
		client.Transport = p.h2c
	}
	return httpprobe.DoHTTPProbe(req.WithContext(ctx), client)
}

func tcp(ctx context.Context, socket *v1.TCPSocketAction, timeout time.Duration, t Target) (probe.Result, string, error) {
	port, err := probe.ResolveContainerPort(socket.Port, t.Container)
	if err != nil {
		return probe.Unknown, "", err
	}
	host := socket.Host
	if host == "" {
		host = t.PodIP
	}
	d := probe.ProbeDialer()
	d.Timeout = timeout
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return probe.Failure, err.Error(), nil
	}
	_ = conn.Close() // it was opened: that was the question
	return probe.Success, "", nil
}
