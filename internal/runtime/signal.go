package runtime

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The numbers of the real-time signals that a process may use: libc keeps the
// first two of the kernel's (32, 33) to itself.
const (
	sigRTMin = 34
	sigRTMax = 64
)

// parseSignal reads a signal as an image's StopSignal or a container's
// stop_signal names it: SIGTERM, TERM, 15, SIGRTMIN+3.
func parseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > sigRTMax {
			return 0, invalid("signal %d is out of range", n)
		}
		return unix.Signal(n), nil
	}
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	for _, alias := range []struct {
		name string
		sig  unix.Signal
	}{{"SIGCLD", unix.SIGCHLD}, {"SIGIOT", unix.SIGABRT}, {"SIGPOLL", unix.SIGIO}} {
		if name == alias.name {
			return alias.sig, nil
		}
	}
	for _, rt := range []struct {
		name string
		base int
	}{{"SIGRTMIN", sigRTMin}, {"SIGRTMAX", sigRTMax}} {
		rest, ok := strings.CutPrefix(name, rt.name)
		if !ok {
			continue
		}
		off := 0
		if rest != "" {
			n, err := strconv.Atoi(rest)
			if err != nil {
				break
			}
			off = n
		}
		if n := rt.base + off; n >= sigRTMin && n <= sigRTMax {
			return unix.Signal(n), nil
		}
	}
	return 0, invalid("unknown signal %q", s)
}

// signalName turns the CRI's enumeration into a name parseSignal reads; ""
// for the runtime's default.
func signalName(s runtimeapi.Signal) string {
	if s == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return ""
	}
	name := strings.TrimPrefix(s.String(), "SIGNAL_")
	name = strings.Replace(name, "MINPLUS", "MIN+", 1)
	return strings.Replace(name, "MAXMINUS", "MAX-", 1)
}

// signalEnum is the way back, for ContainerStatus.
func signalEnum(name string) runtimeapi.Signal {
	sig, err := parseSignal(name)
	if err != nil {
		return runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT
	}
	n := unix.SignalName(sig)
	if sig >= sigRTMin {
		switch off := int(sig) - sigRTMin; {
		case off == 0:
			n = "SIGRTMIN"
		case off <= 15:
			n = fmt.Sprintf("SIGRTMINPLUS%d", off)
		case sig == sigRTMax:
			n = "SIGRTMAX"
		default:
			n = fmt.Sprintf("SIGRTMAXMINUS%d", sigRTMax-int(sig))
		}
	}
	return runtimeapi.Signal(runtimeapi.Signal_value["SIGNAL_"+n])
}
