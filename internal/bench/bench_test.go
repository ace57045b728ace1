package bench

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestTimesOf(t *testing.T) {
	var all []time.Duration
	for i := 10; i >= 1; i-- {
		all = append(all, time.Duration(i)*time.Millisecond)
	}
	if got := TimesOf(all); got != (Times{10, time.Millisecond, 5 * time.Millisecond, 9 * time.Millisecond}) {
		t.Errorf("%+v", got)
	}
	if got := TimesOf(all[:1]); got != (Times{1, 10 * time.Millisecond, 10 * time.Millisecond, 10 * time.Millisecond}) {
		t.Errorf("%+v", got)
	}
	b, err := json.Marshal(Figures{Name: "x", Exec: TimesOf(all)})
	if want := `{"name":"x","execSync":{"n":10,"p10ms":1,"p50ms":5,"p90ms":9}}`; err != nil || string(b) != want {
		t.Errorf("%s, %v", b, err)
	}
}

// The floor is made of real namespaces, and leaves none of it.
func TestFloor(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes namespaces and control groups")
	}
	f, err := MeasureFloor(t.Context(), 3)
	if err != nil {
		t.Fatal(err)
	}
	if f.PodStart.N != 3 || f.PodStart.P50 <= 0 || f.Exec.P50 <= 0 || f.Stop.P50 <= 0 {
		t.Errorf("%+v", f)
	}
	left, err := filepath.Glob("/sys/fs/cgroup/*/unipod-floor-" + strconv.Itoa(os.Getpid()))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

func TestTable(t *testing.T) {
	ms := func(n float64) Times {
		d := time.Duration(n * float64(time.Millisecond))
		return Times{10, d / 2, d, 2 * d}
	}
	r := &Report{
		When: time.Date(2026, 11, 23, 15, 0, 0, 0, time.UTC), Machine: "Linux 6.18, 2 cores", Options: Options{Pods: 10, Parallel: 8, Hold: 200},
		Floor: &Figures{Name: "floor", Sandbox: ms(3), Start: ms(2), PodStart: ms(5), Exec: ms(0.5), Stop: ms(4)},
		Runtimes: []*Figures{
			{Name: "unipod", Sandbox: ms(5), Create: ms(1), Start: ms(2), PodStart: ms(8), Exec: ms(2.5), Stop: ms(6), PodsPerSecond: 123.4,
				Held: &Held{Pods: 200, Seconds: 1.5, PauseBytes: 20 << 10, NodeBytes: 80 << 10, NodeRSS: 64 << 20}},
			{Name: "podman", PodStart: ms(900), Failed: []string{"memory: it has none"}},
		},
	}
	var b strings.Builder
	if err := r.Table(&b); err != nil {
		t.Fatal(err)
	}
	want := `Linux 6.18, 2 cores, 2026-11-23 15:00
milliseconds, median / 90th percentile of 10 pods; in brackets the median's ratio to the floor

                                 floor         unipod               podman                goal
pod start                        5.00 / 10.0   8.00 / 16.0 (1.6×)   900 / 1800 (180.0×)   ≤ 10.0
  RunPodSandbox                  3.00 / 6.00   5.00 / 10.0 (1.7×)   –                     
  CreateContainer                –             1.00 / 2.00          –                     
  StartContainer                 2.00 / 4.00   2.00 / 4.00 (1.0×)   –                     
ExecSync true                    0.50 / 1.00   2.50 / 5.00 (5.0×)   –                     ≤ 3.00
stop and remove                  4.00 / 8.00   6.00 / 12.0 (1.5×)   –                     ≤ 10.0
image pull and unpack            –             –                    –                     
pods per second, 8 at a time     –             123.4                –                     ≥ 100
memory per pod of 200, KiB       –             100                  –                     ≤ 150
  its pause or shim              –             20                   –                     
  the runtime's growth           –             80                   –                     
  the runtime in all, MiB RSS    –             64                   –                     
  seconds until all were ready   –             1.5                  –                     

podman, not measured: memory: it has none
`
	if b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
	}
}

// The registry serves what an OCI client asks for, digests and all.
func TestRegistry(t *testing.T) {
	r, err := NewRegistry(true)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if none, err := NewRegistry(false); err != nil || none.Pull() != "" || none.Close() != nil {
		t.Errorf("a registry that was asked for no image to pull has %q, %v", none.Pull(), err)
	}
	for ref, layers := range map[string]int{r.Pull(): pullLayers, r.App(): 1} {
		host, path, _ := strings.Cut(ref, "/")
		repo, tag, _ := strings.Cut(path, ":")
		checkImage(t, host, repo, tag, layers)
	}
}

// checkImage pulls an image and compares what comes with what was announced.
func checkImage(t *testing.T, host, repo, tag string, layers int) {
	t.Helper()
	get := func(kind, name string) []byte {
		resp, err := http.Get("http://" + host + "/v2/" + repo + "/" + kind + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s %s: %s, %v", kind, name, resp.Status, err)
		}
		if d := resp.Header.Get("Docker-Content-Digest"); d != "sha256:"+digest(b) {
			t.Errorf("%s %s: digest %s", kind, name, d)
		}
		return b
	}
	var manifest struct {
		Config struct{ Digest string }
		Layers []struct {
			Digest string
			Size   int
		}
	}
	if err := json.Unmarshal(get("manifests", tag), &manifest); err != nil {
		t.Fatal(err)
	}
	get("blobs", manifest.Config.Digest)
	if len(manifest.Layers) != layers {
		t.Fatalf("%s: %d layers, want %d", repo, len(manifest.Layers), layers)
	}
	for _, l := range manifest.Layers {
		if got := len(get("blobs", l.Digest)); got != l.Size {
			t.Errorf("layer of %d bytes, want %d", got, l.Size)
		}
	}
}
