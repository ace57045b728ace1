package eviction

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"k8s.io/apimachinery/pkg/api/resource"
	evictionapi "k8s.io/kubernetes/pkg/kubelet/eviction/api"
)

// DefaultHard are kubelet's hard thresholds.
var DefaultHard = map[string]string{
	"memory.available":   "100Mi",
	"nodefs.available":   "10%",
	"nodefs.inodesFree":  "5%",
	"imagefs.available":  "15%",
	"imagefs.inodesFree": "5%",
}

// Parse reads thresholds as kubelet's flags have them: quantities or percents
// by signal, the grace of each soft one, and what is to be reclaimed at least.
// A threshold of 0% or 100% is none.
func Parse(hard, soft, grace, reclaim map[string]string) ([]evictionapi.Threshold, error) {
	all, err := parse(hard)
	if err != nil {
		return nil, err
	}
	softs, err := parse(soft)
	if err != nil {
		return nil, err
	}
	for name := range grace {
		if _, ok := signals[evictionapi.Signal(name)]; !ok {
			return nil, unsupported(name)
		}
	}
	for i := range softs {
		text, ok := grace[string(softs[i].Signal)]
		if !ok {
			return nil, fmt.Errorf("grace period must be specified for the soft eviction threshold %v: %w", softs[i].Signal, errdefs.ErrInvalidArgument)
		}
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			return nil, fmt.Errorf("invalid eviction grace period of %v: %q: %w", softs[i].Signal, text, errdefs.ErrInvalidArgument)
		}
		softs[i].GracePeriod = d
	}
	all = append(all, softs...)
	for _, name := range slices.Sorted(maps.Keys(reclaim)) {
		if _, ok := signals[evictionapi.Signal(name)]; !ok {
			return nil, unsupported(name)
		}
		v, err := parseValue(reclaim[name])
		if err != nil {
			return nil, fmt.Errorf("eviction minimum reclaim of %s: %w", name, err)
		}
		for i := range all {
			if string(all[i].Signal) == name {
				all[i].MinReclaim = &v
			}
		}
	}
	return all, nil
}

func unsupported(name string) error {
	return fmt.Errorf("unsupported eviction signal %s (there are %s): %w", name, strings.Join(names(), ", "), errdefs.ErrInvalidArgument)
}

func names() []string {
	var all []string
	for s := range signals {
		all = append(all, string(s))
	}
	slices.Sort(all)
	return all
}

func parse(statements map[string]string) ([]evictionapi.Threshold, error) {
	var all []evictionapi.Threshold
	for _, name := range slices.Sorted(maps.Keys(statements)) {
		s, text := evictionapi.Signal(name), statements[name]
		if _, ok := signals[s]; !ok {
			return nil, unsupported(name)
		}
		if text == "0%" || text == "100%" {
			continue
		}
		v, err := parseValue(text)
		if err == nil && v.Quantity != nil && v.Quantity.IsZero() {
			err = fmt.Errorf("%q is not positive: %w", text, errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return nil, fmt.Errorf("eviction threshold of %s: %w", name, err)
		}
		all = append(all, evictionapi.Threshold{Signal: s, Operator: evictionapi.OpForSignal[s], Value: v})
	}
	return all, nil
}

// parseValue reads a quantity, or a percentage of the whole.
func parseValue(text string) (evictionapi.ThresholdValue, error) {
	if number, ok := strings.CutSuffix(text, "%"); ok {
		f, err := strconv.ParseFloat(number, 32)
		if err != nil || !(f > 0 && f <= 100) {
			return evictionapi.ThresholdValue{}, fmt.Errorf("%q is not a percentage: %w", text, errdefs.ErrInvalidArgument)
		}
		return evictionapi.ThresholdValue{Percentage: float32(f) / 100}, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil {
		return evictionapi.ThresholdValue{}, fmt.Errorf("%q: %w: %w", text, err, errdefs.ErrInvalidArgument)
	}
	if q.Sign() < 0 {
		return evictionapi.ThresholdValue{}, fmt.Errorf("%q is negative: %w", text, errdefs.ErrInvalidArgument)
	}
	return evictionapi.ThresholdValue{Quantity: &q}, nil
}
