package manifest

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// FuzzLoad feeds anything to the reader: it must not panic, every error must
// have a place, and what is accepted must be accepted again.
func FuzzLoad(f *testing.F) {
	for _, dir := range []string{"testdata/good", "testdata/bad"} {
		names, err := manifestsIn(dir)
		if err != nil {
			f.Fatal(err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		objects, err := loader.Load([]string{"-"}, bytes.NewReader(text))
		if err != nil {
			for _, e := range all(err) {
				if e.File != "-" || e.Msg == "" || e.Err == nil {
					t.Errorf("an error without place, text or kind: %#v", e)
				}
				if e.Line > bytes.Count(text, []byte("\n"))+1 {
					t.Errorf("line %d of %d", e.Line, bytes.Count(text, []byte("\n"))+1)
				}
			}
			return
		}
		if len(objects.Pods)+len(objects.ConfigMaps)+len(objects.Secrets) == 0 {
			t.Error("accepted without an object")
		}
		for _, p := range objects.Pods {
			if p.Name == "" || p.Namespace == "" || p.UID == "" || strings.Contains(p.Name, "/") {
				t.Errorf("an incomplete pod: %+v", p.ObjectMeta)
			}
		}
	})
}
