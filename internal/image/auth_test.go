package image

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/crypto/bcrypt"
)

func TestAuth(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	htpasswd := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(htpasswd, []byte("joe:"+string(hash)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := startRegistry(t, "", "auth: {htpasswd: {realm: test, path: "+htpasswd+"}}\n")
	b := build(t, gz, ocispec.ImageConfig{}, twoLayers(t)...)
	push(t, http.DefaultClient, "http://"+r.addr, "joe", "private", "v1", b)
	ref := r.addr + "/private:v1"
	encoded := base64.StdEncoding.EncodeToString([]byte("joe:secret"))

	for _, tc := range []struct {
		name string
		auth *Auth
		file string // auth.json
		kind error
	}{
		{name: "none", kind: errdefs.ErrUnauthenticated},
		{name: "wrong password", auth: &Auth{Username: "joe", Password: "guess"}, kind: errdefs.ErrUnauthenticated},
		{name: "user and password", auth: &Auth{Username: "joe", Password: "secret"}},
		{name: "encoded", auth: &Auth{Auth: encoded}},
		{name: "encoded badly", auth: &Auth{Auth: "%%%"}, kind: errdefs.ErrInvalidArgument},
		{name: "server address", auth: &Auth{Username: "joe", Password: "secret", ServerAddress: "https://" + r.addr + "/v1/"}},
		{name: "for another server", auth: &Auth{Username: "joe", Password: "secret", ServerAddress: "registry.example"}, kind: errdefs.ErrUnauthenticated},
		{name: "auth.json", file: fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, r.addr, encoded)},
		{name: "auth.json of the repository", file: fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, r.addr+"/private", encoded)},
		{name: "auth.json of another", file: fmt.Sprintf(`{"auths":{"registry.example":{"auth":%q}}}`, encoded), kind: errdefs.ErrUnauthenticated},
		{name: "given ones come first", file: fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, r.addr, encoded), auth: &Auth{Username: "joe", Password: "x"}, kind: errdefs.ErrUnauthenticated},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := testConfig(t)
			if tc.file != "" {
				if err := os.WriteFile(cfg.AuthFile, []byte(tc.file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s := openStore(t, cfg)
			_, err := s.Pull(context.Background(), ref, PullOptions{Auth: tc.auth})
			if tc.kind == nil && err != nil {
				t.Error(err)
			}
			if tc.kind != nil {
				wantErr(t, err, tc.kind)
				if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), encoded) {
					t.Errorf("the error tells the secret: %v", err)
				}
			}
		})
	}
}

func TestTokens(t *testing.T) {
	f := newFake(t)
	b := build(t, gz, ocispec.ImageConfig{}, twoLayers(t)...)
	ref := f.add("a", "b", b)
	f.hook = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			r.ParseForm()
			if r.Form.Get("refresh_token") == "identity" {
				io.WriteString(w, `{"access_token":"registry-token","token":"registry-token"}`)
			} else {
				http.Error(w, "no", http.StatusUnauthorized)
			}
			return true
		}
		if r.Header.Get("Authorization") != "Bearer registry-token" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+f.URL+`/token",service="s",scope="repository:a:pull"`)
			http.Error(w, "", http.StatusUnauthorized)
			return true
		}
		return false
	}
	for name, tc := range map[string]struct {
		auth *Auth
		ok   bool
	}{
		"registry token":       {&Auth{RegistryToken: "registry-token"}, true},
		"wrong registry token": {&Auth{RegistryToken: "other"}, false},
		"identity token":       {&Auth{IdentityToken: "identity"}, true},
		"wrong identity token": {&Auth{IdentityToken: "other"}, false},
		"elsewhere":            {&Auth{RegistryToken: "registry-token", ServerAddress: "example.com"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, testConfig(t))
			_, err := s.Pull(context.Background(), ref, PullOptions{Auth: tc.auth})
			if tc.ok && err != nil {
				t.Error(err)
			}
			if !tc.ok {
				wantErr(t, err, errdefs.ErrUnauthenticated)
			}
		})
	}
}

// TestCredentialHelper asks a program for the credentials, as config.json may
// say.
func TestCredentialHelper(t *testing.T) {
	f := newFake(t)
	ref := f.add("a", "b", simple(t, "x"))
	f.hook = func(w http.ResponseWriter, r *http.Request) bool {
		if user, pass, _ := r.BasicAuth(); user == "joe" && pass == "secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
		http.Error(w, "", http.StatusUnauthorized)
		return true
	}
	bin := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\nread server\nif [ \"$1 $server\" = \"get %s\" ]; then echo '{\"Username\":\"joe\",\"Secret\":\"secret\"}'; else exit 1; fi\n", f.addr())
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-unipodtest"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	cfg := testConfig(t)
	if err := os.WriteFile(cfg.AuthFile, fmt.Appendf(nil, `{"credHelpers":{%q:"unipodtest"}}`, f.addr()), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(t, cfg).Pull(context.Background(), ref, PullOptions{}); err != nil {
		t.Error(err)
	}
}
