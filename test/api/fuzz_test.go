package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"unipod.dev/unipod/test/api/wire"
)

// defects are upstream's own panics, of the release we stand on: found here,
// answered with 500 and survived. What is in a panic's stack is named.
var defects = []string{
	"batch/validation.validateSuccessPolicyRule", // an indexed Job without completions, with a success policy
}

// ask sends a request as an administrator. It must be answered, not with a
// panic, and every error must be a Status in words.
func ask(t *testing.T, r wire.Request) (code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, r.Method, "http://x"+r.Target, strings.NewReader(r.Body))
	if err != nil {
		return 0 // no client could send it
	}
	if r.Content != "" {
		req.Header.Set("Content-Type", r.Content)
	}
	if r.Accept != "" {
		req.Header.Set("Accept", r.Accept)
	}
	resp, err := node.server.Loopback().Transport.RoundTrip(req)
	if err != nil {
		known := func(d string) bool { return strings.Contains(err.Error(), d) }
		if ctx.Err() == nil && !strings.Contains(err.Error(), "can't switch protocols") && !slices.ContainsFunc(defects, known) {
			t.Errorf("%+v: %v", r, err)
		}
		return 0
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err != nil && ctx.Err() == nil {
		t.Errorf("%+v: %v", r, err)
	}
	if bytes.Contains(answer, []byte("caused apiserver to panic")) {
		t.Errorf("%+v: %s", r, answer)
	}
	if resp.StatusCode >= 400 && resp.Header.Get("Content-Type") == "application/json" {
		var status metav1.Status
		if err := json.Unmarshal(answer, &status); err == nil && status.Kind == "Status" && (status.Message == "" || int(status.Code) != resp.StatusCode) {
			t.Errorf("%+v: %d: %s", r, resp.StatusCode, answer)
		}
	}
	return resp.StatusCode
}

// TestOddRequests sends what package wire's fuzzer begins with.
func TestOddRequests(t *testing.T) {
	for _, r := range wire.Odd {
		ask(t, r)
	}
	for path, body := range wire.Valid {
		ask(t, wire.Request{Method: "POST", Target: path, Content: "application/json", Body: body})
	}
}

// TestMutatedObjects sends objects that were valid until something in them was
// changed: they get past what reads them and meet defaulting, validation,
// admission and storage. $UNIPOD_MUTATIONS says how many, and another seed.
func TestMutatedObjects(t *testing.T) {
	n, seed := 1500, uint64(1)
	if s := os.Getenv("UNIPOD_MUTATIONS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	paths := make([]string, 0, len(wire.Valid))
	for path := range wire.Valid {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	codes := map[int]int{}
	for i := range n {
		path := paths[rnd.IntN(len(paths))]
		var obj any
		if err := json.Unmarshal([]byte(wire.Valid[path]), &obj); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		meta, _ := obj.(map[string]any)["metadata"].(map[string]any)
		name := ""
		if meta != nil {
			name = fmt.Sprint(meta["name"])
			if !strings.Contains(path, "customresourcedefinitions") {
				name = fmt.Sprintf("%s-%d", name, i%20)
				meta["name"] = name
			}
		}
		for range rnd.IntN(4) {
			obj = mutate(rnd, obj)
		}
		body, err := json.Marshal(obj)
		if err != nil {
			t.Fatal(err)
		}
		r := wire.Request{Method: "POST", Target: path, Content: "application/json", Body: string(body)}
		switch rnd.IntN(8) {
		case 0:
			r.Method, r.Target = "PUT", path+"/"+name
		case 1:
			r.Method, r.Target, r.Content = "PATCH", path+"/"+name+"?fieldManager=m&force=true", "application/apply-patch+yaml"
		case 2:
			r.Method, r.Target, r.Content = "PATCH", path+"/"+name, "application/strategic-merge-patch+json"
		case 3:
			r.Method, r.Target, r.Content = "PATCH", path+"/"+name+"/status", "application/merge-patch+json"
		case 4:
			r.Method, r.Target, r.Accept = "GET", path+"?limit=5", "application/json;as=Table;v=v1;g=meta.k8s.io"
		case 5:
			r.Method, r.Target, r.Body = "DELETE", path+"/"+name, `{"kind":"DeleteOptions","apiVersion":"v1","gracePeriodSeconds":0}`
		case 6:
			r.Target += "?fieldValidation=Strict&dryRun=All"
		}
		codes[ask(t, r)]++
		if t.Failed() {
			return
		}
	}
	t.Logf("answers by code: %v", codes)
	if codes[http.StatusCreated] == 0 || codes[http.StatusUnprocessableEntity] == 0 || codes[http.StatusOK] == 0 {
		t.Errorf("answers by code: %v: this test doesn't reach what it should", codes)
	}
}

var nasty = []any{nil, "", "a", "..", "../../x", "\x00", "%s%n", strings.Repeat("n", 300), "9999999999999999999", "-1", "1e400", "0x7fffffff", "NaN", "1Ei", "10.0.0.256", "::ffff:1.2.3.4", "*", "$(x)", "{{.}}",
	0, -1, 1, 65536, int64(1) << 40, 1e300, 0.5, true, false}

// oddValue is a new one each time: it may be changed.
func oddValue(rnd *rand.Rand) any {
	switch rnd.IntN(20) {
	case 0:
		return []any{}
	case 1:
		return map[string]any{}
	case 2:
		return []any{nil}
	case 3:
		return map[string]any{"": nil}
	case 4:
		return map[string]any{"$patch": "replace"}
	}
	return nasty[rnd.IntN(len(nasty))]
}

// mutate changes one thing in a tree of JSON.
func mutate(rnd *rand.Rand, v any) any {
	deeper := rnd.IntN(5) > 0
	switch v := v.(type) {
	case map[string]any:
		if len(v) == 0 {
			break
		}
		keys := slices.Sorted(maps.Keys(v))
		key := keys[rnd.IntN(len(keys))]
		switch {
		case deeper:
			v[key] = mutate(rnd, v[key])
		case rnd.IntN(2) == 0:
			delete(v, key)
		default:
			v[fmt.Sprint(nasty[rnd.IntN(len(nasty))])] = oddValue(rnd)
		}
		return v
	case []any:
		if len(v) == 0 {
			break
		}
		at := rnd.IntN(len(v))
		if deeper {
			v[at] = mutate(rnd, v[at])
			return v
		}
		return append(v, oddValue(rnd))
	}
	return oddValue(rnd)
}
