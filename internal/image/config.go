package image

import (
	"io"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"k8s.io/utils/clock"
)

const (
	defaultStall = 60 * time.Second
	// defaultKeep is twice the longest back-off between a kubelet's attempts.
	defaultKeep = 10 * time.Minute
)

func (c *Config) setDefaults() {
	if c.RegistriesConf == "" {
		c.RegistriesConf = firstExisting("/etc/unipod/registries.conf", "/etc/containers/registries.conf")
	}
	if c.CertsDirs == nil {
		c.CertsDirs = []string{"/etc/unipod/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"}
	}
	if c.PolicyFile == "" {
		c.PolicyFile = firstExisting("/etc/unipod/policy.json", "/etc/containers/policy.json")
	}
	if c.StallTimeout == 0 {
		c.StallTimeout = defaultStall
	}
	if c.KeepPartial == 0 {
		c.KeepPartial = defaultKeep
	}
	if c.Downloads <= 0 {
		c.Downloads = 4
	}
	if c.Unpacks <= 0 {
		c.Unpacks = max(2, runtime.NumCPU())
	}
	if c.Clock == nil {
		c.Clock = clock.RealClock{}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
}

var quiet sync.Once

// quietLibraries takes the libraries' messages off standard error, where they
// would run into the user's output, and into our log. Both containerd's and
// containers' libraries log through logrus' global logger.
func quietLibraries(l *slog.Logger) {
	quiet.Do(func() {
		logrus.SetOutput(io.Discard)
		logrus.AddHook(hook{l})
	})
}

type hook struct{ log *slog.Logger }

func (hook) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel, logrus.WarnLevel}
}

func (h hook) Fire(e *logrus.Entry) error {
	level := slog.LevelDebug
	if e.Level <= logrus.ErrorLevel {
		level = slog.LevelWarn
	}
	attrs := make([]any, 0, 2*len(e.Data))
	for k, v := range e.Data {
		attrs = append(attrs, k, v)
	}
	h.log.Log(e.Context, level, e.Message, attrs...)
	return nil
}
