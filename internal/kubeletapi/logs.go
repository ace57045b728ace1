package kubeletapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/apis/core/v1/validation"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"unipod.dev/unipod/internal/logview"
)

// logs serves a container's log.
func (s *Server) logs(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	if tail := query.Get("tail"); tail != "" && tail != "all" {
		query.Set("tailLines", tail)
	}
	o := &v1.PodLogOptions{}
	if err := legacyscheme.ParameterCodec.DecodeParameters(query, v1.SchemeGroupVersion, o); err != nil {
		fail(w, http.StatusBadRequest, fmt.Sprintf("unable to decode query: %v", err))
		return
	}
	o.TypeMeta = metav1.TypeMeta{}
	if errs := validation.ValidatePodLogOptions(o); len(errs) > 0 {
		fail(w, http.StatusUnprocessableEntity, errs.ToAggregate().Error())
		return
	}
	pod, err := s.find(r)
	if err != nil {
		fail(w, http.StatusNotFound, err.Error())
		return
	}
	name := r.PathValue("container")
	if !hasContainer(pod, name) {
		fail(w, http.StatusNotFound, fmt.Sprintf("container %q not found in pod %q", name, pod.Name))
		return
	}
	out := newOutput(w)
	err = s.readLogs(r.Context(), pod, name, o, out)
	if err == nil {
		err = out.flush()
	}
	switch {
	case err == nil || r.Context().Err() != nil:
	case out.begun:
		s.cfg.Log.Warn("reading a container's log failed", "pod", pod.Namespace+"/"+pod.Name, "container", name, "err", err)
	default:
		fail(w, http.StatusBadRequest, err.Error())
	}
}

func hasContainer(pod *v1.Pod, name string) bool {
	for c := range podutil.ContainerIter(&pod.Spec, podutil.AllContainers) {
		if c.Name == name {
			return true
		}
	}
	return false
}

func (s *Server) readLogs(ctx context.Context, pod *v1.Pod, name string, o *v1.PodLogOptions, out *output) error {
	id, err := logID(pod, name, o.Previous)
	if err != nil {
		return err
	}
	resp, err := s.cfg.CRI.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		return fmt.Errorf("unable to retrieve container logs for %s: %w", id, err)
	}
	read := logview.ReadOptions{
		Follow: o.Follow, TailLines: o.TailLines, Timestamps: o.Timestamps, LimitBytes: o.LimitBytes,
	}
	switch {
	case o.SinceTime != nil:
		read.Since = o.SinceTime.Time
	case o.SinceSeconds != nil:
		read.Since = s.cfg.Clock.Now().Add(-time.Duration(*o.SinceSeconds) * time.Second)
	}
	var stdout, stderr io.Writer = out, out
	if o.Stream != nil {
		switch *o.Stream {
		case v1.LogStreamStdout:
			stderr = nil
		case v1.LogStreamStderr:
			stdout = nil
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	run := logview.Run{
		Path: resp.GetStatus().GetLogPath(), Clock: s.cfg.Clock, Idle: out.flush,
		Running: func(ctx context.Context) (bool, error) { return s.runs(ctx, id) },
	}
	if o.Follow && s.cfg.Watch != nil {
		run.Changed = s.cfg.Watch(ctx, pod.UID)
	}
	return logview.Read(ctx, run, read, stdout, stderr)
}

// runs tells whether a container runs; one the runtime doesn't tell of might.
func (s *Server) runs(ctx context.Context, id string) (bool, error) {
	resp, err := s.cfg.CRI.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	switch status.Code(err) {
	case codes.OK:
		return resp.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING, nil
	case codes.Unavailable:
		return true, nil
	case codes.NotFound:
		return false, nil
	}
	return false, err
}

// logID is the run of a container whose log is meant; the errors are kubelet's
// words.
func logID(pod *v1.Pod, name string, previous bool) (string, error) {
	var st v1.ContainerStatus
	found := false
	for _, list := range [][]v1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		if st, found = podutil.GetContainerStatus(list, name); found {
			break
		}
	}
	last := ""
	if t := st.LastTerminationState.Terminated; t != nil {
		last = t.ContainerID
	}
	switch state := st.State; {
	case !found:
		return "", fmt.Errorf("container %q in pod %q is not available", name, pod.Name)
	case previous && last == "":
		return "", fmt.Errorf("previous terminated container %q in pod %q not found", name, pod.Name)
	case previous:
		return plainID(last), nil
	case state.Running != nil:
		return plainID(st.ContainerID), nil
	case state.Terminated != nil && state.Terminated.ContainerID != "":
		return plainID(state.Terminated.ContainerID), nil
	case last != "":
		return plainID(last), nil
	case state.Terminated != nil, st.LastTerminationState.Terminated != nil:
		return "", fmt.Errorf("container %q in pod %q is terminated", name, pod.Name)
	case state.Waiting == nil:
		return "", fmt.Errorf("container %q in pod %q is waiting to start - no logs yet", name, pod.Name)
	}
	why := st.State.Waiting.Reason
	switch why {
	case "ErrImagePull":
		why = "image can't be pulled"
	case "ImagePullBackOff":
		why = "trying and failing to pull image"
	}
	return "", fmt.Errorf("container %q in pod %q is waiting to start: %s", name, pod.Name, why)
}

// output is a response's body, passed on in large pieces, or when there is
// nothing more to pass on.
type output struct {
	w       http.ResponseWriter
	control *http.ResponseController
	buffer  *bufio.Writer
	begun   bool // the client has an answer
}

func newOutput(w http.ResponseWriter) *output {
	o := &output{w: w, control: http.NewResponseController(w)}
	o.buffer = bufio.NewWriterSize(writerFunc(o.pass), 32<<10)
	return o
}

func (o *output) Write(b []byte) (int, error) { return o.buffer.Write(b) }

// flush passes on what there is. A client that follows sees by it that it is
// connected, though nothing was written yet.
func (o *output) flush() error {
	if err := o.buffer.Flush(); err != nil {
		return err
	}
	o.begin()
	if err := o.control.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

func (o *output) begin() {
	if !o.begun {
		o.begun = true
		o.w.Header().Set("Content-Type", "text/plain")
		o.w.WriteHeader(http.StatusOK)
	}
}

func (o *output) pass(b []byte) (int, error) {
	o.begin()
	return o.w.Write(b)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
