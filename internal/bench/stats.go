package bench

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// Times are the durations of repeated operations, in short.
type Times struct {
	N   int
	P10 time.Duration // one of ten took no longer: what it takes when nothing is in the way
	P50 time.Duration // half of them took no longer
	P90 time.Duration // nine of ten took no longer
}

// TimesOf sums durations up by the nearest-rank method.
func TimesOf(all []time.Duration) Times {
	if len(all) == 0 {
		return Times{}
	}
	sorted := slices.Sorted(slices.Values(all))
	rank := func(percent int) time.Duration {
		return sorted[(len(sorted)*percent+99)/100-1]
	}
	return Times{N: len(sorted), P10: rank(10), P50: rank(50), P90: rank(90)}
}

type timesJSON struct {
	N   int     `json:"n"`
	P10 float64 `json:"p10ms"`
	P50 float64 `json:"p50ms"`
	P90 float64 `json:"p90ms"`
}

// MarshalJSON writes milliseconds.
func (t Times) MarshalJSON() ([]byte, error) {
	return json.Marshal(timesJSON{t.N, milliseconds(t.P10), milliseconds(t.P50), milliseconds(t.P90)})
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Round(time.Microsecond)) / float64(time.Millisecond)
}

func (t Times) String() string {
	if t.N == 0 {
		return "–"
	}
	return fmt.Sprintf("%s / %s", short(t.P50), short(t.P90))
}

// short is a duration in milliseconds with three digits.
func short(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	switch {
	case ms < 10:
		return fmt.Sprintf("%.2f", ms)
	case ms < 100:
		return fmt.Sprintf("%.1f", ms)
	}
	return fmt.Sprintf("%.0f", ms)
}
