package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
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
// the machine with what it measures. One goroutine reads, and writes at once what is put
// while it has answers; another writes what is put else. It has what Envoy does for such
// calls: the headers compressed to a byte each, a deadline that is sent, windows, and answers
// to pings. It has no TLS, no compression, and no request of more than one frame.
type connection struct {
	socket  net.Conn
	timeout time.Duration // of a call
	wake    chan struct{} // there is something to write
	ended   chan struct{} // closed with err

	mu      sync.Mutex
	changed sync.Cond // there may be room for another stream or for bytes, or the end
	err     error     // why it has ended
	streams map[uint32]*stream
	over    []*stream // whose then is to be called
	next    uint32    // ID of the next stream
	most    uint32    // streams at a time
	arrived int       // calls, which are begun in turn
	begun   int       // those whose turn is over
	window  int64     // bytes that the server takes now, of all streams
	initial int64     // bytes that it takes of a new stream
	reading bool      // who reads has answers, and writes what is put meanwhile
	out     bytes.Buffer
	frames  *http2.Framer // writes to out
	message []byte        // one that is sent
	headers headers

	writing sync.Mutex
	spare   bytes.Buffer // to be out next
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
		streams: map[uint32]*stream{}, next: 1, most: maxStreamID, window: windowAtOnce, initial: windowAtOnce,
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
	c.writeAll()
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
	defer c.unlock()
	if c.err != nil {
		return
	}
	c.err = err
	for _, s := range c.streams {
		c.finish(s, err)
	}
	c.changed.Broadcast()
	close(c.ended)
	_ = c.socket.Close() // what was to be told, err tells
}

// finish ends a stream that is open. An error says that its answer is none.
func (c *connection) finish(s *stream, err error) {
	delete(c.streams, s.id)
	s.err = err
	c.over = append(c.over, s)
	c.changed.Broadcast()
}

// unlock unlocks the connection and lets go on who has an answer now.
func (c *connection) unlock() {
	over := c.over
	c.over = nil
	c.mu.Unlock()
	for _, s := range over {
		s.then()
	}
}

// flush has what is put written. The caller holds the lock.
func (c *connection) flush() {
	if c.reading {
		return
	}
	select {
	case c.wake <- struct{}{}:
	default: // it will
	}
}

// call makes a call and returns the answer, in memory that the next call of the stream
// uses again.
func (c *connection) call(s *stream, method string, request []byte) ([]byte, error) {
	if err := c.start(s, method, c.timeout, request, true); err != nil {
		return nil, err
	}
	<-s.done
	return s.result()
}

// errBusy says that the server does not take it yet.
var errBusy = errors.New("the server takes no more yet")

// start begins a call with its request. Its deadline is sent; without a timeout there is
// none, and no request: those are then sent one by one. It waits until the server takes the
// call, or fails with errBusy.
func (c *connection) start(s *stream, method string, timeout time.Duration, request []byte, wait bool) error {
	if err := fits(request); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !wait && c.err == nil && (c.begun < c.arrived || uint32(len(c.streams)) >= c.most || !c.takes(c.initial, request)) {
		return errBusy
	}
	turn := c.arrived
	c.arrived++
	for c.err == nil && (c.begun < turn || uint32(len(c.streams)) >= c.most) {
		c.changed.Wait()
	}
	c.begun++
	c.changed.Broadcast() // it is the next one's turn
	if c.err != nil {
		return c.err
	}
	if c.next > maxStreamID {
		return errors.New("the connection has no more streams")
	}
	block, err := c.headers.of(c.socket.RemoteAddr().String(), method, timeout)
	if err != nil {
		return err
	}
	*s = stream{id: c.next, window: c.initial, answer: s.answer[:0], status: noStatus, done: s.done, then: s.then}
	c.next += 2
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

// send sends a message on a stream that stays open. It waits until the server takes it, or
// fails with errBusy.
func (c *connection) send(s *stream, message []byte, wait bool) error {
	if err := fits(message); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !wait && c.streams[s.id] == s && !c.takes(s.window, message) {
		return errBusy
	}
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

// takes says whether the server takes a message now, on a stream with such a window.
func (c *connection) takes(window int64, message []byte) bool {
	return min(c.window, window) >= int64(len(message)+prefixBytes)
}

// put sends a message when the server takes it. The stream may end before that.
func (c *connection) put(s *stream, message []byte, last bool) error {
	for c.streams[s.id] == s && !c.takes(s.window, message) {
		c.changed.Wait()
	}
	if c.streams[s.id] != s {
		return nil // over: its done says so, and err why
	}
	size := int64(len(message) + prefixBytes)
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
	for {
		select {
		case <-c.wake:
		case <-c.ended:
			return
		}
		runtime.Gosched() // those who can run put more
		c.writeAll()
	}
}

// writeAll writes what all have put until now.
func (c *connection) writeAll() {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	c.reading = false
	c.spare, c.out = c.out, c.spare
	c.mu.Unlock()
	if c.spare.Len() == 0 {
		return
	}
	if _, err := c.socket.Write(c.spare.Bytes()); err != nil {
		c.end(fmt.Errorf("write: %w", err))
	}
	c.spare.Reset()
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
					c.finish(s, fmt.Errorf("no answer within %s", c.timeout))
					c.flush()
				}
			}
			c.unlock()
		}
	}
}
