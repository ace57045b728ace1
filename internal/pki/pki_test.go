package pki

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	x509request "k8s.io/apiserver/pkg/authentication/request/x509"
	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"
)

var start = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func open(t *testing.T, dir string, clk clock.WithTicker) *Authority {
	t.Helper()
	a, err := Open(dir, clk)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func leafOf(t *testing.T, c *Certificate) *x509.Certificate {
	t.Helper()
	pair, err := c.TLS()
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf
}

// trusts tells whether a peer with that bundle takes the certificate.
func trusts(t *testing.T, bundle []byte, c *Certificate, now time.Time) bool {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(bundle) {
		t.Fatal("no certificate in the bundle")
	}
	_, err := leafOf(t, c).Verify(x509.VerifyOptions{Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{c.usage}})
	return err == nil
}

// A client with the kubeconfig and a server with the certificates know each
// other; others don't.
func TestHandshake(t *testing.T) {
	a := open(t, "", clock.RealClock{})
	server := &http.Server{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		opts, _ := a.ClientVerifyOptions()
		opts.Intermediates = x509.NewCertPool()
		auth := x509request.NewDynamic(func() (x509.VerifyOptions, bool) { return opts, true }, x509request.CommonNameUserConversion)
		resp, ok, err := auth.AuthenticateRequest(r)
		if err != nil || !ok {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, resp.User.GetName(), " ", strings.Join(resp.User.GetGroups(), ","))
	})}
	serving := a.Serving("kube-apiserver", Hosts("10.96.0.1", "node-1")...)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: serving.GetCertificate, ClientAuth: tls.RequestClientCert, ClientCAs: a.CAPool()})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	defer func() {
		server.Close()
		<-done
	}()
	url := "https://" + l.Addr().String()

	ask := func(a *Authority, c *Certificate) (string, error) {
		kc, err := a.Kubeconfig(url, c)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "kubeconfig")
		if err := WriteKubeconfig(path, kc); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("kubeconfig: %v %v", info.Mode(), err)
		}
		cfg, err := clientcmd.BuildConfigFromFlags("", path)
		if err != nil {
			t.Fatal(err)
		}
		client, err := rest.HTTPClientFor(cfg)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Get(url)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return fmt.Sprintf("%d %s", resp.StatusCode, b), err
	}
	for _, tc := range []struct {
		c    *Certificate
		want string
	}{
		{a.Admin(), "200 kubernetes-admin system:masters"},
		{a.Node("n1"), "200 system:node:n1 system:nodes"},
		{a.KubeletClient(), "200 kube-apiserver-kubelet-client system:masters"},
		{a.FrontProxyClient(), "401 "},
		{a.Serving("x", "y"), "401 "},
	} {
		if got, err := ask(a, tc.c); err != nil || got != tc.want {
			t.Errorf("%s: %q, %v; want %q", tc.c.who, got, err, tc.want)
		}
	}
	if got, err := ask(open(t, "", clock.RealClock{}), a.Admin()); err == nil {
		t.Errorf("a client that trusts another authority: %q", got)
	}
	leaf := leafOf(t, serving)
	for _, host := range []string{"localhost", "127.0.0.1", "::1", "kubernetes.default.svc.cluster.local", "10.96.0.1", "node-1"} {
		if err := leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	serving.SetHosts("other")
	if leafOf(t, serving).VerifyHostname("other") != nil || leafOf(t, serving).VerifyHostname("node-1") == nil {
		t.Error("the names of the server didn't change")
	}
	if !trusts(t, a.FrontProxyCABundlePEM(), a.FrontProxyClient(), time.Now()) {
		t.Error("the front proxy's client isn't trusted by its own authority")
	}
}

// What expires is renewed in time, and whoever wrote it down is told.
func TestRenewal(t *testing.T) {
	clk := clocktesting.NewFakeClock(start)
	a := open(t, "", clk)
	admin := a.Admin()
	first := leafOf(t, admin)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	told := make(chan struct{}, 100)
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx, func() { told <- struct{}{} }) }()
	for !clk.HasWaiters() {
		time.Sleep(time.Millisecond)
	}
	clk.Step(leafLife/2 + time.Hour)
	if leafOf(t, admin).SerialNumber.Cmp(first.SerialNumber) != 0 {
		t.Error("renewed before it was due")
	}
	clk.Step(leafLife / 5)
	<-told
	second := leafOf(t, admin)
	if second.SerialNumber.Cmp(first.SerialNumber) == 0 || !second.NotAfter.Equal(clk.Now().Add(leafLife).Truncate(time.Second)) {
		t.Errorf("not renewed: until %s", second.NotAfter)
	}
	clk.SetTime(start.Add(-48 * time.Hour)) // the clock was wrong
	if third := leafOf(t, admin); third.NotBefore.After(clk.Now()) {
		t.Error("not valid yet after the clock was set back")
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// Through twenty years every certificate is trusted, at any time, by who took
// the bundle a year ago; and every authority that is kept is a valid one.
func TestAuthorityRotation(t *testing.T) {
	clk := clocktesting.NewFakeClock(start)
	dir := filepath.Join(t.TempDir(), "pki")
	a := open(t, dir, clk)
	node, front := a.Node("n"), a.FrontProxyClient()
	bundles, fronts := [][]byte{a.CABundlePEM()}, [][]byte{a.FrontProxyCABundlePEM()}
	changes := 0
	const step = leafLife / 12
	for i := range 12 * 20 {
		clk.Step(step)
		changed, err := a.rotate()
		if err != nil {
			t.Fatal(err)
		}
		if changed {
			changes++
		}
		bundles, fronts = append(bundles, a.CABundlePEM()), append(fronts, a.FrontProxyCABundlePEM())
		old := max(0, i+1-11)
		if !trusts(t, bundles[old], node, clk.Now()) || !trusts(t, fronts[old], front, clk.Now()) {
			t.Fatalf("after %d months: not trusted by the bundle of 11 months ago", i+1)
		}
		if n := len(a.ca); n > 2 {
			t.Fatalf("after %d months: %d authorities", i+1, n)
		}
	}
	if changes < 3 {
		t.Errorf("the authorities changed %d times in 20 years", changes)
	}
	again := open(t, dir, clk)
	if !bytes.Equal(again.CABundlePEM(), a.CABundlePEM()) || !bytes.Equal(again.FrontProxyCABundlePEM(), a.FrontProxyCABundlePEM()) {
		t.Error("read again, the authorities are others")
	}
	// Off for so long that all have expired: a new one, at once.
	clk.Step(2 * rootLife)
	late := open(t, dir, clk)
	if !trusts(t, late.CABundlePEM(), late.Node("n"), clk.Now()) {
		t.Error("after a long sleep the node's certificate isn't trusted")
	}
}

// The same directory gives the same keys; a new one is made whole.
func TestKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "root", "pki")
	if err := os.MkdirAll(dir+".new", 0o755); err != nil { // a killed one's
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { // whoever made the roots
		t.Fatal(err)
	}
	a := open(t, dir, clocktesting.NewFakeClock(start))
	if err := os.WriteFile(filepath.Join(dir, ".ca.pem.123"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := open(t, dir, clocktesting.NewFakeClock(start))
	if !bytes.Equal(a.CABundlePEM(), b.CABundlePEM()) || !bytes.Equal(a.secrets[0].Secret, b.secrets[0].Secret) ||
		!a.ServiceAccountKey().Public().(interface{ Equal(x crypto.PublicKey) bool }).Equal(b.ServiceAccountPublicKeys()[0]) {
		t.Error("the keys changed")
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if info, err := d.Info(); err != nil || info.Mode().Perm()&0o077 != 0 || strings.HasPrefix(d.Name(), ".") {
			t.Errorf("%s: %v %v", path, info.Mode(), err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Load(filepath.Join(dir, "nothing"), clock.RealClock{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of nothing: %v", err)
	}
	cert, key, err := b.SigningFiles(filepath.Join(t.TempDir(), "run"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
		t.Error(err)
	}
}

// A file that is damaged in any way is named, is left alone, and nothing of it
// is told.
func TestDamaged(t *testing.T) {
	made := filepath.Join(t.TempDir(), "pki")
	a := open(t, made, clock.RealClock{})
	other := filepath.Join(t.TempDir(), "pki")
	open(t, other, clock.RealClock{})
	for _, name := range []string{caFile, frontFile, accountFile, encryptionFile} {
		whole, err := os.ReadFile(filepath.Join(made, name))
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := os.ReadFile(filepath.Join(other, name))
		if err != nil {
			t.Fatal(err)
		}
		cases := map[string][]byte{
			"empty": {}, "zeros": make([]byte, len(whole)), "half": whole[:len(whole)/2], "no end": whole[:len(whole)-9],
			"no beginning": whole[9:], "something behind": append(slices.Clone(whole), "x"...), "too large": bytes.Repeat(whole, maxFile/len(whole)+2),
		}
		if name == caFile {
			i := bytes.Index(whole, []byte("-----BEGIN PRIVATE"))
			j := bytes.Index(theirs, []byte("-----BEGIN PRIVATE"))
			cases["no key"] = whole[:i]
			cases["another's key"] = slices.Concat(whole[:i], theirs[j:])
			cases["a hole"] = bytes.Replace(slices.Clone(whole), []byte("-----END CERTIFICATE-----"), nil, 1)
		}
		for what, text := range cases {
			dir := filepath.Join(t.TempDir(), "pki")
			if err := os.CopyFS(dir, os.DirFS(made)); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.Chmod(dir, 0o700), os.WriteFile(filepath.Join(dir, name), text, 0o600)); err != nil {
				t.Fatal(err)
			}
			for _, f := range []string{caFile, frontFile, accountFile, encryptionFile} {
				if err := os.Chmod(filepath.Join(dir, f), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			_, err := Open(dir, clock.RealClock{})
			var damaged *DamagedError
			if !errors.As(err, &damaged) || damaged.Path != filepath.Join(dir, name) {
				t.Errorf("%s, %s: %v", name, what, err)
				continue
			}
			if now, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(now, text) {
				t.Errorf("%s, %s: it was written to (%v)", name, what, err)
			}
			if bytes.Contains([]byte(err.Error()), a.secrets[0].Secret) {
				t.Errorf("%s, %s: a secret is told", name, what)
			}
		}
	}
	if err := os.Remove(filepath.Join(made, encryptionFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(made, clock.RealClock{}); err == nil {
		t.Error("a file that is gone is made anew")
	}
	if err := os.Chmod(filepath.Join(other, accountFile), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(other, clock.RealClock{}); err == nil || !strings.Contains(err.Error(), "chmod") {
		t.Errorf("a key that others may read: %v", err)
	}
}

// New keys are used first; old ones are still understood.
func TestKeyRotation(t *testing.T) {
	clk := clocktesting.NewFakeClock(start)
	dir := filepath.Join(t.TempDir(), "pki")
	a := open(t, dir, clk)
	where := value.DefaultContext("/secrets/default/s")
	encrypt := func(a *Authority, text string) []byte {
		tr, err := a.Transformer()
		if err != nil {
			t.Fatal(err)
		}
		out, err := tr.TransformToStorage(t.Context(), []byte(text), where)
		if err != nil || bytes.Contains(out, []byte(text)) {
			t.Fatalf("%q: %v", out, err)
		}
		return out
	}
	before, signer := encrypt(a, "very secret"), a.ServiceAccountKey()
	for range 2 { // within one second, too
		if err := errors.Join(a.RotateEncryptionKey(), a.RotateServiceAccountKey()); err != nil {
			t.Fatal(err)
		}
	}
	b := open(t, dir, clk)
	tr, err := b.Transformer()
	if err != nil {
		t.Fatal(err)
	}
	if out, stale, err := tr.TransformFromStorage(t.Context(), before, where); err != nil || !stale || string(out) != "very secret" {
		t.Errorf("by an old key: %q, stale %v, %v", out, stale, err)
	}
	after := encrypt(b, "very secret")
	if out, stale, err := tr.TransformFromStorage(t.Context(), after, where); err != nil || stale || string(out) != "very secret" {
		t.Errorf("by the new key: %q, stale %v, %v", out, stale, err)
	}
	if _, _, err := tr.TransformFromStorage(t.Context(), after, value.DefaultContext("/secrets/default/other")); err == nil {
		t.Error("a Secret can be put in another's place")
	}
	if _, _, err := tr.TransformFromStorage(t.Context(), []byte("plain"), where); err == nil {
		t.Error("plain text is read")
	}
	keys := b.ServiceAccountPublicKeys()
	if len(keys) != 3 || !signer.Public().(interface{ Equal(x crypto.PublicKey) bool }).Equal(keys[2]) {
		t.Errorf("%d public keys, or the first isn't the last", len(keys))
	}
	if text := fmt.Sprintf("%v %+v %#v %s", b.secrets[0], b.secrets, b.secrets[0], b.secrets[0]); strings.Contains(text, string(b.secrets[0].Secret)) || strings.Contains(text, fmt.Sprint(b.secrets[0].Secret)) {
		t.Error("a secret can be printed")
	}
}
