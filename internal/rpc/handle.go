package rpc

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// handle handles a call.
func (s *stream) handle() {
	ctx, ended := s.conn.server.follow(callContext{s}, s)
	var answer []byte
	var err error
	if s.method.stream != nil {
		err = s.handleStream(ctx)
	} else {
		answer, err = s.answer(ctx)
	}
	ended(err)
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
		if st.listens {
			st.listens = false
			st.changed.Broadcast() // for one that still receives
		}
		c.send(st, answer, ended) // of a stream there is none
	}
	switch st.handled = true; {
	case st.state.Load() != alive:
		st.leave()
	case c.server.options.CallTimeout > 0:
		if end := c.server.options.Now().Add(c.server.options.CallTimeout); st.ends.IsZero() || end.Before(st.ends) {
			st.ends = end // a stream may have had longer
			c.expireAt(st)
		}
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

// decode decodes a message.
func decode(c Codec, data []byte, into any) error {
	if err := c.Unmarshal(data, into); err != nil {
		return status.Error(codes.Internal, "grpc: failed to unmarshal the received message: "+err.Error())
	}
	return nil
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
	defer putBuffer(body)
	return decode(s.conn.server.options.Codec, body[prefix:], into)
}
