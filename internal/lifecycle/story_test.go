package lifecycle

import (
	"testing"

	"unipod.dev/unipod/test/golden"
)

// TestStories plays every testdata/*.txt: a script of what the world does with
// a pod, then "----", then what becomes of it. The grammar is at parseScript.
func TestStories(t *testing.T) {
	golden.Stories(t, func(t *testing.T, script string) string {
		w, err := parseScript(script)
		if err != nil {
			t.Fatal(err)
		}
		told := w.play()
		w.check(t)
		return told
	})
}
