package rpc

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// The states of a stream.
const (
	alive uint32 = iota
	canceled
	expired
)

// A stream is one call. Its conn's lock guards it but for what handlers have of it.
type stream struct {
	conn     *conn
	id       uint32
	method   *method
	deadline time.Time // as its handler knows it; zero: none
	ends     time.Time // when its time is over; zero: never
	metadata metadata.MD

	state    atomic.Uint32 // alive, or how it has ended
	done     chan struct{} // closed when it has ended; nil: nobody waits for that
	after    []*afterwards // called then
	changed  *sync.Cond    // for the handler of a stream; nil: it is none
	taken    bool          // it is handled, or was: then its message is its handler's
	handled  bool          // its handler has ended
	buffered int64         // bytes that have come and that its handler has not taken; of streams

	entered    bool  // it has a place of its method's bound
	waits      bool  // among those that wait for the connection's window
	window     int64 // bytes that the client takes now
	allowed    int64 // bytes that it may send
	counted    bool  // it was told how many bytes come
	missing    int64 // of those, what has not come
	halfClosed bool  // it sends no more
	begun      bool  // the answer has begun
	closed     bool  // it has been sent to its end
	listens    bool  // and its handler hears what the client still sends
	unsent     []byte
	trailers   []byte
	body       []byte   // of the message that comes, with what stands before it
	queue      [][]byte // messages that are there
}

// drop ends a stream, if there is one: nothing more is sent on it.
func (c *conn) drop(st *stream, how uint32) {
	if st == nil || !st.state.CompareAndSwap(alive, how) {
		return
	}
	delete(c.streams, st.id)
	if st.done != nil {
		close(st.done)
	}
	for _, a := range st.after {
		go a.call()
	}
	st.after, st.unsent = nil, nil
	switch {
	case !st.taken:
		st.body = nil
		st.leave()
	case st.handled:
		st.leave()
	}
	if st.changed != nil {
		st.changed.Broadcast()
		if len(c.out) > maxUnwritten {
			c.changed.Broadcast() // its handler may wait until there is room
		}
	}
	if c.err == nil {
		c.endDrained()
	}
}

// leave gives the place back that a call has.
func (s *stream) leave() {
	if s.entered {
		s.method.bound.Leave()
	}
}

// fail answers a call with an error and ends it.
func (c *conn) fail(st *stream, err error) {
	s := status.Convert(err)
	st.listens = false
	if st.begun {
		c.send(st, nil, trailers(s))
		if st.changed != nil {
			st.changed.Broadcast() // its handler is to know
		}
		return
	}
	c.putHeaders(st.id, refused(s), true)
	c.finish(st)
}

// expireAt sees to it that a call ends when its time is over.
func (c *conn) expireAt(st *stream) {
	if st.ends.IsZero() || (!c.due.IsZero() && !st.ends.Before(c.due)) {
		return
	}
	c.due = st.ends
	if in := c.paced(c.due); c.deadlines == nil {
		c.deadlines = time.AfterFunc(in, c.expire)
	} else {
		c.deadlines.Reset(in)
	}
}

// paced is how long to wait for a moment when the time of calls is over. Since all calls are
// looked at then, which takes some 25 ns each, that is not done at once again.
func (c *conn) paced(moment time.Time) time.Duration {
	again := c.expired.Add(time.Duration(len(c.streams)) * time.Microsecond)
	return max(moment.Sub(c.server.options.Now()), again.Sub(c.server.options.Now()))
}

// expire ends the calls whose time is over.
func (c *conn) expire() {
	c.mu.Lock()
	defer c.unlock()
	if c.err != nil {
		return
	}
	now := c.server.options.Now()
	c.due, c.expired = time.Time{}, now
	var next time.Time
	for _, st := range c.streams {
		switch {
		case st.ends.IsZero():
		case !now.Before(st.ends):
			c.late(st)
		case next.IsZero() || st.ends.Before(next):
			next = st.ends
		}
	}
	if !next.IsZero() && c.err == nil {
		c.due = next
		c.deadlines.Reset(c.paced(next))
	}
}

// late ends a call whose time is over.
func (c *conn) late(st *stream) {
	s := status.New(codes.DeadlineExceeded, context.DeadlineExceeded.Error())
	if !st.halfClosed {
		c.noteReset(st.id)
	}
	if st.begun {
		c.putReset(st.id, http2.ErrCodeCancel)
	} else {
		c.putHeaders(st.id, refused(s), true)
		if !st.halfClosed {
			c.putReset(st.id, http2.ErrCodeNo)
		}
	}
	c.drop(st, expired)
}

// cut ends a call that has been answered, where its client does not take the answer.
func (c *conn) cut(st *stream) {
	if st.state.Load() != alive {
		return
	}
	if !st.halfClosed {
		c.noteReset(st.id)
	}
	c.putReset(st.id, http2.ErrCodeCancel)
	c.drop(st, canceled)
}
