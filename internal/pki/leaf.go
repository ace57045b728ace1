package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// The groups that Kubernetes knows.
const (
	Masters = "system:masters" // may do everything
	Nodes   = "system:nodes"
)

// renewBefore is how long before its end a certificate is made anew.
const renewBefore = leafLife / 3

// A Certificate is of one server or client. It has one that is valid at any
// time: made in memory when first asked for and again when due, or when the
// clock has left its validity.
type Certificate struct {
	a     *Authority
	front bool
	usage x509.ExtKeyUsage
	who   pkix.Name

	mu    sync.Mutex
	hosts []string
	now   *tls.Certificate
}

// Hosts are the names and addresses a node's API is reached by: this machine
// alone, those by which pods know it, and the ones given.
func Hosts(more ...string) []string {
	return append([]string{
		"localhost", "127.0.0.1", "::1",
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
	}, more...)
}

// Serving is the certificate of a server that is reached by hosts: names and
// addresses.
func (a *Authority) Serving(name string, hosts ...string) *Certificate {
	return a.leaf(&Certificate{usage: x509.ExtKeyUsageServerAuth, who: pkix.Name{CommonName: name}, hosts: hosts})
}

// NodeServing is the certificate of a node's own server, kubelet's.
func (a *Authority) NodeServing(node string, hosts ...string) *Certificate {
	return a.leaf(&Certificate{
		usage: x509.ExtKeyUsageServerAuth,
		who:   pkix.Name{CommonName: "system:node:" + node, Organization: []string{Nodes}}, hosts: hosts,
	})
}

// Client is the certificate of a user.
func (a *Authority) Client(user string, groups ...string) *Certificate {
	return a.leaf(&Certificate{usage: x509.ExtKeyUsageClientAuth, who: pkix.Name{CommonName: user, Organization: groups}})
}

// Admin may do everything.
func (a *Authority) Admin() *Certificate { return a.Client("kubernetes-admin", Masters) }

// Node is who kubelet is to the API.
func (a *Authority) Node(name string) *Certificate { return a.Client("system:node:"+name, Nodes) }

// KubeletClient is who the API is to kubelet.
func (a *Authority) KubeletClient() *Certificate {
	return a.Client("kube-apiserver-kubelet-client", Masters)
}

// FrontProxyClient is who the API is to an extension API server; its name is
// the only one they have to allow.
func (a *Authority) FrontProxyClient() *Certificate {
	return a.leaf(&Certificate{front: true, usage: x509.ExtKeyUsageClientAuth, who: pkix.Name{CommonName: FrontProxyName}})
}

// FrontProxyName is the name in the certificate of [Authority.FrontProxyClient].
const FrontProxyName = "front-proxy-client"

func (a *Authority) leaf(c *Certificate) *Certificate {
	c.a = a
	a.mu.Lock()
	a.leaves = append(a.leaves, c)
	a.mu.Unlock()
	return c
}

// SetHosts changes the names and addresses of a server, for connections made
// from now on.
func (c *Certificate) SetHosts(hosts ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(hosts, c.hosts) {
		c.hosts, c.now = slices.Clone(hosts), nil
	}
}

// TLS is the certificate that is valid now.
func (c *Certificate) TLS() (*tls.Certificate, error) {
	now := c.a.clock.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now != nil && !due(c.now.Leaf, now) {
		return c.now, nil
	}
	fresh, err := c.make(now)
	if err != nil {
		return nil, fmt.Errorf("the certificate of %s: %w", c.who.CommonName, err)
	}
	c.now = fresh
	return fresh, nil
}

// due tells whether a certificate has to be made anew.
func due(c *x509.Certificate, now time.Time) bool {
	return now.Before(c.NotBefore) || c.NotAfter.Sub(now) < renewBefore
}

func (c *Certificate) make(now time.Time) (*tls.Certificate, error) {
	c.a.mu.Lock()
	signer := c.a.ca.signer(now)
	if c.front {
		signer = c.a.front.signer(now)
	}
	c.a.mu.Unlock()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               c.who,
		NotBefore:             now.Add(-backdated),
		NotAfter:              now.Add(leafLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{c.usage},
		BasicConstraintsValid: true,
	}
	for _, h := range c.hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if h != "" {
			template.DNSNames = append(template.DNSNames, strings.ToLower(h))
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer.cert, key.Public(), signer.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// GetCertificate is for a server's tls.Config.
func (c *Certificate) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.TLS() }

// GetClientCertificate is for a client's tls.Config.
func (c *Certificate) GetClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return c.TLS()
}

// PEM is the certificate that is valid now, and its key.
func (c *Certificate) PEM() (cert, key []byte, err error) {
	t, err := c.TLS()
	if err != nil {
		return nil, nil, err
	}
	key, err = encodeKey(t.PrivateKey.(*ecdsa.PrivateKey))
	return encodeCert(t.Leaf), key, err
}
