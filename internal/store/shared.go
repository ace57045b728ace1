package store

import (
	"bytes"
	"io"
	"sync"
	"weak"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// shareFrom is how many watches of a resource there are when what they see is
// decoded and encoded once for all: for fewer the bookkeeping costs more.
const shareFrom = 3

// shared is an object that many watches send. It is never changed; who wants
// to change it gets a copy. It is a runtime.CacheableObject, so that encoders
// encode it once per format.
type shared struct {
	once sync.Once
	obj  runtime.Object
	err  error

	mu      sync.Mutex
	encoded map[runtime.Identifier]*encoding
}

type encoding struct {
	once sync.Once
	raw  []byte
	err  error
}

var (
	_ runtime.CacheableObject   = (*shared)(nil)
	_ metav1.ObjectMetaAccessor = (*shared)(nil)
)

func (s *shared) CacheEncode(id runtime.Identifier, encode func(runtime.Object, io.Writer) error, w io.Writer) error {
	s.mu.Lock()
	e := s.encoded[id]
	if e == nil {
		if s.encoded == nil {
			s.encoded = map[runtime.Identifier]*encoding{}
		}
		e = &encoding{}
		s.encoded[id] = e
	}
	s.mu.Unlock()
	e.once.Do(func() {
		var buf bytes.Buffer
		// Encoders change what they encode, for a moment.
		e.err = encode(s.GetObject(), &buf)
		e.raw = buf.Bytes()
	})
	if e.err != nil {
		return e.err
	}
	if splice, ok := w.(runtime.Splice); ok {
		splice.Splice(e.raw)
		return nil
	}
	_, err := w.Write(e.raw)
	return err
}

func (s *shared) GetObject() runtime.Object        { return s.obj.DeepCopyObject() }
func (s *shared) GetObjectKind() schema.ObjectKind { return s.obj.GetObjectKind() }
func (s *shared) DeepCopyObject() runtime.Object   { return &shared{obj: s.obj.DeepCopyObject()} }
func (s *shared) GetObjectMeta() metav1.Object {
	m, err := meta.Accessor(s.obj)
	if err != nil {
		return nil
	}
	return m
}

// recently finds what watches share. It keeps nothing alive: an object goes
// with the last watch that holds it.
type recently struct {
	mu    sync.Mutex
	slots [64]struct {
		of  sharedKey
		obj weak.Pointer[shared]
	}
}

// sharedKey names an object: an event's, as it is then or was before.
type sharedKey struct {
	revision int64
	old      bool
}

// get returns the shared object of a key, which the first to ask decodes.
func (r *recently) get(key sharedKey, decode func() (runtime.Object, error)) (*shared, error) {
	s := r.slot(key)
	s.once.Do(func() { s.obj, s.err = decode() })
	return s, s.err
}

func (r *recently) slot(key sharedKey) *shared {
	at := key.revision * 2
	if key.old {
		at++
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	slot := &r.slots[at%int64(len(r.slots))]
	if slot.of == key {
		if s := slot.obj.Value(); s != nil {
			return s
		}
	}
	s := &shared{}
	slot.of, slot.obj = key, weak.Make(s)
	return s
}
