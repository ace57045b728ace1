package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage/value"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/pki"
	"unipod.dev/unipod/internal/store"
	"unipod.dev/unipod/internal/store/kv"
)

// life starts a server of its own on a directory.
func life(tb testing.TB, dir string) (*Server, time.Duration, func()) {
	return lifeAt(tb, dir, netip.AddrPort{})
}

// lifeAt is one that pods reach at an address.
func lifeAt(tb testing.TB, dir string, at netip.AddrPort) (s *Server, took time.Duration, end func()) {
	tb.Helper()
	log := slog.New(slog.DiscardHandler)
	keys, err := pki.Open(filepath.Join(dir, "pki"), clock.RealClock{})
	if err != nil {
		tb.Fatal(err)
	}
	st, err := store.Open(store.Config{Dir: filepath.Join(dir, "api"), Log: log})
	if err != nil {
		tb.Fatal(err)
	}
	_, v4, _ := net.ParseCIDR("10.96.0.0/24")
	begin := time.Now()
	s, err = New(context.Background(), Config{Store: st, PKI: keys, Log: log, ServiceCIDRs: []*net.IPNet{v4}, Advertise: at})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.Wait(ctx); err != nil {
		tb.Fatal(err)
	}
	return s, time.Since(begin), func() {
		s.Close()
		if err := st.Close(); err != nil {
			tb.Error(err)
		}
	}
}

// What was acknowledged is there after a restart, and is decided about as
// before.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	s, _, end := lifeAt(t, dir, netip.MustParseAddrPort("10.1.0.1:6443"))
	ctx, k := t.Context(), clients(t, s.Loopback())
	endpoint := func(want string) error {
		slice, err := k.DiscoveryV1().EndpointSlices("default").Get(ctx, "kubernetes", metav1.GetOptions{})
		if apierrors.IsNotFound(err) && want == "" {
			return nil
		}
		if err == nil && (want == "" || slice.Endpoints[0].Addresses[0] != want) {
			return errNotYet("other endpoint")
		}
		return err
	}
	eventually(t, "the API's endpoint", func() error { return endpoint("10.1.0.1") })
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 1}}}}
	svc, err := k.CoreV1().Services("default").Create(ctx, svc, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, StringData: map[string]string{"a": "b"}}
	if _, err := k.CoreV1().Secrets("default").Create(ctx, secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ns, err := k.CoreV1().Namespaces().Get(ctx, "default", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	end()

	s, _, end = life(t, dir)
	defer end()
	k = clients(t, s.Loopback())
	eventually(t, "an endpoint nobody answers at", func() error { return endpoint("") })
	if got, err := k.CoreV1().Namespaces().Get(ctx, "default", metav1.GetOptions{}); err != nil || got.UID != ns.UID {
		t.Errorf("the namespace default is another: %v", err)
	}
	if got, err := k.CoreV1().Secrets("default").Get(ctx, "s", metav1.GetOptions{}); err != nil || string(got.Data["a"]) != "b" {
		t.Errorf("the Secret: %v", err)
	}
	for what, spec := range map[string]corev1.ServiceSpec{
		"address": {ClusterIP: svc.Spec.ClusterIP, Ports: []corev1.ServicePort{{Port: 1}}},
		"port":    {Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 1, NodePort: svc.Spec.Ports[0].NodePort}}},
	} {
		_, err := k.CoreV1().Services("default").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: what}, Spec: spec}, metav1.CreateOptions{})
		mustContain(t, err, "allocated")
	}
}

// A start makes what is missing of the default roles and bindings, adds what
// was taken from them, and leaves alone what is protected; whose the fields
// are stays written.
func TestRolesAreMended(t *testing.T) {
	dir := t.TempDir()
	s, _, end := life(t, dir)
	ctx, rbac := t.Context(), clients(t, s.Loopback()).RbacV1()
	made := func() {
		eventually(t, "the default roles", func() error {
			select {
			case <-s.rolesMade:
				return nil
			default:
				return errNotYet("default role")
			}
		})
	}
	made()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	without := func(name, protect string) {
		role, err := rbac.ClusterRoles().Get(ctx, name, metav1.GetOptions{})
		must(err)
		role.Rules, role.Labels["of"] = role.Rules[1:], "somebody"
		role.Annotations["rbac.authorization.kubernetes.io/autoupdate"] = protect
		_, err = rbac.ClusterRoles().Update(ctx, role, metav1.UpdateOptions{FieldManager: "somebody"})
		must(err)
	}
	without("system:node", "true")
	without("system:node-proxier", "false")
	must(rbac.ClusterRoles().Delete(ctx, "view", metav1.DeleteOptions{}))
	must(rbac.ClusterRoleBindings().Delete(ctx, "cluster-admin", metav1.DeleteOptions{}))
	must(rbac.Roles("kube-system").Delete(ctx, "extension-apiserver-authentication-reader", metav1.DeleteOptions{}))
	must(rbac.RoleBindings("kube-system").Delete(ctx, "system:controller:token-cleaner", metav1.DeleteOptions{}))
	end()

	s, _, end = life(t, dir)
	defer end()
	rbac = clients(t, s.Loopback()).RbacV1()
	made()
	for name, rules := range map[string]int{"system:node": len(bootstrappolicy.NodeRules()), "system:node-proxier": -1} {
		role, err := rbac.ClusterRoles().Get(ctx, name, metav1.GetOptions{})
		must(err)
		if mended := len(role.Rules) == rules; mended != (rules > 0) {
			t.Errorf("%s: %d rules, want %d (-1: what was left of it)", name, len(role.Rules), rules)
		}
		if !slices.ContainsFunc(role.ManagedFields, func(f metav1.ManagedFieldsEntry) bool { return f.Manager == "somebody" }) {
			t.Errorf("%s: nobody knows any more who changed it: %v", name, role.ManagedFields)
		}
	}
	_, err := rbac.ClusterRoles().Get(ctx, "view", metav1.GetOptions{})
	must(err)
	_, err = rbac.ClusterRoleBindings().Get(ctx, "cluster-admin", metav1.GetOptions{})
	must(err)
	_, err = rbac.Roles("kube-system").Get(ctx, "extension-apiserver-authentication-reader", metav1.GetOptions{})
	must(err)
	_, err = rbac.RoleBindings("kube-system").Get(ctx, "system:controller:token-cleaner", metav1.GetOptions{})
	must(err)
}

// Services of a node from before it had IPAddress objects keep their addresses,
// and nobody else gets them.
func TestServicesWithoutAddresses(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	s, _, end := life(t, dir)
	service := func(name, ip string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Port: 1}}}}
	}
	services := clients(t, s.Loopback()).CoreV1().Services("default")
	var made []*corev1.Service
	for i := range 20 {
		svc, err := services.Create(ctx, service(fmt.Sprint("s", i), ""), metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, svc)
	}
	eventually(t, "the API's own Service", func() error {
		_, err := services.Get(ctx, "kubernetes", metav1.GetOptions{})
		return err
	})
	end()

	db, err := kv.Open(kv.Config{Dir: filepath.Join(dir, "api"), Log: slog.New(slog.DiscardHandler), Clock: clock.RealClock{}})
	if err != nil {
		t.Fatal(err)
	}
	removed := 0
	for _, prefix := range []string{"/registry/ipaddresses/", "/registry/servicecidrs/"} {
		page, err := db.List(prefix, "", 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Entries {
			if _, _, _, err := db.Delete(ctx, e.Key, e.Revision); err != nil {
				t.Fatal(err)
			}
			removed++
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if removed < len(made)+1 {
		t.Fatalf("only %d objects removed", removed)
	}

	s, _, end = life(t, dir)
	defer end()
	k := clients(t, s.Loopback())
	services = k.CoreV1().Services("default")
	for _, svc := range made {
		ip, err := k.NetworkingV1().IPAddresses().Get(ctx, svc.Spec.ClusterIP, metav1.GetOptions{})
		if err != nil || ip.Spec.ParentRef.Name != svc.Name {
			t.Errorf("the address of %s: %+v, %v", svc.Name, ip, err)
		}
		_, err = services.Create(ctx, service("thief", svc.Spec.ClusterIP), metav1.CreateOptions{})
		mustContain(t, err, "already allocated")
	}
	if _, err := k.NetworkingV1().ServiceCIDRs().Get(ctx, "kubernetes", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
}

// After a new key was made Secrets are encrypted anew behind the start, whenever
// the server is ended meanwhile: what is stored can always be read by the keys
// there are, and in the end by the new one alone.
func TestSecretsAreEncryptedAnew(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	log, keys := slog.New(slog.DiscardHandler), filepath.Join(dir, "pki")
	s, _, end := life(t, dir)
	secrets := func(s *Server) corev1client.SecretInterface {
		return clients(t, s.Loopback()).CoreV1().Secrets("default")
	}
	versions := map[string]string{}
	for i := range secretsAtOnce + 7 {
		secret, err := secrets(s).Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("s", i)}, Immutable: ptr.To(i%2 == 0), Data: map[string][]byte{"v": fmt.Append(nil, i)},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		versions[secret.Name] = secret.ResourceVersion
	}
	end()
	rotated, err := pki.Load(keys, clock.RealClock{})
	if err != nil {
		t.Fatal(err)
	}
	if err := rotated.RotateEncryptionKey(); err != nil {
		t.Fatal(err)
	}

	lives := 0
	for done := false; !done; lives++ {
		_, _, end := life(t, dir)
		if lives > 2 {
			eventually(t, "the end of the old key", func() error {
				now, err := pki.Load(keys, clock.RealClock{})
				if err == nil && now.OldEncryptionKeys() > 0 {
					return errStillValid
				}
				return err
			})
		}
		end()
		now, err := pki.Load(keys, clock.RealClock{})
		if err != nil {
			t.Fatal(err)
		}
		done = now.OldEncryptionKeys() == 0
		transformer, err := now.Transformer()
		if err != nil {
			t.Fatal(err)
		}
		old := 0
		db, err := kv.Open(kv.Config{Dir: filepath.Join(dir, "api"), Log: log, Clock: clock.RealClock{}})
		if err != nil {
			t.Fatal(err)
		}
		page, err := db.List("/registry/secrets/default/", "", 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Entries {
			_, stale, err := transformer.TransformFromStorage(ctx, e.Value, value.DefaultContext(e.Key))
			if err != nil {
				t.Fatalf("after life %d: %s: %v", lives, e.Key, err)
			}
			if stale {
				old++
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		t.Logf("after life %d: %d of %d by the old key", lives, old, len(page.Entries))
		if done && old > 0 {
			t.Errorf("the old key is gone, and %d Secrets need it", old)
		}
	}
	s, _, end = life(t, dir)
	defer end()
	for name, version := range versions {
		secret, err := secrets(s).Get(ctx, name, metav1.GetOptions{})
		if err != nil || "s"+string(secret.Data["v"]) != name {
			t.Fatalf("%s: %v", name, err)
		}
		if secret.ResourceVersion == version {
			t.Errorf("%s was never written again", name)
		}
	}
	w, err := secrets(s).Watch(ctx, metav1.ListOptions{ResourceVersion: versions["s0"]})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if e := <-w.ResultChan(); e.Type != watch.Error || !apierrors.IsResourceExpired(apierrors.FromObject(e.Object)) {
		t.Errorf("a watch of a time whose key is gone: %v", e)
	}
}

// A client of the renewed authority is known to the server that runs since
// before, and knows it.
func TestRenewedAuthority(t *testing.T) {
	const year = 365 * 24 * time.Hour
	// TLS looks at the machine's clock: the past is what is faked.
	past := clocktesting.NewFakeClock(time.Now().Add(-9*year - 24*time.Hour))
	keys, err := pki.Open("", past)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	st, err := store.Open(store.Config{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	_, v4, _ := net.ParseCIDR("10.96.0.0/24")
	ctx, cancel := context.WithCancel(t.Context())
	s, err := New(ctx, Config{Store: st, PKI: keys, Log: log, ServiceCIDRs: []*net.IPNet{v4}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		s.Close()
		st.Close()
	}()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served, running := make(chan error, 1), make(chan error, 1)
	go func() { served <- s.Serve(ctx, l, keys.Serving("unipod", "127.0.0.1").GetCertificate) }()
	if err := s.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	renewed := keys.Renewed()
	go func() { running <- keys.Run(ctx, func() {}) }()
	for !past.HasWaiters() {
		time.Sleep(time.Millisecond)
	}
	past.SetTime(time.Now())
	<-renewed
	cert, key, err := keys.Client("jane", "system:masters").PEM()
	if err != nil {
		t.Fatal(err)
	}
	k := clients(t, &rest.Config{Host: "https://" + l.Addr().String(), TLSClientConfig: rest.TLSClientConfig{CAData: keys.CABundlePEM(), CertData: cert, KeyData: key}})
	review, err := k.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil || review.Status.UserInfo.Username != "jane" {
		t.Errorf("%v, %v", review, err)
	}
	cancel()
	if err := errors.Join(<-served, <-running); err != nil {
		t.Error(err)
	}
}

// BenchmarkService is of a Service's life through the in-process client, on
// disk.
func BenchmarkService(b *testing.B) {
	s, _, end := life(b, b.TempDir())
	defer end()
	k, err := newClient(s)
	if err != nil {
		b.Fatal(err)
	}
	ctx, services := context.Background(), k.CoreV1().Services("default")
	var made, gone time.Duration
	n := 0
	for b.Loop() {
		begin := time.Now()
		svc, err := services.Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("s", n)}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 1}}}}, metav1.CreateOptions{})
		if err != nil {
			b.Fatal(err)
		}
		between := time.Now()
		if err := services.Delete(ctx, svc.Name, metav1.DeleteOptions{}); err != nil {
			b.Fatal(err)
		}
		made, gone = made+between.Sub(begin), gone+time.Since(between)
		n++
	}
	b.ReportMetric(float64(made.Microseconds())/1000/float64(n), "ms/create")
	b.ReportMetric(float64(gone.Microseconds())/1000/float64(n), "ms/delete")
}

// BenchmarkStart is of a restart: from the store opened to ready. The goal of
// the whole node is 150 ms; kube-apiserver with etcd takes two seconds.
func BenchmarkStart(b *testing.B) {
	dir := b.TempDir()
	_, first, end := life(b, dir)
	end()
	var sum time.Duration
	n := 0
	for b.Loop() {
		_, took, end := life(b, dir)
		end()
		sum += took
		n++
	}
	b.ReportMetric(float64(first.Microseconds())/1000, "ms/first")
	b.ReportMetric(float64(sum.Microseconds())/1000/float64(n), "ms/restart")
}

// BenchmarkVerbs is of a small object, through the in-process client, on disk.
func BenchmarkVerbs(b *testing.B) {
	s, _, end := life(b, b.TempDir())
	defer end()
	k, err := newClient(s)
	if err != nil {
		b.Fatal(err)
	}
	ctx, maps := context.Background(), k.CoreV1().ConfigMaps("default")
	cm := func(name string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"a": "b"}}
	}
	if _, err := maps.Create(ctx, cm("one"), metav1.CreateOptions{}); err != nil {
		b.Fatal(err)
	}
	b.Run("get", func(b *testing.B) {
		for b.Loop() {
			if _, err := maps.Get(ctx, "one", metav1.GetOptions{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	n := 0
	b.Run("create", func(b *testing.B) {
		for b.Loop() {
			n++
			if _, err := maps.Create(ctx, cm(fmt.Sprint("c", n)), metav1.CreateOptions{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("create-16-at-once", func(b *testing.B) {
		b.SetParallelism(8)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				c := cm("")
				c.GenerateName = "p"
				if _, err := maps.Create(ctx, c, metav1.CreateOptions{}); err != nil {
					b.Error(err)
				}
			}
		})
	})
	b.Run("create-to-watch", func(b *testing.B) {
		events, err := maps.Watch(ctx, metav1.ListOptions{})
		if err != nil {
			b.Fatal(err)
		}
		defer events.Stop()
		for b.Loop() {
			n++
			name := fmt.Sprint("w", n)
			if _, err := maps.Create(ctx, cm(name), metav1.CreateOptions{}); err != nil {
				b.Fatal(err)
			}
			for e := range events.ResultChan() {
				if m, ok := e.Object.(*corev1.ConfigMap); ok && m.Name == name {
					break
				}
			}
		}
	})
}
