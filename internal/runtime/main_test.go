package runtime

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"unipod.dev/unipod/test/isolate"
)

// TestMain moves the tests into network and mount namespaces of their own.
func TestMain(m *testing.M) {
	if os.Geteuid() == 0 {
		isolate.Namespaces(unix.CLONE_NEWNET | unix.CLONE_NEWNS)
	}
	os.Exit(m.Run())
}
