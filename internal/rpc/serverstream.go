package rpc

import (
	"context"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

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

// errAnswered is the answer to handlers that have more to say after that.
var errAnswered = status.Error(codes.Internal, "the call has ended: nothing can be sent after its answer")

// SetHeader implements grpc.ServerStream.
func (*serverStream) SetHeader(metadata.MD) error { return errNoMetadata }

// SendHeader implements grpc.ServerStream.
func (*serverStream) SendHeader(metadata.MD) error { return errNoMetadata }

// SetTrailer implements grpc.ServerStream.
func (*serverStream) SetTrailer(metadata.MD) {}

// Context implements grpc.ServerStream.
func (s *serverStream) Context() context.Context { return s.ctx }

// SendMsg implements grpc.ServerStream. It waits until the client takes what was sent before, and
// until it reads what is out. The answer of a method that has one ends what is sent: what the client
// has sent when it hears of it, the handler may still receive.
func (s *serverStream) SendMsg(m any) error {
	out, err := encode(s.conn.server.options.Codec, m)
	if err != nil {
		return err
	}
	c := s.conn
	c.mu.Lock()
	defer c.unlock()
	for s.state.Load() == alive && s.trailers == nil && (s.unsent != nil || len(c.out) > maxUnwritten) {
		if s.unsent != nil {
			s.changed.Wait()
		} else {
			c.changed.Wait()
		}
	}
	switch {
	case s.state.Load() != alive:
		return status.FromContextError(callContext{s.stream}.Err()).Err()
	case s.trailers != nil:
		return errAnswered
	}
	if s.method.stream.ServerStreams {
		c.send(s.stream, out, nil)
		return nil
	}
	s.listens = true
	c.send(s.stream, out, ended)
	return nil
}

// RecvMsg implements grpc.ServerStream.
func (s *serverStream) RecvMsg(m any) error {
	message, err := s.next()
	if err != nil {
		return err
	}
	return decode(s.conn.server.options.Codec, message, m)
}

// deaf reports whether the call has ended, but for what the client does not take yet.
func (s *stream) deaf() bool { return s.trailers != nil && !s.listens }

// next waits for a message and takes it.
func (s *serverStream) next() ([]byte, error) {
	c := s.conn
	c.mu.Lock()
	defer c.unlock()
	for s.state.Load() == alive && len(s.queue) == 0 && !s.halfClosed && !s.deaf() {
		s.changed.Wait()
	}
	switch {
	case len(s.queue) > 0: // which has arrived, whatever came after it
	case s.state.Load() != alive:
		return nil, status.FromContextError(callContext{s.stream}.Err()).Err()
	case s.deaf():
		return nil, status.FromContextError(context.Canceled).Err()
	case len(s.body) > 0:
		return nil, status.Error(codes.Internal, "the stream ends within a message")
	default:
		return nil, io.EOF
	}
	message := s.queue[0]
	s.queue = s.queue[1:]
	s.buffered -= int64(len(message) + prefix)
	window := int64(c.server.options.StreamWindow)
	if more := window - s.buffered - s.allowed; s.state.Load() == alive && !s.halfClosed && more >= window/4 {
		c.putWindow(s.id, more)
		s.allowed += more
	}
	return message, nil
}
