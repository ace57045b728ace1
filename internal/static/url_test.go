package static

import (
	"context"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"

	"unipod.dev/unipod/internal/engine"
)

const onePod = "apiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {v: %q}}\nspec: {containers: [{name: c, image: i}]}\n"

// site answers with what the test says.
type site struct {
	mu     sync.Mutex
	code   int
	body   string
	seen   http.Header
	served chan struct{}
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	code, body := s.code, s.body
	s.seen = r.Header.Clone()
	s.mu.Unlock()
	w.WriteHeader(code)
	fmt.Fprint(w, body)
	s.served <- struct{}{}
}

func (s *site) say(code int, body string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.code, s.body = code, body
}

// TestURL: what a URL answers runs; what it can't answer changes nothing.
func TestURL(t *testing.T) {
	s := &site{served: make(chan struct{}, 10)}
	s.say(200, fmt.Sprintf(onePod, "a", "1"))
	server := httptest.NewTLSServer(s)
	defer server.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	clk := clocktesting.NewFakeClock(time.Now())
	f := &fake{calls: make(chan string, 10), events: make(chan engine.Event), pods: map[types.UID]*v1.Pod{}}
	logged := make(lines, 20)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	address := strings.Replace(server.URL, "https://", "https://user:secret@", 1) + "/pods?token=secret"
	go func() {
		done <- Run(ctx, Config{
			URL:    URL{Address: address, Header: http.Header{"X-Key": {"one", "two"}}, CA: ca},
			Engine: f, Objects: &Objects{}, Runtime: f, Clock: clk,
			Log: slog.New(slog.NewTextHandler(logged, &slog.HandlerOptions{Level: slog.LevelInfo})),
		})
	}()
	expect := func(want string) {
		t.Helper()
		if got := <-f.calls; got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	poll := func() {
		t.Helper()
		for !clk.HasWaiters() {
			time.Sleep(time.Millisecond)
		}
		clk.Step(pollPeriod)
		<-s.served
	}
	<-s.served
	expect("apply a 1")
	s.mu.Lock()
	if s.seen.Get("Authorization") == "" || len(s.seen["X-Key"]) != 2 {
		t.Errorf("the request's headers: %v", s.seen)
	}
	s.mu.Unlock()
	if source, ok := f.from.Manifests(); !ok || !strings.HasPrefix(source, server.URL+"/pods#") || strings.Contains(source, "secret") {
		t.Errorf("the pod's source is %q", source)
	}
	poll() // the same again

	for i, wrong := range []struct {
		code       int
		body, want string
	}{
		{500, "", "500 Internal Server Error"},
		{200, " \n", "the answer is empty"},
		{200, "kind: Nonsense\n", "apiVersion"},
		{200, strings.Repeat("#", maxBody+1), "not logged"}, // and the third failure ends the noise
	} {
		s.say(wrong.code, wrong.body)
		poll()
		if i < loudFailures {
			if l := <-logged; !strings.Contains(l, wrong.want) || strings.Contains(l, "secret") {
				t.Errorf("logged %q, want %q", l, wrong.want)
			}
		}
	}
	if l := <-logged; !strings.Contains(l, "further failures") {
		t.Errorf("logged %q", l)
	}
	s.say(200, fmt.Sprintf(onePod, "a", "2"))
	poll()
	if l := <-logged; !strings.Contains(l, "can be read again") {
		t.Errorf("logged %q", l)
	}
	expect("delete a 1")
	var first *v1.Pod
	for _, pod := range f.pods {
		first = pod
	}
	f.events <- engine.Event{Type: engine.Removed, Pod: first}
	expect("apply a 2")
	s.say(200, "apiVersion: v1\nkind: PodList\nitems: []\n")
	poll()
	expect("delete a 2")
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestURLRefuses: headers stay with the server they are for, and a server
// nobody vouches for isn't believed.
func TestURLRefuses(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("another server was asked, with %v", r.Header)
	}))
	defer other.Close()
	redirects := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusFound))
	defer redirects.Close()
	circles := httptest.NewServer(http.RedirectHandler("/", http.StatusFound))
	defer circles.Close()
	unknown := httptest.NewTLSServer(http.NotFoundHandler())
	defer unknown.Close()
	unknown.Config.ErrorLog = nil
	for address, want := range map[string]string{
		redirects.URL: "redirects to another server",
		circles.URL:   "in circles",
		unknown.URL:   "certificate",
	} {
		r, err := newRemote(URL{Address: address, Header: http.Header{"X-Key": {"secret"}}}, clock.RealClock{}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.fetch(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", address, err, want)
		}
		r.client.CloseIdleConnections()
	}
	for _, address := range []string{"ftp://host/x", "https:///x", "://", "http://user:secret@%zz"} {
		if _, err := newRemote(URL{Address: address}, nil, nil); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", address, err)
		}
	}
	if _, err := newRemote(URL{Address: "https://host", CA: []byte("none")}, nil, nil); err == nil {
		t.Error("a CA without certificates passes")
	}
}
