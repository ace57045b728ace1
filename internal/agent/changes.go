package agent

import (
	"context"

	"k8s.io/apimachinery/pkg/types"
)

// Changes gives a value whenever a pod's status may have changed, until ctx
// ends. A reader that is slow gets one value for several changes.
func Changes(e Engine) func(ctx context.Context, uid types.UID) <-chan struct{} {
	return func(ctx context.Context, uid types.UID) <-chan struct{} {
		out := make(chan struct{}, 1)
		events := e.Watch(ctx)
		go func() {
			for ev := range events { // closed when ctx ends
				if ev.Pod.UID != uid {
					continue
				}
				select {
				case out <- struct{}{}:
				default:
				}
			}
		}()
		return out
	}
}
