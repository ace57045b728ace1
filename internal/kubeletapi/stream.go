package kubeletapi

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	utilproxy "k8s.io/apimachinery/pkg/util/proxy"
	"k8s.io/apiserver/pkg/util/proxy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"unipod.dev/unipod/internal/podspec"
)

// runTimeout bounds a command of /run, in seconds; it has no streams to end it.
const runTimeout = 60

// container finds the running container a request's path names: its runtime's
// ID.
func (s *Server) container(r *http.Request) (string, int, error) {
	pod, err := s.find(r)
	if err != nil {
		return "", http.StatusNotFound, err
	}
	name := r.PathValue("container")
	for _, list := range [][]v1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		st, ok := podutil.GetContainerStatus(list, name)
		if ok && st.State.Running != nil {
			return plainID(st.ContainerID), 0, nil
		}
	}
	return "", http.StatusInternalServerError, fmt.Errorf("container not found (%q)", name)
}

// plainID is a status' container ID without the runtime's name.
func plainID(id string) string {
	_, after, _ := strings.Cut(id, "://")
	return after
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	s.command(w, r, func(id string, o *remotecommand.Options) (string, error) {
		cmd := r.URL.Query()[v1.ExecCommandParam]
		if len(cmd) == 0 {
			return "", errors.New("you must specify a command")
		}
		resp, err := s.cfg.CRI.Exec(r.Context(), &runtimeapi.ExecRequest{
			ContainerId: id, Cmd: cmd, Tty: o.TTY, Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr,
		})
		return resp.GetUrl(), err
	})
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	s.command(w, r, func(id string, o *remotecommand.Options) (string, error) {
		resp, err := s.cfg.CRI.Attach(r.Context(), &runtimeapi.AttachRequest{
			ContainerId: id, Tty: o.TTY, Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr,
		})
		return resp.GetUrl(), err
	})
}

// command connects a client with a process: at asks the runtime where.
func (s *Server) command(w http.ResponseWriter, r *http.Request, at func(id string, o *remotecommand.Options) (string, error)) {
	o, err := remotecommand.NewOptions(r)
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	id, code, err := s.container(r)
	if err != nil {
		fail(w, code, err.Error())
		return
	}
	address, err := at(id, o)
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.connect(w, r, address, func(to *url.URL, next http.Handler) http.Handler {
		if !wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
			return next
		}
		return proxy.NewStreamTranslatorHandler(to, nil, 0, proxy.Options{Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr, Tty: o.TTY})
	})
}

func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	tunnel := wsstream.IsWebSocketRequestWithTunnelingProtocol(r)
	o := &portforward.V4Options{}
	var err error
	if !tunnel {
		if o, err = portforward.NewV4Options(r); err != nil {
			fail(w, http.StatusBadRequest, err.Error())
			return
		}
	}
	pod, err := s.find(r)
	if err != nil {
		fail(w, http.StatusNotFound, err.Error())
		return
	}
	sandboxes, err := s.cfg.CRI.ListPodSandbox(r.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		LabelSelector: map[string]string{podspec.LabelPodUID: string(pod.UID)},
		State:         &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY},
	}})
	if err == nil && len(sandboxes.Items) == 0 {
		err = fmt.Errorf("failed to find sandbox for pod %q", pod.Name)
	}
	if err != nil {
		s.refuse(w, err)
		return
	}
	newest := slices.MaxFunc(sandboxes.Items, func(a, b *runtimeapi.PodSandbox) int { return int(min(max(a.CreatedAt-b.CreatedAt, -1), 1)) })
	resp, err := s.cfg.CRI.PortForward(r.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: newest.Id, Port: o.Ports})
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.connect(w, r, resp.Url, func(_ *url.URL, next http.Handler) http.Handler {
		if !tunnel {
			return next
		}
		return proxy.NewTunnelingHandler(next)
	})
}

// connect hands a client's connection over to where the runtime serves it.
// Another process' streams speak SPDY and old WebSockets: translate puts in
// front of them what newer clients speak.
func (s *Server) connect(w http.ResponseWriter, r *http.Request, address string, translate func(to *url.URL, next http.Handler) http.Handler) {
	to, err := url.Parse(address)
	if err != nil {
		s.refuse(w, fmt.Errorf("the runtime's streaming address %q: %w", address, err))
		return
	}
	if s.cfg.Streams != nil {
		inner := r.Clone(r.Context())
		inner.URL = &url.URL{Path: to.Path, RawQuery: to.RawQuery}
		inner.RequestURI = inner.URL.RequestURI()
		s.cfg.Streams.ServeHTTP(w, inner)
		return
	}
	translate(to, utilproxy.NewUpgradeAwareHandler(to, nil, false, true, responder{s})).ServeHTTP(w, r)
}

// responder tells a client why its connection was not passed on.
type responder struct{ s *Server }

func (p responder) Error(w http.ResponseWriter, r *http.Request, err error) {
	p.s.cfg.Log.Warn("passing a stream on to the runtime failed", "path", r.URL.Path, "err", err)
	fail(w, http.StatusInternalServerError, err.Error())
}

// refuse answers with an error of the runtime.
func (s *Server) refuse(w http.ResponseWriter, err error) {
	if werr := streaming.WriteError(err, w); werr != nil {
		s.cfg.Log.Debug("a client went away", "err", werr)
	}
}

// run runs a command to its end and answers with what it wrote.
func (s *Server) run(w http.ResponseWriter, r *http.Request) {
	id, code, err := s.container(r)
	if err != nil {
		fail(w, code, err.Error())
		return
	}
	resp, err := s.cfg.CRI.ExecSync(r.Context(), &runtimeapi.ExecSyncRequest{
		ContainerId: id, Cmd: strings.Split(r.URL.Query().Get("cmd"), " "), Timeout: runTimeout,
	})
	if err == nil && resp.ExitCode != 0 {
		err = fmt.Errorf("command exited with %d: %s%s", resp.ExitCode, resp.Stdout, resp.Stderr)
	}
	if err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(resp.Stdout, resp.Stderr...))
}
