package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs/pkg/errhttp"
)

// remoteImages is the administration of another process's store.
type remoteImages struct{ http *http.Client }

func dialAdmin(path string) *remoteImages {
	return &remoteImages{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}}
}

func (r *remoteImages) close() error {
	r.http.CloseIdleConnections()
	return nil
}

func (r *remoteImages) post(ctx context.Context, call string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://node/"+call, body)
	if err != nil {
		return nil, err
	}
	resp, err := r.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking the node: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("asking the node: it answered %s; is it of another version?", resp.Status)
	}
	return resp, nil
}

// call makes a request and reads messages until the last.
func (r *remoteImages) call(ctx context.Context, name string, req any, body io.Reader, progress func(Progress)) (*adminMessage, error) {
	if body == nil {
		b, err := json.Marshal(req)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	resp, err := r.post(ctx, "images/"+name, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); ; {
		msg := &adminMessage{}
		if err := dec.Decode(msg); err != nil {
			return nil, fmt.Errorf("the node's answer ended early: %w", err)
		}
		switch {
		case msg.Progress != nil:
			if progress != nil {
				progress(*msg.Progress)
			}
		case msg.Error != "":
			return nil, remoteError(msg.Error, msg.Code)
		default:
			return msg, nil
		}
	}
}

// remoteError is the node's error with its kind.
func remoteError(text string, code int) error {
	return &nodeError{text: text, kind: errhttp.ToNative(code)}
}

type nodeError struct {
	text string
	kind error
}

func (e *nodeError) Error() string { return e.text }
func (e *nodeError) Unwrap() error { return e.kind }

func (r *remoteImages) one(ctx context.Context, name string, req adminRequest, progress func(Progress)) (*Image, error) {
	msg, err := r.call(ctx, name, req, nil, progress)
	if err != nil {
		return nil, err
	}
	if len(msg.Images) != 1 {
		return nil, fmt.Errorf("the node answered with %d images where one was asked for", len(msg.Images))
	}
	return msg.Images[0], nil
}

func (r *remoteImages) Pull(ctx context.Context, ref string, o PullOptions) (*Image, error) {
	return r.one(ctx, "pull", adminRequest{Ref: ref, Auth: o.Auth, Platform: o.Platform}, o.Progress)
}

func (r *remoteImages) Get(ctx context.Context, ref string) (*Image, error) {
	return r.one(ctx, "get", adminRequest{Ref: ref}, nil)
}

func (r *remoteImages) List(ctx context.Context) ([]*Image, error) {
	msg, err := r.call(ctx, "list", adminRequest{}, nil, nil)
	if err != nil {
		return nil, err
	}
	return msg.Images, nil
}

func (r *remoteImages) Load(ctx context.Context, in io.Reader, name string, progress func(Progress)) ([]*Image, error) {
	msg, err := r.call(ctx, "load?name="+url.QueryEscape(name), nil, in, progress)
	if err != nil {
		return nil, err
	}
	return msg.Images, nil
}

func (r *remoteImages) LoadPath(ctx context.Context, path, name string, progress func(Progress)) ([]*Image, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	msg, err := r.call(ctx, "loadpath", adminRequest{Path: abs, Name: name}, nil, progress)
	if err != nil {
		return nil, err
	}
	return msg.Images, nil
}

func (r *remoteImages) Save(ctx context.Context, w io.Writer, format string, refs ...string) error {
	b, err := json.Marshal(adminRequest{Format: format, Refs: refs})
	if err != nil {
		return err
	}
	return r.stream(ctx, w, "images/save", bytes.NewReader(b))
}

// stream makes a request whose answer is bytes, and an error after them.
func (r *remoteImages) stream(ctx context.Context, w io.Writer, call string, body io.Reader) error {
	resp, err := r.post(ctx, call, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(w, resp.Body)
	if text := resp.Trailer.Get("Unipod-Error"); text != "" {
		code, _ := strconv.Atoi(resp.Trailer.Get("Unipod-Code"))
		if plain, uerr := url.QueryUnescape(text); uerr == nil {
			text = plain
		}
		return errors.Join(remoteError(text, code), err)
	}
	return err
}

func (r *remoteImages) Remove(ctx context.Context, ref string) (*Removed, error) {
	msg, err := r.call(ctx, "remove", adminRequest{Ref: ref}, nil, nil)
	if err != nil {
		return nil, err
	}
	return msg.Removed, nil
}

func (r *remoteImages) Prune(ctx context.Context, all bool) (*Removed, error) {
	msg, err := r.call(ctx, "prune", adminRequest{All: all}, nil, nil)
	if err != nil {
		return nil, err
	}
	return msg.Removed, nil
}
