package wire

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The environment of the fuzzer's workers: the server that its first process
// started, and the directory with the administrator's certificate.
const (
	addrEnv = "UNIPOD_WIRE_ADDR"
	dirEnv  = "UNIPOD_WIRE_DIR"
	// childEnv makes package api's test a server in a directory.
	childEnv = "UNIPOD_API_CHILD"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.fuzz").Value.String() == "" || os.Getenv(addrEnv) != "" {
		os.Exit(m.Run())
	}
	code, err := serve(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// serve runs f with a server. $UNIPOD_API_TEST is package api's test, where it
// is compiled already.
func serve(f func() int) (code int, err error) {
	dir, err := os.MkdirTemp("", "unipod-wire-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	program := os.Getenv("UNIPOD_API_TEST")
	if program == "" {
		program = filepath.Join(dir, "api.test")
		build := exec.Command("go", "test", "-c", "-trimpath", "-tags", "containers_image_openpgp", "-o", program, "unipod.dev/unipod/test/api")
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
		if out, err := build.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("compiling the server: %w: %s", err, out)
		}
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 1, err
	}
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if code != 0 && said.Len() > 0 {
			fmt.Fprintf(os.Stderr, "the server said:\n%s\n", said.Bytes()[max(0, said.Len()-16<<10):])
		}
	}()
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return 1, fmt.Errorf("the server doesn't start: %w: %s", err, said.Bytes())
	}
	if err := errors.Join(os.Setenv(addrEnv, strings.TrimSpace(addr)), os.Setenv(dirEnv, dir)); err != nil {
		return 1, err
	}
	return f(), nil
}

// server is the administrator's way to the server.
var server = sync.OnceValues(func() (*http.Transport, error) {
	dir := os.Getenv(dirEnv)
	certificate, err := tls.LoadX509KeyPair(filepath.Join(dir, "admin.crt"), filepath.Join(dir, "admin.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return &http.Transport{
		TLSClientConfig:       &tls.Config{Certificates: []tls.Certificate{certificate}, RootCAs: pool, MinVersion: tls.VersionTLS12},
		ResponseHeaderTimeout: 20 * time.Second,
	}, nil
})

// FuzzRequest sends any request to a server in another process: it is answered,
// not with a panic, and every error is a Status in words.
func FuzzRequest(f *testing.F) {
	if os.Getenv(addrEnv) == "" {
		f.Skip("this is what a fuzzer runs; package api sends the seeds")
	}
	for _, r := range Odd {
		f.Add(r.Method, r.Target, r.Content, r.Accept, r.Body)
	}
	for path, body := range Valid {
		f.Add("POST", path, "application/json", "", body)
	}
	f.Fuzz(func(t *testing.T, method, target, content, accept, body string) {
		if len(body) <= 64<<10 { // size is another test's
			ask(t, Request{method, target, content, accept, body})
		}
	})
}

// known is whether a request meets a panic of upstream's: package api has the
// list.
func known(r Request) bool { return strings.Contains(r.Body, "successPolicy") }

func ask(t *testing.T, r Request) {
	transport, err := server()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // watches have no end
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, r.Method, "https://"+os.Getenv(addrEnv)+r.Target, strings.NewReader(r.Body))
	if err != nil || req.URL.Host != os.Getenv(addrEnv) {
		return // no client could send it there
	}
	if r.Content != "" {
		req.Header.Set("Content-Type", r.Content)
	}
	if r.Accept != "" {
		req.Header.Set("Accept", r.Accept)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		// What Go's client refuses to send is no news; that nobody listens is.
		if errors.Is(err, syscall.ECONNREFUSED) || ctx.Err() == nil && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)) {
			t.Fatalf("%+v: %v", r, err)
		}
		return
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err != nil && ctx.Err() == nil {
		t.Errorf("%+v: %v", r, err)
	}
	tell(resp.StatusCode, answer)
	if bytes.Contains(answer, []byte("caused apiserver to panic")) && !known(r) {
		t.Errorf("%+v: %s", r, answer)
	}
	if resp.StatusCode >= 400 && resp.Header.Get("Content-Type") == "application/json" {
		var status struct {
			Kind, Message string
			Code          int
		}
		if err := json.Unmarshal(answer, &status); err == nil && status.Kind == "Status" && (status.Message == "" || status.Code != resp.StatusCode) {
			t.Errorf("%+v: %d: %s", r, resp.StatusCode, answer)
		}
	}
}

// tell is how the fuzzer learns what a request did: counters are only in this
// process, so that an answer of another kind must take another way here.
func tell(code int, answer []byte) {
	switch {
	case code == http.StatusOK:
	case code == http.StatusCreated:
	case code == http.StatusAccepted:
	case code == http.StatusBadRequest:
		words(answer)
	case code == http.StatusForbidden:
		words(answer)
	case code == http.StatusNotFound:
	case code == http.StatusMethodNotAllowed:
	case code == http.StatusConflict:
	case code == http.StatusUnsupportedMediaType:
	case code == http.StatusUnprocessableEntity:
		words(answer)
	case code >= 500:
		words(answer)
	default:
	}
}

// words tells answers apart by what they say.
func words(answer []byte) {
	has := func(s string) bool { return bytes.Contains(answer, []byte(s)) }
	if has("Required value") {
		told++
	}
	if has("Invalid value") {
		told++
	}
	if has("Unsupported value") {
		told++
	}
	if has("Duplicate value") {
		told++
	}
	if has("Forbidden:") {
		told++
	}
	if has("Too long") || has("Too many") {
		told++
	}
	if has("cannot unmarshal") {
		told++
	}
	if has("strict decoding error") {
		told++
	}
	if has("immutable") {
		told++
	}
	if has("unable to parse") || has("yaml:") || has("json:") {
		told++
	}
	if has("panic") {
		told++
	}
}

// told keeps what words does from being nothing.
var told int
