package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubernetes/pkg/util/parsers"

	"unipod.dev/unipod/internal/lifecycle"
)

// images sees to it that images are present. Pulls of the same image with the
// same credentials are one pull, whoever waits for it; at most a few run at a
// time.
type images struct {
	e     *Engine
	slots chan struct{}

	mu    sync.Mutex
	pulls map[string]*pulling
}

// pulling is one pull with those who wait for it; it is abandoned when all of
// them are gone.
type pulling struct {
	waiters int
	cancel  context.CancelFunc
	done    chan struct{}
	ref     string
	took    time.Duration
	err     error
}

func newImages(e *Engine) *images {
	return &images{e: e, slots: make(chan struct{}, e.cfg.MaxParallelPulls), pulls: map[string]*pulling{}}
}

// ensure makes an image present according to the pull policy and returns what
// the runtime knows of it.
func (im *images) ensure(ctx context.Context, w *worker, pod *v1.Pod, name, container string, policy v1.PullPolicy, sandbox *runtimeapi.PodSandboxConfig) (*runtimeapi.Image, *lifecycle.Failure) {
	warn := func(reason, message string) { w.record(v1.EventTypeWarning, reason, container, message) }
	image, err := withTag(name)
	if err != nil {
		message := fmt.Sprintf("Failed to apply default image tag %q: %v", name, err)
		warn("InspectFailed", message)
		return nil, &lifecycle.Failure{Reason: lifecycle.ReasonInvalidImageName, Message: message}
	}
	spec := &runtimeapi.ImageSpec{Image: image, UserSpecifiedImage: name, Annotations: pod.Annotations}
	if policy != v1.PullAlways {
		present, err := im.status(ctx, spec)
		switch {
		case err != nil:
			message := fmt.Sprintf("Failed to inspect image %q: %v", name, plain(err))
			warn("InspectFailed", message)
			return nil, &lifecycle.Failure{Reason: lifecycle.ReasonImageInspectError, Message: message}
		case present != nil:
			w.record(v1.EventTypeNormal, "Pulled", container, fmt.Sprintf("Container image %q already present on machine and can be accessed by the pod", name))
			return present, nil
		case policy == v1.PullNever:
			message := fmt.Sprintf("Container image %q is not present with pull policy of Never", name)
			warn("ErrImageNeverPull", message)
			return nil, &lifecycle.Failure{Reason: lifecycle.ReasonErrImageNeverPull, Message: message}
		}
	}
	w.record(v1.EventTypeNormal, "Pulling", container, fmt.Sprintf("Pulling image %q", name))
	began := im.e.clock.Now()
	ref, took, err := im.pull(ctx, w, pod, spec, sandbox)
	if err != nil {
		if ctx.Err() == nil {
			warn("Failed", fmt.Sprintf("Failed to pull image %q: %v", name, plain(err)))
		}
		reason, message := pullError(name, err)
		return nil, &lifecycle.Failure{Reason: reason, Message: message, Pull: true}
	}
	got, err := im.status(ctx, &runtimeapi.ImageSpec{Image: ref, UserSpecifiedImage: name})
	if err == nil && got == nil {
		err = fmt.Errorf("image %s is gone as soon as it was pulled", ref)
	}
	if err != nil {
		return nil, &lifecycle.Failure{Reason: lifecycle.ReasonImageInspectError, Message: plain(err)}
	}
	waited := im.e.clock.Since(began).Truncate(time.Millisecond)
	w.record(v1.EventTypeNormal, "Pulled", container, fmt.Sprintf("Successfully pulled image %q in %v (%v including waiting). Image size: %v bytes.",
		name, took.Truncate(time.Millisecond), waited, got.Size))
	return got, nil
}

// withTag adds the default tag to a name with neither tag nor digest.
func withTag(name string) (string, error) {
	_, tag, digest, err := parsers.ParseImageName(name)
	if err != nil {
		return "", err
	}
	if digest == "" && tag != "" && !strings.HasSuffix(name, ":"+tag) {
		name += ":" + tag
	}
	return name, nil
}

func (im *images) status(ctx context.Context, spec *runtimeapi.ImageSpec) (*runtimeapi.Image, error) {
	resp, err := im.e.cfg.CRI.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec})
	if err != nil {
		return nil, err
	}
	return resp.Image, nil
}

// pullError is the waiting reason and message of a pull that failed.
func pullError(name string, err error) (reason, message string) {
	text := plain(err)
	for reason, why := range map[string]string{
		"RegistryUnavailable":       "the registry is unavailable",
		"SignatureValidationFailed": "the signature validation failed",
	} {
		if rest, ok := strings.CutPrefix(text, reason); ok {
			return reason, fmt.Sprintf("image pull failed for %s because %s%s", name, why, rest)
		}
	}
	return lifecycle.ReasonErrImagePull, text
}

// pull pulls an image, trying the pod's credentials in turn.
func (im *images) pull(ctx context.Context, w *worker, pod *v1.Pod, spec *runtimeapi.ImageSpec, sandbox *runtimeapi.PodSandboxConfig) (string, time.Duration, error) {
	auths, missing, err := credentials(w.objects(), pod, spec.Image)
	if err != nil {
		return "", 0, err
	}
	if len(auths) == 0 {
		auths = []*runtimeapi.AuthConfig{nil}
	}
	var errs []error
	for _, auth := range auths {
		ref, took, err := im.share(ctx, spec, auth, sandbox)
		if err == nil {
			return ref, took, nil
		}
		if ctx.Err() != nil {
			return "", 0, ctx.Err()
		}
		errs = append(errs, err)
	}
	if len(missing) > 0 {
		w.record(v1.EventTypeWarning, "FailedToRetrieveImagePullSecret", "", fmt.Sprintf(
			"Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", strings.Join(missing, ", ")))
	}
	if len(errs) == 1 {
		return "", 0, errs[0]
	}
	return "", 0, errors.Join(errs...)
}

// share joins the pull of this image that is under way, or begins one.
func (im *images) share(ctx context.Context, spec *runtimeapi.ImageSpec, auth *runtimeapi.AuthConfig, sandbox *runtimeapi.PodSandboxConfig) (string, time.Duration, error) {
	key := spec.Image + "\x00" + auth.String()
	im.mu.Lock()
	p := im.pulls[key]
	if p == nil {
		// The pull belongs to all who wait, so no single one's end ends it.
		pctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		p = &pulling{cancel: cancel, done: make(chan struct{})}
		im.pulls[key] = p
		go func() {
			defer close(p.done)
			defer cancel()
			p.ref, p.took, p.err = im.work(pctx, spec, auth, sandbox)
			im.mu.Lock()
			if im.pulls[key] == p {
				delete(im.pulls, key)
			}
			im.mu.Unlock()
			if p.err == nil {
				im.e.imagePulled(spec.UserSpecifiedImage)
			}
		}()
	}
	p.waiters++
	im.mu.Unlock()
	select {
	case <-p.done:
		return p.ref, p.took, p.err
	case <-ctx.Done():
	}
	im.mu.Lock()
	p.waiters--
	last := p.waiters == 0
	if last && im.pulls[key] == p {
		delete(im.pulls, key)
	}
	im.mu.Unlock()
	if last {
		p.cancel()
		<-p.done
	}
	return "", 0, ctx.Err()
}

// work pulls once a slot is free.
func (im *images) work(ctx context.Context, spec *runtimeapi.ImageSpec, auth *runtimeapi.AuthConfig, sandbox *runtimeapi.PodSandboxConfig) (string, time.Duration, error) {
	select {
	case im.slots <- struct{}{}:
		defer func() { <-im.slots }()
	case <-ctx.Done():
		return "", 0, ctx.Err()
	}
	began := im.e.clock.Now()
	resp, err := im.e.cfg.CRI.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec, Auth: auth, SandboxConfig: sandbox})
	if err != nil {
		return "", 0, err
	}
	return resp.ImageRef, im.e.clock.Since(began), nil
}

// imagePulled tells the pods that back off from this image that it is there.
func (e *Engine) imagePulled(image string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, w := range e.pods {
		for c := range allContainers(w.desired()) {
			if c.Image == image && w.waitsForImage(c.Name) {
				w.post(lifecycle.ImagePulled{Image: image})
				break
			}
		}
	}
}

func (w *worker) waitsForImage(container string) bool {
	st := w.snapshot().Status
	for _, list := range [][]v1.ContainerStatus{st.InitContainerStatuses, st.ContainerStatuses, st.EphemeralContainerStatuses} {
		for i := range list {
			if wait := list[i].State.Waiting; list[i].Name == container && wait != nil && wait.Reason == lifecycle.ReasonImagePullBackOff {
				return true
			}
		}
	}
	return false
}
