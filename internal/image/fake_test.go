package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fake is a registry that a test can make misbehave.
type fake struct {
	*httptest.Server
	mu        sync.Mutex
	manifests map[string][]byte // "repo:tag" and "repo@digest"
	types     map[string]string
	blobs     map[digest.Digest][]byte
	// hook answers a request itself if it returns true.
	hook     func(http.ResponseWriter, *http.Request) bool
	requests atomic.Int64
	blobGets atomic.Int64
}

func newFake(t testing.TB) *fake {
	f := &fake{manifests: map[string][]byte{}, types: map[string]string{}, blobs: map[digest.Digest][]byte{}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Server.Close)
	return f
}

func (f *fake) addr() string { return f.Listener.Addr().String() }

func (f *fake) add(repo, tag string, b *built) string {
	for d, data := range b.blobs {
		f.blobs[d] = data
	}
	f.addManifest(repo, tag, b.desc, b.manifest)
	return f.addr() + "/" + repo + ":" + tag
}

func (f *fake) addManifest(repo, tag string, d ocispec.Descriptor, raw []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, key := range []string{repo + "/" + tag, repo + "/" + d.Digest.String()} {
		f.manifests[key], f.types[key] = raw, d.MediaType
	}
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.requests.Add(1)
	if f.hook != nil && f.hook(w, r) {
		return
	}
	f.serve(w, r)
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/v2/")
	if repo, ref, ok := strings.Cut(path, "/manifests/"); ok {
		f.mu.Lock()
		raw, typ := f.manifests[repo+"/"+ref], f.types[repo+"/"+ref]
		f.mu.Unlock()
		if raw == nil {
			http.Error(w, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`, http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", typ)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(raw).String())
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(raw))
		return
	}
	if _, d, ok := strings.Cut(path, "/blobs/"); ok {
		f.blobGets.Add(1)
		raw, ok := f.blobs[digest.Digest(d)]
		if !ok {
			http.Error(w, `{"errors":[{"code":"BLOB_UNKNOWN"}]}`, http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(raw))
		return
	}
	w.WriteHeader(http.StatusOK)
}

// wantErr checks kind and words of an error.
func wantErr(t *testing.T, err, kind error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if !errors.Is(err, kind) {
		t.Errorf("error %q is not %q", err, kind)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

// empty checks that a store holds nothing at all.
func empty(t *testing.T, s *Store) {
	t.Helper()
	info, err := s.FsInfo(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if info.UsedBytes != 0 || info.UsedInodes != 0 {
		t.Errorf("%d bytes, %d inodes are left", info.UsedBytes, info.UsedInodes)
	}
	for _, glob := range []string{"overlayfs/snapshots/*", "content/ingest/*", "content/blobs/*/*", debtFile} {
		left, err := filepath.Glob(filepath.Join(s.cfg.Root, glob))
		if err != nil || len(left) > 0 {
			t.Errorf("left: %v %v", left, err)
		}
	}
	ls, err := s.leases.List(scope(context.Background()))
	if err != nil || len(ls) > 0 {
		t.Errorf("leases left: %v %v", ls, err)
	}
}

func mustUnmarshal(t testing.TB, b []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}
