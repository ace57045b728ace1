// Package apitest tests play on a real API with the real controllers, which
// run as long as the process: it is apart from package play, whose tests look
// for goroutines that are left.
//
// Floor: as play; nothing imports it.
package apitest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/apiserver"
	"unipod.dev/unipod/internal/controllers"
	"unipod.dev/unipod/internal/manifest"
	"unipod.dev/unipod/internal/pki"
	"unipod.dev/unipod/internal/play"
	"unipod.dev/unipod/internal/progress"
	"unipod.dev/unipod/internal/store"
)

// startAPI is a real API with the real controllers; a process can have one.
var startAPI = sync.OnceValues(func() (*rest.Config, error) {
	ctx := context.Background()
	keys, err := pki.Open("", clock.RealClock{})
	if err != nil {
		return nil, err
	}
	objects, err := store.Open(store.Config{})
	if err != nil {
		return nil, err
	}
	_, services, err := net.ParseCIDR("10.67.0.0/16")
	if err != nil {
		return nil, err
	}
	api, err := apiserver.New(ctx, apiserver.Config{Store: objects, PKI: keys, ServiceCIDRs: []*net.IPNet{services}})
	if err != nil {
		return nil, err
	}
	go func() {
		if err := controllers.Run(ctx, controllers.Config{Client: api.Loopback(), Informers: api.Informers(), RootCA: keys, Making: &sync.Mutex{}, Log: slog.New(slog.DiscardHandler)}); err != nil {
			panic(err)
		}
	}()
	return api.Loopback(), api.Wait(ctx)
})

func testAPI(t *testing.T) (*rest.Config, kubernetes.Interface) {
	t.Helper()
	cfg, err := startAPI()
	if err != nil {
		t.Fatal(err)
	}
	return cfg, kubernetes.NewForConfigOrDie(cfg)
}

// kubelet plays the node's part: the pods of a namespace run, and end as the
// first word of their container's image says.
func kubelet(t *testing.T, client kubernetes.Interface, namespace string) {
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	t.Cleanup(func() { stop(); <-done })
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			list, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
			if err != nil {
				continue
			}
			for _, p := range list.Items {
				if p.Status.Phase != v1.PodPending {
					continue
				}
				p.Status.Phase = v1.PodRunning
				c := v1.ContainerStatus{Name: p.Spec.Containers[0].Name, ContainerID: "x://" + string(p.UID)}
				switch p.Spec.Containers[0].Image {
				case "succeed":
					p.Status.Phase, c.State.Terminated = v1.PodSucceeded, &v1.ContainerStateTerminated{}
				case "fail":
					p.Status.Phase, c.State.Terminated = v1.PodFailed, &v1.ContainerStateTerminated{ExitCode: 7}
				default:
					c.State.Running = &v1.ContainerStateRunning{}
				}
				p.Status.ContainerStatuses = []v1.ContainerStatus{c}
				client.CoreV1().Pods(namespace).UpdateStatus(ctx, &p, metav1.UpdateOptions{})
			}
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
}

func readSet(t *testing.T, text string) *manifest.Set {
	t.Helper()
	path := filepath.Join(t.TempDir(), "all.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	set, err := manifest.Read([]string{path}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

const wholeShop = `apiVersion: example.com/v1
kind: Widget
metadata: {name: w, namespace: shop}
spec: {size: 3}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: run}]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: j, namespace: shop}
spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: succeed}]}}}
---
apiVersion: v1
kind: Pod
metadata: {generateName: p-, namespace: shop}
spec: {serviceAccountName: cashier, restartPolicy: Never, containers: [{name: c, image: fail}]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: cashier, namespace: shop}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, listKind: WidgetList}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {size: {type: integer, maximum: 9}}}}}}
`

// Objects of all kinds, in whatever order they were written, are made, pods
// that controllers make are followed, and in the end nothing is left.
func TestAPI(t *testing.T) {
	cfg, client := testAPI(t)
	kubelet(t, client, "shop")
	set := readSet(t, wholeShop)
	var journal []play.Made
	var most int
	api, err := play.NewAPI(play.APIConfig{Client: cfg, Name: "test", Objects: set.Objects, Journal: func(m []play.Made) error {
		journal = m
		most = max(most, len(m))
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := api.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	runners, pods := api.Runners(set.Objects)
	if len(runners) != 4 || len(pods) != 1 || !strings.HasPrefix(pods[0].Name, "p-") {
		t.Fatalf("runners %v, pods %v", runners, pods)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	events := api.Watch(ctx)
	if err := api.Create(ctx); err != nil {
		t.Fatal(err)
	}
	running, ended, job := map[string]bool{}, map[string]bool{}, false
	for len(running) < 2 || len(ended) < 2 || !job {
		switch ev := <-events; {
		case ev.Type == play.JobEnded && ev.Of == "Job shop/j" && !ev.Failed:
			job = true
		case ev.Type == play.PodChanged && ev.Pod.Status.Phase == v1.PodRunning && ev.Of == "Deployment shop/web":
			running[ev.Pod.Name] = true
		case ev.Type == play.PodChanged && ev.Pod.Status.Phase == v1.PodSucceeded && ev.Of == "Job shop/j",
			ev.Type == play.PodChanged && ev.Pod.Status.Phase == v1.PodFailed && ev.Of == runners[3].Key:
			ended[ev.Pod.Name] = true
		}
	}
	if most != len(set.Objects) || len(journal) != most || slices.ContainsFunc(journal, func(m play.Made) bool { return m.UID == "" }) {
		t.Errorf("journal: %+v", journal)
	}
	gone := map[string]bool{}
	told := make(chan struct{})
	go func() {
		defer close(told)
		for ev := range events {
			if ev.Type == play.PodRemoved {
				gone[ev.Pod.Name] = true
			}
		}
	}()
	if err := api.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	stop()
	<-told
	if len(gone) != 4 || len(journal) != 0 {
		t.Errorf("told of pods that are gone: %v; journal: %v", gone, journal)
	}
	if _, err := client.CoreV1().Namespaces().Get(t.Context(), "shop", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the namespace: %v", err)
	}
}

// Everything that only a server can tell is told before anything is made, at
// its place; and what had to be made for that is unmade.
func TestAPICheck(t *testing.T) {
	cfg, client := testAPI(t)
	if _, err := client.CoreV1().ConfigMaps("default").Create(t.Context(), &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "theirs"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(strings.ReplaceAll(wholeShop, "shop", "kiosk"), "size: 3", "size: 300") + `---
apiVersion: v1
kind: ConfigMap
metadata: {name: theirs}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: twice}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: twice, namespace: default}
---
apiVersion: example.com/v1
kind: Gadget
metadata: {name: g}
---
apiVersion: v1
kind: Pod
metadata: {name: p}
spec: {priorityClassName: nobody-knows, containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: lost, namespace: nowhere}
`
	api, err := play.NewAPI(play.APIConfig{Client: cfg, Name: "check", Objects: readSet(t, text).Objects})
	if err != nil {
		t.Fatal(err)
	}
	err = api.Check(t.Context())
	if err == nil {
		t.Fatal("it passed")
	}
	for _, want := range []string{
		":4: document 1, Widget kiosk/w: spec.size: Invalid value: 300", "document 8, ConfigMap theirs: there is already such an object",
		"document 10, ConfigMap default/twice: metadata.name: there is already such an object at ", `document 11, Gadget g: no matches for kind "Gadget"`,
		`document 12, Pod p: pods "p" is forbidden: no PriorityClass with name nobody-knows`, `document 13, ConfigMap nowhere/lost: namespaces "nowhere" not found`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in:\n%v", want, err)
		}
	}
	var wrong *manifest.Error
	if n := strings.Count(err.Error(), "\n") + 1; n != 6 || !errors.As(err, &wrong) {
		t.Errorf("%d errors:\n%v", n, err)
	}
	if _, err := client.CoreV1().Namespaces().Get(t.Context(), "kiosk", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the namespace: %v", err)
	}
}

// A whole play: its code is the pod's that failed.
func TestAPIPlay(t *testing.T) {
	cfg, client := testAPI(t)
	kubelet(t, client, "default")
	set := readSet(t, `apiVersion: batch/v1
kind: Job
metadata: {name: bad}
spec: {backoffLimit: 0, template: {spec: {restartPolicy: Never, containers: [{name: c, image: fail}]}}}
`)
	api, err := play.NewAPI(play.APIConfig{Client: cfg, Name: "whole", Objects: set.Objects})
	if err != nil {
		t.Fatal(err)
	}
	if err := api.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	words, err := os.Create(filepath.Join(dir, "words"))
	if err != nil {
		t.Fatal(err)
	}
	defer words.Close()
	runners, pods := api.Runners(set.Objects)
	code, err := play.Run(t.Context(), play.Config{
		World: api, Runners: runners, Pods: pods, LogDir: filepath.Join(dir, "logs"), OwnLogs: true, Screen: progress.NewScreen(words, words, true),
	})
	said, rerr := os.ReadFile(words.Name())
	if code != 7 || err != nil || rerr != nil || !strings.Contains(string(said), "/c · exited with code 7") {
		t.Errorf("code %d, %v, %v:\n%s", code, err, rerr, said)
	}
}

// What a killed play left is removed: the objects it journaled that are its
// own, and no others; a living play's stay.
func TestSweep(t *testing.T) {
	cfg, client := testAPI(t)
	root := t.TempDir()
	configMaps := client.CoreV1().ConfigMaps("default")
	makeMap := func(name, claim string, uid bool) play.Made {
		m, err := configMaps.Create(t.Context(), &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{play.Annotation: claim}}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		made := play.Made{Version: "v1", Resource: "configmaps", Namespace: "default", Name: name}
		if uid {
			made.UID = m.UID
		}
		return made
	}
	alive, err := play.NewClaim(root)
	if err != nil {
		t.Fatal(err)
	}
	// A killed one's directory is there, and nobody holds its lock.
	killed := filepath.Join(root, "play", "killed")
	if err := os.Mkdir(killed, 0o700); err != nil {
		t.Fatal(err)
	}
	half := makeMap("half", "killed", false)
	whole := makeMap("whole", "killed", true)
	other := makeMap("other", alive.Name(), true)
	again := makeMap("again", alive.Name(), false) // another's of the same name
	stranger := whole
	stranger.Name, stranger.UID = "other", "not-its-uid"
	journaled, err := json.Marshal([]play.Made{half, whole, again, stranger})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(killed, "objects.json"), journaled, 0o600), alive.Journal([]play.Made{other})); err != nil {
		t.Fatal(err)
	}
	// Without an API it waits.
	if err := play.Sweep(t.Context(), root, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := play.Sweep(t.Context(), root, nil, cfg); err != nil {
		t.Fatal(err)
	}
	list, err := configMaps.List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, m := range list.Items {
		if m.Annotations[play.Annotation] != "" {
			left = append(left, m.Name)
		}
	}
	if fmt.Sprint(left) != "[again other]" {
		t.Errorf("left: %v", left)
	}
	if _, err := os.Stat(killed); !os.IsNotExist(err) {
		t.Errorf("the killed play's directory: %v", err)
	}
	text, err := os.ReadFile(filepath.Join(root, "play", alive.Name(), "objects.json"))
	var journal []play.Made
	if err != nil || json.Unmarshal(text, &journal) != nil || len(journal) != 1 {
		t.Errorf("the living play's journal: %s, %v", text, err)
	}
	for _, name := range left {
		if err := configMaps.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	}
	// While one lives, another waits for it; then no more.
	next, err := play.NewClaim(root)
	if err != nil {
		t.Fatal(err)
	}
	waits := make(chan bool, 1)
	done := make(chan error, 1)
	go func() { done <- next.Others(t.Context(), func() { waits <- true }) }()
	<-waits
	if err := alive.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := next.Others(t.Context(), func() { t.Error("waits for nobody") }); err != nil {
		t.Fatal(err)
	}
	if err := next.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(root, "play", "[^.]*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}
