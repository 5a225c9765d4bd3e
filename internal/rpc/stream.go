package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
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
	unsent     []byte
	trailers   []byte
	body       []byte   // of the message that comes, with what stands before it
	queue      [][]byte // messages that are there
}

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

// incoming adds the metadata of the call to a context.
func (s *stream) incoming(ctx context.Context) context.Context {
	return metadata.NewIncomingContext(ctx, s.metadata)
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
	case st.changed != nil:
		st.changed.Broadcast()
		if len(c.out) > maxUnwritten {
			c.changed.Broadcast() // it may wait until there is room
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

// data takes a part of a message.
func (c *conn) data(f *http2.DataFrame) (*stream, error) {
	size := int64(f.Length)
	if c.allowed -= size; c.allowed < 0 {
		return nil, http2.ConnectionError(http2.ErrCodeFlowControl)
	}
	if c.received += size; c.received >= int64(c.server.options.Window)/4 {
		c.putWindow(0, c.received)
		c.allowed += c.received
		c.received = 0
	}
	if len(f.Data()) > 0 || f.StreamEnded() {
		c.empty = 0
	} else if err := c.saysNothing(); err != nil {
		return nil, err
	}
	st := c.streams[f.StreamID]
	switch {
	case c.neverWas(f.StreamID):
		return nil, http2.ConnectionError(http2.ErrCodeProtocol)
	case st == nil:
		return nil, nil //nolint:nilnil // it was on its way when the stream ended
	case st.halfClosed:
		return nil, http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeStreamClosed}
	}
	if st.allowed -= size; st.allowed < 0 {
		return nil, http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeFlowControl}
	}
	if st.counted {
		if st.missing -= int64(len(f.Data())); st.missing < 0 || (st.missing > 0 && f.StreamEnded()) {
			return nil, http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeProtocol} // RFC 9113 8.1.1
		}
	}
	if padding := size - int64(len(f.Data())); padding > 0 { // nobody reads it
		c.putWindow(st.id, padding)
		st.allowed += padding
	}
	ready, err := c.receive(st, f.Data())
	if err != nil {
		c.fail(st, err)
		return nil, nil //nolint:nilnil // it is not handled
	}
	if f.StreamEnded() {
		c.halfClose(st)
	}
	if ready && st.method.stream == nil && st.state.Load() == alive && !c.mute { // else nobody would hear it
		st.taken = true
		c.running++
		return st, nil
	}
	return nil, nil //nolint:nilnil // more is to come, or its handler waits
}

// receive takes bytes of messages, and reports whether one is there.
func (c *conn) receive(st *stream, data []byte) (ready bool, err error) {
	if st.trailers != nil {
		return false, nil // it has ended, but for what the client does not take yet
	}
	if st.method.stream == nil && st.taken {
		if len(data) == 0 {
			return false, nil
		}
		return false, status.Error(codes.Internal, "the call has a second message")
	}
	if st.method.stream != nil {
		st.buffered += int64(len(data))
	}
	if st.body == nil {
		st.body = buffers.Get().(*byte0).bytes[:0] //nolint:forcetypeassert // see New
	}
	st.body = append(st.body, data...)
	rest := st.body
	for len(rest) >= prefix {
		length := int64(binary.BigEndian.Uint32(rest[1:]))
		switch {
		case rest[0] != 0: // open has refused calls that say how
			return ready, status.Error(codes.Internal, "a message is compressed, and the call does not say how: want grpc-encoding identity")
		case length > int64(c.server.options.MaxMessageBytes):
			return ready, status.Errorf(codes.ResourceExhausted, "the message has %d bytes: want %d at most", length, c.server.options.MaxMessageBytes)
		}
		whole := prefix + length
		if missing := whole - int64(len(rest)); missing > 0 {
			if st.allowed < missing { // else it would never come
				c.putWindow(st.id, missing-st.allowed)
				st.allowed = missing
			}
			break
		}
		ready = true
		if st.method.stream == nil {
			if int64(len(rest)) > whole {
				return false, status.Error(codes.Internal, "the call has a second message")
			}
			return true, nil
		}
		st.queue = append(st.queue, append([]byte(nil), rest[prefix:whole]...))
		rest = rest[whole:]
		st.changed.Broadcast()
	}
	if len(rest) < len(st.body) {
		st.body = append(st.body[:0], rest...)
	}
	return ready, nil
}

// halfClose notes that the client sends no more.
func (c *conn) halfClose(st *stream) {
	st.halfClosed = true
	switch {
	case st.changed != nil:
		st.changed.Broadcast()
	case st.taken: // which has its message
	case len(st.body) < prefix || int64(len(st.body)) < prefix+int64(binary.BigEndian.Uint32(st.body[1:])):
		c.fail(st, errNoMessage)
	}
}

// handle handles a call.
func (s *stream) handle() {
	ctx := s.conn.server.tag(callContext{s}, s)
	began := time.Time{}
	if s.conn.server.options.Stats != nil {
		began = s.conn.server.options.Now()
	}
	var answer []byte
	var err error
	if s.method.stream != nil {
		err = s.handleStream(ctx)
	} else {
		answer, err = s.answer(ctx)
	}
	s.conn.server.tell(ctx, began, err)
	s.conn.handled(s, answer, err)
}

// handled answers a call whose handler has ended. A call whose answer the client does not
// take yet keeps its place until it does, but not for ever.
func (c *conn) handled(st *stream, answer []byte, err error) {
	c.mu.Lock()
	defer c.unlock()
	switch {
	case st.state.Load() != alive: // nobody hears it
	case err != nil:
		c.fail(st, fromContext(err))
	default:
		c.send(st, answer, ended) // of a stream there is none
	}
	switch st.handled = true; {
	case st.state.Load() != alive:
		st.leave()
	case st.ends.IsZero() && c.server.options.CallTimeout > 0:
		st.ends = c.server.options.Now().Add(c.server.options.CallTimeout)
		c.expireAt(st)
	}
	if c.running--; c.running == c.server.options.MaxStreams || (c.err != nil && c.running == 0) {
		c.changed.Broadcast() // for the reader, or who waits for the end
	}
}

// answer handles a call of one request and one answer.
func (s *stream) answer(ctx context.Context) ([]byte, error) {
	o := &s.conn.server.options
	reply, err := s.method.unary(s.method.service, ctx, s.decode, o.Unary)
	if err != nil {
		return nil, err //nolint:wrapcheck // a status
	}
	return encode(o.Codec, reply)
}

// encode encodes a message; it is never nil without an error.
func encode(c Codec, message any) ([]byte, error) {
	b, err := c.Marshal(message)
	if err != nil {
		return nil, status.Error(codes.Internal, "encode a message: "+err.Error())
	}
	if b == nil {
		b = []byte{}
	}
	return b, nil
}

// fromContext makes a status of an error of a context.
func fromContext(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		if _, ok := status.FromError(err); !ok {
			return status.FromContextError(err).Err()
		}
	}
	return err
}

// decode decodes the call's message, once.
func (s *stream) decode(into any) error {
	body := s.body
	s.body = nil
	if body == nil {
		return errNoMessage
	}
	err := s.conn.server.options.Codec.Unmarshal(body[prefix:], into)
	putBuffer(body)
	if err != nil {
		return status.Error(codes.Internal, "grpc: failed to unmarshal the received message: "+err.Error())
	}
	return nil
}

// buffers are for messages that come.
//
//nolint:gochecknoglobals // a pool of memory is the process'
var buffers = sync.Pool{New: func() any { return &byte0{bytes: make([]byte, 0, 1<<10)} }}

// byte0 has bytes that are used again.
type byte0 struct{ bytes []byte }

func putBuffer(b []byte) {
	if cap(b) <= 64<<10 {
		buffers.Put(&byte0{b})
	}
}

// A serverStream is what the handler of a stream has of it.
type serverStream struct {
	*stream

	ctx context.Context //nolint:containedctx // grpc.ServerStream has it
}

// handleStream handles a call that is a stream.
func (s *stream) handleStream(ctx context.Context) error {
	ss, d := &serverStream{s, ctx}, s.method.stream
	if intercept := s.conn.server.options.Stream; intercept != nil {
		info := &grpc.StreamServerInfo{FullMethod: s.method.name, IsClientStream: d.ClientStreams, IsServerStream: d.ServerStreams}
		return intercept(s.method.service, ss, info, d.Handler) //nolint:wrapcheck // a status
	}
	return d.Handler(s.method.service, ss) //nolint:wrapcheck // a status
}

// errNoMetadata is the answer to handlers that have headers or trailers.
var errNoMetadata = status.Error(codes.Unimplemented, "headers and trailers of handlers are not sent")

// SetHeader implements grpc.ServerStream.
func (*serverStream) SetHeader(metadata.MD) error { return errNoMetadata }

// SendHeader implements grpc.ServerStream.
func (*serverStream) SendHeader(metadata.MD) error { return errNoMetadata }

// SetTrailer implements grpc.ServerStream.
func (*serverStream) SetTrailer(metadata.MD) {}

// Context implements grpc.ServerStream.
func (s *serverStream) Context() context.Context { return s.ctx }

// SendMsg implements grpc.ServerStream. It waits until the client takes what was sent before, and
// until it reads what is out.
func (s *serverStream) SendMsg(m any) error {
	out, err := encode(s.conn.server.options.Codec, m)
	if err != nil {
		return err
	}
	c := s.conn
	c.mu.Lock()
	defer c.unlock()
	for s.state.Load() == alive && (s.unsent != nil || len(c.out) > maxUnwritten) {
		if s.unsent != nil {
			s.changed.Wait()
		} else {
			c.changed.Wait()
		}
	}
	if s.state.Load() != alive {
		return status.FromContextError(callContext{s.stream}.Err()).Err()
	}
	c.send(s.stream, out, nil)
	return nil
}

// RecvMsg implements grpc.ServerStream.
func (s *serverStream) RecvMsg(m any) error {
	message, err := s.next()
	if err != nil {
		return err
	}
	if err := s.conn.server.options.Codec.Unmarshal(message, m); err != nil {
		return status.Error(codes.Internal, "grpc: failed to unmarshal the received message: "+err.Error())
	}
	return nil
}

// next waits for a message and takes it.
func (s *serverStream) next() ([]byte, error) {
	c := s.conn
	c.mu.Lock()
	defer c.unlock()
	for s.state.Load() == alive && len(s.queue) == 0 && !s.halfClosed && s.trailers == nil {
		s.changed.Wait()
	}
	switch {
	case len(s.queue) > 0: // which has arrived, whatever came after it
	case s.state.Load() != alive:
		return nil, status.FromContextError(callContext{s.stream}.Err()).Err()
	case s.trailers != nil:
		return nil, status.FromContextError(context.Canceled).Err()
	case len(s.body) > 0:
		return nil, status.Error(codes.Internal, "the stream ends within a message")
	default:
		return nil, io.EOF
	}
	message := s.queue[0]
	s.queue = s.queue[1:]
	s.buffered -= int64(len(message) + prefix)
	if more := int64(c.server.options.StreamWindow) - s.buffered - s.allowed; s.state.Load() == alive && !s.halfClosed && more >= int64(c.server.options.StreamWindow)/4 {
		c.putWindow(s.id, more)
		s.allowed += more
	}
	return message, nil
}
