package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// plain is a codec of messages that are bytes.
type plain struct{}

func (plain) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (plain) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = slices.Clone(data)
	return nil
}

func (plain) Name() string { return "plain" }

// tester is a service to try the server with.
type tester struct {
	release chan struct{} // lets Wait and Hold return
	waiting atomic.Int64  // calls of Wait and Hold that are handled
	handled atomic.Int64  // calls of Echo that were
	heard   atomic.Int64  // messages that Listen was told of
}

func newTester() *tester { return &tester{release: make(chan struct{})} }

// unary makes a method of one request and one answer.
func (s *tester) unary(name string, answer func(ctx context.Context, request []byte) ([]byte, error)) grpc.MethodDesc {
	return grpc.MethodDesc{MethodName: name, Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		var request []byte
		if err := decode(&request); err != nil {
			return nil, err
		}
		out, err := answer(ctx, request)
		if err != nil {
			return nil, err
		}
		return &out, nil
	}}
}

func (s *tester) register(r grpc.ServiceRegistrar) {
	stream := func(name string, handle func(grpc.ServerStream) error) grpc.StreamDesc {
		return grpc.StreamDesc{StreamName: name, ClientStreams: true, ServerStreams: true, Handler: func(_ any, stream grpc.ServerStream) error { return handle(stream) }}
	}
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: "T", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{
			s.unary("Echo", func(_ context.Context, request []byte) ([]byte, error) {
				s.handled.Add(1)
				return request, nil
			}),
			s.unary("Fail", func(_ context.Context, request []byte) ([]byte, error) {
				code, _ := strconv.Atoi(string(request))
				return nil, status.Error(codes.Code(code), "as you wish: 100% \u00e9\n")
			}),
			s.unary("Wait", func(ctx context.Context, _ []byte) ([]byte, error) { return nil, s.wait(ctx) }),
			s.unary("Hold", func(ctx context.Context, _ []byte) ([]byte, error) { return nil, s.wait(context.WithoutCancel(ctx)) }),
		},
		Streams: []grpc.StreamDesc{
			stream("Talk", talk), stream("Listen", s.listen), stream("Pour", pour),
			stream("Rest", func(stream grpc.ServerStream) error { return s.wait(stream.Context()) }),
			{StreamName: "Report", ClientStreams: true, Handler: func(_ any, stream grpc.ServerStream) error { return s.report(stream) }},
		},
	}, s)
}

// wait waits to be released, or for the end of the call.
func (s *tester) wait(ctx context.Context) error {
	s.waiting.Add(1)
	defer s.waiting.Add(-1)
	select {
	case <-s.release:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// talk answers each message with itself.
func talk(stream grpc.ServerStream) error {
	for {
		var m []byte
		if err := stream.RecvMsg(&m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(&m); err != nil {
			return err
		}
	}
}

// listen answers with the number of messages that have come.
func (s *tester) listen(stream grpc.ServerStream) error {
	n := 0
	for {
		var m []byte
		if err := stream.RecvMsg(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		n++
		s.heard.Add(1)
	}
	out := []byte(strconv.Itoa(n))
	return stream.SendMsg(&out)
}

// report answers the first message, and listens on.
func (s *tester) report(stream grpc.ServerStream) error {
	for {
		var m []byte
		if err := stream.RecvMsg(&m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if s.heard.Add(1) == 1 {
			if err := stream.SendMsg(&m); err != nil {
				return err
			}
		}
		if string(m) == "enough" {
			return nil
		}
	}
}

// pour answers with as many messages of 1 KiB as the first message says.
func pour(stream grpc.ServerStream) error {
	var m []byte
	if err := stream.RecvMsg(&m); err != nil {
		return err
	}
	n, _ := strconv.Atoi(string(m))
	out := make([]byte, 1<<10)
	for range n {
		if err := stream.SendMsg(&out); err != nil {
			return err
		}
	}
	return nil
}

// places is a bound that counts.
type places struct {
	taken, most atomic.Int64
	limit       int64
}

func (p *places) Enter() error {
	n := p.taken.Add(1)
	if p.limit > 0 && n > p.limit {
		p.taken.Add(-1)
		return status.Error(codes.Unavailable, "full")
	}
	for {
		if most := p.most.Load(); n <= most || p.most.CompareAndSwap(most, n) {
			return nil
		}
	}
}

func (p *places) Leave() { p.taken.Add(-1) }

// A rig is a server on a listener in memory.
type rig struct {
	t        *testing.T
	server   *Server
	listener *bufconn.Listener
	service  *tester
	places   *places
	served   chan error
}

// start starts a server, which stops at the end of the test. It has to be called within a
// bubble of synctest where time matters.
func start(t *testing.T, change func(*Options)) *rig {
	t.Helper()
	r := &rig{t: t, listener: bufconn.Listen(64 << 10), service: newTester(), places: &places{}, served: make(chan error, 1)}
	o := Options{
		Now: time.Now, Codec: plain{}, Bound: func(string) Bound { return r.places }, Workers: 2, MaxStreams: 100, MaxMessageBytes: 1 << 20, MaxHeaderBytes: 64 << 10,
		StreamWindow: 256 << 10, Window: 1 << 20, HandshakeTimeout: 10 * time.Second, CallTimeout: 10 * time.Second, IdleTime: 30 * time.Second,
		PingTimeout: 10 * time.Second, MinPing: time.Second,
	}
	if change != nil {
		change(&o)
	}
	r.server = NewServer(o)
	r.service.register(r.server)
	go func() { r.served <- r.server.Serve(punctual{r.listener}) }()
	t.Cleanup(func() {
		r.server.Stop()
		if err := <-r.served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return r
}

// A punctual listener's connections keep to the deadline for reading that was set last, as sockets do: a
// timer of bufconn's that has fired ends the reading of after another deadline has been set, too.
type punctual struct{ net.Listener }

func (l punctual) Accept() (net.Conn, error) {
	socket, err := l.Listener.Accept()
	return &punctualConn{Conn: socket}, err
}

type punctualConn struct {
	net.Conn

	mu       sync.Mutex
	deadline time.Time // zero: none
}

func (c *punctualConn) SetDeadline(at time.Time) error {
	return errors.Join(c.SetReadDeadline(at), c.SetWriteDeadline(at))
}

func (c *punctualConn) SetReadDeadline(at time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = at
	return c.Conn.SetReadDeadline(at)
}

func (c *punctualConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if timeout := net.Error(nil); !errors.As(err, &timeout) || !timeout.Timeout() || !c.early() {
			return n, err
		}
	}
}

// early reports whether the deadline is yet to come, and sets it anew.
func (c *punctualConn) early() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return (c.deadline.IsZero() || time.Now().Before(c.deadline)) && c.Conn.SetReadDeadline(c.deadline) == nil
}

// A peer is a client that sends frames as it likes.
type peer struct {
	net.Conn
	*http2.Framer

	t       *testing.T
	acks    *http2.Framer // writes what next answers, whoever sends calls meanwhile
	block   bytes.Buffer
	encoder *hpack.Encoder
	decoder *hpack.Decoder
}

// frames is a connection to which frames are written whole, whoever writes.
type frames struct {
	net.Conn

	mu sync.Mutex
}

func (f *frames) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Conn.Write(b)
}

// dial connects and says nothing.
func (r *rig) dial() *peer {
	r.t.Helper()
	socket, err := r.listener.DialContext(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = socket.Close() })
	return newPeer(r.t, socket)
}

func newPeer(t *testing.T, socket net.Conn) *peer {
	socket = &frames{Conn: socket}
	p := &peer{Conn: socket, Framer: http2.NewFramer(socket, socket), acks: http2.NewFramer(socket, nil), t: t}
	p.AllowIllegalWrites = true
	p.encoder = hpack.NewEncoder(&p.block)
	p.decoder = hpack.NewDecoder(4<<10, nil)
	return p
}

// connect connects and greets.
func (r *rig) connect(settings ...http2.Setting) *peer {
	r.t.Helper()
	p := r.dial()
	p.preface()
	p.must(p.WriteSettings(settings...))
	return p
}

func (p *peer) preface() {
	p.t.Helper()
	_, err := io.WriteString(p.Conn, http2.ClientPreface)
	p.must(err)
}

func (p *peer) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// encode encodes a block of headers.
func (p *peer) encode(fields ...string) []byte {
	p.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = p.encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(p.block.Bytes())
}

// call are the headers of a call.
func call(method string, more ...string) []string {
	return append([]string{":method", "POST", ":scheme", "http", ":path", "/T/" + method, ":authority", "t", "te", "trailers", "content-type", "application/grpc"}, more...)
}

// begin begins a call.
func (p *peer) begin(id uint32, method string, more ...string) {
	p.t.Helper()
	p.must(p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, BlockFragment: p.encode(call(method, more...)...)}))
}

// message is one with what stands before it.
func message(text string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(text))), text...)
}

// ask makes a whole call.
func (p *peer) ask(id uint32, method, text string) {
	p.t.Helper()
	p.begin(id, method)
	p.must(p.WriteData(id, true, message(text)))
}

// An event is what a server says of a call, or of the connection.
type event struct {
	kind    string // status, reset, goaway, closed
	id      uint32
	code    int // grpc-status, or that of HTTP/2
	message string
}

// next reads until something ends: a call, or the connection. It waits for two minutes.
func (p *peer) next() event {
	p.t.Helper()
	_ = p.SetReadDeadline(time.Now().Add(2 * time.Minute)) // of a socket that is closed, which reading tells
	for {
		f, err := p.ReadFrame()
		if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
			return event{kind: "silence"}
		}
		if err != nil {
			return event{kind: "closed"}
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = p.acks.WriteSettingsAck() // where it has gone, reading tells
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				_ = p.acks.WritePing(true, f.Data)
			}
		case *http2.RSTStreamFrame:
			return event{kind: "reset", id: f.StreamID, code: int(f.ErrCode)}
		case *http2.GoAwayFrame:
			return event{kind: "goaway", id: f.LastStreamID, code: int(f.ErrCode), message: string(f.DebugData())}
		case *http2.HeadersFrame:
			fields, err := p.decoder.DecodeFull(f.HeaderBlockFragment())
			p.must(err)
			if e, ok := ending(f.StreamID, fields); ok {
				return e
			}
		}
	}
}

// ending reads trailers.
func ending(id uint32, fields []hpack.HeaderField) (e event, ok bool) {
	e = event{kind: "status", id: id}
	for _, f := range fields {
		switch f.Name {
		case "grpc-status": // whatever that of HTTP is
			e.kind = "status"
			e.code, _ = strconv.Atoi(f.Value)
			ok = true
		case "grpc-message":
			e.message = f.Value
		case ":status":
			if f.Value != "200" {
				e.kind = "http"
				e.code, _ = strconv.Atoi(f.Value)
				ok = true
			}
		}
	}
	return e, ok
}

// sink reads all that comes.
func (p *peer) sink() {
	go func() { _, _ = io.Copy(io.Discard, p.Conn) }()
}

// only returns the one connection that there is.
func (r *rig) only() *conn {
	r.server.mu.Lock()
	defer r.server.mu.Unlock()
	for c := range r.server.conns {
		return c
	}
	r.t.Fatal("there is no connection")
	return nil
}

// look looks at the connection's state.
func (r *rig) look(see func(c *conn)) {
	r.t.Helper()
	c := r.only()
	c.mu.Lock()
	defer c.mu.Unlock()
	see(c)
}

// bubble runs a test in a bubble of fake time.
func bubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, test)
}
