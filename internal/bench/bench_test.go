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
	if got := TimesOf(all); got != (Times{10, 5 * time.Millisecond, 9 * time.Millisecond}) {
		t.Errorf("%+v", got)
	}
	if got := TimesOf(all[:1]); got != (Times{1, 10 * time.Millisecond, 10 * time.Millisecond}) {
		t.Errorf("%+v", got)
	}
	b, err := json.Marshal(Figures{Name: "x", Exec: TimesOf(all)})
	if want := `{"name":"x","execSync":{"n":10,"p50ms":5,"p90ms":9}}`; err != nil || string(b) != want {
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
	ms := func(n float64) Times { d := time.Duration(n * float64(time.Millisecond)); return Times{10, d, 2 * d} }
	r := &Report{
		When: time.Date(2026, 11, 23, 15, 0, 0, 0, time.UTC), Machine: "Linux 6.18, 2 cores", Options: Options{Pods: 10, Parallel: 8},
		Floor: &Figures{Name: "floor", Sandbox: ms(3), Start: ms(2), PodStart: ms(5), Exec: ms(0.5), Stop: ms(4)},
		Runtimes: []*Figures{
			{Name: "unipod", Sandbox: ms(5), Create: ms(1), Start: ms(2), PodStart: ms(8), Exec: ms(2.5), Stop: ms(6), PodsPerSecond: 123.4, BytesPerPod: 100 << 10},
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
pod start                      5.00 / 10.0   8.00 / 16.0 (1.6×)   900 / 1800 (180.0×)   ≤ 10.0
  RunPodSandbox                3.00 / 6.00   5.00 / 10.0 (1.7×)   –                     
  CreateContainer              –             1.00 / 2.00          –                     
  StartContainer               2.00 / 4.00   2.00 / 4.00 (1.0×)   –                     
ExecSync true                  0.50 / 1.00   2.50 / 5.00 (5.0×)   –                     ≤ 3.00
stop and remove                4.00 / 8.00   6.00 / 12.0 (1.5×)   –                     ≤ 10.0
image pull and unpack          –             –                    –                     
pods per second, 8 at a time   –             123.4                –                     ≥ 100
memory per pod, KiB            –             100                  –                     ≤ 150

podman, not measured: memory: it has none
`
	if b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
	}
}

// The registry serves what an OCI client asks for, digests and all.
func TestRegistry(t *testing.T) {
	r, err := NewRegistry()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	host, path, _ := strings.Cut(r.Ref(), "/")
	repo, tag, _ := strings.Cut(path, ":")
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
	if len(manifest.Layers) != pullLayers {
		t.Fatalf("%d layers", len(manifest.Layers))
	}
	for _, l := range manifest.Layers {
		if got := len(get("blobs", l.Digest)); got != l.Size {
			t.Errorf("layer of %d bytes, want %d", got, l.Size)
		}
	}
}
