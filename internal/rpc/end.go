package rpc

import (
	"errors"
	"io"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// linger reads on, when the client was told that the connection ends, until it closes it. A
// socket that is closed with bytes unread is reset, and the client may lose what it was answered.
func (c *conn) linger() {
	c.mu.Lock()
	told := c.told && !c.abandoned
	if told {
		_ = c.socket.SetReadDeadline(c.server.options.Now().Add(lastWord)) // of a socket that is closed, which reading tells
	}
	c.unlock()
	if told {
		_, _ = io.Copy(io.Discard, c.socket) // it ends with an error as a rule
	}
}

// abandon ends the connection, and leaves its handlers to themselves.
func (c *conn) abandon() {
	c.mu.Lock()
	defer c.unlock()
	c.abandoned = true
	c.endLocked(errStopped)
	_ = c.socket.SetReadDeadline(c.server.options.Now()) // see linger
	c.changed.Broadcast()
}

// close ends a connection that cannot be read any more, or whose client has made a fault: it is
// told of that.
func (c *conn) close(err error) {
	var code http2.ConnectionError
	var away goingAway
	switch {
	case errors.As(err, &away):
	case errors.As(err, &code):
		away.code = http2.ErrCode(code)
	case errors.Is(err, http2.ErrFrameTooLarge):
		away.code = http2.ErrCodeFrameSize
	}
	c.mu.Lock()
	if away.code != http2.ErrCodeNo && c.err == nil {
		c.putGoAway(c.last, away.code, away.text)
	}
	c.unlock()
	c.end(err)
}

// end ends the connection and all calls on it; what is out is written yet.
func (c *conn) end(err error) {
	c.mu.Lock()
	defer c.unlock()
	c.endLocked(err)
}

// endLocked does the same for those who hold the lock.
func (c *conn) endLocked(err error) {
	if c.err != nil {
		return
	}
	if c.err = err; err == nil {
		c.err = io.EOF
	}
	for _, st := range c.streams {
		c.drop(st, canceled)
	}
	for _, t := range []*time.Timer{c.alive, c.deadlines} {
		if t != nil {
			t.Stop()
		}
	}
	c.over = true
	// Who does not read keeps nothing open, and the reader reads no more.
	now := c.server.options.Now()
	_ = c.socket.SetReadDeadline(now)
	_ = c.socket.SetWriteDeadline(now.Add(lastWord))
	c.changed.Broadcast()
}

// lookAlive looks whether anything has come lately, and asks for it where nothing has.
func (c *conn) lookAlive() {
	c.mu.Lock()
	defer c.unlock()
	switch {
	case c.err != nil:
		return
	case c.frames != c.seen:
		c.seen, c.asked = c.frames, false
		c.alive.Reset(c.server.options.IdleTime)
	case c.asked:
		c.endLocked(errors.New("no sign of life"))
	default:
		c.asked = true
		c.putPing(false, [8]byte{})
		c.alive.Reset(c.server.options.PingTimeout)
	}
}

// drainPing is answered when the client has read that it is to make no more calls.
//
//nolint:gochecknoglobals // a constant in all but name
var drainPing = [8]byte{'t', 'i', 'e', 'r', 'g', 'a', 't', 'e'}

// drain tells the client to make no more calls; the connection ends with the last of them.
func (c *conn) drain() {
	c.mu.Lock()
	defer c.unlock()
	if c.draining || c.err != nil {
		return
	}
	c.draining = true
	if c.alive != nil { // else it is yet to speak; see greet
		c.putGoAway(maxID, http2.ErrCodeNo, "")
		c.putPing(false, drainPing)
	}
	time.AfterFunc(lastWord, func() {
		c.mu.Lock()
		defer c.unlock()
		c.lastCall()
	})
}

// lastCall takes no more calls.
func (c *conn) lastCall() {
	if c.final || c.err != nil {
		return
	}
	c.final = true
	c.putGoAway(c.last, http2.ErrCodeNo, "")
	for _, st := range c.streams {
		if st.method.endless {
			c.fail(st, status.Error(codes.Unavailable, errStopped.Error()))
			c.cut(st)
		}
	}
	c.endDrained()
}

// endDrained ends a connection whose last call has been answered.
func (c *conn) endDrained() {
	if c.final && len(c.streams) == 0 {
		c.endLocked(errStopped)
	}
}
