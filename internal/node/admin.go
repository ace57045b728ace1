package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errhttp"
)

// adminSocketName is the name below Run of the socket for what the CRI has no
// call for: image archives, the progress of pulls, and backups. It speaks HTTP;
// answers that take long are a stream of JSON messages. It is internal: both
// ends are of one version, as the binary is.
const adminSocketName = "admin.sock"

// maxAdminBody bounds a request that isn't an archive, in bytes.
const maxAdminBody = 1 << 20

// adminRequest is the body of every request but Load's.
type adminRequest struct {
	Ref      string   `json:"ref,omitempty"`
	Refs     []string `json:"refs,omitempty"`
	Path     string   `json:"path,omitempty"`
	Name     string   `json:"name,omitempty"`
	Format   string   `json:"format,omitempty"`
	Platform string   `json:"platform,omitempty"`
	Auth     *Auth    `json:"auth,omitempty"`
	All      bool     `json:"all,omitempty"`
}

// adminMessage is one message of an answer; the last has Images, Removed or
// Error.
type adminMessage struct {
	Progress *Progress `json:"progress,omitempty"`
	Images   []*Image  `json:"images,omitempty"`
	Removed  *Removed  `json:"removed,omitempty"`
	Error    string    `json:"error,omitempty"`
	Code     int       `json:"code,omitempty"` // HTTP's, for the kind of the error
}

type adminServer struct {
	http *http.Server
	done chan struct{}
	// backup writes one, where what stands above the node has something to
	// back up.
	backup atomic.Pointer[func(context.Context, io.Writer) error]
}

func serveAdmin(path string, images ImageAdmin) (*adminServer, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	s := &adminServer{done: make(chan struct{})}
	s.http = &http.Server{Handler: s.routes(images), ReadHeaderTimeout: 10 * time.Second}
	go func() { s.http.Serve(l); close(s.done) }()
	return s, nil
}

func (s *adminServer) routes(images ImageAdmin) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /backup", func(w http.ResponseWriter, r *http.Request) {
		write := s.backup.Load()
		if write == nil {
			tellLate(w, fmt.Errorf("this node has no Kubernetes API that could be backed up: %w", errdefs.ErrFailedPrecondition))
			return
		}
		tellLate(w, (*write)(r.Context(), w))
	})
	mux.HandleFunc("POST /images/save", func(w http.ResponseWriter, r *http.Request) {
		req, err := decodeAdmin(r)
		if err == nil {
			err = images.Save(r.Context(), w, req.Format, req.Refs...)
		}
		tellLate(w, err)
	})
	mux.Handle("POST /images/load", adminCall(func(r *http.Request, p func(Progress)) (adminMessage, error) {
		list, err := images.Load(r.Context(), r.Body, r.URL.Query().Get("name"), p)
		return adminMessage{Images: list}, err
	}))
	mux.Handle("POST /images/loadpath", withBody(func(ctx context.Context, req *adminRequest, p func(Progress)) (adminMessage, error) {
		list, err := images.LoadPath(ctx, req.Path, req.Name, p)
		return adminMessage{Images: list}, err
	}))
	mux.Handle("POST /images/pull", withBody(func(ctx context.Context, req *adminRequest, p func(Progress)) (adminMessage, error) {
		img, err := images.Pull(ctx, req.Ref, PullOptions{Auth: req.Auth, Platform: req.Platform, Progress: p})
		return adminMessage{Images: []*Image{img}}, err
	}))
	mux.Handle("POST /images/get", withBody(func(ctx context.Context, req *adminRequest, _ func(Progress)) (adminMessage, error) {
		img, err := images.Get(ctx, req.Ref)
		return adminMessage{Images: []*Image{img}}, err
	}))
	mux.Handle("POST /images/list", withBody(func(ctx context.Context, _ *adminRequest, _ func(Progress)) (adminMessage, error) {
		list, err := images.List(ctx)
		return adminMessage{Images: list}, err
	}))
	mux.Handle("POST /images/remove", withBody(func(ctx context.Context, req *adminRequest, _ func(Progress)) (adminMessage, error) {
		removed, err := images.Remove(ctx, req.Ref)
		return adminMessage{Removed: removed}, err
	}))
	mux.Handle("POST /images/prune", withBody(func(ctx context.Context, req *adminRequest, _ func(Progress)) (adminMessage, error) {
		removed, err := images.Prune(ctx, req.All)
		return adminMessage{Removed: removed}, err
	}))
	return mux
}

// adminCall answers a request with messages: its progress, then how it ended.
type adminCall func(r *http.Request, progress func(Progress)) (adminMessage, error)

func (call adminCall) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	enc := json.NewEncoder(w)
	flush := http.NewResponseController(w)
	flush.EnableFullDuplex() // progress goes out while an archive comes in
	msg, err := call(r, func(p Progress) {
		enc.Encode(adminMessage{Progress: &p})
		flush.Flush()
	})
	if err != nil {
		msg = adminMessage{Error: err.Error(), Code: errhttp.ToHTTP(err)}
	}
	enc.Encode(msg)
}

// withBody is a call whose request is an adminRequest.
func withBody(call func(context.Context, *adminRequest, func(Progress)) (adminMessage, error)) adminCall {
	return func(r *http.Request, progress func(Progress)) (adminMessage, error) {
		req, err := decodeAdmin(r)
		if err != nil {
			return adminMessage{}, err
		}
		return call(r.Context(), req, progress)
	}
}

// tellLate tells an error by a trailer: once bytes have gone it is too late for
// a status.
func tellLate(w http.ResponseWriter, err error) {
	if err != nil {
		w.Header().Set(http.TrailerPrefix+"Unipod-Error", url.QueryEscape(err.Error()))
		w.Header().Set(http.TrailerPrefix+"Unipod-Code", fmt.Sprint(errhttp.ToHTTP(err)))
	}
}

func decodeAdmin(r *http.Request) (*adminRequest, error) {
	req := &adminRequest{}
	if err := json.NewDecoder(io.LimitReader(r.Body, maxAdminBody)).Decode(req); err != nil {
		return nil, fmt.Errorf("admin request: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return req, nil
}

func (s *adminServer) close() error {
	err := s.http.Close()
	<-s.done
	return err
}
