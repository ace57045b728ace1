package apiserver

import (
	"context"
	"log/slog"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
)

// UpstreamLogs sends what upstream's code logs, which is the process's, to a
// logger: what it calls information is our debugging.
func UpstreamLogs(log *slog.Logger) {
	klog.SetLoggerWithOptions(logr.FromSlogHandler(demote{log.Handler()}), klog.ContextualLogger(true))
}

type demote struct{ slog.Handler }

func level(l slog.Level) slog.Level {
	if l >= slog.LevelInfo && l < slog.LevelWarn {
		return slog.LevelDebug
	}
	return l
}

func (d demote) Enabled(ctx context.Context, l slog.Level) bool {
	return d.Handler.Enabled(ctx, level(l))
}

func (d demote) Handle(ctx context.Context, r slog.Record) error {
	r.Level = level(r.Level)
	return d.Handler.Handle(ctx, r)
}

func (d demote) WithAttrs(a []slog.Attr) slog.Handler { return demote{d.Handler.WithAttrs(a)} }
func (d demote) WithGroup(g string) slog.Handler      { return demote{d.Handler.WithGroup(g)} }
