package static

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	kubetypes "k8s.io/kubernetes/pkg/kubelet/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/yaml"

	"unipod.dev/unipod/internal/manifest"
)

const (
	// pollPeriod, fetchTimeout and maxBody are kubelet's for --manifest-url.
	pollPeriod   = 20 * time.Second
	fetchTimeout = 10 * time.Second
	maxBody      = 10 << 20
	// loudFailures is how many failures in a row are worth a line each.
	loudFailures = 3
)

// URL is a source of manifests on the network.
type URL struct {
	// Address is an http or https URL that answers with one or more manifests.
	Address string
	// Header goes with every request; it may hold secrets and is never shown.
	Header http.Header
	// CA are the certificates (PEM) that the server's must be signed by; nil
	// means the machine's.
	CA []byte
}

// remote is a URL being watched.
type remote struct {
	url      *url.URL
	header   http.Header
	client   *http.Client
	clock    clock.WithTicker
	log      *slog.Logger
	last     []byte // as it was last taken in
	failures int
}

func newRemote(u URL, clk clock.WithTicker, log *slog.Logger) (*remote, error) {
	parsed, err := url.Parse(u.Address)
	if err != nil {
		// The error repeats the address, which may hold a password.
		return nil, fmt.Errorf("the URL of manifests can't be parsed: %w", errdefs.ErrInvalidArgument)
	}
	if parsed.Scheme != "http" && parsed.Scheme != "https" || parsed.Host == "" {
		return nil, fmt.Errorf("the URL of manifests %s: neither http://… nor https://…: %w", shown(parsed), errdefs.ErrInvalidArgument)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if u.CA != nil {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(u.CA) {
			return nil, fmt.Errorf("the certificates for the URL of manifests: no certificate (PEM) in them: %w", errdefs.ErrInvalidArgument)
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	return &remote{
		url: parsed, header: u.Header, clock: clk, log: log,
		client: &http.Client{Timeout: fetchTimeout, Transport: transport, CheckRedirect: sameServer},
	}, nil
}

// sameServer follows redirects within the server only: the headers are meant
// for nobody else.
func sameServer(req *http.Request, via []*http.Request) error {
	if first := via[0].URL; req.URL.Scheme != first.Scheme || req.URL.Host != first.Host {
		return fmt.Errorf("it redirects to another server (%s)", shown(req.URL))
	}
	if len(via) >= 10 {
		return errors.New("it redirects in circles")
	}
	return nil
}

// shown is a URL without what may be secret in it.
func shown(u *url.URL) string {
	plain := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	return plain.String()
}

// mark tells the pods of one URL from those of another that looks the same.
func (r *remote) name() string {
	sum := sha256.Sum256([]byte(r.url.String()))
	return shown(r.url) + "#" + hex.EncodeToString(sum[:8])
}

func (r *remote) kind() string { return kubetypes.HTTPSource }

// watch asks the URL now and then and hands out what is new, until ctx ends.
func (r *remote) watch(ctx context.Context, out chan<- reading) error {
	defer r.client.CloseIdleConnections()
	ticker := r.clock.NewTicker(pollPeriod)
	defer ticker.Stop()
	for {
		objects, err := r.fetch(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			if r.failures++; r.failures <= loudFailures {
				r.log.Error("reading manifests; what runs goes on", "url", shown(r.url), "err", err)
			}
			if r.failures == loudFailures {
				r.log.Error("further failures to read manifests are not logged", "url", shown(r.url))
			}
		case r.failures > 0:
			r.log.Info("manifests can be read again", "url", shown(r.url))
			r.failures = 0
		}
		if !send(ctx, out, reading{objects: objects}) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		}
	}
}

// fetch reads the URL; what is the same as before is nil.
func (r *remote) fetch(ctx context.Context) (*manifest.Objects, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url.String(), nil)
	if err != nil {
		return nil, errors.New("the request can't be made")
	}
	for name, values := range r.header {
		req.Header[http.CanonicalHeaderKey(name)] = values
	}
	resp, err := r.client.Do(req)
	if err != nil {
		// The URL in it may hold secrets.
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading the answer: %w", err)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("the server answers %q", resp.Status)
	case len(body) > maxBody:
		return nil, fmt.Errorf("the answer is larger than %d bytes", maxBody)
	case len(bytes.TrimSpace(body)) == 0:
		return nil, errors.New("the answer is empty; a list without items says that there are no pods")
	case bytes.Equal(body, r.last):
		return nil, nil
	}
	objects, err := r.parse(body)
	if err != nil {
		return nil, err
	}
	r.last = body
	return objects, nil
}

func (r *remote) parse(body []byte) (*manifest.Objects, error) {
	var list struct {
		Kind  string `json:"kind"`
		Items *[]any `json:"items"`
	}
	if yaml.Unmarshal(body, &list) == nil && strings.HasSuffix(list.Kind, "List") && (list.Items == nil || len(*list.Items) == 0) {
		return &manifest.Objects{}, nil
	}
	mark := r.name()
	loader := manifest.Loader{UID: manifest.StaticUIDFrom(mark)}
	return loader.Load([]string{"-"}, bytes.NewReader(body))
}
