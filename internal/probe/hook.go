package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	httpprobe "k8s.io/kubernetes/pkg/probe/http"
	"k8s.io/utils/clock"
)

// httpHookTimeout bounds a hook's request, as kubelet's client does.
const httpHookTimeout = 30 * time.Second

// Hook carries out a postStart or preStop handler: exec, httpGet or sleep. It
// takes as long as the handler does, or until ctx ends. The error's text is
// kubelet's; it may hold the handler's output, so it belongs into a status but
// not into an event.
func (p *Prober) Hook(ctx context.Context, h *v1.LifecycleHandler, pod string, t Target, clk clock.Clock) error {
	switch {
	case h.Exec != nil:
		output, code, err := p.run(ctx, t.ContainerID, h.Exec.Command, 0)
		if err == nil && code != 0 {
			err = fmt.Errorf("command '%s' exited with %d: %s", strings.Join(h.Exec.Command, " "), code, output)
		}
		if err != nil {
			return fmt.Errorf("Exec lifecycle hook (%v) for Container %q in Pod %q failed - error: %w, message: %q", h.Exec.Command, t.Container.Name, pod, err, output)
		}
	case h.HTTPGet != nil:
		if err := p.httpHook(ctx, h.HTTPGet, t); err != nil {
			return fmt.Errorf("HTTP lifecycle hook (%s) for Container %q in Pod %q failed - error: %w", h.HTTPGet.Path, t.Container.Name, pod, err)
		}
	case h.Sleep != nil:
		timer := clk.NewTimer(time.Duration(h.Sleep.Seconds) * time.Second)
		defer timer.Stop()
		select {
		case <-timer.C():
		case <-ctx.Done():
			return fmt.Errorf("Sleep lifecycle hook (%d) for Container %q in Pod %q failed - error: container terminated before sleep hook finished", h.Sleep.Seconds, t.Container.Name, pod)
		}
	case h.TCPSocket != nil:
		// The API accepts it for compatibility only; it can't be carried out.
		return fmt.Errorf("Cannot run handler: invalid handler: lifecycle hook tcpSocket is not supported")
	default:
		return fmt.Errorf("Cannot run handler: invalid handler: %v", h)
	}
	return nil
}

func (p *Prober) httpHook(ctx context.Context, get *v1.HTTPGetAction, t Target) error {
	if get.Host == "" && t.PodIP == "" {
		return errors.New("failed to find networking container: the pod has no address")
	}
	req, err := httpprobe.NewRequestForHTTPGetAction(get, t.Container, t.PodIP, "lifecycle")
	if err != nil {
		return err
	}
	err = p.get(ctx, req)
	var urlErr *url.Error
	if errors.As(err, &urlErr) && strings.Contains(urlErr.Err.Error(), "server gave HTTP response to HTTPS client") {
		// Hooks once ignored the scheme; a plain server goes on working.
		plain := req.Clone(ctx)
		plain.URL.Scheme = "http"
		plain.Header.Del("Authorization")
		if p.get(ctx, plain) == nil {
			return nil
		}
	}
	return err
}

// get makes a request and is content with any answer.
func (p *Prober) get(ctx context.Context, req *http.Request) error {
	client := &http.Client{Timeout: httpHookTimeout, Transport: p.transport}
	resp, err := client.Do(req.WithContext(ctx))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxOutput) // the answer does not matter
	return nil
}
