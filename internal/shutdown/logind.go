package shutdown

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	logindName    = "org.freedesktop.login1"
	logindPath    = dbus.ObjectPath("/org/freedesktop/login1")
	logindManager = "org.freedesktop.login1.Manager"
	systemdName   = "org.freedesktop.systemd1"
	// dropIn is read after others': it is the node's word that counts.
	dropIn = "99-unipod.conf"
)

// logind is a connection to systemd-logind.
type logind struct {
	conn *dbus.Conn
	obj  dbus.BusObject
	// owner is logind's own name on the bus. Anybody may broadcast a signal;
	// only those of this name are its.
	owner string
}

func connect(ctx context.Context, address string) (*logind, error) {
	// A shutdown and its end must not be heard the wrong way round.
	options := []dbus.ConnOption{dbus.WithContext(ctx), dbus.WithSignalHandler(dbus.NewSequentialSignalHandler())}
	var conn *dbus.Conn
	var err error
	if address == "" {
		conn, err = dbus.ConnectSystemBus(options...)
	} else {
		conn, err = dbus.Connect(address, options...)
	}
	if err != nil {
		return nil, fmt.Errorf("connecting to the message bus: %w", err)
	}
	l := &logind{conn: conn, obj: conn.Object(logindName, logindPath)}
	// Asking for a property starts logind where it isn't running yet.
	if _, err := l.delay(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	if err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, logindName).Store(&l.owner); err != nil {
		conn.Close()
		return nil, fmt.Errorf("who is logind: %w", err)
	}
	return l, nil
}

func (l *logind) close() { l.conn.Close() }

// delay is how long logind waits for inhibitors.
func (l *logind) delay(ctx context.Context) (time.Duration, error) {
	var v dbus.Variant
	err := l.obj.CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, logindManager, "InhibitDelayMaxUSec").Store(&v)
	if err != nil {
		return 0, fmt.Errorf("asking logind how long it waits: %w", err)
	}
	us, ok := v.Value().(uint64)
	if !ok {
		return 0, fmt.Errorf("asking logind how long it waits: the answer is %v", v)
	}
	return time.Duration(min(us, uint64(1<<62/time.Microsecond))) * time.Microsecond, nil
}

// inhibit holds shutdowns back until the file is closed.
func (l *logind) inhibit(ctx context.Context) (*os.File, error) {
	var fd dbus.UnixFD
	err := l.obj.CallWithContext(ctx, logindManager+".Inhibit", 0, "shutdown", "unipod", "Pods need time to end", "delay").Store(&fd)
	if err != nil {
		return nil, fmt.Errorf("asking logind to wait: %w", err)
	}
	unix.CloseOnExec(int(fd))
	return os.NewFile(uintptr(fd), "inhibitor"), nil
}

// shutdowns tells when the machine begins to shut down (true) and when that
// was called off; the channel is closed with the connection.
func (l *logind) shutdowns() (<-chan bool, error) {
	err := l.conn.AddMatchSignal(dbus.WithMatchSender(logindName), dbus.WithMatchObjectPath(logindPath),
		dbus.WithMatchInterface(logindManager), dbus.WithMatchMember("PrepareForShutdown"))
	if err != nil {
		return nil, fmt.Errorf("listening for shutdowns: %w", err)
	}
	signals := make(chan *dbus.Signal, 16)
	l.conn.Signal(signals)
	out := make(chan bool, 16)
	go func() {
		defer close(out)
		for s := range signals {
			if s.Sender != l.owner || s.Path != logindPath || s.Name != logindManager+".PrepareForShutdown" || len(s.Body) != 1 {
				continue
			}
			if down, ok := s.Body[0].(bool); ok {
				select {
				case out <- down:
				default: // nobody calls so many shutdowns off
				}
			}
		}
	}()
	return out, nil
}

// askForTime has logind wait as long as the periods take together.
func (m *Manager) askForTime(ctx context.Context, l *logind) error {
	want := m.total()
	has, err := l.delay(ctx)
	if err != nil || has >= want {
		return err
	}
	text := fmt.Sprintf("# written by unipod: a shutdown waits for the pods\n[Login]\nInhibitDelayMaxSec=%d\n", int64((want+time.Second-1)/time.Second))
	if err := writeSetting(filepath.Join(m.cfg.DropIns, dropIn), text); err != nil {
		return fmt.Errorf("logind's setting InhibitDelayMaxSec: %w", err)
	}
	err = l.conn.Object(systemdName, "/org/freedesktop/systemd1").
		CallWithContext(ctx, systemdName+".Manager.KillUnit", 0, "systemd-logind.service", "all", int32(unix.SIGHUP)).Err
	if err != nil {
		return fmt.Errorf("having logind read its settings: %w", err)
	}
	// It does so behind the answer.
	for wait := 100 * time.Millisecond; wait < 3*time.Second; wait *= 2 {
		if has, err = l.delay(ctx); err != nil || has >= want {
			return err
		}
		timer := m.cfg.Clock.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C():
		}
	}
	return fmt.Errorf("logind waits %v at most, and the pods need %v (another file below %s sets InhibitDelayMaxSec?): %w", has, want, m.cfg.DropIns, errdefs.ErrFailedPrecondition)
}

// writeSetting writes a small file so that nobody reads half of it.
func writeSetting(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := path + ".tmp" // logind reads *.conf only
	err := os.WriteFile(tmp, []byte(text), 0o644)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		err = errors.Join(err, os.RemoveAll(tmp))
	}
	return err
}
