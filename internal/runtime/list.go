package runtime

import (
	"encoding/json"
	"slices"
	"strings"
)

func hasPrefix(id, want string) bool { return strings.HasPrefix(id, want) }

func hasLabels(labels, selector map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// newestFirst sorts what a List call returns, ties by ID so that two calls
// agree.
func newestFirst[T interface {
	GetCreatedAt() int64
	GetId() string
}](items []T) {
	slices.SortFunc(items, func(a, b T) int {
		if a.GetCreatedAt() != b.GetCreatedAt() {
			if a.GetCreatedAt() > b.GetCreatedAt() {
				return -1
			}
			return 1
		}
		return strings.Compare(a.GetId(), b.GetId())
	})
}

// verbose is the info map of a verbose status call: the record under the key
// "info", as containerd's. Environment values stay out of it: it is printed.
func verbose(rec any) (map[string]string, error) {
	b, err := json.Marshal(rec)
	if err != nil {
		return nil, err
	}
	return map[string]string{"info": string(b)}, nil
}

// Idle tells whether the runtime holds no sandbox at all.
func (r *Runtime) Idle() (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sandboxes) == 0, nil
}
