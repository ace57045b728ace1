package cli

import (
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"unipod.dev/unipod/internal/shutdown"
	"unipod.dev/unipod/internal/upkeep/eviction"
	"unipod.dev/unipod/internal/upkeep/imagegc"
)

// upkeepFlags are kubelet's of the same names.
type upkeepFlags struct {
	hard, soft, grace, reclaim []string
	maxPodGrace                int
	transition                 time.Duration
	images                     imagegc.Policy
	shutdown, critical         time.Duration
	byPriority                 []string
}

func (f *upkeepFlags) add(fl *pflag.FlagSet) {
	var hard []string
	for _, s := range []string{"memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available", "imagefs.inodesFree"} {
		hard = append(hard, s+"<"+eviction.DefaultHard[s])
	}
	fl.StringSliceVar(&f.hard, "eviction-hard", hard, "what the node may run short of before it ends pods for it; \"\" for nothing")
	fl.StringSliceVar(&f.soft, "eviction-soft", nil, "likewise, when it stays so for the grace period (memory.available<1.5Gi)")
	fl.StringSliceVar(&f.grace, "eviction-soft-grace-period", nil, "grace periods of --eviction-soft (memory.available=1m30s)")
	fl.StringSliceVar(&f.reclaim, "eviction-minimum-reclaim", nil, "how much more is got back (imagefs.available=2Gi)")
	fl.IntVar(&f.maxPodGrace, "eviction-max-pod-grace-period", 0, "seconds that pods ended for --eviction-soft get at most")
	fl.DurationVar(&f.transition, "eviction-pressure-transition-period", eviction.DefaultTransition, "how long the node counts as short of something afterwards")
	fl.IntVar(&f.images.High, "image-gc-high-threshold", imagegc.Default.High, "percent of its disk in use from which on unused images are removed; 100 for never")
	fl.IntVar(&f.images.Low, "image-gc-low-threshold", imagegc.Default.Low, "percent in use that removing aims at")
	fl.DurationVar(&f.images.MinAge, "minimum-image-ttl-duration", imagegc.Default.MinAge, "how long an unused image is kept at least")
	fl.DurationVar(&f.shutdown, "shutdown-grace-period", 0, "how long a shutdown of the machine waits for pods to end (0: not at all)")
	fl.DurationVar(&f.critical, "shutdown-grace-period-critical-pods", 0, "the last part of that, for critical pods")
	fl.StringSliceVar(&f.byPriority, "shutdown-grace-period-by-pod-priority", nil, "instead of both: times by lowest priority (0=1m,2000000000=10s)")
	fl.DurationVar(&f.images.MaxAge, "image-maximum-gc-age", 0, "how long an unused image is kept at most (default: for ever)")
}

// policies are what the flags say.
func (f *upkeepFlags) policies() (eviction.Policy, imagegc.Policy, error) {
	p := eviction.Policy{MaxPodGrace: time.Duration(f.maxPodGrace) * time.Second, Transition: f.transition}
	var parts [4]map[string]string
	for i, flag := range []struct {
		name, separator string
		values          []string
	}{
		{"eviction-hard", "<", f.hard}, {"eviction-soft", "<", f.soft}, {"eviction-soft-grace-period", "=", f.grace}, {"eviction-minimum-reclaim", "=", f.reclaim},
	} {
		parts[i] = map[string]string{}
		for _, v := range flag.values {
			if v == "" {
				continue
			}
			key, value, ok := strings.Cut(v, flag.separator)
			if !ok {
				return p, f.images, usage("--%s %q: not of the form signal%svalue", flag.name, v, flag.separator)
			}
			parts[i][strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
	}
	var err error
	if p.Thresholds, err = eviction.Parse(parts[0], parts[1], parts[2], parts[3]); err != nil {
		return p, f.images, usage("%v", err)
	}
	if err := f.images.Check(); err != nil {
		return p, f.images, usage("%v", err)
	}
	if f.maxPodGrace < 0 || f.transition < 0 {
		return p, f.images, usage("--eviction-max-pod-grace-period and --eviction-pressure-transition-period can't be negative")
	}
	return p, f.images, nil
}

// periods are a shutdown's, none if it waits for nobody.
func (f *upkeepFlags) periods() ([]shutdown.Period, error) {
	if len(f.byPriority) == 0 {
		periods, err := shutdown.Periods(f.shutdown, f.critical)
		if err != nil {
			return nil, usage("%v", err)
		}
		return periods, nil
	}
	if f.shutdown != 0 || f.critical != 0 {
		return nil, usage("--shutdown-grace-period-by-pod-priority replaces the other --shutdown-grace-period flags")
	}
	var periods []shutdown.Period
	for _, v := range f.byPriority {
		number, text, _ := strings.Cut(v, "=")
		priority, err := strconv.ParseInt(number, 10, 32)
		grace, err2 := time.ParseDuration(text)
		if err != nil || err2 != nil {
			return nil, usage("--shutdown-grace-period-by-pod-priority %q: not of the form priority=duration", v)
		}
		periods = append(periods, shutdown.Period{Priority: int32(priority), Grace: grace})
	}
	return periods, nil
}
