package api

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	"unipod.dev/unipod/internal/pki"
)

// child serves until it is killed. An administrator's certificate is beside the
// data, for clients that know nothing of package pki.
func child(dir string) error {
	r, err := start(dir)
	if err != nil {
		return err
	}
	if err := serviceAccount(r); err != nil {
		return err
	}
	certificate, key, err := r.authority.Admin().PEM()
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{"admin.crt": certificate, "admin.key": key, "ca.crt": r.authority.CABundlePEM()} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	fmt.Println(r.addr)
	select {}
}

const (
	killRounds  = 8
	killWriters = 16
)

// writer creates, updates and deletes Secrets of its own, one after another:
// the n-th is created as n, updated, and n-2 is deleted. done counts steps
// that were acknowledged.
type writer struct {
	id   int
	done int
}

func (w *writer) name(n int) string { return fmt.Sprintf("w%02d-%05d", w.id, n) }

// step is what comes next.
func (w *writer) step(ctx context.Context, c kubernetes.Interface) error {
	secrets := c.CoreV1().Secrets("default")
	n := w.done / 3
	var err error
	switch w.done % 3 {
	case 0:
		_, err = secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: w.name(n)}, StringData: map[string]string{"v": "created"}}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) { // it was made and not acknowledged
			err = nil
		}
	case 1:
		_, err = secrets.Update(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: w.name(n)}, StringData: map[string]string{"v": strings.Repeat("u", 1000)}}, metav1.UpdateOptions{})
	case 2:
		if n < 2 {
			return nil
		}
		if err = secrets.Delete(ctx, w.name(n-2), metav1.DeleteOptions{}); apierrors.IsNotFound(err) {
			err = nil
		}
	}
	return err
}

// check compares what is there with what was acknowledged. The step behind may
// have been made or not.
func (w *writer) check(t *testing.T, got map[string]string) {
	t.Helper()
	want := func(done int) map[string]string {
		is := map[string]string{}
		n := done / 3
		for i := max(0, n-2); i < n; i++ {
			is[w.name(i)] = strings.Repeat("u", 1000)
		}
		if n >= 3 && done%3 == 0 { // the one before last was deleted by the last step
			delete(is, w.name(n-3))
		}
		switch done % 3 {
		case 1:
			is[w.name(n)] = "created"
		case 2:
			is[w.name(n)] = strings.Repeat("u", 1000)
		}
		return is
	}
	own := map[string]string{}
	for name, v := range got {
		if strings.HasPrefix(name, fmt.Sprintf("w%02d-", w.id)) {
			own[name] = v
		}
	}
	if fmt.Sprint(own) != fmt.Sprint(want(w.done)) && fmt.Sprint(own) != fmt.Sprint(want(w.done+1)) {
		t.Errorf("writer %d after %d steps has %.500v", w.id, w.done, own)
	}
}

// TestKilledServer kills the whole server while sixteen clients write Secrets,
// several times: what was acknowledged is there, decrypted with the keys that
// are on the same disk.
func TestKilledServer(t *testing.T) {
	dir := t.TempDir()
	writers := make([]*writer, killWriters)
	for i := range writers {
		writers[i] = &writer{id: i}
	}
	for round := range killRounds {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := sync.OnceFunc(func() {
			cmd.Process.Kill()
			_ = cmd.Wait()
		})
		defer kill()
		addr, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatalf("round %d: the server doesn't start: %v", round, err)
		}
		authority, err := pki.Load(filepath.Join(dir, "pki"), clock.RealClock{})
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := admin(authority, strings.TrimSpace(addr))
		if err != nil {
			t.Fatal(err)
		}
		c := clientset(t, cfg)
		list, err := c.CoreV1().Secrets("default").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, s := range list.Items {
			got[s.Name] = string(s.Data["v"])
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		started := make(chan struct{}, killWriters)
		for _, w := range writers {
			w.check(t, got)
			wg.Go(func() {
				for w.step(ctx, c) == nil {
					w.done++
					select {
					case started <- struct{}{}:
					default:
					}
				}
			})
		}
		for range killWriters {
			<-started
		}
		time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
		kill()
		cancel()
		wg.Wait()
	}
	steps := 0
	for _, w := range writers {
		steps += w.done
	}
	t.Logf("%d acknowledged writes in %d lives of the server", steps, killRounds)
}
