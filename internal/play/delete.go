package play

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// Kill implements World.
func (a *API) Kill() { a.kill.Do(func() { close(a.killed) }) }

// Delete implements World: stage by stage, the last first.
func (a *API) Delete(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	killer := make(chan struct{})
	go func() {
		defer close(killer)
		a.killer(ctx)
	}()
	defer func() { stop(); <-killer }()
	a.mu.Lock()
	left := slices.Clone(a.made)
	a.mu.Unlock()
	slices.Reverse(left)
	var failed error
	for len(left) > 0 {
		n := 0
		for n < len(left) && left[n].stage == left[0].stage {
			n++
		}
		now := left[:n]
		left = left[n:]
		for _, o := range now {
			if err := a.remove(ctx, o); err != nil {
				failed = errors.Join(failed, fmt.Errorf("removing %s: %w", o.key(), err))
			}
		}
		for _, o := range now {
			if err := a.gone(ctx, o); err != nil {
				failed = errors.Join(failed, fmt.Errorf("waiting for %s to be removed: %w", o.key(), err))
			}
		}
		// Where removing fails, pods needn't end.
		if failed == nil && (len(left) == 0 || left[0].stage < runners && now[0].stage >= runners) {
			failed = a.noPods(ctx)
		}
	}
	if failed == nil {
		a.mu.Lock()
		a.made = nil
		a.mu.Unlock()
		failed = a.write(nil)
	}
	return failed
}

// remove begins the end of an object and of what it owns.
func (a *API) remove(ctx context.Context, o *planned) error {
	err := a.resource(o.mapping, o.GetNamespace()).Delete(ctx, o.GetName(), metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &o.uid}, PropagationPolicy: ptr.To(metav1.DeletePropagationBackground),
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // gone, or another of the name
		return nil
	}
	return err
}

// gone waits until an object is.
func (a *API) gone(ctx context.Context, o *planned) error {
	var late <-chan time.Time
	killed := a.killed
	for {
		u, err := a.resource(o.mapping, o.GetNamespace()).Get(ctx, o.GetName(), metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && u.GetUID() != o.uid {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-killed:
			late, killed = a.clock.After(patience), nil
		case <-late:
			return fmt.Errorf("it is still there; its finalizers are %v", u.GetFinalizers())
		case <-a.clock.After(lookAgain):
		}
	}
}

// noPods waits until no pod of the play is left, and Watch has told so.
func (a *API) noPods(ctx context.Context) error {
	var late <-chan time.Time
	killed := a.killed
	for {
		a.mu.Lock()
		n, fewer := len(a.pods), a.fewer
		a.mu.Unlock()
		if n == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-killed:
			late, killed = a.clock.After(patience), nil
		case <-late:
			return fmt.Errorf("%d pods are still there %s after they were killed", n, patience)
		case <-fewer:
		}
	}
}

// killer kills the pods of the play once that was asked for, those included
// that come later.
func (a *API) killer(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-a.killed:
	}
	for {
		a.mu.Lock()
		var pods []*v1.Pod
		for _, p := range a.pods {
			pods = append(pods, p)
		}
		a.mu.Unlock()
		for _, p := range pods {
			// What fails is tried again; what is gone is what was wanted.
			_ = a.client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{
				GracePeriodSeconds: ptr.To[int64](0), Preconditions: &metav1.Preconditions{UID: &p.UID},
			})
		}
		select {
		case <-ctx.Done():
			return
		case <-a.clock.After(10 * lookAgain):
		}
	}
}
