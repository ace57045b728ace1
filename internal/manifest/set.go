package manifest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/uuid"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/warning"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

// A Set is objects of any kind, as their author wrote them: what an API server
// is to be sent.
type Set struct {
	Objects  []*Object // in the order of the input
	Warnings []Warning
}

// An Object of a Set knows where it came from.
type Object struct {
	*unstructured.Unstructured
	it *item
}

// At is the place of a field; "" is that of the object.
func (o *Object) At(path string) Place { return o.it.at(path) }

// Fail is an error about a field.
func (o *Object) Fail(path, format string, args ...any) *Error {
	return &Error{Place: o.At(path), Msg: fmt.Sprintf(format, args...), Err: errdefs.ErrInvalidArgument}
}

// Errors gives an API server's refusal of the object its places.
func (o *Object) Errors(err error) []*Error {
	var all []*Error
	for _, c := range causes(err) {
		all = append(all, &Error{Place: o.At(c.Field), Msg: c.Message, Err: errdefs.ErrInvalidArgument})
	}
	return all
}

// Read reads objects of any kind from what [Loader.Load] reads them from.
// Kinds that Kubernetes has itself are checked as its API server does, as far
// as that can be told from the object alone; others are taken as they are. The
// error joins an *[Error] for everything that is wrong.
func Read(paths []string, stdin io.Reader) (*Set, error) {
	r := &reader{Loader: Loader{}.withDefaults(), set: &Set{}, objects: &Objects{}, seen: map[string]Place{}}
	if err := r.read(paths, stdin, func() bool { return len(r.set.Objects) == 0 }); err != nil {
		return nil, err
	}
	r.set.Warnings = r.objects.Warnings
	return r.set, nil
}

// anything reads an object for a Set.
func (r *reader) anything(it *item) {
	u := &unstructured.Unstructured{}
	if err := json.Unmarshal(it.json, &u.Object); err != nil {
		r.fail(it, "", errdefs.ErrInvalidArgument, "%v", err)
		return
	}
	gvk := u.GroupVersionKind()
	if gvk.Group == "" && gvk.Kind == "List" || u.IsList() && strings.HasSuffix(gvk.Kind, "List") {
		r.list(it)
		return
	}
	if _, err := schema.ParseGroupVersion(u.GetAPIVersion()); err != nil {
		r.fail(it, "apiVersion", errdefs.ErrInvalidArgument, "%v", err)
		return
	}
	if u.GetName() == "" && u.GetGenerateName() == "" {
		r.fail(it, "metadata.name", errdefs.ErrInvalidArgument, "Required value: name or generateName is required")
		return
	}
	r.check(it, gvk)
	r.set.Objects = append(r.set.Objects, &Object{u, it})
}

// check is what an API server would say of the object as it stands.
func (r *reader) check(it *item, gvk schema.GroupVersionKind) {
	if !legacyscheme.Scheme.Recognizes(gvk) {
		return
	}
	obj, err := legacyscheme.Scheme.New(gvk)
	if err != nil || !r.strict(it, obj) {
		return
	}
	strategy, ok := strategies[gvk.GroupKind()]
	if !ok {
		return
	}
	legacyscheme.Scheme.Default(obj)
	internal, err := legacyscheme.Scheme.UnsafeConvertToVersion(obj, schema.GroupVersion{Group: gvk.Group, Version: runtime.APIVersionInternal})
	if err != nil {
		r.fail(it, "", errdefs.ErrInvalidArgument, "%v", err)
		return
	}
	m, err := meta.Accessor(internal)
	if err != nil {
		r.fail(it, "", errdefs.ErrInvalidArgument, "%v", err)
		return
	}
	if strategy.NamespaceScoped() && m.GetNamespace() == "" {
		m.SetNamespace(metav1.NamespaceDefault)
	}
	if m.GetName() == "" {
		m.SetName(r.Names.GenerateName(m.GetGenerateName()))
	}
	// A server sets them; what the author wrote there it ignores.
	m.SetUID(uuid.NewUUID())
	m.SetCreationTimestamp(metav1.NewTime(r.Now()))
	resource, _ := meta.UnsafeGuessKindToResource(gvk)
	ctx := genericapirequest.WithNamespace(context.Background(), m.GetNamespace())
	ctx = genericapirequest.WithRequestInfo(ctx, &genericapirequest.RequestInfo{
		IsResourceRequest: true, Verb: "create", APIGroup: gvk.Group, APIVersion: gvk.Version, Resource: resource.Resource, Namespace: m.GetNamespace(),
	})
	ctx = warning.WithWarningRecorder(ctx, recorder{r, it})
	for _, c := range causes(rest.BeforeCreate(strategy, ctx, internal)) {
		r.fail(it, c.Field, errdefs.ErrInvalidArgument, "%s", c.Message)
	}
}

// recorder takes the server's warnings.
type recorder struct {
	r  *reader
	it *item
}

// AddWarning implements warning.Recorder.
func (w recorder) AddWarning(_, text string) {
	path, msg, ok := strings.Cut(text, ": ")
	if !ok || strings.Contains(path, " ") {
		path, msg = "", text
	}
	w.r.warn(w.it, path, "%s", msg)
}

// strictField is one thing that a strict decoder found, as a server words it.
var strictField = regexp.MustCompile(`(unknown field|duplicate field) "((?:[^"\\]|\\.)*)"`)

// causes are the fields an error is about, and the words for each; the error
// as a whole when it names none.
func causes(err error) []metav1.StatusCause {
	if err == nil {
		return nil
	}
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return []metav1.StatusCause{{Message: err.Error()}}
	}
	s := status.Status()
	if d := s.Details; d != nil && s.Reason == metav1.StatusReasonInvalid && len(d.Causes) > 0 {
		return d.Causes
	}
	var all []metav1.StatusCause
	if _, found, ok := strings.Cut(s.Message, "strict decoding error: "); ok {
		for _, m := range strictField.FindAllStringSubmatch(found, -1) {
			all = append(all, metav1.StatusCause{Field: m[2], Message: m[1]})
		}
	}
	if len(all) == 0 {
		all = append(all, metav1.StatusCause{Message: s.Message})
	}
	return all
}
