package kv

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A child of this test writes until it is killed: 16 writers, each with keys
// of its own and a list of operations that only depends on their number. What
// was acknowledged it says on a pipe.

const (
	childEnv   = "UNIPOD_KV_CHILD"
	childFrom  = "UNIPOD_KV_FROM"
	crashRound = 100
	writers    = 16
	ownKeys    = 6
)

var crashConfig = Config{LogBytes: 96 << 10, HistoryBytes: 64 << 10}

// crashOp is a writer's n-th operation.
func crashOp(writer, n int) (key string, value []byte) {
	h := fnv.New64a()
	fmt.Fprint(h, writer, n)
	rnd := rand.New(rand.NewPCG(h.Sum64(), 0))
	key = fmt.Sprintf("/w/%02d/%d", writer, rnd.IntN(ownKeys))
	if rnd.IntN(5) == 0 {
		return key, nil
	}
	value = make([]byte, 8+rnd.IntN(3000))
	for i := range value {
		value[i] = byte(rnd.Uint32())
	}
	binary.LittleEndian.PutUint64(value, uint64(n))
	return key, value
}

// child is the process that is killed.
func child(dir string) {
	cfg := crashConfig
	cfg.Dir = dir
	db, err := Open(cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	from := strings.Split(os.Getenv(childFrom), ",")
	for w := range writers {
		n, err := strconv.Atoi(from[w])
		if err != nil {
			panic(err)
		}
		go func() {
			for ; ; n++ {
				key, value := crashOp(w, n)
				var was int64
				if e, _ := db.Get(key); e != nil {
					was = e.Revision
				}
				ok, err := true, error(nil)
				if value != nil {
					_, _, ok, err = db.Put(context.Background(), key, value, 0, was)
				} else if was != 0 {
					_, _, ok, err = db.Delete(context.Background(), key, was)
				}
				if err != nil || !ok {
					fmt.Fprintln(os.Stderr, key, ok, err)
					os.Exit(1)
				}
				// At most PIPE_BUF bytes are written whole or not at all.
				ack := binary.LittleEndian.AppendUint32(nil, uint32(w))
				os.Stdout.Write(binary.LittleEndian.AppendUint32(ack, uint32(n)))
			}
		}()
	}
	select {}
}

// TestKilled kills the child a hundred times. After each time every
// acknowledged write must be there; of each writer at most the one operation
// on its way may be, and that whole.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	cfg := crashConfig
	cfg.Dir = dir
	var done [writers]int // operations that are known to be there
	states := make([]map[string][]byte, writers)
	for w := range states {
		states[w] = map[string][]byte{}
	}
	var acks, snapshots, torn int
	for round := range crashRound {
		acked := killChild(t, dir, done, time.Duration(2+rand.IntN(20))*time.Millisecond)
		n, err := readNames(dir)
		if err != nil {
			t.Fatal(err)
		}
		snapshots = max(snapshots, len(n.snapshots))
		before := sizes(t, dir)
		db, err := Open(cfg)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if sizes(t, dir) < before {
			torn++
		}
		for w := range writers {
			acks += acked[w] - done[w]
			for ; done[w] < acked[w]; done[w]++ {
				apply(states[w], w, done[w])
			}
			is := own(t, db, w)
			if same(is, states[w]) {
				continue
			}
			apply(states[w], w, done[w])
			if done[w]++; !same(is, states[w]) {
				t.Fatalf("round %d: writer %d's keys are not as after its operation %d or %d", round, w, acked[w]-1, acked[w])
			}
		}
		shut(t, db)
	}
	t.Logf("%d acknowledged writes in %d rounds; %d times something was cut off or removed", acks, crashRound, torn)
	if acks < 10*crashRound {
		t.Errorf("only %d writes: this test tests nothing", acks)
	}
	if snapshots == 0 {
		t.Error("no snapshot was made")
	}
}

// killChild starts the child, kills it some time after its first
// acknowledgement and returns how many operations were acknowledged.
func killChild(t *testing.T, dir string, from [writers]int, after time.Duration) (acked [writers]int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir, childFrom+"="+strings.Trim(strings.ReplaceAll(fmt.Sprint(from), " ", ","), "[]"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	acked = from
	r := bufio.NewReader(out)
	var timer *time.Timer
	for {
		var ack [8]byte
		if _, err := io.ReadFull(r, ack[:]); err != nil {
			break
		}
		if timer == nil {
			timer = time.AfterFunc(after, func() { cmd.Process.Kill() })
		}
		acked[binary.LittleEndian.Uint32(ack[:])] = int(binary.LittleEndian.Uint32(ack[4:])) + 1
	}
	if timer == nil {
		cmd.Process.Kill()
	}
	_ = cmd.Wait()
	if stderr.Len() > 0 {
		t.Fatalf("the child: %s", stderr.String())
	}
	return acked
}

func apply(state map[string][]byte, writer, n int) {
	key, value := crashOp(writer, n)
	if value == nil {
		delete(state, key)
	} else {
		state[key] = value
	}
}

func own(t *testing.T, db *DB, writer int) map[string][]byte {
	t.Helper()
	p, err := db.List(fmt.Sprintf("/w/%02d/", writer), "", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	is := map[string][]byte{}
	for _, e := range p.Entries {
		is[e.Key] = e.Value
	}
	return is
}

func same(a, b map[string][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || !bytes.Equal(v, w) {
			return false
		}
	}
	return true
}

func sizes(t *testing.T, dir string) (sum int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			sum += info.Size()
		}
	}
	return sum
}
