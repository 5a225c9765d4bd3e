package rpc

import (
	"context"
	"slices"
	"time"
)

// A callContext is the context of a call. It ends with the stream.
type callContext struct{ *stream }

// Deadline implements context.Context.
func (s callContext) Deadline() (time.Time, bool) { return s.deadline, !s.deadline.IsZero() }

// Done implements context.Context.
func (s callContext) Done() <-chan struct{} {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	if s.done == nil {
		s.done = make(chan struct{})
		if s.state.Load() != alive {
			close(s.done)
		}
	}
	return s.done
}

// Err implements context.Context.
func (s callContext) Err() error {
	switch s.state.Load() {
	case canceled:
		return context.Canceled
	case expired:
		return context.DeadlineExceeded
	}
	return nil
}

// Value implements context.Context.
func (s callContext) Value(any) any { return nil }

// AfterFunc is what package context looks for, so that it needs no goroutine to wait for Done.
func (s callContext) AfterFunc(f func()) (stop func() bool) {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	if s.state.Load() != alive {
		go f()
		return func() bool { return false }
	}
	a := &afterwards{f}
	s.after = append(s.after, a)
	return func() bool { return s.forget(a) }
}

// An afterwards is called, in a goroutine of its own, when a stream has ended.
type afterwards struct{ call func() }

// forget has a not be called, and reports whether it would have been: a stream that lasts
// would else remember what each of its messages had waited for.
func (s *stream) forget(a *afterwards) bool {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	i := slices.Index(s.after, a)
	if i >= 0 {
		s.after = slices.Delete(s.after, i, i+1)
	}
	return i >= 0
}
