package image

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
)

var (
	// errNotStreamed says that a blob did not come as one stream: it was there
	// already, or its download began anew. It has to be read from the store.
	errNotStreamed = errors.New("the blob was not streamed")
	errUnverified  = errors.New("the blob was not verified")
)

// stream hands a blob over to its unpacking while it is downloaded into the
// store. The reader sees the end of the blob only when the store has verified
// its digest, and never holds the download up for longer than it works itself:
// a reader that has given up lets everything pass.
type stream struct {
	content.Ingester

	mu     sync.Mutex
	wake   *sync.Cond
	chunks [][]byte
	queued int
	taken  int64 // bytes accepted so far
	err    error // what the reader gets after the chunks
	left   bool  // the reader is gone
}

// streamBuffer bounds what is between download and unpacking.
const streamBuffer = 4 << 20

func newStream(to content.Ingester) *stream {
	s := &stream{Ingester: to}
	s.wake = sync.NewCond(&s.mu)
	return s
}

// Writer opens the store's writer; what it is given is streamed.
func (s *stream) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := s.Ingester.Writer(ctx, opts...)
	if err != nil {
		return nil, err
	}
	st, err := w.Status()
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	s.mu.Lock()
	resumed := st.Offset == s.taken
	s.mu.Unlock()
	if !resumed {
		s.end(errNotStreamed)
	}
	return &streamWriter{Writer: w, s: s}, nil
}

type streamWriter struct {
	content.Writer
	s *stream
}

func (w *streamWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.s.put(p[:n])
	return n, err
}

func (w *streamWriter) Truncate(size int64) error {
	w.s.end(errNotStreamed)
	return w.Writer.Truncate(size)
}

func (s *stream) put(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.queued > streamBuffer && !s.left && s.err == nil {
		s.wake.Wait()
	}
	s.taken += int64(len(p))
	if s.left || s.err != nil || len(p) == 0 {
		return
	}
	s.chunks = append(s.chunks, append([]byte(nil), p...))
	s.queued += len(p)
	s.wake.Broadcast()
}

// end tells the reader that no more comes, the first time it is called.
func (s *stream) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	if s.err != io.EOF {
		s.chunks = nil // not worth reading
	}
	s.wake.Broadcast()
}

// finish ends the stream after the download, with its outcome.
func (s *stream) finish(size int64, err error) {
	s.mu.Lock()
	complete := s.taken == size
	s.mu.Unlock()
	switch {
	case err != nil:
		s.end(errUnverified)
	case complete:
		s.end(io.EOF)
	default:
		s.end(errNotStreamed)
	}
}

// complete says whether the reader was offered the whole blob.
func (s *stream) complete() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err == io.EOF
}

// leave says that the reader reads no more.
func (s *stream) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left, s.chunks = true, nil
	s.wake.Broadcast()
}

func (s *stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.chunks) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		s.wake.Wait()
	}
	n := copy(p, s.chunks[0])
	if s.queued -= n; n == len(s.chunks[0]) {
		s.chunks = s.chunks[1:]
	} else {
		s.chunks[0] = s.chunks[0][n:]
	}
	s.wake.Broadcast()
	return n, nil
}
