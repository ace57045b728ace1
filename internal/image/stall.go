package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// errStalled marks a request that was given up because nothing came.
var errStalled = errors.New("stalled")

// patient gives a request up when its answer, or the next piece of it, takes
// longer than limit. Time in which we do not read does not count: a slow disk
// of ours is not the registry's fault.
type patient struct {
	next  http.RoundTripper
	limit time.Duration
}

type stallError struct {
	host  string
	limit time.Duration
}

func (e *stallError) Error() string {
	return fmt.Sprintf("registry %s sent nothing for %s: giving up", e.host, e.limit)
}

func (e *stallError) Is(target error) bool {
	return target == errStalled || target == context.DeadlineExceeded
}

func (p *patient) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	stalled := &stallError{host: req.URL.Host, limit: p.limit}
	timer := time.AfterFunc(p.limit, func() { cancel(stalled) })
	resp, err := p.next.RoundTrip(req.WithContext(ctx))
	timer.Stop()
	if err != nil {
		if context.Cause(ctx) == stalled {
			err = stalled
		}
		cancel(nil)
		return nil, err
	}
	resp.Body = &patientBody{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, timer: timer, stalled: stalled}
	return resp, nil
}

type patientBody struct {
	io.ReadCloser
	ctx     context.Context
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	stalled *stallError
}

func (b *patientBody) Read(p []byte) (int, error) {
	b.timer.Reset(b.stalled.limit)
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	if err != nil && err != io.EOF && context.Cause(b.ctx) == b.stalled {
		err = b.stalled
	}
	return n, err
}

func (b *patientBody) Close() error {
	b.timer.Stop()
	defer b.cancel(nil)
	return b.ReadCloser.Close()
}
