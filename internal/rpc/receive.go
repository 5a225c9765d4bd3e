package rpc

import (
	"encoding/binary"
	"sync"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

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
	} else if err := c.countEmpty(); err != nil {
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
	if st.deaf() {
		return false, nil
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
		st.body = buffers.Get().(*buffer).bytes[:0] //nolint:forcetypeassert // see New
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

// buffers are for messages that come.
//
//nolint:gochecknoglobals // a pool of memory is the process'
var buffers = sync.Pool{New: func() any { return &buffer{bytes: make([]byte, 0, 1<<10)} }}

// A buffer has bytes that are used again.
type buffer struct{ bytes []byte }

func putBuffer(b []byte) {
	if cap(b) <= 64<<10 {
		buffers.Put(&buffer{b})
	}
}
