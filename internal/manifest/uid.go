package manifest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// StaticUID is a UID that depends only on the pod's content and where it comes
// from, for [Loader.UID]: the same file gives the same pod again after a
// restart, and a changed file another one, as with kubelet's static pods.
func StaticUID(pod *v1.Pod, source string) types.UID {
	h := sha256.New()
	h.Write([]byte(source + "\x00"))
	// The fields that differ from one reading to the next don't count.
	content := pod.DeepCopy()
	content.CreationTimestamp.Reset()
	if content.GenerateName != "" {
		content.Name = ""
	}
	// Writing to a hash can't fail, nor can encoding what was just decoded.
	_ = json.NewEncoder(h).Encode(content)
	return types.UID(hex.EncodeToString(h.Sum(nil)[:16]))
}

// StaticUIDFrom is a [StaticUID] for what is read from a stream, whose name
// says nothing: the source is given.
func StaticUIDFrom(source string) func(*v1.Pod, string) types.UID {
	return func(pod *v1.Pod, _ string) types.UID { return StaticUID(pod, source) }
}
