package rpc

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	readBytes  = 64 << 10 // read at once
	frameBytes = 16 << 10 // of a frame, whatever more the client takes
	tableBytes = 4 << 10  // of headers, where nothing is said
	// maxUnwritten is how many bytes may wait for a client to read them until nothing more is
	// read of it.
	maxUnwritten = 1 << 20
	// maxEmpty is how many frames may come that say nothing, until one says something.
	maxEmpty = 1000
	// maxPingStrikes is how many PINGs in a row may come too soon.
	maxPingStrikes = 2
	// maxSettings is how many frames of settings may come in a second: one that changes the windows
	// of all calls takes as long as there are calls.
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
	received  int64  // bytes that have arrived and that it was not told of
	allowed   int64  // bytes that it may send
	empty     int    // frames that said nothing, in a row
	lastPing  time.Time
	strikes   int
	smaller   bool      // the client has made the table of headers smaller, and is to be told so
	set       int       // frames of settings that have come
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
		window: usual, initial: usual, allowed: int64(s.options.Window),
	}
	c.changed.L = &c.mu
	c.block.decoder = hpack.NewDecoder(tableBytes, c.block.field)
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
	c.in.SetMaxReadFrameSize(frameBytes)
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
	c.frames++
	err := c.err
	if err == nil && fault == nil {
		st, fault = c.handleFrame(f)
	}
	if err == nil && fault != nil {
		err = c.faulty(fault)
	}
	for st != nil && c.running > c.server.options.MaxStreams && c.err == nil { // until fewer are handled
		c.flush()
		c.changed.Wait()
	}
	c.unlock()
	if st != nil {
		c.server.dispatch(st)
	}
	return err
}
