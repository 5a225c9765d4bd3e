package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
)

const (
	frameBytes   = 16 << 10  // of the largest frame that every server takes
	answerBytes  = 1 << 20   // of the longest answer
	unreadBytes  = 256 << 10 // of what was read, before the server is told
	bufferBytes  = 64 << 10  // read at once
	prefixBytes  = 5         // before a message of gRPC: compressed or not, and its length
	tableBytes   = 4 << 10   // of compressed headers, where nothing is said
	noStatus     = -1
	statusOK     = 0
	maxStreamID  = 1<<31 - 1
	windowAtOnce = 65_535 // bytes that may be sent, where nothing is said
)

// A connection makes gRPC calls with as little CPU as it can, for the generator shares
// the machine with what it measures. One goroutine reads, one writes what all callers
// have to send at once. It has what Envoy does for such calls: the headers compressed to
// a byte each, a deadline that is sent, windows, and answers to pings. It has no TLS, no
// compression, and no request of more than one frame.
type connection struct {
	socket  net.Conn
	timeout time.Duration // of a call
	wake    chan struct{} // there is something to write
	ended   chan struct{} // closed with err

	mu      sync.Mutex
	changed sync.Cond // there may be room for another stream or for bytes, or the end
	err     error     // why it has ended
	streams map[uint32]*stream
	last    uint32 // ID of the last stream
	most    uint32 // streams at a time
	window  int64  // bytes that the server takes now, of all streams
	initial int64  // bytes that it takes of a new stream
	out     bytes.Buffer
	frames  *http2.Framer // writes to out
	message []byte        // one that is sent
	headers headers
}

// A stream is one call: open to send on while it is in its connection's streams.
type stream struct {
	id     uint32
	window int64
	due    time.Time // zero: it may take for ever
	answer []byte
	status int    // of gRPC
	text   string // grpc-message
	http   string // :status
	err    error
	done   chan struct{} // of 1: it is over
}

func newStream() *stream { return &stream{done: make(chan struct{}, 1)} }

// headers are those of calls of one method, encoded: once the server has them in its
// table they stay the same.
type headers struct {
	encoder *hpack.Encoder
	encoded bytes.Buffer
	method  string
	steady  bool
}

// of returns the encoded headers of a call.
func (h *headers) of(address, method string, timeout time.Duration) ([]byte, error) {
	if h.steady && h.method == method {
		return h.encoded.Bytes(), nil
	}
	before := h.encoded.String()
	h.encoded.Reset()
	fields := []hpack.HeaderField{
		{Name: ":method", Value: "POST"},
		{Name: ":scheme", Value: "http"},
		{Name: ":path", Value: method},
		{Name: ":authority", Value: address},
		{Name: "te", Value: "trailers"},
		{Name: "content-type", Value: "application/grpc"},
	}
	if timeout > 0 {
		fields = append(fields, hpack.HeaderField{Name: "grpc-timeout", Value: strconv.FormatInt(timeout.Milliseconds(), 10) + "m"})
	}
	for _, f := range fields {
		if err := h.encoder.WriteField(f); err != nil {
			return nil, fmt.Errorf("encode the header %s: %w", f.Name, err)
		}
	}
	h.method, h.steady = method, h.encoded.String() == before
	return h.encoded.Bytes(), nil
}

// connect connects to a server, and waits until it speaks HTTP/2. The context ends the
// connection.
func connect(ctx context.Context, address string, timeout time.Duration) (*connection, error) {
	var d net.Dialer
	socket, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	c := &connection{
		socket: socket, timeout: timeout, wake: make(chan struct{}, 1), ended: make(chan struct{}),
		streams: map[uint32]*stream{}, most: maxStreamID, window: windowAtOnce, initial: windowAtOnce,
	}
	c.changed.L = &c.mu
	c.frames = http2.NewFramer(&c.out, nil)
	c.headers.encoder = hpack.NewEncoder(&c.headers.encoded)
	_, _ = c.out.WriteString(http2.ClientPreface) // never fails
	err = errors.Join(
		c.frames.WriteSettings(http2.Setting{ID: http2.SettingEnablePush}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: answerBytes}),
		c.frames.WriteWindowUpdate(0, answerBytes),
	)
	if err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	context.AfterFunc(ctx, func() { c.end(ctx.Err()) })
	settled := make(chan struct{})
	go c.write()
	go c.read(settled)
	go c.expire()
	c.flush()
	late := time.NewTimer(timeout)
	defer late.Stop()
	select {
	case <-settled:
		return c, nil
	case <-late.C:
		c.end(fmt.Errorf("it does not answer within %s", timeout))
	case <-c.ended:
	}
	return nil, fmt.Errorf("connect to %s: %w", address, c.err)
}

// close ends the connection, and what is under way on it.
func (c *connection) close() { c.end(net.ErrClosed) }

// end ends everything, the first time.
func (c *connection) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	for _, s := range c.streams {
		c.over(s, err)
	}
	c.changed.Broadcast()
	close(c.ended)
	_ = c.socket.Close() // what was to be told, err tells
}

// over ends a stream that is open. An error says that its answer is none.
func (c *connection) over(s *stream, err error) {
	delete(c.streams, s.id)
	s.err = err
	s.done <- struct{}{}
	c.changed.Broadcast()
}

// flush has the writer write.
func (c *connection) flush() {
	select {
	case c.wake <- struct{}{}:
	default: // it will
	}
}

// call makes a call and returns the answer, in memory that the next call of the stream
// uses again.
func (c *connection) call(s *stream, method string, request []byte) ([]byte, error) {
	if err := c.start(s, method, c.timeout, request); err != nil {
		return nil, err
	}
	<-s.done
	return s.result()
}

// start begins a call with its request. Its deadline is sent; without a timeout there is
// none, and no request: those are then sent one by one.
func (c *connection) start(s *stream, method string, timeout time.Duration, request []byte) error {
	if err := fits(request); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && uint32(len(c.streams)) >= c.most {
		c.changed.Wait()
	}
	if c.err != nil {
		return c.err
	}
	if c.last += 2; c.last == 2 {
		c.last = 1
	}
	if c.last > maxStreamID {
		return errors.New("the connection has no more streams")
	}
	block, err := c.headers.of(c.socket.RemoteAddr().String(), method, timeout)
	if err != nil {
		return err
	}
	*s = stream{id: c.last, window: c.initial, answer: s.answer[:0], status: noStatus, done: s.done}
	if err := c.frames.WriteHeaders(http2.HeadersFrameParam{StreamID: s.id, BlockFragment: block, EndHeaders: true}); err != nil {
		return err
	}
	c.streams[s.id] = s
	if timeout == 0 {
		c.flush()
		return nil
	}
	s.due = time.Now().Add(timeout)
	return c.put(s, request, true)
}

// send sends a message on a stream that stays open.
func (c *connection) send(s *stream, message []byte) error {
	if err := fits(message); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.put(s, message, false); err != nil || c.streams[s.id] == s {
		return err
	}
	return cmp.Or(s.err, errors.New("the server has ended the call"))
}

// fits says whether a message is of one frame.
func fits(message []byte) error {
	if len(message) > frameBytes-prefixBytes {
		return fmt.Errorf("a message of %d bytes is too long: want %d at most", len(message), frameBytes-prefixBytes)
	}
	return nil
}

// put sends a message when the server takes it. The stream may end before that.
func (c *connection) put(s *stream, message []byte, last bool) error {
	size := int64(len(message) + prefixBytes)
	for c.streams[s.id] == s && min(c.window, s.window) < size {
		c.changed.Wait()
	}
	if c.streams[s.id] != s {
		return nil // over: its done says so, and err why
	}
	c.window -= size
	s.window -= size
	c.message = append(c.message[:0], 0, 0, 0, 0, 0)
	binary.BigEndian.PutUint32(c.message[1:], uint32(len(message)))
	c.message = append(c.message, message...)
	err := c.frames.WriteData(s.id, last, c.message)
	c.flush()
	return err
}

// write writes what all have put, until the end.
func (c *connection) write() {
	var spare bytes.Buffer
	for {
		select {
		case <-c.wake:
		case <-c.ended:
			return
		}
		runtime.Gosched() // those who can run put more
		c.mu.Lock()
		spare, c.out = c.out, spare
		c.mu.Unlock()
		if _, err := c.socket.Write(spare.Bytes()); err != nil {
			c.end(fmt.Errorf("write: %w", err))
			return
		}
		spare.Reset()
	}
}

// expire ends calls whose time is over, though the server has been told.
func (c *connection) expire() {
	tick := time.NewTicker(max(c.timeout/10, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-c.ended:
			return
		case now := <-tick.C:
			c.mu.Lock()
			for _, s := range c.streams {
				if !s.due.IsZero() && now.After(s.due) {
					_ = c.frames.WriteRSTStream(s.id, http2.ErrCodeCancel) // a buffer takes all
					c.over(s, fmt.Errorf("no answer within %s", c.timeout))
					c.flush()
				}
			}
			c.mu.Unlock()
		}
	}
}

// A reader reads what the server sends.
type reader struct {
	*connection

	frames  *http2.Framer
	headers *hpack.Decoder
	unread  uint32 // bytes read, that the server was not told of
	id      uint32 // of the stream whose headers come
	last    bool   // they end it
}

// read reads until the end.
func (c *connection) read(settled chan<- struct{}) {
	r := &reader{connection: c, frames: http2.NewFramer(nil, bufio.NewReaderSize(c.socket, bufferBytes))}
	r.frames.SetReuseFrames()
	r.headers = hpack.NewDecoder(tableBytes, r.header)
	for {
		f, err := r.frames.ReadFrame()
		if err != nil {
			c.end(fmt.Errorf("read: %w", err))
			return
		}
		c.mu.Lock()
		err = r.frame(f)
		c.mu.Unlock()
		if err != nil {
			c.end(err)
			return
		}
		if s, ok := f.(*http2.SettingsFrame); ok && !s.IsAck() && settled != nil {
			close(settled)
			settled = nil
		}
	}
}

func (r *reader) frame(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.DataFrame:
		return r.data(f)
	case *http2.HeadersFrame:
		r.id, r.last = f.StreamID, f.StreamEnded()
		return r.block(f.HeaderBlockFragment(), f.HeadersEnded())
	case *http2.ContinuationFrame:
		return r.block(f.HeaderBlockFragment(), f.HeadersEnded())
	case *http2.WindowUpdateFrame:
		if f.StreamID == 0 {
			r.window += int64(f.Increment)
		} else if s := r.streams[f.StreamID]; s != nil {
			s.window += int64(f.Increment)
		}
		r.changed.Broadcast()
	case *http2.SettingsFrame:
		return r.settings(f)
	case *http2.PingFrame:
		if f.IsAck() {
			return nil
		}
		r.flush()
		return r.connection.frames.WritePing(true, f.Data)
	case *http2.RSTStreamFrame:
		if s := r.streams[f.StreamID]; s != nil {
			r.over(s, fmt.Errorf("the server has reset the call: %s", f.ErrCode))
		}
	case *http2.GoAwayFrame:
		return fmt.Errorf("the server goes away: %s %q", f.ErrCode, f.DebugData())
	}
	return nil
}

// settings are what the server takes.
func (r *reader) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	err := f.ForeachSetting(func(s http2.Setting) error {
		switch s.ID { //nolint:exhaustive // the others change nothing that is sent
		case http2.SettingMaxConcurrentStreams:
			r.most = s.Val
		case http2.SettingInitialWindowSize:
			for _, open := range r.streams {
				open.window += int64(s.Val) - r.initial
			}
			r.initial = int64(s.Val)
		case http2.SettingHeaderTableSize:
			r.connection.headers.encoder.SetMaxDynamicTableSizeLimit(s.Val)
			r.connection.headers.steady = false
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the settings: %w", err)
	}
	r.changed.Broadcast()
	r.flush()
	return r.connection.frames.WriteSettingsAck()
}

// data takes a part of an answer.
func (r *reader) data(f *http2.DataFrame) error {
	if r.unread += f.Length; r.unread >= unreadBytes {
		if err := r.connection.frames.WriteWindowUpdate(0, r.unread); err != nil {
			return err
		}
		r.unread = 0
		r.flush()
	}
	s := r.streams[f.StreamID]
	if s == nil {
		return nil
	}
	s.answer = append(s.answer, f.Data()...)
	switch {
	case f.StreamEnded():
		r.over(s, errors.New("the answer has no status"))
	case len(s.answer) >= answerBytes: // the server would wait for ever
		r.over(s, fmt.Errorf("the answer has %d bytes or more", answerBytes))
	}
	return nil
}

// block takes a part of headers: of a stream that is over too, for the table is that of
// all.
func (r *reader) block(fragment []byte, last bool) error {
	_, err := r.headers.Write(fragment)
	if err == nil && last {
		err = r.headers.Close()
	}
	if err != nil {
		return fmt.Errorf("read headers: %w", err)
	}
	if s := r.streams[r.id]; last && r.last && s != nil {
		r.over(s, nil)
	}
	return nil
}

// header takes one header.
func (r *reader) header(f hpack.HeaderField) {
	s := r.streams[r.id]
	if s == nil {
		return
	}
	switch f.Name {
	case ":status":
		s.http = f.Value
	case "grpc-status":
		if n, err := strconv.ParseUint(f.Value, 10, 16); err == nil {
			s.status = int(n)
		}
	case "grpc-message":
		s.text = f.Value
	}
}

// result is the answer of a call that is over.
func (s *stream) result() ([]byte, error) {
	switch {
	case s.err != nil:
		return nil, s.err
	case s.http != "200":
		return nil, fmt.Errorf("the answer has the HTTP status %q: want 200", s.http)
	case s.status == noStatus:
		return nil, errors.New("the answer has no status")
	case s.status != statusOK:
		return nil, fmt.Errorf("the call failed: %s: %s", codes.Code(s.status), s.text)
	case len(s.answer) < prefixBytes || s.answer[0] != 0 || int(binary.BigEndian.Uint32(s.answer[1:])) != len(s.answer)-prefixBytes:
		return nil, fmt.Errorf("the answer of %d bytes is not one message, uncompressed", len(s.answer))
	}
	return s.answer[prefixBytes:], nil
}
