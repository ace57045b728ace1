package manifest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	podutil "k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/helper/qos"
	_ "k8s.io/kubernetes/pkg/apis/core/install" // registers the kinds, their defaults and conversions
	corev1 "k8s.io/kubernetes/pkg/apis/core/v1"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// reader collects what one Load reads.
type reader struct {
	Loader
	objects *Objects
	set     *Set // when objects of any kind are read; else nil
	errs    []*Error
	seen    map[string]Place // by kind, namespace and name
	pods    []*item          // of objects.Pods, by index
	// inDocument counts the errors of the document that is read; those beyond
	// maxErrors are only counted: finding the place of each would take long.
	inDocument, uncounted int
}

// item is one object of the input.
type item struct {
	document
	json   []byte
	prefix string // of field paths in the document: "items[2]." in a List
	fields locator
	// unknown are the fields that Kubernetes doesn't know: reported already.
	unknown map[string]bool
}

func (r *reader) fail(it *item, path string, kind error, format string, args ...any) {
	if r.inDocument++; r.inDocument > maxErrors {
		r.uncounted++
		return
	}
	r.errs = append(r.errs, &Error{Place: it.at(path), Msg: fmt.Sprintf(format, args...), Err: kind})
}

func (r *reader) warn(it *item, path string, format string, args ...any) {
	r.objects.Warnings = append(r.objects.Warnings, Warning{Place: it.at(path), Msg: fmt.Sprintf(format, args...)})
}

// at is the place of a field of the object.
func (it *item) at(path string) Place {
	p := it.Place
	p.Path = path
	if it.prefix != "" {
		p.Path = strings.TrimSuffix(it.prefix+path, ".")
	}
	p.Line = it.lineOf(it.fields.line(it.text, p.Path))
	return p
}

// document reads one document.
func (r *reader) document(d document) {
	it := &item{document: d}
	if len(d.text) > maxDocument {
		r.fail(&item{document: document{Place: d.Place}}, "", errdefs.ErrInvalidArgument, "the document is larger than %d MiB", maxDocument>>20)
		return
	}
	// Twice, as the API server does: duplicate keys are reported by the strict
	// conversion, and the other one gives the rest of the errors something to
	// be found in.
	text, err := yaml.YAMLToJSON(d.text)
	if err != nil {
		r.yamlErrors(d, err)
		return
	}
	if _, err := yaml.YAMLToJSONStrict(d.text); err != nil {
		r.yamlErrors(d, err)
	}
	if bytes.Equal(bytes.TrimSpace(text), []byte("null")) {
		return
	}
	it.json = text
	r.object(it)
}

var yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?(.*)$`)

// yamlErrors reports every line of the YAML library's error.
func (r *reader) yamlErrors(d document, err error) {
	text := strings.TrimPrefix(err.Error(), "error converting YAML to JSON: ")
	text = strings.TrimPrefix(text, "yaml: unmarshal errors:\n")
	for line := range strings.SplitSeq(text, "\n") {
		m := yamlLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil || m[2] == "" {
			continue
		}
		place := d.Place
		n, _ := strconv.Atoi(m[1]) // 0 if there is none
		place.Line = d.lineOf(n)
		r.errs = append(r.errs, &Error{Place: place, Msg: "not valid YAML: " + m[2], Err: errdefs.ErrInvalidArgument})
	}
}

// object reads one object, or the objects of a List.
func (r *reader) object(it *item) {
	var meta struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			Name         string `json:"name"`
			GenerateName string `json:"generateName"`
			Namespace    string `json:"namespace"`
		} `json:"metadata"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(it.json, &meta); err != nil {
		r.typeError(it, err)
		return
	}
	switch {
	case meta.Kind == "":
		r.fail(it, "", errdefs.ErrInvalidArgument, "Object 'Kind' is missing")
		return
	case meta.APIVersion == "":
		r.fail(it, "", errdefs.ErrInvalidArgument, "Object 'apiVersion' is missing")
		return
	}
	name := meta.Metadata.Name
	if name == "" {
		name = meta.Metadata.GenerateName
	}
	if meta.Metadata.Namespace != "" {
		name = meta.Metadata.Namespace + "/" + name
	}
	it.Object = strings.TrimSpace(meta.Kind + " " + name)
	if r.set != nil {
		r.anything(it)
		return
	}
	if meta.APIVersion != "v1" {
		r.fail(it, "", errdefs.ErrNotImplemented, "kind %s of %s is not supported; supported are Pod, ConfigMap, Secret and List of v1", meta.Kind, meta.APIVersion)
		return
	}
	switch meta.Kind {
	case "List":
		r.list(it)
	case "Pod":
		r.pod(it)
	case "ConfigMap":
		r.configMap(it)
	case "Secret":
		r.secret(it)
	default:
		r.fail(it, "", errdefs.ErrNotImplemented, "kind %s is not supported; supported are Pod, ConfigMap, Secret and List", meta.Kind)
	}
}

func (r *reader) list(it *item) {
	var list struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        metav1.ListMeta   `json:"metadata"`
		Items           []json.RawMessage `json:"items"`
	}
	if !r.strict(it, &list) {
		return
	}
	if it.prefix != "" {
		r.fail(it, "", errdefs.ErrInvalidArgument, "a List can't be in a List")
		return
	}
	for i, raw := range list.Items {
		element := &item{document: it.document, json: raw, prefix: fmt.Sprintf("items[%d].", i)}
		element.Object = ""
		r.object(element)
	}
}

// strict decodes as the API server does with fieldValidation=Strict. It
// reports what it finds and returns whether there is something to go on with.
func (r *reader) strict(it *item, into any) bool {
	strictErrs, err := kjson.UnmarshalStrict(it.json, into)
	for _, e := range strictErrs {
		path := ""
		if fe, ok := e.(kjson.FieldError); ok {
			path = fe.FieldPath()
		}
		if it.unknown == nil {
			it.unknown = map[string]bool{}
		}
		it.unknown[path] = true
		r.fail(it, path, errdefs.ErrInvalidArgument, "%s", strings.TrimSuffix(strings.Replace(e.Error(), strconv.Quote(path), "", 1), " "))
	}
	if err != nil {
		r.typeError(it, err)
		return false
	}
	return true
}

// typeError reports a value of the wrong type.
func (r *reader) typeError(it *item, err error) {
	if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		r.fail(it, wrongValue(it.json, te), errdefs.ErrInvalidArgument, "expected %s, got %s", inWords(te.Type), te.Value)
		return
	}
	r.fail(it, "", errdefs.ErrInvalidArgument, "%s", strings.TrimPrefix(err.Error(), "json: "))
}

// wrongValue is the path of the value that a type error is about. The error
// itself leaves out the indexes of lists and the keys of maps; the first value
// of the type that it complains of is the one that ended the decoding.
func wrongValue(text []byte, te *json.UnmarshalTypeError) string {
	var tree any
	if json.Unmarshal(text, &tree) != nil {
		return te.Field
	}
	word, _, _ := strings.Cut(te.Value, " ")
	var find func(value any, names []string, path string) string
	find = func(value any, names []string, path string) string {
		switch value := value.(type) {
		case []any:
			if len(names) == 0 && word == "array" {
				return path
			}
			for i, element := range value {
				if p := find(element, names, fmt.Sprintf("%s[%d]", path, i)); p != "" {
					return p
				}
			}
		case map[string]any:
			if len(names) > 0 {
				return find(value[names[0]], names[1:], join(path, names[0]))
			}
			if word == "object" {
				return path
			}
			for _, key := range slices.Sorted(maps.Keys(value)) {
				if p := find(value[key], nil, path+"["+key+"]"); p != "" {
					return p
				}
			}
		case string:
			if len(names) == 0 && word == "string" {
				return path
			}
		case float64:
			if len(names) == 0 && word == "number" {
				return path
			}
		case bool:
			if len(names) == 0 && word == "bool" {
				return path
			}
		}
		return ""
	}
	var names []string
	if te.Field != "" {
		names = strings.Split(te.Field, ".")
	}
	return cmp.Or(find(tree, names, ""), te.Field)
}

// inWords is the JSON type that a Go type is written as.
func inWords(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer:
		return inWords(t.Elem())
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a string"
	}
	return "a number"
}

// metadata completes what the API server sets when an object is created.
func (r *reader) metadata(meta *metav1.ObjectMeta) {
	if meta.Namespace == "" {
		meta.Namespace = metav1.NamespaceDefault
	}
	if meta.Name == "" && meta.GenerateName != "" {
		meta.Name = r.Names.GenerateName(meta.GenerateName)
	}
	meta.UID = ""
	meta.ManagedFields = nil
	meta.CreationTimestamp = metav1.NewTime(r.Now()).Rfc3339Copy()
}

// admit enters the object among those seen and returns whether it is the first
// of its name.
func (r *reader) admit(it *item, kind string, meta *metav1.ObjectMeta) bool {
	key := kind + " " + meta.Namespace + "/" + meta.Name
	it.Object = key
	if first, ok := r.seen[key]; ok {
		first.Object, first.Path = "", ""
		r.fail(it, "metadata.name", errdefs.ErrAlreadyExists, "there is already such an object at %s", first)
		return false
	}
	r.seen[key] = it.at("")
	return true
}

func (r *reader) invalid(it *item, errs field.ErrorList) {
	for _, e := range errs {
		r.fail(it, e.Field, errdefs.ErrInvalidArgument, "%s", e.ErrorBody())
	}
}

func (r *reader) pod(it *item) {
	pod := &v1.Pod{}
	if !r.strict(it, pod) {
		return
	}
	r.checkFields(it, podFields)
	r.judge(it, pod)
	r.metadata(&pod.ObjectMeta)
	pod.Spec.NodeName = "" // judged; bound below
	legacyscheme.Scheme.Default(pod)
	internal := &core.Pod{}
	if err := legacyscheme.Scheme.Convert(pod, internal, nil); err != nil {
		r.fail(it, "", errdefs.ErrInvalidArgument, "%v", err)
		return
	}
	// From here on as in the API server's strategy of pods.
	internal.Generation = 1
	internal.Status = core.PodStatus{Phase: core.PodPending}
	r.dropDisabled(it, internal)
	podutil.DefaultPodLevelResources(internal)
	internal.Status.QOSClass = qos.GetPodQOS(internal)
	opts := podutil.GetValidationOptionsFromPodSpecAndMeta(&internal.Spec, nil, &internal.ObjectMeta, nil)
	opts.ResourceIsPod = true
	r.invalid(it, validation.ValidatePodCreate(internal, opts))
	if !r.admit(it, "Pod", &internal.ObjectMeta) {
		return
	}
	if msgs := utilvalidation.IsDNS1123Label(internal.Name); len(msgs) != 0 {
		r.warn(it, "metadata.name", "this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: %v", msgs)
	}
	for _, w := range podutil.GetWarningsForPod(context.Background(), internal, nil) {
		path, msg, ok := strings.Cut(w, ": ")
		if !ok || strings.Contains(path, " ") {
			path, msg = "", w
		}
		r.warn(it, path, "%s", msg)
	}
	out := &v1.Pod{}
	if err := corev1.Convert_core_Pod_To_v1_Pod(internal, out, nil); err != nil {
		r.fail(it, "", errdefs.ErrInvalidArgument, "%v", err)
		return
	}
	out.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	out.Spec.NodeName = r.NodeName
	out.UID = r.UID(out, it.File)
	r.objects.Pods = append(r.objects.Pods, out)
	r.pods = append(r.pods, it)
}

func (r *reader) configMap(it *item) {
	cm, internal := &v1.ConfigMap{}, &core.ConfigMap{}
	if !r.data(it, cm, &cm.ObjectMeta, internal, configMapFields) {
		return
	}
	r.invalid(it, validation.ValidateConfigMap(internal))
	if r.admit(it, "ConfigMap", &cm.ObjectMeta) {
		cm.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}
		r.objects.ConfigMaps[types.NamespacedName{Namespace: cm.Namespace, Name: cm.Name}] = cm
	}
}

func (r *reader) secret(it *item) {
	secret, internal := &v1.Secret{}, &core.Secret{}
	if !r.data(it, secret, &secret.ObjectMeta, internal, secretFields) {
		return
	}
	r.invalid(it, validation.ValidateSecret(internal))
	if !r.admit(it, "Secret", &secret.ObjectMeta) {
		return
	}
	out := &v1.Secret{}
	// The conversion is what merges stringData into data.
	if err := corev1.Convert_core_Secret_To_v1_Secret(internal, out, nil); err != nil {
		r.fail(it, "", errdefs.ErrInvalidArgument, "%v", err)
		return
	}
	out.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}
	r.objects.Secrets[types.NamespacedName{Namespace: out.Namespace, Name: out.Name}] = out
}

// data decodes, completes and converts a ConfigMap or Secret.
func (r *reader) data(it *item, obj runtime.Object, meta *metav1.ObjectMeta, internal runtime.Object, fields map[string]verdict) bool {
	if !r.strict(it, obj) {
		return false
	}
	r.checkFields(it, fields)
	r.metadata(meta)
	meta.UID = uuid.NewUUID()
	legacyscheme.Scheme.Default(obj)
	if err := legacyscheme.Scheme.Convert(obj, internal, nil); err != nil {
		r.fail(it, "", errdefs.ErrInvalidArgument, "%v", err)
		return false
	}
	return true
}
