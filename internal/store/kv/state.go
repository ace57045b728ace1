package kv

import (
	"slices"
	"strings"
	"time"

	"github.com/google/btree"
)

// An Entry is a key as it is at some revision. It never changes.
type Entry struct {
	Key      string
	Value    []byte
	Revision int64 // of the write that made it so
	Expires  int64 // Unix milliseconds, 0 never
}

// An Event is one write.
type Event struct {
	Key      string
	Revision int64
	New      *Entry // nil: the key was deleted
	Old      *Entry // nil: the key was not there before

	at time.Duration // since the store was opened
}

// entryOverhead is what an entry or an event costs beside its key and value,
// roughly.
const entryOverhead = 128

func (e *Event) size() int64 {
	n := int64(entryOverhead + len(e.Key))
	// The old value is the event's own to keep; the new one is the index's or
	// the next event's.
	if e.Old != nil {
		n += int64(entryOverhead + len(e.Old.Value))
	}
	return n
}

// state is what is known: every key now, and the recent past. Its owner locks.
type state struct {
	index     *btree.BTreeG[*Entry]
	revision  int64
	compacted int64 // the past after this revision is known
	live      int64 // bytes of all entries

	past      []*Event // from head on, one per revision, none missing
	head      int
	pastBytes int64
}

// newState is a state without entries of whose past nothing is known.
func newState(revision int64) *state {
	return &state{
		index:     btree.NewG(32, func(a, b *Entry) bool { return a.Key < b.Key }),
		revision:  revision,
		compacted: revision,
	}
}

// FirstRevision is that of a store in which nothing was ever written.
const FirstRevision = 1

// emptyState is how a store begins: nothing was before.
func emptyState() *state {
	s := newState(FirstRevision)
	s.compacted = 0
	return s
}

func (s *state) get(key string) *Entry {
	e, _ := s.index.Get(&Entry{Key: key})
	return e
}

// restore adds an entry of a snapshot.
func (s *state) restore(e *Entry) {
	s.index.ReplaceOrInsert(e)
	s.live += e.size()
}

func (e *Entry) size() int64 { return int64(entryOverhead + len(e.Key) + len(e.Value)) }

// apply carries out the next operation.
func (s *state) apply(o operation, at time.Duration) *Event {
	s.revision++
	ev := &Event{Key: o.key, Revision: s.revision, at: at}
	if o.value == nil {
		ev.Old, _ = s.index.Delete(&Entry{Key: o.key})
	} else {
		ev.New = &Entry{Key: o.key, Value: o.value, Revision: s.revision, Expires: o.expires}
		ev.Old, _ = s.index.ReplaceOrInsert(ev.New)
		s.live += ev.New.size()
	}
	if ev.Old != nil {
		s.live -= ev.Old.size()
		// One copy of a key is enough.
		ev.Key = ev.Old.Key
		if ev.New != nil {
			ev.New.Key = ev.Key
		}
	}
	s.past = append(s.past, ev)
	s.pastBytes += ev.size()
	return ev
}

// forget drops the past that is too much or too old.
func (s *state) forget(maxBytes int64, before time.Duration) {
	for s.head < len(s.past) && (s.pastBytes > maxBytes || s.past[s.head].at < before) {
		s.drop()
	}
	s.shrink()
}

// compact drops the past up to a revision.
func (s *state) compact(revision int64) {
	for s.head < len(s.past) && s.past[s.head].Revision <= revision {
		s.drop()
	}
	s.compacted = max(s.compacted, min(revision, s.revision))
	s.shrink()
}

func (s *state) drop() {
	ev := s.past[s.head]
	s.past[s.head] = nil
	s.head++
	s.pastBytes -= ev.size()
	s.compacted = ev.Revision
}

func (s *state) shrink() {
	switch rest := len(s.past) - s.head; {
	case rest == 0:
		s.past, s.head = nil, 0
	case s.head > 1024 && s.head > rest:
		s.past, s.head = slices.Clone(s.past[s.head:]), 0
	}
}

// since returns the events from a revision on.
func (s *state) since(revision int64) []*Event {
	events := s.past[s.head:]
	if len(events) == 0 || revision > s.revision {
		return nil
	}
	// One event per revision, so its place is known.
	return events[max(0, revision-events[0].Revision):]
}

// known says whether the state at a revision is known.
func (s *state) known(revision int64) error {
	switch {
	case revision > s.revision:
		return ErrFuture
	case revision < s.compacted:
		return ErrCompacted
	}
	return nil
}

// past of a range: the keys in it that were different at a revision, nil for
// those that were not there.
func (s *state) differences(revision int64, in func(key string) bool) map[string]*Entry {
	then := map[string]*Entry{}
	events := s.since(revision + 1)
	for _, ev := range slices.Backward(events) {
		if in(ev.Key) {
			then[ev.Key] = ev.Old
		}
	}
	return then
}

// walk calls yield for the entries of a revision whose keys begin with prefix
// and are not less than from, in order, until it returns false.
func (s *state) walk(prefix, from string, revision int64, yield func(*Entry) bool) {
	from = max(from, prefix)
	now := func(yield func(*Entry) bool) {
		s.index.AscendGreaterOrEqual(&Entry{Key: from}, func(e *Entry) bool {
			return strings.HasPrefix(e.Key, prefix) && yield(e)
		})
	}
	if revision >= s.revision {
		now(yield)
		return
	}
	then := s.differences(revision, func(key string) bool { return key >= from && strings.HasPrefix(key, prefix) })
	var gone []*Entry // there then and not now
	for key, e := range then {
		if e != nil && s.get(key) == nil {
			gone = append(gone, e)
		}
	}
	slices.SortFunc(gone, func(a, b *Entry) int { return strings.Compare(a.Key, b.Key) })
	more := true
	now(func(e *Entry) bool {
		for more && len(gone) > 0 && gone[0].Key < e.Key {
			more = yield(gone[0])
			gone = gone[1:]
		}
		if old, differs := then[e.Key]; differs {
			e = old
		}
		if more && e != nil {
			more = yield(e)
		}
		return more
	})
	for ; more && len(gone) > 0; gone = gone[1:] {
		more = yield(gone[0])
	}
}
