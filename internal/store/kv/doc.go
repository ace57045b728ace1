// Package kv is a small ordered key-value store with revisions, as the
// Kubernetes API needs one: compare-and-set writes, reads and ordered lists of
// now and of the recent past, watches, and keys that expire.
//
// It owns one directory: a log of writes, from time to time replaced by a
// snapshot, and a lock. It knows nothing of what the values mean. All entries
// are held in memory, encoded as they were given; the log makes them durable.
//
// Durability: a write returns after its record was synced to disk; writes that
// wait at the same time share one sync. Nothing is visible to a read or a
// watch before that. After a crash at any instant, Open finds every
// acknowledged write and no part of another: a torn last record is cut off,
// any other damage is refused with a *DamageError naming file and offset. A
// write that fails (a full disk) changes nothing; reads go on, and the next
// write tries again. Of a disk that gets full a little is kept for writes that
// make nothing new, so that what fills it can be deleted. With an empty directory name everything is in memory only.
//
// Every write has a revision of its own, one higher than the one before. The
// recent past is bounded in bytes and in age; who asks for more gets
// ErrCompacted. A watch holds no events of its own, only its place in that
// past, so a slow one costs nothing and ends with ErrCompacted in time.
//
// Everything is safe for concurrent use. Values and events are shared and must
// not be changed. Time matters to expiry only.
//
// Floor: with internal/store, over the ground; it imports nothing of unipod.
package kv
