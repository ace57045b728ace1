package image

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/containerd/errdefs"
)

func write(t testing.TB, path, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

// certificate makes a CA and a server certificate for 127.0.0.1 signed by it.
func certificate(t testing.TB, dir string) (ca, cert, key string) {
	t.Helper()
	pemFile := func(name, typ string, der []byte) string {
		p := filepath.Join(dir, name)
		write(t, p, string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der})))
		return p
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(crand.Reader, tmpl, tmpl, &caKey.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	srvKey, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	srv := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "registry"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	srvDER, err := x509.CreateCertificate(crand.Reader, srv, tmpl, &srvKey.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(srvKey)
	if err != nil {
		t.Fatal(err)
	}
	return pemFile("ca.crt", "CERTIFICATE", caDER), pemFile("srv.crt", "CERTIFICATE", srvDER), pemFile("srv.key", "EC PRIVATE KEY", keyDER)
}

func TestTLS(t *testing.T) {
	ca, cert, key := certificate(t, t.TempDir())
	r := startRegistry(t, fmt.Sprintf("  tls: {certificate: %s, key: %s}\n", cert, key), "")
	b := simple(t, "x")
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	push(t, client, "https://"+r.addr, "", "a", "b", b)
	ref := r.addr + "/a:b"
	caPEM, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	otherCA, _, _ := certificate(t, t.TempDir())
	host, port, _ := net.SplitHostPort(r.addr)
	hosts := func(ca string) string {
		return fmt.Sprintf("server = \"https://%s\"\n[host.\"https://%s\"]\n  ca = %q\n  skip_verify = false\n", r.addr, r.addr, ca)
	}
	for _, tc := range []struct {
		name  string
		files map[string]string // below certs.d
		ok    bool
	}{
		{"hosts.toml", map[string]string{r.addr + "/hosts.toml": hosts(ca)}, true},
		{"hosts.toml with another CA", map[string]string{r.addr + "/hosts.toml": hosts(otherCA)}, false},
		{"directory spelt for Windows", map[string]string{host + "_" + port + "_/hosts.toml": hosts(ca)}, true},
		{"plain certificates", map[string]string{r.addr + "/ca.crt": string(caPEM)}, true},
		{"broken hosts.toml", map[string]string{r.addr + "/hosts.toml": "server = ["}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := testConfig(t)
			cfg.CertsDirs = append([]string{filepath.Join(t.TempDir(), "none")}, cfg.CertsDirs...)
			for n, data := range tc.files {
				write(t, filepath.Join(cfg.CertsDirs[1], n), data)
			}
			s := openStore(t, cfg)
			_, err := s.Pull(context.Background(), ref, PullOptions{})
			if tc.ok != (err == nil) {
				t.Errorf("error: %v", err)
			}
			t.Log(err)
		})
	}
}

func TestHostsMirror(t *testing.T) {
	mirror, origin := newFake(t), newFake(t)
	b := simple(t, "x")
	mirror.add("a", "b", b)
	ref := origin.addr() + "/a:b" // which does not have it
	cfg := testConfig(t)
	write(t, filepath.Join(cfg.CertsDirs[0], origin.addr(), "hosts.toml"),
		fmt.Sprintf("[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", mirror.addr()))
	s := openStore(t, cfg)
	// Credentials for the registry must not reach the mirror.
	var leaked bool
	mirror.hook = func(w http.ResponseWriter, r *http.Request) bool {
		leaked = leaked || r.Header.Get("Authorization") != ""
		return false
	}
	img, err := s.Pull(context.Background(), ref, PullOptions{Auth: &Auth{Username: "joe", Password: "secret"}})
	if err != nil {
		t.Fatal(err)
	}
	if img.RepoTags[0] != ref {
		t.Errorf("names: %v", img.RepoTags)
	}
	if leaked {
		t.Error("the mirror saw credentials")
	}
}

func TestRegistriesConf(t *testing.T) {
	mirror, origin := newFake(t), newFake(t)
	b, fresh := simple(t, "mirrored"), simple(t, "only at the origin")
	mirror.add("cache/app", "v1", b)
	origin.add("app", "v2", fresh)
	conf := fmt.Sprintf(`
[[registry]]
prefix = "registry.example"
location = %q
[[registry.mirror]]
location = "%s/cache"
insecure = true
[[registry]]
location = "blocked.example"
blocked = true
`, origin.addr(), mirror.addr())
	cfg := testConfig(t)
	write(t, cfg.RegistriesConf, conf)
	write(t, cfg.RegistriesConf+".d/10-more.conf", "[[registry]]\nlocation = \"dropin.example\"\nblocked = true\n")
	s := openStore(t, cfg)
	ctx := context.Background()
	img, err := s.Pull(ctx, "registry.example/app:v1", PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if img.ID != b.configDesc.Digest.String() || img.RepoTags[0] != "registry.example/app:v1" {
		t.Errorf("from the mirror: %+v", img)
	}
	if img, err = s.Pull(ctx, "registry.example/app:v2", PullOptions{}); err != nil || img.ID != fresh.configDesc.Digest.String() {
		t.Errorf("from the origin: %+v %v", img, err)
	}
	_, err = s.Pull(ctx, "registry.example/app:v3", PullOptions{})
	wantErr(t, err, errdefs.ErrNotFound, origin.addr()+"/app:v3", "also tried", mirror.addr()+"/cache/app:v3")
	for _, host := range []string{"blocked.example", "dropin.example"} {
		_, err = s.Pull(ctx, host+"/app:v1", PullOptions{})
		wantErr(t, err, errdefs.ErrPermissionDenied, "registry "+host+" is blocked in "+cfg.RegistriesConf)
	}
	// An edited file counts at once.
	write(t, cfg.RegistriesConf, conf+"[[registry]]\nlocation = \"late.example\"\nblocked = true\n")
	_, err = s.Pull(ctx, "late.example/app:v1", PullOptions{})
	wantErr(t, err, errdefs.ErrPermissionDenied, "is blocked")
	cfg2 := testConfig(t)
	write(t, cfg2.RegistriesConf, "not toml at all [")
	_, err = openStore(t, cfg2).Pull(ctx, "registry.example/app:v1", PullOptions{})
	if err == nil {
		t.Error("a broken registries.conf was ignored")
	}
}

// TestInsecure: a certificate nobody signed is accepted where
// registries.conf says so, and only there.
func TestInsecure(t *testing.T) {
	f := newFake(t)
	srv := &http.Server{Handler: f}
	_, cert, key := certificate(t, t.TempDir())
	// Certificates of loopback addresses and localhost are never verified; a
	// name for one will do.
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if ip, err := net.ResolveIPAddr("ip", name); err != nil || !ip.IP.IsLoopback() || name == "localhost" {
		t.Skipf("the host name %q is not a loopback address", name)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(name, "0"))
	if err != nil {
		t.Fatal(err)
	}
	go srv.ServeTLS(l, cert, key)
	t.Cleanup(func() { srv.Close() })
	f.add("a", "b", simple(t, "x"))
	_, port, _ := net.SplitHostPort(l.Addr().String())
	addr := net.JoinHostPort(name, port)
	for _, insecure := range []bool{false, true} {
		cfg := testConfig(t)
		write(t, cfg.RegistriesConf, fmt.Sprintf("[[registry]]\nprefix = \"registry.example\"\nlocation = %q\ninsecure = %t\n", addr, insecure))
		_, err = openStore(t, cfg).Pull(context.Background(), "registry.example/a:b", PullOptions{})
		if insecure != (err == nil) {
			t.Errorf("insecure=%t: %v", insecure, err)
		}
	}
}

func TestPolicy(t *testing.T) {
	f := newFake(t)
	signed, unsigned := simple(t, "signed"), simple(t, "unsigned")
	refSigned, refUnsigned := f.add("signed", "v1", signed), f.add("unsigned", "v1", unsigned)
	entity, err := openpgp.NewEntity("test", "", "test@example.com", nil)
	if err != nil {
		t.Fatal(err)
	}
	var pub bytes.Buffer
	if err := entity.Serialize(&pub); err != nil {
		t.Fatal(err)
	}
	keys := filepath.Join(t.TempDir(), "key.gpg")
	write(t, keys, pub.String())
	sign := func(b *built, ref string) []byte {
		var out bytes.Buffer
		w, err := openpgp.Sign(&out, entity, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		payload := map[string]any{
			"critical": map[string]any{
				"type":     "atomic container signature",
				"image":    map[string]string{"docker-manifest-digest": b.desc.Digest.String()},
				"identity": map[string]string{"docker-reference": ref},
			},
			"optional": map[string]any{},
		}
		if err := json.NewEncoder(w).Encode(payload); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	lookaside := t.TempDir()
	write(t, filepath.Join(lookaside, "signed@sha256="+signed.desc.Digest.Encoded(), "signature-1"), string(sign(signed, refSigned)))
	// A good signature of another image.
	write(t, filepath.Join(lookaside, "unsigned@sha256="+unsigned.desc.Digest.Encoded(), "signature-1"), string(sign(signed, refSigned)))

	signedBy := fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{%q:[{"type":"signedBy","keyType":"GPGKeys","keyPath":%q}]}}}`, f.addr(), keys)
	for _, tc := range []struct {
		name, policy, ref string
		ok                bool
		word              string
	}{
		{"none", "", refUnsigned, true, ""},
		{"accept", `{"default":[{"type":"insecureAcceptAnything"}]}`, refUnsigned, true, ""},
		{"reject", `{"default":[{"type":"reject"}]}`, refUnsigned, false, "rejected by policy"},
		{"reject by default only", fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{%q:[{"type":"insecureAcceptAnything"}]}}}`, f.addr()+"/unsigned"), refUnsigned, true, ""},
		{"signed", signedBy, refSigned, true, ""},
		{"signature of something else", signedBy, refUnsigned, false, "SignatureValidationFailed"},
		{"unknown requirement", `{"default":[{"type":"askGrandma"}]}`, refUnsigned, false, "askGrandma"},
		{"no JSON", `{`, refUnsigned, false, "policy"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := testConfig(t)
			if tc.policy != "" {
				write(t, cfg.PolicyFile, tc.policy)
			}
			write(t, filepath.Join(cfg.LookasideDir, "default.yaml"), fmt.Sprintf("docker:\n  %s:\n    lookaside: file://%s\n", f.addr(), lookaside))
			write(t, cfg.RegistriesConf, fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", f.addr()))
			s := openStore(t, cfg)
			_, err := s.Pull(context.Background(), tc.ref, PullOptions{})
			if tc.ok {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantErr(t, err, errdefs.ErrFailedPrecondition, tc.word, cfg.PolicyFile)
			var pe *PolicyError
			if !errors.As(err, &pe) {
				t.Errorf("no PolicyError: %v", err)
			}
			empty(t, s)
		})
	}
}
