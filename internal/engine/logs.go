package engine

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Kubelet's defaults.
const (
	maxLogSize      = 10 << 20 // bytes; a log that is larger is rotated
	maxLogFiles     = 5        // of one run of a container, the current one included
	logCheckPeriod  = 10 * time.Second
	rotationPattern = "20060102-150405"
)

// runningLog is the log a running container writes to.
type runningLog struct{ id, path string }

// rotateLogs looks at the running containers' logs now and then.
func (e *Engine) rotateLogs(ctx context.Context) {
	ticker := e.clock.NewTicker(logCheckPeriod)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
		for _, l := range e.runningLogs() {
			info, err := os.Lstat(l.path)
			if err != nil || info.Size() < maxLogSize || ctx.Err() != nil {
				continue
			}
			if err := e.rotate(ctx, l); err != nil {
				e.log.Error("rotating a log failed", "path", l.path, "err", err)
			}
		}
	}
}

func (e *Engine) runningLogs() []runningLog {
	e.mu.Lock()
	defer e.mu.Unlock()
	var logs []runningLog
	for _, w := range e.pods {
		w.mu.Lock()
		logs = append(logs, w.logs...)
		w.mu.Unlock()
	}
	return logs
}

// rotate sets a log aside under the time's name and has the runtime begin a
// new one. Of those set aside before, all are compressed and only the newest
// are kept.
func (e *Engine) rotate(ctx context.Context, l runningLog) error {
	old, err := rotated(l.path)
	if err != nil {
		return err
	}
	if excess := len(old) - (maxLogFiles - 2); excess > 0 {
		for _, f := range old[:excess] {
			if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		old = old[excess:]
	}
	for _, f := range old {
		if !strings.HasSuffix(f, ".gz") {
			if err := compress(f); err != nil {
				return err
			}
		}
	}
	aside := l.path + "." + e.clock.Now().Format(rotationPattern)
	if err := os.Rename(l.path, aside); err != nil {
		return err
	}
	if _, err := e.cfg.CRI.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: l.id}); err != nil {
		// The container still writes to the old file: give it its name back.
		return errors.Join(fmt.Errorf("reopening the log: %w", err), os.Rename(aside, l.path))
	}
	return nil
}

// rotated lists what was set aside of a log, the oldest first, and removes
// what an interrupted rotation left.
func rotated(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	var list []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), filepath.Base(path)+".") {
			continue
		}
		full := filepath.Join(filepath.Dir(path), e.Name())
		switch {
		case strings.HasSuffix(full, ".tmp"):
			if err := os.Remove(full); err != nil {
				return nil, err
			}
		case !slices.Contains(list, strings.TrimSuffix(full, ".gz")):
			list = append(list, full)
		default:
			// Compressed, and the original was not removed any more.
			if err := os.Remove(strings.TrimSuffix(full, ".gz")); err != nil {
				return nil, err
			}
			list[slices.Index(list, strings.TrimSuffix(full, ".gz"))] = full
		}
	}
	slices.Sort(list)
	return list, nil
}

// compress replaces a file by its gzip, so that either is complete at any
// time.
func compress(path string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	tmp := path + ".tmp"
	out, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	defer os.Remove(tmp) // gone after the rename
	z := gzip.NewWriter(out)
	_, err = io.Copy(z, in)
	if err = errors.Join(err, z.Close(), out.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path+".gz"); err != nil {
		return err
	}
	return os.Remove(path)
}
