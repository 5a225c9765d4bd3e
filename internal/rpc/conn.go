package rpc

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	readBytes  = 64 << 10 // read at once
	tableBytes = 4 << 10  // of headers, where nothing is said
	// maxUnwritten is how many bytes may wait for a client to read them until nothing more is
	// read of it.
	maxUnwritten = 1 << 20
	// maxEmpty is how many frames may come that say nothing, until one says something.
	maxEmpty = 1000
	// maxPingStrikes is how many PINGs may come too soon.
	maxPingStrikes = 2
	// maxSettings is how many settings may come in a second: one that changes the windows of all
	// calls takes as long as there are calls.
	maxSettings = 100
	// lastWord is how long a client that is told to go may take to say that it has heard.
	lastWord = time.Second

	maxWindow = 1<<31 - 1 // RFC 9113 6.9.1
	maxID     = 1<<31 - 1
	usual     = 65_535 // the windows where nothing is said
)

// A conn is one connection. One goroutine reads it and one writes to it.
type conn struct {
	server *Server
	socket net.Conn
	in     *http2.Framer // reads
	block  block         // the headers that come
	wake   chan struct{} // there is something to write

	mu      sync.Mutex
	changed sync.Cond // for the reader, for handlers that wait for room, and for who waits for the end
	err     error     // why it has ended
	streams map[uint32]*stream
	last    uint32 // ID of the latest stream
	running int    // calls that are handled, whether their streams are open or not
	blocked []*stream
	resets  [256]uint32 // the latest streams that were reset before their clients had ended them
	nResets int

	out       []byte // to be written
	window    int64  // bytes that the client takes now, of all streams
	initial   int64  // bytes that it takes of a new stream
	frame     int    // bytes of the largest frame that it takes
	received  int64  // bytes that have arrived and that it was not told of
	allowed   int64  // bytes that it may send
	empty     int    // frames that said nothing, in a row
	lastPing  time.Time
	strikes   int
	smaller   bool      // the client has made the table of headers smaller, and is to be told so
	set       int       // settings that have come
	setSince  time.Time // since then
	draining  bool      // it was told to make no more calls
	final     bool      // and which is the last that is answered
	deadlines *time.Timer
	due       time.Time   // when deadlines fires, or soon after; zero: it does not
	expired   time.Time   // when it last did
	alive     *time.Timer // looks for a sign of life
	frames    int64       // that have come
	seen      int64       // of these, when alive last looked
	asked     bool        // for a sign of life
	told      bool        // the client was, that the connection ends
	abandoned bool        // nobody waits for its handlers
	mute      bool        // nothing can be written
	over      bool        // nothing more is to be written than is out
}

func newConn(s *Server, socket net.Conn) *conn {
	c := &conn{
		server: s, socket: socket, wake: make(chan struct{}, 1), streams: map[uint32]*stream{},
		window: usual, initial: usual, frame: 16 << 10, allowed: int64(s.options.Window),
	}
	c.changed.L = &c.mu
	c.block.decoder = hpack.NewDecoder(tableBytes, c.block.field)
	c.block.decoder.SetMaxStringLength(s.options.MaxHeaderBytes)
	c.block.most = s.options.MaxHeaderBytes
	c.block.all = s.options.Stats != nil
	return c
}

// run serves the connection until it has ended.
func (c *conn) run() {
	c.mu.Lock()
	if c.err == nil { // else it has ended already
		_ = c.socket.SetDeadline(c.server.options.Now().Add(c.server.options.HandshakeTimeout)) // of a socket that is closed, which reading tells
	}
	c.unlock()
	secured, err := c.server.handshake(c.socket)
	if err != nil {
		_ = c.socket.Close()
		return
	}
	c.mu.Lock()
	c.socket = secured
	c.unlock()
	written := make(chan struct{})
	go func() {
		defer close(written)
		c.write()
	}()
	err = c.greet()
	for err == nil {
		var f http2.Frame
		if f, err = c.read(); err == nil || errors.As(err, new(http2.StreamError)) {
			err = c.take(f, err)
		}
	}
	c.close(err)
	<-written
	c.linger()
	_ = c.socket.Close()
	c.mu.Lock()
	defer c.unlock()
	for c.running > 0 && !c.abandoned { // until its handlers have ended
		c.changed.Wait()
	}
}

// read reads a frame.
func (c *conn) read() (http2.Frame, error) {
	header, err := c.in.ReadFrameHeader()
	if err != nil {
		return nil, err //nolint:wrapcheck // nobody is told but the client
	}
	f, err := c.in.ReadFrameForHeader(header)
	if header.Type == http2.FrameHeaders && errors.As(err, new(http2.StreamError)) {
		err = http2.ConnectionError(http2.ErrCodeProtocol) // the block was not read, and so the next cannot be
	}
	return f, err //nolint:wrapcheck // as above
}

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

// greet tells the client what it may do and reads what it begins with.
func (c *conn) greet() error {
	o := &c.server.options
	c.mu.Lock()
	c.putSettings(
		http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: uint32(o.MaxStreams)},  //nolint:gosec // configured
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(o.StreamWindow)},   //nolint:gosec // configured
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: uint32(o.MaxHeaderBytes)}, //nolint:gosec // configured
	)
	c.putWindow(0, int64(o.Window)-usual)
	c.unlock()
	r := bufio.NewReaderSize(c.socket, readBytes)
	c.in = http2.NewFramer(nil, r)
	c.in.SetReuseFrames()
	c.in.SetMaxReadFrameSize(16 << 10)
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(r, preface); err != nil || !bytes.Equal(preface, []byte(http2.ClientPreface)) {
		return errors.Join(err, errors.New("the client does not speak HTTP/2"))
	}
	f, err := c.in.ReadFrame()
	if err != nil {
		return err //nolint:wrapcheck // nobody is told but the client
	}
	settings, ok := f.(*http2.SettingsFrame)
	if !ok || settings.IsAck() {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	c.mu.Lock()
	defer c.unlock()
	if c.err != nil {
		return c.err
	}
	if err := c.settings(settings); err != nil {
		return err
	}
	if err := c.socket.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("end the handshake: %w", err)
	}
	c.alive = time.AfterFunc(o.IdleTime, c.lookAlive)
	if c.draining {
		c.putGoAway(maxID, http2.ErrCodeNo, "")
		c.putPing(false, drainPing)
	}
	return nil
}

// take handles a frame, or the fault of one that concerns a stream alone. An error ends the
// connection.
func (c *conn) take(f http2.Frame, fault error) error {
	var st *stream
	c.mu.Lock()
	for len(c.out) > maxUnwritten && c.err == nil { // until it is written
		c.changed.Wait()
	}
	err := c.err
	c.frames++
	var of http2.StreamError
	switch {
	case err != nil:
	case errors.As(fault, &of):
		err = c.faulty(of)
	default:
		st, err = c.frameOf(f)
		if errors.As(err, &of) {
			err = c.faulty(of)
		}
	}
	for st != nil && c.running > c.server.options.MaxStreams && c.err == nil { // until fewer are handled
		c.changed.Wait()
	}
	c.unlock()
	if st != nil {
		c.server.dispatch(st)
	}
	return err
}

// frameOf handles a frame, and returns the call that is to be handled now, if there is one.
func (c *conn) frameOf(f http2.Frame) (*stream, error) {
	switch f := f.(type) {
	case *http2.DataFrame:
		return c.data(f)
	case *http2.HeadersFrame:
		c.block.begin(f.StreamID, f.StreamEnded(), f.HasPriority() && f.Priority.StreamDep == f.StreamID)
		return c.headers(f.HeaderBlockFragment(), f.HeadersEnded())
	case *http2.ContinuationFrame:
		if len(f.HeaderBlockFragment()) == 0 && !f.HeadersEnded() {
			if err := c.saysNothing(); err != nil {
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

// saysNothing counts a frame without content.
func (c *conn) saysNothing() error {
	if c.empty++; c.empty > maxEmpty {
		return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	return nil
}

// faulty resets a stream whose client has made a fault. Of a stream that has never been, it is
// one of the connection.
func (c *conn) faulty(of http2.StreamError) error {
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
	often := func() error {
		if c.set++; c.set > maxSettings {
			return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
		}
		return nil
	}
	if err := often(); err != nil {
		return err
	}
	err := f.ForeachSetting(func(s http2.Setting) error {
		if err := s.Valid(); err != nil {
			return err //nolint:wrapcheck // a ConnectionError
		}
		switch s.ID { //nolint:exhaustive // the others change nothing that is sent
		case http2.SettingInitialWindowSize:
			if err := often(); err != nil {
				return err
			}
			return c.rewindow(int64(s.Val))
		case http2.SettingHeaderTableSize:
			c.smaller = c.smaller || s.Val < tableBytes
		case http2.SettingMaxFrameSize:
			c.frame = int(s.Val)
		}
		return nil
	})
	if err != nil {
		return err //nolint:wrapcheck // a ConnectionError
	}
	c.putSettingsAck()
	return nil
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
	if now.Sub(c.lastPing) < c.server.options.MinPing {
		if c.strikes++; c.strikes > maxPingStrikes {
			return goingAway{http2.ErrCodeEnhanceYourCalm, "too_many_pings"}
		}
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
	c.endDrained()
}

// endDrained ends a connection whose last call has been answered.
func (c *conn) endDrained() {
	if c.final && len(c.streams) == 0 {
		c.endLocked(errStopped)
	}
}
