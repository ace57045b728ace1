package bench

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	pullLayers = 4
	pullFiles  = 400       // in each layer
	pullFile   = 100 << 10 // bytes of each file
)

// A Registry serves two images on the loopback: what the bench's pods run, and
// one for pulls to be measured without a network: 4 layers of 400 files, 160 MB
// unpacked.
type Registry struct {
	blobs     map[string][]byte
	manifests map[string]string // digest by repository
	listener  net.Listener
	server    *http.Server
	done      chan struct{}
}

const (
	appRepository  = "unipod-bench/app"
	pullRepository = "unipod-bench/pull"
)

// NewRegistry serves the pods' image and, when pulls are to be measured, the
// one for them.
func NewRegistry(pulls bool) (*Registry, error) {
	r := &Registry{blobs: map[string][]byte{}, manifests: map[string]string{}, done: make(chan struct{})}
	app, err := appLayer()
	if err != nil {
		return nil, err
	}
	if err := r.addImage(appRepository, appConfig(), app); err != nil {
		return nil, err
	}
	if pulls {
		layers, err := pullLayersOf()
		if err != nil {
			return nil, err
		}
		if err := r.addImage(pullRepository, map[string]any{}, layers...); err != nil {
			return nil, err
		}
	}
	if r.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		defer close(r.done)
		_ = r.server.Serve(r.listener) // until Close
	}()
	return r, nil
}

// pullLayersOf makes the layers of the image whose pull is measured.
func pullLayersOf() ([]*archive, error) {
	var layers []*archive
	// The same image each time; half of it compresses, as files do.
	random := rand.NewChaCha8([32]byte{1})
	for i := range pullLayers {
		a := &archive{}
		a.dir(fmt.Sprintf("layer%d", i))
		for j := range pullFiles {
			body := make([]byte, pullFile)
			_, _ = random.Read(body[:len(body)/2]) // never fails
			a.file(fmt.Sprintf("layer%d/file%d", i, j), body, 0o644)
		}
		if err := a.close(); err != nil {
			return nil, err
		}
		layers = append(layers, a)
	}
	return layers, nil
}

const manifestType = "application/vnd.oci.image.manifest.v1+json"

// addImage makes an image of layers and keeps it as repository's.
func (r *Registry) addImage(repository string, config map[string]any, layers ...*archive) error {
	var packed []map[string]any
	var diffs []string
	for _, layer := range layers {
		diffs = append(diffs, "sha256:"+digest(layer.Bytes()))
		var b bytes.Buffer
		w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
		if err != nil {
			return err
		}
		_, err = w.Write(layer.Bytes())
		if err = errors.Join(err, w.Close()); err != nil {
			return err
		}
		packed = append(packed, r.add(b.Bytes(), "application/vnd.oci.image.layer.v1.tar+gzip"))
	}
	image, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": config, "rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "config": r.add(image, "application/vnd.oci.image.config.v1+json"), "layers": packed,
	})
	if err != nil {
		return err
	}
	r.manifests[repository] = r.add(manifest, manifestType)["digest"].(string)
	return nil
}

func (r *Registry) add(blob []byte, mediaType string) map[string]any {
	sum := sha256.Sum256(blob)
	d := "sha256:" + hex.EncodeToString(sum[:])
	r.blobs[d] = blob
	return map[string]any{"mediaType": mediaType, "digest": d, "size": len(blob)}
}

// App is the name of the image that the bench's pods run.
func (r *Registry) App() string { return r.ref(appRepository) }

// Pull is the name of the image whose pull is measured, "" when there is none.
func (r *Registry) Pull() string {
	if r.manifests[pullRepository] == "" {
		return ""
	}
	return r.ref(pullRepository)
}

func (r *Registry) ref(repository string) string {
	return r.listener.Addr().String() + "/" + repository + ":1"
}

// Close ends the serving.
func (r *Registry) Close() error {
	err := r.server.Close()
	<-r.done
	return err
}

// ServeHTTP is the part of the OCI distribution protocol that a pull needs.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	name := req.URL.Path[strings.LastIndexByte(req.URL.Path, '/')+1:]
	repository, _, isManifest := strings.Cut(strings.TrimPrefix(req.URL.Path, "/v2/"), "/manifests/")
	if isManifest && !strings.HasPrefix(name, "sha256:") {
		name = r.manifests[repository]
	}
	blob, ok := r.blobs[name]
	switch {
	case req.URL.Path == "/v2/":
		return
	case !ok:
		http.NotFound(w, req)
		return
	case isManifest:
		w.Header().Set("Content-Type", manifestType)
	default:
		w.Header().Set("Content-Type", "application/octet-stream")
	}
	w.Header().Set("Docker-Content-Digest", name)
	http.ServeContent(w, req, "", time.Time{}, io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))))
}

// measurePull pulls and removes an image n times.
func measurePull(n int, pull, remove func() error) (Times, error) {
	var all []time.Duration
	for range n {
		at := time.Now()
		if err := pull(); err != nil {
			return Times{}, err
		}
		all = append(all, time.Since(at))
		if err := remove(); err != nil {
			return Times{}, err
		}
	}
	return TimesOf(all), nil
}

// pull measures pulling and unpacking through the CRI.
func (m *measurer) pull(ctx context.Context, f *Figures) (err error) {
	if m.opts.Pull == "" || m.opts.Pulls == 0 {
		return nil
	}
	spec := &runtimeapi.ImageSpec{Image: m.opts.Pull}
	f.Pull, err = measurePull(m.opts.Pulls, func() error {
		_, err := m.Service.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec})
		return err
	}, func() error {
		_, err := m.Service.RemoveImage(context.WithoutCancel(ctx), &runtimeapi.RemoveImageRequest{Image: spec})
		return err
	})
	return err
}
