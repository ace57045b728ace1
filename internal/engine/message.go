package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"unipod.dev/unipod/internal/podspec"
)

// Kubelet's limits of termination messages.
const (
	maxMessage         = 4096 // bytes of the file
	maxMessageLog      = 2048 // bytes of the log
	maxMessageLogLines = 80
)

// terminationMessage completes the runtime's message about an exit by what the
// container left behind: in its termination message file, or the end of its
// log if it asked for that and failed.
func (w *worker) terminationMessage(st *runtimeapi.ContainerStatus, info podspec.ContainerInfo) string {
	message := st.Message
	logToo := info.TerminationMessagePolicy == v1.TerminationMessageFallbackToLogsOnError &&
		st.ExitCode != 0 && st.Reason != "ContainerCannotRun"
	text := ""
	for _, m := range st.Mounts {
		if m.ContainerPath != info.TerminationMessagePath || !w.owns(m.HostPath) {
			continue
		}
		tail, err := readTail(m.HostPath, maxMessage)
		switch {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			text, logToo = fmt.Sprintf("Error on reading termination log %s: %v", m.HostPath, err), false
		default:
			text = string(tail)
		}
		break
	}
	if text == "" && logToo && st.LogPath != "" {
		tail, err := logTail(st.LogPath)
		text = string(tail)
		if err != nil {
			text = fmt.Sprintf("Error on reading termination message from logs: %v", err)
		}
	}
	text = strings.ToValidUTF8(text, "\uFFFD")
	if message != "" && text != "" {
		message += ": "
	}
	return message + text
}

// owns reports whether a path is in the pod's directory: a volume mounted over
// the message's path may be anything.
func (w *worker) owns(path string) bool {
	dir := filepath.Join(w.e.volumes.Dir, string(w.uid)) + string(filepath.Separator)
	return strings.HasPrefix(filepath.Clean(path), dir)
}

// readTail reads the last n bytes of a regular file. Links are not followed
// and nothing else is waited for: containers write here.
func readTail(path string, n int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	if _, err := f.Seek(max(info.Size()-n, 0), io.SeekStart); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, n))
}

// logTail is the end of a container's log without the CRI's prefixes.
func logTail(path string) ([]byte, error) {
	// A line of the log costs some fifty bytes of prefix.
	raw, err := readTail(path, maxMessageLog+maxMessageLogLines*64)
	if err != nil {
		return nil, err
	}
	var text []byte
	lines := bytes.Split(bytes.TrimSuffix(raw, []byte("\n")), []byte("\n"))
	for _, line := range lines[max(len(lines)-maxMessageLogLines, 0):] {
		// "<time> <stream> <F|P> <content>"; a cut first line has no time.
		fields := bytes.SplitN(line, []byte(" "), 4)
		if len(fields) < 4 || len(fields[0]) < len("2006-01-02T15:04:05Z") {
			continue
		}
		text = append(text, fields[3]...)
		if !bytes.Equal(fields[2], []byte("P")) {
			text = append(text, '\n')
		}
	}
	return text[max(len(text)-maxMessageLog, 0):], nil
}
