// Package manifest reads Kubernetes objects from files as the API server would
// read them from a client: decoded strictly, defaulted and validated by
// Kubernetes' own code, with nothing ignored.
//
// It owns the answer to "what of a manifest can this node carry out": one table
// (fields.go) gives every field of a Pod a verdict. A field that is not
// supported, or that the table doesn't know, is an error with its path; one
// that can mean nothing on a single node is accepted with a warning.
//
// It promises that every error of every document is reported, with file,
// document, line and field path, that nothing is returned when there is an
// error, and that input is bounded: 3 MiB per document, as in the API server,
// and no more memory than that implies (aliases are not expanded without
// bound). Values of Secrets never appear in an error. Functions are safe for
// concurrent use.
//
// Importing it turns on the alpha features of Kubernetes that unipod carries
// out (features.go): that gate is process-wide.
//
// Floor: 5, beside podspec, volume and lifecycle. It imports nothing of unipod.
package manifest

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apiserver/pkg/storage/names"
)

// Objects is what was read. The objects are the caller's to change.
type Objects struct {
	// Pods are in the order of the input.
	Pods       []*v1.Pod
	ConfigMaps map[types.NamespacedName]*v1.ConfigMap
	Secrets    map[types.NamespacedName]*v1.Secret
	// Warnings are what the user should know although it keeps nothing from
	// running: fields without effect, references to objects that aren't in the
	// input, and the API server's own warnings.
	Warnings []Warning
}

// Place says what in the input something is said about.
type Place struct {
	File     string // as given; "-" for standard input
	Document int    // in the file, from 1
	Line     int    // in the file, from 1; 0 if unknown
	Object   string // "Pod default/web"; "" if unknown
	Path     string // of the field; "" for the whole object
}

// String is "file:line: document n, Pod default/web: spec.field".
func (p Place) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	if p.Document > 0 {
		fmt.Fprintf(&b, ": document %d", p.Document)
	}
	if p.Object != "" {
		b.WriteString(", " + p.Object)
	}
	if p.Path != "" {
		b.WriteString(": " + p.Path)
	}
	return b.String()
}

// compare orders places as a reader of the input meets them; files is the
// order of the files.
func (p Place) compare(q Place, files map[string]int) int {
	return cmp.Or(cmp.Compare(files[p.File], files[q.File]), cmp.Compare(p.Document, q.Document),
		cmp.Compare(p.Line, q.Line), cmp.Compare(p.Path, q.Path))
}

// Error is one thing wrong with the input. It wraps errdefs.ErrInvalidArgument,
// or errdefs.ErrNotImplemented where the input is good Kubernetes that unipod
// doesn't carry out.
type Error struct {
	Place
	Msg string
	Err error
}

func (e *Error) Error() string { return e.Place.String() + ": " + e.Msg }
func (e *Error) Unwrap() error { return e.Err }

// Warning is one remark about the input.
type Warning struct {
	Place
	Msg string
}

func (w Warning) String() string { return w.Place.String() + ": " + w.Msg }

// Loader reads manifests. The zero value is what `play` wants: each run's pods
// are new ones.
type Loader struct {
	// NodeName is the node the pods are bound to; "" means the host's name.
	NodeName string
	// NodeLabels are added to the node's well-known labels (os, arch,
	// hostname), which node selectors are checked against.
	NodeLabels map[string]string
	// UID names a pod read from source; nil gives every pod a random UID.
	// [StaticUID] gives the same pod the same UID each time.
	UID func(pod *v1.Pod, source string) types.UID
	// Names completes metadata.generateName; nil means a random suffix.
	Names names.NameGenerator
	// Now is the creation time; nil means the clock's.
	Now func() time.Time
}

// Load reads the objects in files, in the *.yaml, *.yml and *.json files of
// directories (sorted by name), and in standard input ("-"). The error joins an
// *[Error] for everything that is wrong; then there are no Objects.
func (l Loader) Load(paths []string, stdin io.Reader) (*Objects, error) {
	l = l.withDefaults()
	r := &reader{Loader: l, seen: map[string]Place{}, objects: &Objects{
		ConfigMaps: map[types.NamespacedName]*v1.ConfigMap{},
		Secrets:    map[types.NamespacedName]*v1.Secret{},
	}}
	if err := r.read(paths, stdin, func() bool { return len(r.seen) == 0 }); err != nil {
		return nil, err
	}
	return r.objects, nil
}

// read reads all documents and joins what is wrong with them; empty tells
// whether there was no object.
func (r *reader) read(paths []string, stdin io.Reader, empty func() bool) error {
	order := map[string]int{}
	for i, f := range readFiles(paths, stdin) {
		order[f.name] = i
		if f.err != nil {
			r.errs = append(r.errs, &Error{Place: Place{File: f.name}, Msg: reason(f.err), Err: f.err})
			continue
		}
		documents := split(f)
		if len(documents) > maxDocuments {
			r.errs = append(r.errs, &Error{Place: Place{File: f.name}, Msg: fmt.Sprintf("more than %d documents", maxDocuments), Err: errdefs.ErrInvalidArgument})
			continue
		}
		for _, d := range documents {
			before := len(r.errs)
			r.document(d)
			r.limitErrors(d, before)
		}
	}
	if len(r.errs) == 0 && empty() {
		r.errs = append(r.errs, &Error{Place: Place{File: strings.Join(paths, ", ")}, Msg: "no Kubernetes object found", Err: errdefs.ErrInvalidArgument})
	}
	if len(r.errs) > 0 {
		slices.SortStableFunc(r.errs, func(a, b *Error) int {
			return cmp.Or(a.Place.compare(b.Place, order), cmp.Compare(a.Msg, b.Msg))
		})
		var errs []error
		for _, e := range r.errs {
			errs = append(errs, e)
		}
		return errors.Join(errs...)
	}
	r.checkReferences()
	slices.SortStableFunc(r.objects.Warnings, func(a, b Warning) int {
		return cmp.Or(a.Place.compare(b.Place, order), cmp.Compare(a.Msg, b.Msg))
	})
	return nil
}

// maxErrors is how many errors of one document are worth reading.
const maxErrors = 100

// limitErrors replaces what is more than maxErrors errors of a document, which
// are those since before, by one that counts them.
func (r *reader) limitErrors(d document, before int) {
	if n := len(r.errs) - before + r.uncounted; n > maxErrors {
		r.errs = append(r.errs[:before+maxErrors], &Error{Place: Place{File: d.File, Document: d.Document, Line: d.Line},
			Msg: fmt.Sprintf("%d more errors are not shown", n-maxErrors), Err: errdefs.ErrInvalidArgument})
	}
	r.inDocument, r.uncounted = 0, 0
}

func (l Loader) withDefaults() Loader {
	if l.NodeName == "" {
		// As kubelet names its node; an unknown host name leaves it unnamed.
		host, _ := os.Hostname()
		l.NodeName = strings.ToLower(strings.TrimSpace(host))
	}
	labels := map[string]string{
		v1.LabelOSStable:   runtime.GOOS,
		v1.LabelArchStable: runtime.GOARCH,
		v1.LabelHostname:   l.NodeName,
	}
	maps.Copy(labels, l.NodeLabels)
	l.NodeLabels = labels
	if l.UID == nil {
		l.UID = func(*v1.Pod, string) types.UID { return uuid.NewUUID() }
	}
	if l.Names == nil {
		l.Names = names.SimpleNameGenerator
	}
	if l.Now == nil {
		l.Now = time.Now
	}
	return l
}
