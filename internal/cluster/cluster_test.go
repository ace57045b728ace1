package cluster

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

func TestSmoke(t *testing.T) {
	at := time.Now()
	ctx := context.Background()
	c, err := Start(ctx, Config{Root: t.TempDir(), Run: t.TempDir(), NodeName: "n1", API: []string{"127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Log("ready", time.Since(at))
	time.Sleep(3 * time.Second)
	b, _ := os.ReadFile("/proc/self/status")
	for l := range strings.Lines(string(b)) {
		if strings.HasPrefix(l, "Rss") || strings.HasPrefix(l, "VmRSS") || strings.HasPrefix(l, "Threads") {
			t.Log(strings.TrimSpace(l))
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	t.Log("closed", time.Since(at), c.Err())
}
