package shutdown

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"unipod.dev/unipod/internal/engine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path=%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy>
</busconfig>`

// startBus is a message bus of this test's own.
func startBus(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("dbus-daemon"); err != nil {
		t.Skip("needs dbus-daemon (Debian: dbus)")
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(config, []byte(fmt.Sprintf(busConfig, filepath.Join(dir, "s"))), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("dbus-daemon", "--config-file="+config, "--nofork", "--print-address")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// fakeLogind is logind and systemd, as far as a shutdown goes.
type fakeLogind struct {
	t       *testing.T
	conn    *dbus.Conn
	props   *prop.Properties
	dropIns string
	deaf    bool // to settings

	mu       sync.Mutex
	locks    [][2]int // pipes, whose second end was handed out
	inhibits chan string
}

func (f *fakeLogind) Inhibit(what, who, why, mode string) (dbus.UnixFD, *dbus.Error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	f.mu.Lock()
	f.locks = append(f.locks, p)
	f.mu.Unlock()
	f.inhibits <- what + " " + mode
	return dbus.UnixFD(p[1]), nil
}

// KillUnit is systemd's.
func (f *fakeLogind) KillUnit(unit, who string, signal int32) *dbus.Error {
	if unit != "systemd-logind.service" || signal != 1 {
		f.t.Errorf("KillUnit(%s, %s, %d)", unit, who, signal)
	}
	text, err := os.ReadFile(filepath.Join(f.dropIns, "99-unipod.conf"))
	if err != nil {
		f.t.Error(err)
	}
	var seconds uint64
	if i := strings.Index(string(text), "InhibitDelayMaxSec="); i < 0 {
		f.t.Errorf("the setting is %q", text)
	} else if _, err := fmt.Sscanf(string(text[i:]), "InhibitDelayMaxSec=%d", &seconds); err != nil {
		f.t.Error(err)
	}
	if !f.deaf {
		f.props.SetMust(logindManager, "InhibitDelayMaxUSec", seconds*1e6)
	}
	return nil
}

func (f *fakeLogind) say(down bool) {
	f.t.Helper()
	if err := f.conn.Emit(logindPath, logindManager+".PrepareForShutdown", down); err != nil {
		f.t.Fatal(err)
	}
}

// released waits until the nth inhibitor is given up by m, which shuts down.
func (f *fakeLogind) released(m *Manager, n int) {
	f.t.Helper()
	for !m.ShuttingDown() { // until then the inhibitor may still be on its way
		time.Sleep(time.Millisecond)
	}
	f.mu.Lock()
	lock := f.locks[n]
	f.locks[n][1] = -1
	f.mu.Unlock()
	unix.Close(lock[1])
	// The end comes when the other side has closed it, too.
	if n, err := unix.Read(lock[0], make([]byte, 1)); n != 0 || err != nil {
		f.t.Errorf("%d, %v", n, err)
	}
}

func startLogind(t *testing.T, bus string) *fakeLogind {
	t.Helper()
	conn, err := dbus.Connect(bus)
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeLogind{t: t, conn: conn, dropIns: filepath.Join(t.TempDir(), "logind.conf.d"), inhibits: make(chan string, 10)}
	t.Cleanup(func() {
		conn.Close()
		for _, lock := range f.locks {
			unix.Close(lock[0])
			if lock[1] >= 0 {
				unix.Close(lock[1])
			}
		}
	})
	f.props, err = prop.Export(conn, logindPath, prop.Map{logindManager: {"InhibitDelayMaxUSec": {Value: uint64(5e6), Writable: true, Emit: prop.EmitFalse}}})
	if err != nil {
		t.Fatal(err)
	}
	for path, iface := range map[dbus.ObjectPath]string{logindPath: logindManager, "/org/freedesktop/systemd1": "org.freedesktop.systemd1.Manager"} {
		if err := conn.Export(f, path, iface); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{logindName, systemdName} {
		if r, err := conn.RequestName(name, dbus.NameFlagDoNotQueue); err != nil || r != dbus.RequestNameReplyPrimaryOwner {
			t.Fatalf("%s: %v %v", name, r, err)
		}
	}
	return f
}

// fakeEngine ends the pods it is told to, but one.
type fakeEngine struct {
	mu      sync.Mutex
	pods    []*v1.Pod
	evicted []string
	stays   string
}

func (e *fakeEngine) Pods() []*v1.Pod {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]*v1.Pod(nil), e.pods...)
}

func (e *fakeEngine) Evict(uid types.UID, ev engine.Eviction) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.evicted = append(e.evicted, fmt.Sprintf("%s %v %s", uid, *ev.Grace, ev.Reason))
	for i, p := range e.pods {
		if p.UID == uid && string(uid) != e.stays {
			ended := p.DeepCopy()
			ended.Status.Phase = v1.PodFailed
			e.pods[i] = ended
		}
	}
}

// told is whom it was told to end.
func (e *fakeEngine) told() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.evicted, ", ")
}

func newPod(name string, priority int32, grace int64) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name)},
		Spec:       v1.PodSpec{Priority: &priority, TerminationGracePeriodSeconds: ptr.To(grace)},
		Status:     v1.PodStatus{Phase: v1.PodRunning},
	}
}

func start(t *testing.T, cfg Config) (*Manager, func()) {
	t.Helper()
	cfg.Log = slog.New(slog.DiscardHandler)
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return m, stop
}

// TestShutdown: logind is made to wait, pods end by priority, then the machine
// may go; a shutdown that is called off is held back anew.
func TestShutdown(t *testing.T) {
	bus := startBus(t)
	logind := startLogind(t, bus)
	e := &fakeEngine{pods: []*v1.Pod{newPod("critical", 2000000000, 60), newPod("batch", -10, 600), newPod("web", 100, 7), newPod("over", 0, 1)}}
	e.pods[3].Status.Phase = v1.PodSucceeded
	periods, err := Periods(30*time.Second, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	m, stop := start(t, Config{Engine: e, Periods: periods, Bus: bus, DropIns: logind.dropIns})
	if got := <-logind.inhibits; got != "shutdown delay" {
		t.Errorf("inhibited %s", got)
	}
	if v := logind.props.GetMust(logindManager, "InhibitDelayMaxUSec"); v != uint64(30e6) {
		t.Errorf("logind waits %v", v)
	}
	if reason, _ := m.Admit(nil); reason != "" || m.ShuttingDown() {
		t.Error("it shuts down already")
	}
	// Anybody on the bus may say so; it isn't true.
	impostor, err := dbus.Connect(bus)
	if err != nil {
		t.Fatal(err)
	}
	defer impostor.Close()
	if err := impostor.Emit(logindPath, logindManager+".PrepareForShutdown", true); err != nil {
		t.Fatal(err)
	}
	// The bus keeps the order of what it was told before by others only per
	// sender: a call behind it shows that the signal went through.
	if err := impostor.BusObject().Call("org.freedesktop.DBus.GetId", 0).Err; err != nil {
		t.Fatal(err)
	}
	logind.say(false)
	<-m.Changed()
	if m.ShuttingDown() || e.told() != "" {
		t.Fatal("a signal of somebody else's was believed")
	}
	<-logind.inhibits // for the shutdown called off

	logind.say(true)
	logind.released(m, 1)
	if got := e.told(); got != "batch 20s Terminated, web 7s Terminated, critical 10s Terminated" {
		t.Errorf("ended: %s", got)
	}
	if reason, message := m.Admit(nil); reason != "NodeShutdown" || message != "Pod was rejected as the node is shutting down." {
		t.Errorf("a new pod: %s %s", reason, message)
	}
	logind.say(false)
	<-logind.inhibits
	stop()
}

// TestTimeUp: the machine goes although a pod doesn't.
func TestTimeUp(t *testing.T) {
	bus := startBus(t)
	logind := startLogind(t, bus)
	e := &fakeEngine{pods: []*v1.Pod{newPod("deaf", 0, 600), newPod("next", 5, 600)}, stays: "deaf"}
	m, _ := start(t, Config{Engine: e, Periods: []Period{{5, time.Second}, {0, time.Second}}, Bus: bus, DropIns: logind.dropIns})
	<-logind.inhibits
	logind.say(true)
	logind.released(m, 0)
	if got := e.told(); got != "deaf 1s Terminated, next 1s Terminated" {
		t.Errorf("ended: %s", got)
	}
}

// TestLogindComesLater: the node runs without it and takes it when it is there.
func TestLogindComesLater(t *testing.T) {
	bus := startBus(t)
	start(t, Config{Engine: &fakeEngine{}, Periods: []Period{{0, time.Second}}, Bus: bus})
	logind := startLogind(t, bus)
	<-logind.inhibits
}

// TestStubbornLogind: that it doesn't wait as long as it should is an error.
func TestStubbornLogind(t *testing.T) {
	bus := startBus(t)
	logind := startLogind(t, bus)
	logind.deaf = true
	m, err := New(Config{Engine: &fakeEngine{}, Periods: []Period{{0, time.Minute}}, Bus: bus, DropIns: logind.dropIns, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.serve(t.Context()); err == nil || !strings.Contains(err.Error(), "logind waits 5s at most, and the pods need 1m0s") {
		t.Error(err)
	}
}

func TestGroups(t *testing.T) {
	periods := []Period{{0, 1}, {100, 2}, {1000, 3}}
	got := ""
	for i, g := range groups(periods, []*v1.Pod{newPod("below", -5, 0), newPod("zero", 0, 0), newPod("between", 99, 0), newPod("at", 100, 0), newPod("over", 5000, 0)}) {
		for _, p := range g.pods {
			got += fmt.Sprintf("%d:%s ", i, p.Name)
		}
	}
	if got != "0:below 0:zero 0:between 1:at 2:over " {
		t.Error(got)
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []struct{ total, critical time.Duration }{{-1, 0}, {1, 2}, {1, -1}} {
		if _, err := Periods(c.total, c.critical); err == nil {
			t.Errorf("%v passes", c)
		}
	}
	if p, err := Periods(0, 0); p != nil || err != nil {
		t.Errorf("switched off: %v %v", p, err)
	}
	for _, p := range [][]Period{nil, {{0, -1}}, {{5, 1}, {5, 2}}} {
		if _, err := New(Config{Engine: &fakeEngine{}, Periods: p}); err == nil {
			t.Errorf("%v passes", p)
		}
	}
}
