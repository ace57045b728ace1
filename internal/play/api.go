package play

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/storage/names"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/manifest"
)

const (
	// lookAgain is how often it is looked whether an object is there, or gone.
	lookAgain = 50 * time.Millisecond
	// patience is how long a new kind has to be served, and how long what is
	// left has to go after a Kill.
	patience = 20 * time.Second
	// manager owns the fields of what play makes.
	manager = "unipod-play"
)

// An API is the World that is a Kubernetes API.
type API struct {
	name    string
	objects []*planned
	notes   func(p manifest.Place, text string)
	journal func([]Made) error
	clock   clock.Clock

	client  kubernetes.Interface
	dynamic dynamic.Interface
	metas   metadata.Interface
	mapper  meta.ResettableRESTMapper

	mu     sync.Mutex
	made   []*planned // in the order of their creation
	pods   map[types.UID]*v1.Pod
	roots  map[types.UID]root // of objects that pods may come of
	fewer  chan struct{}      // closed and replaced when a pod is gone
	killed chan struct{}
	kill   sync.Once
}

// planned is an object of the play.
type planned struct {
	*manifest.Object
	stage   stage
	mapping *meta.RESTMapping // nil while its kind isn't served
	uid     types.UID         // once it is made
}

// key names an object as people do.
func (p *planned) key() string { return key(p.GetKind(), p) }

func key(kind string, m metav1.Object) string {
	if m.GetNamespace() == "" {
		return kind + " " + m.GetName()
	}
	return kind + " " + m.GetNamespace() + "/" + m.GetName()
}

// root is the object of the play that another came of; of is "" when there is
// none.
type root struct{ of string }

// A Made object is one that a play has to remove.
type Made struct {
	Group     string    `json:"group,omitempty"`
	Version   string    `json:"version"`
	Resource  string    `json:"resource"`
	Namespace string    `json:"namespace,omitempty"`
	Name      string    `json:"name"`
	UID       types.UID `json:"uid,omitempty"` // "" while it is being made
}

// APIConfig is what an API needs. Client, Name and Objects are required.
type APIConfig struct {
	Client *rest.Config
	// Name tells this play from others.
	Name    string
	Objects []*manifest.Object
	// Note is told what the user should know about an object.
	Note func(p manifest.Place, text string)
	// Journal is told what has to be removed, before it is made and again
	// when its UID is known.
	Journal func([]Made) error
	Clock   clock.Clock
}

// NewAPI is a World for the objects. Nothing is asked of the API yet.
func NewAPI(c APIConfig) (*API, error) {
	conf := rest.CopyConfig(c.Client)
	conf.QPS, conf.Burst = -1, -1 // one user's objects
	conf.WarningHandler = rest.NoWarnings{}
	conf.UserAgent = manager
	a := &API{
		name: c.Name, notes: c.Note, journal: c.Journal, clock: c.Clock,
		pods: map[types.UID]*v1.Pod{}, roots: map[types.UID]root{}, fewer: make(chan struct{}), killed: make(chan struct{}),
	}
	if a.notes == nil {
		a.notes = func(manifest.Place, string) {}
	}
	if a.journal == nil {
		a.journal = func([]Made) error { return nil }
	}
	if a.clock == nil {
		a.clock = clock.RealClock{}
	}
	for _, o := range c.Objects {
		a.objects = append(a.objects, &planned{Object: o, stage: stageOf(o.GroupVersionKind().GroupKind())})
	}
	inOrder(a.objects)
	var err error
	if a.client, err = kubernetes.NewForConfig(conf); err != nil {
		return nil, err
	}
	if a.dynamic, err = dynamic.NewForConfig(conf); err != nil {
		return nil, err
	}
	if a.metas, err = metadata.NewForConfig(conf); err != nil {
		return nil, err
	}
	discoverer, err := discovery.NewDiscoveryClientForConfig(conf)
	if err != nil {
		return nil, err
	}
	a.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(discoverer))
	return a, nil
}

// Check asks the API about every object without making it; only new kinds and
// namespaces have to be made for that, and are unmade when something is wrong.
// The error joins a *manifest.Error for everything that is.
func (a *API) Check(ctx context.Context) (err error) {
	var wrong []*manifest.Error
	defer func() {
		for _, e := range wrong {
			err = errors.Join(err, e)
		}
		if err != nil {
			err = errors.Join(err, a.Delete(context.WithoutCancel(ctx)))
		}
	}()
	seen := map[string]*planned{}
	add := func(o *planned, err error) { wrong = append(wrong, o.Errors(err)...) }
	resolve := func(o *planned) bool {
		if err := a.resolve(o); err != nil {
			add(o, err)
			return false
		}
		gk := o.GroupVersionKind().GroupKind()
		id := gk.String() + " " + o.GetNamespace() + "/" + o.GetName()
		if first := seen[id]; first != nil {
			place := first.At("")
			place.Object = ""
			wrong = append(wrong, o.Fail("metadata.name", "there is already such an object at %s", place))
			return false
		}
		seen[id] = o
		return true
	}
	for _, o := range a.objects {
		if !resolve(o) || wrong != nil && o.stage <= namespaces {
			continue
		}
		if o.stage > namespaces {
			if cerr := a.rehearse(ctx, o); cerr != nil {
				add(o, cerr)
			}
			continue
		}
		err := a.make(ctx, o)
		if apierrors.IsAlreadyExists(err) {
			a.notes(o.At("metadata.name"), "it is there already: it is used as it is, and stays")
			err = nil
		}
		if err != nil {
			add(o, err)
			continue
		}
		if o.stage == definitions {
			if err := a.served(ctx, o); err != nil {
				add(o, err)
			}
		}
	}
	return nil
}

// resolve finds out how the API calls an object's kind, and completes its
// name.
func (a *API) resolve(o *planned) error {
	gvk := o.GroupVersionKind()
	var err error
	if o.mapping, err = a.mapper.RESTMapping(gvk.GroupKind(), gvk.Version); err != nil {
		return err
	}
	if o.mapping.Scope.Name() == meta.RESTScopeNameNamespace && o.GetNamespace() == "" {
		o.SetNamespace(metav1.NamespaceDefault)
	}
	// Known before it is made, a name can be written down.
	if o.GetName() == "" {
		o.SetName(names.SimpleNameGenerator.GenerateName(o.GetGenerateName()))
	}
	return nil
}

func (a *API) resource(m *meta.RESTMapping, namespace string) dynamic.ResourceInterface {
	if m.Scope.Name() == meta.RESTScopeNameNamespace {
		return a.dynamic.Resource(m.Resource).Namespace(namespace)
	}
	return a.dynamic.Resource(m.Resource)
}

// rehearse asks what the API would say to an object.
func (a *API) rehearse(ctx context.Context, o *planned) error {
	u := o.DeepCopy()
	a.withoutOthers(u)
	_, err := a.resource(o.mapping, o.GetNamespace()).Create(ctx, u, metav1.CreateOptions{
		DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict, FieldManager: manager,
	})
	if apierrors.IsAlreadyExists(err) {
		return errors.New("there is already such an object on the node: play makes and removes its own, and takes nobody else's (unipod apply changes what is there)")
	}
	return err
}

// withoutOthers takes out of a Pod what it needs of the play's other objects,
// which aren't made yet: admission would miss them.
func (a *API) withoutOthers(u *unstructured.Unstructured) {
	if u.GroupVersionKind().GroupKind() != (schema.GroupKind{Kind: "Pod"}) {
		return
	}
	for _, ref := range []struct{ field, kind string }{{"serviceAccountName", "ServiceAccount"}, {"priorityClassName", "PriorityClass"}, {"runtimeClassName", "RuntimeClass"}} {
		name, _, _ := unstructured.NestedString(u.Object, "spec", ref.field)
		ours := slices.ContainsFunc(a.objects, func(o *planned) bool {
			return o.GetKind() == ref.kind && o.GetName() == name && (o.GetNamespace() == "" || o.GetNamespace() == u.GetNamespace())
		})
		if name != "" && ours {
			unstructured.RemoveNestedField(u.Object, "spec", ref.field)
		}
	}
}

// Create implements World.
func (a *API) Create(ctx context.Context) error {
	for _, o := range a.objects {
		if o.stage <= namespaces { // Check made them
			continue
		}
		if err := a.make(ctx, o); err != nil {
			var all error
			for _, e := range o.Errors(err) {
				all = errors.Join(all, e)
			}
			return all
		}
	}
	return nil
}

// make makes an object that has to be removed again.
func (a *API) make(ctx context.Context, o *planned) error {
	u := o.DeepCopy()
	annotations := u.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[Annotation] = a.name
	u.SetAnnotations(annotations)
	if err := a.write(o); err != nil {
		return err
	}
	out, err := a.resource(o.mapping, o.GetNamespace()).Create(ctx, u, metav1.CreateOptions{
		FieldValidation: metav1.FieldValidationStrict, FieldManager: manager,
	})
	if err != nil {
		return err
	}
	o.uid = out.GetUID()
	a.mu.Lock()
	a.made = append(a.made, o)
	a.mu.Unlock()
	return a.write(nil)
}

// write journals what has been made, and what is about to be.
func (a *API) write(next *planned) error {
	a.mu.Lock()
	all := slices.Clone(a.made)
	a.mu.Unlock()
	if next != nil {
		all = append(all, next)
	}
	var list []Made
	for _, o := range all {
		r := o.mapping.Resource
		list = append(list, Made{Group: r.Group, Version: r.Version, Resource: r.Resource, Namespace: o.GetNamespace(), Name: o.GetName(), UID: o.uid})
	}
	return a.journal(list)
}

// served waits until the kinds of a definition are.
func (a *API) served(ctx context.Context, o *planned) error {
	deadline := a.clock.Now().Add(patience)
	for {
		u, err := a.resource(o.mapping, "").Get(ctx, o.GetName(), metav1.GetOptions{})
		if err != nil {
			return err
		}
		if established(u) {
			a.mapper.Reset()
			return nil
		}
		if a.clock.Now().After(deadline) {
			return fmt.Errorf("it isn't served after %s: %s", patience, conditions(u))
		}
		if err := a.pause(ctx); err != nil {
			return err
		}
	}
}

func established(u *unstructured.Unstructured) bool {
	all, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	return slices.ContainsFunc(all, func(c any) bool {
		m, _ := c.(map[string]any)
		return m["type"] == "Established" && m["status"] == "True"
	})
}

// conditions are the words of a definition's conditions that aren't met.
func conditions(u *unstructured.Unstructured) string {
	all, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	text := ""
	for _, c := range all {
		if m, _ := c.(map[string]any); m["status"] == "False" {
			text += fmt.Sprintf("%v: %v ", m["type"], m["message"])
		}
	}
	return cmp.Or(text, "the API doesn't say why")
}

func (a *API) pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-a.clock.After(lookAgain):
		return nil
	}
}

// Runners are the objects that pods come of, in the order of the input. They
// are known after Check.
func (a *API) Runners(input []*manifest.Object) (runners []Runner, pods []*v1.Pod) {
	for _, o := range input {
		gk := o.GroupVersionKind().GroupKind()
		if !makesPods(gk) {
			continue
		}
		r := Runner{Key: key(gk.Kind, o), Pod: gk == schema.GroupKind{Kind: "Pod"}, Job: gk == schema.GroupKind{Group: "batch", Kind: "Job"}}
		runners = append(runners, r)
		if r.Pod {
			pods = append(pods, podNames(o))
		}
	}
	return runners, pods
}

// podNames is a Pod with no more than its names.
func podNames(o *manifest.Object) *v1.Pod {
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: o.GetNamespace(), Name: o.GetName()}}
	for _, list := range []struct {
		field string
		into  *[]v1.Container
	}{{"initContainers", &pod.Spec.InitContainers}, {"containers", &pod.Spec.Containers}} {
		all, _, _ := unstructured.NestedSlice(o.Object, "spec", list.field)
		for _, c := range all {
			m, _ := c.(map[string]any)
			name, _ := m["name"].(string)
			*list.into = append(*list.into, v1.Container{Name: name})
		}
	}
	return pod
}
