//go:build faults

package fault

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Env names the point to die at, and after an @ how many times to pass it
// before ("start.spawned@1" dies the second time).
const Env = "UNIPOD_FAULT"

// LogEnv names a file to which every point that is passed is appended, so
// that a test can find out which there are.
const LogEnv = "UNIPOD_FAULT_LOG"

var passed atomic.Int64

// Point kills this process, as kill -9 would, if it is the one to die at.
func Point(name string) {
	if path := os.Getenv(LogEnv); path != "" {
		if f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
			f.WriteString(name + "\n")
			f.Close()
		}
	}
	want, times, _ := strings.Cut(os.Getenv(Env), "@")
	if want != name {
		return
	}
	n, _ := strconv.ParseInt(times, 10, 64)
	if passed.Add(1) > n {
		unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
}
