package rpc

import (
	"errors"
	"slices"
	"time"

	"golang.org/x/net/http2"
)

// handleFrame handles a frame, and returns the call that is to be handled now, if there is one.
func (c *conn) handleFrame(f http2.Frame) (*stream, error) {
	switch f := f.(type) {
	case *http2.DataFrame:
		return c.data(f)
	case *http2.HeadersFrame:
		c.block.begin(f.StreamID, f.StreamEnded(), f.HasPriority() && f.Priority.StreamDep == f.StreamID)
		return c.headers(f.HeaderBlockFragment(), f.HeadersEnded())
	case *http2.ContinuationFrame:
		if len(f.HeaderBlockFragment()) == 0 && !f.HeadersEnded() {
			if err := c.countEmpty(); err != nil {
				return nil, err
			}
		}
		return c.headers(f.HeaderBlockFragment(), f.HeadersEnded())
	case *http2.WindowUpdateFrame:
		return nil, c.widen(f)
	case *http2.SettingsFrame:
		return nil, c.settings(f)
	case *http2.PingFrame:
		return nil, c.ping(f)
	case *http2.RSTStreamFrame:
		if c.neverWas(f.StreamID) {
			return nil, http2.ConnectionError(http2.ErrCodeProtocol)
		}
		c.drop(c.streams[f.StreamID], canceled)
		c.wasReset(f.StreamID) // it sends no more now
	case *http2.PriorityFrame:
		if f.StreamDep == f.StreamID {
			return nil, http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeProtocol}
		}
	case *http2.PushPromiseFrame:
		return nil, http2.ConnectionError(http2.ErrCodeProtocol)
	}
	return nil, nil //nolint:nilnil // there is none
}

// neverWas reports whether a stream has not begun. Of those that come after the last call that is
// taken nothing is known.
func (c *conn) neverWas(id uint32) bool { return id%2 == 0 || (id > c.last && !c.final) }

// countEmpty counts a frame without content. Too many in a row are a fault of the connection.
func (c *conn) countEmpty() error {
	if c.empty++; c.empty > maxEmpty {
		return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	return nil
}

// faulty resets a stream whose client has made a fault. Any other, also that of a stream that has
// never been, is one of the connection.
func (c *conn) faulty(fault error) error {
	var of http2.StreamError
	if !errors.As(fault, &of) {
		return fault
	}
	if c.neverWas(of.StreamID) {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	st := c.streams[of.StreamID]
	if c.drop(st, canceled); st == nil || !st.halfClosed {
		c.noteReset(of.StreamID)
	}
	c.putReset(of.StreamID, of.Code)
	return nil
}

// noteReset remembers a stream that was reset while its client had more to say.
func (c *conn) noteReset(id uint32) {
	c.resets[c.nResets%len(c.resets)] = id
	c.nResets++
}

// wasReset reports whether a stream is one of those, and forgets it.
func (c *conn) wasReset(id uint32) bool {
	i := slices.Index(c.resets[:], id)
	if i >= 0 {
		c.resets[i] = 0
	}
	return i >= 0
}

// settings notes what the client takes.
func (c *conn) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	if now := c.server.options.Now(); now.Sub(c.setSince) >= time.Second {
		c.setSince, c.set = now, 0
	}
	if c.set++; c.set > maxSettings {
		return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	initial := c.initial
	err := f.ForeachSetting(func(s http2.Setting) error {
		if err := s.Valid(); err != nil {
			return err //nolint:wrapcheck // a ConnectionError
		}
		switch s.ID { //nolint:exhaustive // the others change nothing that is sent
		case http2.SettingInitialWindowSize:
			initial = int64(s.Val)
		case http2.SettingHeaderTableSize:
			c.smaller = c.smaller || s.Val < tableBytes
		}
		return nil
	})
	if err != nil {
		return err //nolint:wrapcheck // a ConnectionError
	}
	c.putSettingsAck() // before what they allow: the client may go by those of before until then
	return c.rewindow(initial)
}

// rewindow changes the window that streams begin with, and that of those that there are.
func (c *conn) rewindow(initial int64) error {
	change := initial - c.initial
	if c.initial = initial; change == 0 {
		return nil
	}
	for _, st := range c.streams {
		if st.window += change; st.window > maxWindow {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
		if change > 0 && st.unsent != nil {
			c.push(st)
		}
	}
	return nil
}

// widen notes that the client takes more.
func (c *conn) widen(f *http2.WindowUpdateFrame) error {
	st := c.streams[f.StreamID]
	switch {
	case f.StreamID == 0:
		if c.window += int64(f.Increment); c.window > maxWindow {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
		c.unblock()
	case c.neverWas(f.StreamID):
		return http2.ConnectionError(http2.ErrCodeProtocol)
	case st != nil:
		if st.window += int64(f.Increment); st.window > maxWindow {
			return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeFlowControl}
		}
		if st.unsent != nil {
			c.push(st)
		}
	}
	return nil
}

// ping answers a PING, or takes note of the answer to one.
func (c *conn) ping(f *http2.PingFrame) error {
	if f.IsAck() {
		if c.draining && f.Data == drainPing {
			c.lastCall()
		}
		return nil
	}
	now := c.server.options.Now()
	if now.Sub(c.lastPing) >= c.server.options.MinPing {
		c.strikes = 0
	} else if c.strikes++; c.strikes > maxPingStrikes {
		return goingAway{http2.ErrCodeEnhanceYourCalm, "too_many_pings"}
	}
	c.lastPing = now
	c.putPing(true, f.Data)
	return nil
}

// goingAway is a fault of a connection that the client is told of with a text.
type goingAway struct {
	code http2.ErrCode
	text string
}

// Error implements error.
func (g goingAway) Error() string { return g.code.String() + ": " + g.text }
