package klogs

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"k8s.io/klog/v2"
)

func lines(t *testing.T, min slog.Level, say func()) string {
	t.Helper()
	var out bytes.Buffer
	Install(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{
		Level: min,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})))
	defer klog.ClearLogger()
	say()
	return out.String()
}

func TestLevels(t *testing.T) {
	say := func() {
		klog.Background().V(2).Info("verbose")
		klog.Infof("told %d", 1)
		klog.ErrorS(errors.New("conflict"), "Sync failed", "pod", klog.KRef("ns", "p"))
	}
	if got, want := lines(t, slog.LevelInfo, say), "level=WARN msg=\"Sync failed\" err=conflict pod.name=p pod.namespace=ns\n"; got != want {
		t.Errorf("at info: got %q, want %q", got, want)
	}
	got := lines(t, slog.LevelDebug, say)
	if !strings.HasPrefix(got, "level=DEBUG msg=\"told 1\"\n") || strings.Contains(got, "verbose") {
		t.Errorf("at debug: %q", got)
	}
}

func TestRoutine(t *testing.T) {
	say := func() {
		klog.Background().Error(errors.New(`sync "a/b" failed with read version: 1 is not as new as written version: 2`), "Unhandled Error")
	}
	if got := lines(t, slog.LevelInfo, say); got != "" {
		t.Errorf("at info: %q", got)
	}
	if got := lines(t, slog.LevelDebug, say); !strings.HasPrefix(got, "level=DEBUG msg=\"Unhandled Error\"") {
		t.Errorf("at debug: %q", got)
	}
}

func TestContext(t *testing.T) {
	var out bytes.Buffer
	ctx := Context(t.Context(), slog.New(slog.NewTextHandler(&out, nil)), "controller", "job-controller")
	klog.FromContext(ctx).Error(nil, "no")
	klog.FromContext(ctx).Info("not this")
	if got := out.String(); !strings.Contains(got, "level=WARN msg=no controller=job-controller") || strings.Contains(got, "not this") {
		t.Errorf("got %q", got)
	}
}
