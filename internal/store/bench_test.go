package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/apis/example"
	"k8s.io/apiserver/pkg/storage"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
)

// The floor of a write is a write of the same bytes and their sync, alone. It
// is measured in the same run, between the writes it is compared with where
// they come one by one, before and after where they don't.
type floor struct {
	f    *os.File
	buf  []byte
	took []time.Duration
}

func newFloor(b *testing.B, size int) *floor {
	f, err := os.Create(filepath.Join(b.TempDir(), "floor"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	return &floor{f: f, buf: make([]byte, size)}
}

func (fl *floor) measure(b *testing.B) {
	for range 200 {
		fl.once(b)
	}
}

// between measures after every fourth operation.
func (fl *floor) between(b *testing.B, i int) {
	if i%4 == 0 {
		b.StopTimer()
		fl.once(b)
		b.StartTimer()
	}
}

func (fl *floor) once(b *testing.B) {
	start := time.Now()
	if _, err := fl.f.Write(fl.buf); err != nil {
		b.Error(err)
	}
	if err := unix.Fdatasync(int(fl.f.Fd())); err != nil {
		b.Error(err)
	}
	fl.took = append(fl.took, time.Since(start))
}

// report compares medians: one sync that waits for somebody else's doesn't
// decide.
func report(b *testing.B, took []time.Duration, fl *floor) {
	p50, p99 := quantiles(took)
	b.ReportMetric(float64(p50.Nanoseconds()), "p50-ns")
	b.ReportMetric(float64(p99.Nanoseconds()), "p99-ns")
	if fl != nil {
		f50, _ := quantiles(fl.took)
		b.ReportMetric(float64(f50.Nanoseconds()), "floor-p50-ns")
		b.ReportMetric(float64(p50)/float64(f50), "×floor")
	}
}

func quantiles(took []time.Duration) (p50, p99 time.Duration) {
	slices.Sort(took)
	return took[len(took)/2], took[len(took)*99/100]
}

// benchPods are upstream's own example of a pod, about 5 KB each.
func benchPods(n int) []*example.Pod {
	return storagetesting.PrepareBenchmarkData(1, n, 10).Pods
}

func benchStore(b *testing.B) *resource {
	r := pods(b)
	r.sized.Store(true)
	return r
}

func BenchmarkCreate(b *testing.B) {
	for _, writers := range []int{1, 16} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			r := benchStore(b)
			from := benchPods(1)[0]
			data, err := r.encode(from.DeepCopy())
			if err != nil {
				b.Fatal(err)
			}
			fl := newFloor(b, len(data)+64)
			if writers > 1 {
				fl.measure(b)
			}
			var n atomic.Int64
			took := make([]time.Duration, b.N)
			b.ResetTimer()
			var wg sync.WaitGroup
			for range writers {
				wg.Go(func() {
					for {
						i := int(n.Add(1)) - 1
						if i >= b.N {
							return
						}
						p := from.DeepCopy()
						p.Name, p.ResourceVersion = fmt.Sprintf("pod-%d", i), ""
						start := time.Now()
						if err := r.Create(context.Background(), podKey(p.Name), p, &example.Pod{}, 0); err != nil {
							b.Error(err)
							return
						}
						took[i] = time.Since(start)
						if writers == 1 {
							fl.between(b, i)
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			if writers > 1 {
				fl.measure(b)
			}
			report(b, took, fl)
		})
	}
}

func BenchmarkUpdate(b *testing.B) {
	r := benchStore(b)
	p := benchPods(1)[0]
	data, err := r.encode(p.DeepCopy())
	if err != nil {
		b.Fatal(err)
	}
	p.Name, p.ResourceVersion = "a", ""
	create(b, r, p)
	fl := newFloor(b, len(data)+64)
	took := make([]time.Duration, 0, b.N)
	for i := 0; b.Loop(); i++ {
		start := time.Now()
		label(b, r, "a", fmt.Sprint(i))
		took = append(took, time.Since(start))
		fl.between(b, i)
	}
	report(b, took, fl)
}

// full has a thousand pods.
func full(b *testing.B) *resource {
	r := podsOf(b, openStore(b, ""))
	for _, p := range benchPods(1000) {
		p.Namespace, p.ResourceVersion = "ns", ""
		create(b, r, p)
	}
	return r
}

func BenchmarkGet(b *testing.B) {
	r := full(b)
	p := &example.PodList{}
	if err := r.GetList(b.Context(), "/pods/", storage.ListOptions{Recursive: true, Predicate: storage.Everything}, p); err != nil {
		b.Fatal(err)
	}
	i := 0
	for b.Loop() {
		if err := r.Get(b.Context(), podKey(p.Items[i%len(p.Items)].Name), storage.GetOptions{}, &example.Pod{}); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkList(b *testing.B) {
	r := full(b)
	past := fmt.Sprint(r.db.Revision() - 200)
	for name, opts := range map[string]storage.ListOptions{
		"all":       {},
		"limit=100": {Predicate: storage.SelectionPredicate{Limit: 100}},
		"past": {ResourceVersion: past, ResourceVersionMatch: metav1.ResourceVersionMatchExact,
			Predicate: storage.SelectionPredicate{Limit: 100}},
	} {
		b.Run(name, func(b *testing.B) {
			opts.Recursive = true
			n := 0
			for b.Loop() {
				list := &example.PodList{}
				if err := r.GetList(b.Context(), "/pods/", opts, list); err != nil {
					b.Fatal(err)
				}
				n = len(list.Items)
			}
			b.ReportMetric(float64(n), "objects")
		})
	}
}

// BenchmarkWatch is from an update's begin to the event at the last watch, with
// the sync between.
func BenchmarkWatch(b *testing.B) {
	for _, watches := range []int{1, 100} {
		b.Run(fmt.Sprintf("watches=%d", watches), func(b *testing.B) {
			r := benchStore(b)
			p := benchPods(1)[0]
			p.Name, p.ResourceVersion = "a", ""
			first := create(b, r, p)
			data, err := r.encode(p.DeepCopy())
			if err != nil {
				b.Fatal(err)
			}
			fl := newFloor(b, len(data)+64)
			var all []<-chan struct{}
			for range watches {
				w, err := r.Watch(b.Context(), "/pods/", storage.ListOptions{Recursive: true, ResourceVersion: first.ResourceVersion, Predicate: storage.Everything})
				if err != nil {
					b.Fatal(err)
				}
				defer w.Stop()
				seen := make(chan struct{}, 1)
				all = append(all, seen)
				go func() {
					for range w.ResultChan() {
						seen <- struct{}{}
					}
				}()
			}
			took := make([]time.Duration, 0, b.N)
			for i := 0; b.Loop(); i++ {
				start := time.Now()
				label(b, r, "a", fmt.Sprint(i))
				for _, seen := range all {
					<-seen
				}
				took = append(took, time.Since(start))
				fl.between(b, i)
			}
			report(b, took, fl)
		})
	}
}

// BenchmarkOpen reads a store of a thousand pods, as a node's start does.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	s, err := Open(Config{Dir: dir})
	if err != nil {
		b.Fatal(err)
	}
	r := podsOf(b, s)
	for _, p := range benchPods(1000) {
		p.Namespace, p.ResourceVersion = "ns", ""
		create(b, r, p)
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s, err := Open(Config{Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
