package cluster

import (
	"testing"
	"time"
)

func TestRest(t *testing.T) {
	var r rest
	var due []int
	for i, used := range []time.Duration{
		10 * time.Second, 3 * time.Second, // pods start
		time.Second,                           // and run
		time.Second, time.Second, time.Second, // what they do isn't much, nor nothing
		20 * time.Second, 100 * time.Millisecond, // once more
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // five minutes of nothing
	} {
		if r.due(used, breath) {
			due = append(due, i)
		}
	}
	if len(due) != 3 || due[0] != 2 || due[1] != 7 || due[2] != 17 {
		t.Errorf("memory is given back after %v", due)
	}
}
