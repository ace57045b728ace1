package objects

import (
	"context"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/clock"
	testclock "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stand is a Source that runs on a fake API until the test ends.
type stand struct {
	*Source
	api *fake.Clientset

	mu      sync.Mutex
	changed []string
	due     []types.UID
}

func newStand(t *testing.T, clk clock.WithTicker, objects ...runtime.Object) *stand {
	s := &stand{api: fake.NewClientset(objects...)}
	shared := informers.NewSharedInformerFactory(s.api, 0)
	s.Source = New(Config{Client: s.api, Informers: shared, Node: "node", Clock: clk})
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		s.Run(ctx,
			func(ns string) { s.mu.Lock(); s.changed = append(s.changed, ns); s.mu.Unlock() },
			func(uid types.UID) { s.mu.Lock(); s.due = append(s.due, uid); s.mu.Unlock() })
	})
	t.Cleanup(func() { cancel(); group.Wait(); shared.Shutdown() })
	return s
}

func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waiting in vain: %s", what)
		}
	}
}

func user(uid, secret string) *v1.Pod {
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: uid, UID: types.UID(uid)}}
	pod.Spec.ServiceAccountName = "default"
	pod.Spec.ImagePullSecrets = []v1.LocalObjectReference{{Name: secret}}
	return pod
}

func secret(value string) *v1.Secret {
	return &v1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}, Data: map[string][]byte{"k": []byte(value)}}
}

// Only what pods refer to is answered, as long as one does.
func TestReferences(t *testing.T) {
	s := newStand(t, clock.RealClock{}, secret("1"))
	if _, err := s.Secret("ns", "s"); err == nil || apierrors.IsNotFound(err) {
		t.Errorf("a secret nobody refers to: %v", err)
	}
	s.Register(user("a", "s"))
	s.Register(user("b", "s"))
	if got, err := s.Secret("ns", "s"); err != nil || string(got.Data["k"]) != "1" {
		t.Errorf("got %v (%v)", got, err)
	}
	s.Register(user("a", "missing"))
	if _, err := s.Secret("ns", "missing"); !apierrors.IsNotFound(err) {
		t.Errorf("a missing secret: %v", err)
	}
	if _, err := s.Secret("ns", "s"); err != nil {
		t.Errorf("b still refers to it: %v", err)
	}
	s.Forget("b")
	s.Forget("b")
	if _, err := s.Secret("ns", "s"); err == nil {
		t.Error("a secret nobody refers to any more")
	}
	if len(s.watched) != 1 || len(s.pods) != 1 {
		t.Errorf("kept: %v, %v", s.watched, s.pods)
	}
}

// A change is told, and what is immutable stays as it is.
func TestChanges(t *testing.T) {
	s := newStand(t, clock.RealClock{})
	s.Register(user("a", "s"))
	if _, err := s.Secret("ns", "s"); !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	value := func() string {
		got, err := s.Secret("ns", "s")
		if err != nil {
			return err.Error()
		}
		return string(got.Data["k"])
	}
	told := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.changed) > 0 && s.changed[len(s.changed)-1] == "ns"
	}
	// The fake's watch shows only what happens once it stands.
	eventually(t, "the watch", func() bool {
		for _, a := range s.api.Actions() {
			if a.GetVerb() == "watch" && a.GetResource().Resource == "secrets" {
				return true
			}
		}
		return false
	})
	if _, err := s.api.CoreV1().Secrets("ns").Create(t.Context(), secret("1"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new secret", func() bool { return value() == "1" && told() })
	fixed := secret("2")
	fixed.Immutable = ptr.To(true)
	if _, err := s.api.CoreV1().Secrets("ns").Update(t.Context(), fixed, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the update", func() bool { return value() == "2" })
	if err := s.api.CoreV1().Secrets("ns").Delete(t.Context(), "s", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := value(); got != "2" {
		t.Errorf("what was immutable is now %q", got)
	}
}

// A token is asked for once, replaced when 80 % of its life are over, and kept
// while it is valid and the API doesn't answer.
func TestTokens(t *testing.T) {
	clk := testclock.NewFakeClock(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	s := newStand(t, clk)
	issued, broken := 0, false
	s.api.PrependReactor("create", "serviceaccounts", func(action clienttesting.Action) (bool, runtime.Object, error) {
		if broken {
			return true, nil, apierrors.NewInternalError(context.DeadlineExceeded)
		}
		issued++
		req := action.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenRequest)
		if ref := req.Spec.BoundObjectRef; ref == nil || ref.UID != "a" || ref.Kind != "Pod" {
			t.Errorf("bound to %+v", ref)
		}
		req.Status.Token = "token" + string(rune('0'+issued))
		req.Status.ExpirationTimestamp = metav1.NewTime(clk.Now().Add(time.Duration(*req.Spec.ExpirationSeconds) * time.Second))
		return true, req, nil
	})
	source := &v1.ServiceAccountTokenProjection{ExpirationSeconds: ptr.To[int64](1000), Path: "token"}
	get := func(want string) {
		t.Helper()
		got, err := s.Token(t.Context(), user("a", "s"), source)
		if string(got) != want || (err == nil) != (want != "") {
			t.Errorf("got %q (%v), want %q", got, err, want)
		}
	}
	get("token1")
	clk.Step(780 * time.Second)
	get("token1")
	clk.Step(25 * time.Second)
	if due := s.tokens.due(clk.Now()); len(due) != 1 || due[0] != "a" {
		t.Errorf("due: %v", due)
	}
	broken = true
	get("token1")
	clk.Step(200 * time.Second)
	get("")
	broken = false
	get("token2")
	s.Forget("a")
	get("token3")
}
