package rpc

import (
	"encoding/binary"
	"runtime"
	"slices"

	"golang.org/x/net/http2"
)

// prefix is how many bytes stand before a message: whether it is compressed, and its length.
const prefix = 5

// keptBytes is how large the memory may be that is kept for the next writing.
const keptBytes = 256 << 10

// noTable at the beginning of a block says that the table of headers has no room for entries
// (RFC 7541 6.3).
const noTable = 0x20

// write writes what is out, until the connection is over and all of it is written. When it cannot,
// reading goes on: the client may have closed the connection after it sent what is yet to be read.
func (c *conn) write() {
	var spare []byte
	mute := false
	for range c.wake {
		runtime.Gosched() // those who can run put more
		c.mu.Lock()
		spare, c.out = c.out, spare[:0]
		over := c.over
		if len(spare) > maxUnwritten {
			c.changed.Broadcast() // there is room again
		}
		c.mu.Unlock()
		if len(spare) > 0 && !mute {
			_, err := c.socket.Write(spare)
			if mute = err != nil; mute {
				c.mu.Lock()
				c.mute = true
				c.mu.Unlock()
			}
		}
		if over {
			return
		}
		if cap(spare) > keptBytes {
			spare = nil
		}
	}
}

// unlock unlocks the connection and has the writer write what is out.
func (c *conn) unlock() {
	c.flush()
	c.mu.Unlock()
}

// flush has the writer write what is out, for those who keep the lock or wait.
func (c *conn) flush() {
	if len(c.out) > 0 || c.over {
		select {
		case c.wake <- struct{}{}:
		default: // it will
		}
	}
}

// put puts the header of a frame, whose payload is to follow. The caller holds the lock, as for
// all that put.
func (c *conn) put(size int, kind http2.FrameType, flags http2.Flags, id uint32) {
	c.out = append(c.out, byte(size>>16), byte(size>>8), byte(size), byte(kind), byte(flags)) //nolint:gosec // not above the largest frame
	c.out = binary.BigEndian.AppendUint32(c.out, id)
}

func (c *conn) putSettings(settings ...http2.Setting) {
	c.put(6*len(settings), http2.FrameSettings, 0, 0)
	for _, s := range settings {
		c.out = binary.BigEndian.AppendUint16(c.out, uint16(s.ID))
		c.out = binary.BigEndian.AppendUint32(c.out, s.Val)
	}
}

func (c *conn) putSettingsAck() { c.put(0, http2.FrameSettings, http2.FlagSettingsAck, 0) }

func (c *conn) putPing(ack bool, data [8]byte) {
	var flags http2.Flags
	if ack {
		flags = http2.FlagPingAck
	}
	c.put(len(data), http2.FramePing, flags, 0)
	c.out = append(c.out, data[:]...)
}

func (c *conn) putGoAway(last uint32, code http2.ErrCode, text string) {
	c.told = true
	c.put(8+len(text), http2.FrameGoAway, 0, 0)
	c.out = binary.BigEndian.AppendUint32(c.out, last)
	c.out = append(binary.BigEndian.AppendUint32(c.out, uint32(code)), text...)
}

func (c *conn) putReset(id uint32, code http2.ErrCode) {
	c.put(4, http2.FrameRSTStream, 0, id)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(code))
}

// putWindow lets the client send so many bytes more on a stream, or on all: 0.
func (c *conn) putWindow(id uint32, more int64) {
	if more <= 0 {
		return
	}
	c.put(4, http2.FrameWindowUpdate, 0, id)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(more)) //nolint:gosec // not above maxWindow
}

// putHeaders puts a block of headers, of which each is shorter than the smallest largest frame.
func (c *conn) putHeaders(id uint32, block []byte, last bool) {
	flags := http2.FlagHeadersEndHeaders
	if last {
		flags |= http2.FlagHeadersEndStream
	}
	if c.smaller { // RFC 9113 4.3.1; no block has entries of the table
		c.smaller = false
		block = append([]byte{noTable}, block...)
	}
	c.put(len(block), http2.FrameHeaders, flags, id)
	c.out = append(c.out, block...)
	c.strikes = 0
}

// send sends a message on a stream that is open, and after it the trailers if there are any,
// which end it. What the client does not take yet waits.
func (c *conn) send(st *stream, message []byte, trailers []byte) {
	if !st.begun {
		st.begun = true
		c.putHeaders(st.id, beginning, false)
	}
	if message != nil {
		if st.unsent == nil && int64(len(message)+prefix) <= min(c.window, st.window, frameBytes) { // as a rule
			c.window -= int64(len(message) + prefix)
			st.window -= int64(len(message) + prefix)
			c.put(len(message)+prefix, http2.FrameData, 0, st.id)
			c.out = appendPrefix(c.out, len(message))
			c.out = append(c.out, message...)
			c.strikes = 0
		} else {
			st.unsent = append(appendPrefix(st.unsent, len(message)), message...)
		}
	}
	if st.trailers == nil { // else it has ended, but for what the client does not take yet
		st.trailers = trailers
	}
	c.push(st)
}

func appendPrefix(to []byte, size int) []byte {
	return binary.BigEndian.AppendUint32(append(to, 0), uint32(size)) //nolint:gosec // of a message
}

// push sends what waits of a stream, as far as the client takes it. What is left waits for the
// stream's window, or among those that wait for that of the connection.
func (c *conn) push(st *stream) {
	for len(st.unsent) > 0 {
		n := min(int64(len(st.unsent)), c.window, st.window, frameBytes)
		if n <= 0 {
			if st.window > 0 && !st.waits {
				c.wait(st)
			}
			return
		}
		c.window -= n
		st.window -= n
		c.put(int(n), http2.FrameData, 0, st.id)
		c.out = append(c.out, st.unsent[:n]...)
		st.unsent = st.unsent[n:]
		c.strikes = 0
	}
	if st.unsent != nil {
		st.unsent = nil
		if st.changed != nil {
			st.changed.Broadcast() // for a handler that has more
		}
	}
	if st.trailers != nil && !st.closed {
		st.closed = true
		c.putHeaders(st.id, st.trailers, true)
	}
	if st.closed && !st.listens {
		c.finish(st)
	}
}

// wait has a stream wait for the connection's window. Of those that wait already, most are
// open: a client may reset as many as it likes.
func (c *conn) wait(st *stream) {
	if len(c.blocked) > 2*len(c.streams) {
		c.blocked = slices.DeleteFunc(c.blocked, func(st *stream) bool { return st.state.Load() != alive })
	}
	st.waits = true
	c.blocked = append(c.blocked, st)
}

// unblock sends what waits for the connection's window.
func (c *conn) unblock() {
	for len(c.blocked) > 0 && c.window > 0 {
		st := c.blocked[0]
		c.blocked[0] = nil // not to be kept by those behind it
		c.blocked = c.blocked[1:]
		st.waits = false
		if st.state.Load() == alive {
			c.push(st)
		}
	}
}

// finish forgets a stream whose answer has been sent. A client that has more to say is told that
// nobody hears it.
func (c *conn) finish(st *stream) {
	if !st.halfClosed {
		c.noteReset(st.id)
		c.putReset(st.id, http2.ErrCodeNo)
	}
	c.drop(st, canceled)
}
