package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/kubelet/client"

	"unipod.dev/unipod/internal/pki"
)

const (
	// kubeletPort is a kubelet's that doesn't tell its own.
	kubeletPort = 10250
	// kubeletDial is how long a kubelet may take to accept a connection.
	kubeletDial = 10 * time.Second
)

// addressTypes are where a kubelet is looked for, kubeadm's order: names need
// somebody who resolves them.
var addressTypes = []string{string(v1.NodeInternalIP), string(v1.NodeExternalIP), string(v1.NodeHostName)}

// kubelets tells the API where nodes' kubelets are. That of this node is this
// process, wherever the Node object says it is; others are found as upstream
// finds them. All are verified by the cluster's authority and know the API by
// a certificate of it. Safe for concurrent use.
type kubelets struct {
	keys   *pki.Authority
	cert   *pki.Certificate
	node   string
	at     netip.AddrPort
	others client.ConnectionInfoGetter

	mu     sync.Mutex
	bundle []byte // the authority that transports verify by
	own    *http.Transport
	other  *http.Transport
	// unverified is for who asked not to verify (logs only).
	unverified *http.Transport
}

// anyHost is an address for documentation (RFC 5737): the transport dials
// where kubelet listens, whatever it is asked for, and upstream's node proxy
// refuses to be asked for a loopback address.
const anyHost = "192.0.2.1"

func newKubelets(keys *pki.Authority, node string, at netip.AddrPort, nodes client.NodeGetter) (*kubelets, error) {
	// Upstream's wants files of keys; of what it says only the place is used.
	others, err := client.NewNodeConnectionInfoGetter(nodes, client.KubeletClientConfig{Port: kubeletPort, PreferredAddressTypes: addressTypes})
	if err != nil {
		return nil, fmt.Errorf("connections to kubelets: %w", err)
	}
	return &kubelets{keys: keys, cert: keys.KubeletClient(), node: node, at: at, others: others}, nil
}

// GetConnectionInfo implements client.ConnectionInfoGetter.
func (k *kubelets) GetConnectionInfo(ctx context.Context, node types.NodeName) (*client.ConnectionInfo, error) {
	own, other, unverified := k.transports()
	if string(node) == k.node {
		return &client.ConnectionInfo{
			Scheme: "https", Hostname: anyHost, Port: strconv.Itoa(int(k.at.Port())),
			Transport: own, InsecureSkipTLSVerifyTransport: own,
		}, nil
	}
	info, err := k.others.GetConnectionInfo(ctx, node)
	if err != nil {
		return nil, err
	}
	info.Transport, info.InsecureSkipTLSVerifyTransport = other, unverified
	return info, nil
}

// transports are those for the authority there is now: it is renewed while the
// node runs.
func (k *kubelets) transports() (own, other, unverified *http.Transport) {
	bundle := k.keys.CABundlePEM()
	k.mu.Lock()
	defer k.mu.Unlock()
	if bytes.Equal(bundle, k.bundle) {
		return k.own, k.other, k.unverified
	}
	for _, t := range []*http.Transport{k.own, k.other, k.unverified} {
		if t != nil {
			t.CloseIdleConnections()
		}
	}
	k.bundle = bundle
	dialer := &net.Dialer{Timeout: kubeletDial}
	verify := func(server string) *tls.Config {
		return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: k.keys.CAPool(), ServerName: server, GetClientCertificate: k.cert.GetClientCertificate}
	}
	k.own = transport(verify(k.node), func(ctx context.Context, network, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, network, k.at.String())
	})
	k.other = transport(verify(""), dialer.DialContext)
	k.unverified = transport(&tls.Config{
		MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, //nolint:gosec // what its name says
		GetClientCertificate: k.cert.GetClientCertificate,
	}, dialer.DialContext)
	return k.own, k.other, k.unverified
}

func transport(config *tls.Config, dial func(context.Context, string, string) (net.Conn, error)) *http.Transport {
	return &http.Transport{
		DialContext: dial, TLSClientConfig: config, TLSHandshakeTimeout: kubeletDial,
		MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute,
	}
}
