package engine

import (
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Origin is who gave a pod to the engine, and so what the pod may see. It comes
// with [Engine.Apply], from code that knows, and stays for the pod's life; it is
// never read from the pod, of which anybody may have written what it says of
// itself. Make one with [FromAPI] or [FromManifests]; the zero value is none.
type Origin struct {
	known     bool
	manifests string
}

// FromAPI is the origin of pods that somebody wrote into an API.
func FromAPI() Origin { return Origin{known: true} }

// FromManifests is the origin of pods of this machine's own manifests; source
// names the place they are in and is not empty.
func FromManifests(source string) Origin { return Origin{known: source != "", manifests: source} }

// Manifests tells whether the pod is one of manifests, and where they are.
func (o Origin) Manifests() (source string, ok bool) { return o.manifests, o.manifests != "" }

// originMark is the annotation by which a sandbox tells of manifests' pods
// whence they came. Only the engine writes it.
const originMark = "unipod.dev/manifests"

// mark records the origin with the sandbox, so that the next node can tell whose
// a pod is that nobody gives to it again.
func (o Origin) mark(config *runtimeapi.PodSandboxConfig) {
	delete(config.Annotations, originMark)
	if source, ok := o.Manifests(); ok {
		if config.Annotations == nil {
			config.Annotations = map[string]string{}
		}
		config.Annotations[originMark] = source
	}
}

// OriginOf is the origin of the pod that an engine, of this node or of one
// before it, made a sandbox for.
func OriginOf(sandbox *runtimeapi.PodSandbox) Origin {
	return Origin{known: true, manifests: sandbox.GetAnnotations()[originMark]}
}

// objectsOf is where the ConfigMaps and Secrets of a pod are looked for. One
// that isn't the engine's has none.
func (e *Engine) objectsOf(pod *v1.Pod) Objects {
	e.mu.Lock()
	w, ok := e.pods[pod.UID]
	e.mu.Unlock()
	if !ok {
		return noObjects{}
	}
	return w.objects()
}

func (w *worker) objects() Objects { return w.e.cfg.ObjectsOf(w.origin) }
