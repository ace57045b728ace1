// Package pki owns the node's keys: the certificate authority of the cluster
// that is this one machine, the authority of the aggregation layer's front
// proxy, the key that signs service account tokens and the one that encrypts
// Secrets at rest. From the first it makes what expires (serving and client
// certificates, kubeconfigs), which lives in memory only and is made anew
// before it expires.
//
// It promises that keys are written whole or not at all, readable by their
// owner only, and never made anew where old ones were: whoever holds data that
// depends on them gets an error that says which file is damaged. An [Authority]
// is safe for concurrent use; one process has one per directory, which the
// node's lock sees to. Time is a parameter.
//
// Floor: 5, beside manifest. It imports nothing of unipod.
package pki

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/utils/clock"
)

// The files of a directory.
const (
	caFile         = "ca.pem"
	frontFile      = "front-proxy-ca.pem"
	accountFile    = "service-account.pem"
	encryptionFile = "encryption.json"
)

// checkEvery is how often [Authority.Run] looks whether something is due. It
// is short beside every lifetime: clocks jump, and machines sleep.
const checkEvery = time.Hour

// An Authority has the node's keys.
type Authority struct {
	dir   string // "" for one in memory
	clock clock.WithTicker

	mu       sync.Mutex
	ca       roots
	front    roots
	accounts []accountKey    // the first signs
	secrets  []EncryptionKey // the first writes
	leaves   []*Certificate  // what Run renews
	renewed  chan struct{}   // closed when ca or front are others
}

// Open reads the keys in dir. When dir doesn't exist or is empty they are made;
// dir "" keeps them in memory.
func Open(dir string, clk clock.WithTicker) (*Authority, error) {
	if dir == "" {
		return newAuthority("", clk)
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return create(dir, clk)
	}
	if err != nil {
		return nil, fmt.Errorf("the node's keys: %w", err)
	}
	return Load(dir, clk)
}

// Load reads the keys in dir and makes none: for who has data that depends on
// them. A missing directory is an fs.ErrNotExist.
func Load(dir string, clk clock.WithTicker) (*Authority, error) {
	if err := private(dir); err != nil {
		return nil, err
	}
	if err := sweep(dir); err != nil {
		return nil, err
	}
	a := &Authority{dir: dir, clock: clk, renewed: make(chan struct{})}
	var err error
	read := func(name string, parse func([]byte) error) {
		if err != nil {
			return
		}
		var text []byte
		if text, err = readFile(filepath.Join(dir, name)); err != nil {
			return
		}
		if perr := parse(text); perr != nil {
			err = &DamagedError{Path: filepath.Join(dir, name), Err: perr}
		}
	}
	read(caFile, func(b []byte) (err error) { a.ca, err = parseRoots(b); return err })
	read(frontFile, func(b []byte) (err error) { a.front, err = parseRoots(b); return err })
	read(accountFile, func(b []byte) (err error) { a.accounts, err = parseAccountKeys(b); return err })
	read(encryptionFile, func(b []byte) (err error) { a.secrets, err = parseEncryptionKeys(b); return err })
	if err != nil {
		return nil, err
	}
	if _, err := a.rotate(); err != nil {
		return nil, err
	}
	return a, nil
}

// newAuthority makes keys, in memory.
func newAuthority(dir string, clk clock.WithTicker) (*Authority, error) {
	a := &Authority{dir: dir, clock: clk, renewed: make(chan struct{})}
	var err error
	if a.ca, err = newRoots(caName, clk.Now()); err != nil {
		return nil, err
	}
	if a.front, err = newRoots(frontName, clk.Now()); err != nil {
		return nil, err
	}
	if a.accounts, err = newAccountKeys(nil); err != nil {
		return nil, err
	}
	if a.secrets, err = newEncryptionKeys(nil, clk.Now()); err != nil {
		return nil, err
	}
	return a, nil
}

// create makes keys and their directory. It appears whole, by one rename: a
// directory in which a file is missing has lost it.
func create(dir string, clk clock.WithTicker) (_ *Authority, err error) {
	a, err := newAuthority(dir, clk)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{caFile: a.ca.encode(), frontFile: a.front.encode()}
	if files[accountFile], err = encodeAccountKeys(a.accounts); err != nil {
		return nil, err
	}
	if files[encryptionFile], err = encodeEncryptionKeys(a.secrets); err != nil {
		return nil, err
	}
	if err := createDir(dir, files); err != nil {
		return nil, fmt.Errorf("making the node's keys: %w", err)
	}
	return a, nil
}

// Run renews what is due until ctx ends, and calls changed after it renewed
// something: whoever wrote a certificate or the authorities' bundle into a
// file writes it again. changed is called from this goroutine.
func (a *Authority) Run(ctx context.Context, changed func()) error {
	ticker := a.clock.NewTicker(checkEvery)
	defer ticker.Stop()
	last := a.serials()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		}
		// A disk that is full today may not be tomorrow: there are months left.
		_, err := a.rotate()
		now := a.serials()
		if now != last {
			last = now
			changed()
		}
		if err != nil && a.expired() {
			return err
		}
	}
}

// rotate brings the authorities up to date and tells whether they changed.
func (a *Authority) rotate() (changed bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer func() {
		if changed {
			close(a.renewed)
			a.renewed = make(chan struct{})
		}
	}()
	now := a.clock.Now()
	for _, each := range []struct {
		roots      *roots
		name, file string
	}{{&a.ca, caName, caFile}, {&a.front, frontName, frontFile}} {
		next, same, err := each.roots.rotated(each.name, now)
		if err != nil {
			return changed, err
		}
		if same {
			continue
		}
		if a.dir != "" {
			if err := WriteFile(filepath.Join(a.dir, each.file), next.encode()); err != nil {
				return changed, fmt.Errorf("renewing a certificate authority: %w", err)
			}
		}
		*each.roots, changed = next, true
	}
	return changed, nil
}

// expired tells whether nothing can be signed any more.
func (a *Authority) expired() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.clock.Now()
	return now.After(a.ca.signer(now).cert.NotAfter) || now.After(a.front.signer(now).cert.NotAfter)
}

// serials names everything that may be renewed, renewing what is due.
func (a *Authority) serials() string {
	a.mu.Lock()
	leaves := slices.Clone(a.leaves)
	var b strings.Builder
	for _, r := range slices.Concat(a.ca, a.front) {
		fmt.Fprintln(&b, r.cert.SerialNumber)
	}
	a.mu.Unlock()
	for _, l := range leaves {
		if c, err := l.TLS(); err == nil {
			fmt.Fprintln(&b, c.Leaf.SerialNumber)
		}
	}
	return b.String()
}

// Renewed is closed when the authorities are others than they are now: whoever
// keeps a bundle asks for it before the bundle, and for both again then.
func (a *Authority) Renewed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.renewed
}

// CABundlePEM are the certificates of the cluster's authority, old and new:
// what a client has to trust.
func (a *Authority) CABundlePEM() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ca.certificates()
}

// FrontProxyCABundlePEM is the same for extension API servers, of whoever
// forwards requests to them.
func (a *Authority) FrontProxyCABundlePEM() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.front.certificates()
}

// CAPool is CABundlePEM for crypto/tls.
func (a *Authority) CAPool() *x509.CertPool {
	a.mu.Lock()
	defer a.mu.Unlock()
	pool := x509.NewCertPool()
	for _, r := range a.ca {
		pool.AddCert(r.cert)
	}
	return pool
}

// ClientVerifyOptions is how a client's certificate is verified, now: upstream's
// x509request.VerifyOptionFunc.
func (a *Authority) ClientVerifyOptions() (x509.VerifyOptions, bool) {
	return x509.VerifyOptions{Roots: a.CAPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, true
}

// SigningFiles writes the certificate and key that sign now into a directory,
// which belongs on a tmpfs, for upstream's certificate signing controller: it
// wants files, and reads them again when they change.
func (a *Authority) SigningFiles(dir string) (cert, key string, err error) {
	a.mu.Lock()
	r := a.ca.signer(a.clock.Now())
	a.mu.Unlock()
	text, err := encodeKey(r.key)
	if err != nil {
		return "", "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", err
	}
	cert, key = filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	if err := errors.Join(WriteFile(key, text), WriteFile(cert, encodeCert(r.cert))); err != nil {
		return "", "", fmt.Errorf("the signing controller's files: %w", err)
	}
	return cert, key, nil
}

func encodeCert(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: certBlock, Bytes: c.Raw})
}

func encodeKey(k crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), nil
}
