package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/tiergate/tiergate/internal/config"
	"github.com/tiergate/tiergate/internal/envoyapi"
	"github.com/tiergate/tiergate/internal/rpc"
)

// dial connects to a server's gRPC listener in clear.
func dial(t *testing.T, address string, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// checkOnce asks for one decision and returns the error alone.
func checkOnce(ctx context.Context, conn *grpc.ClientConn, r *authv3.CheckRequest) error {
	_, err := authv3.NewAuthorizationClient(conn).Check(ctx, r)
	return err
}

// halfCall opens a decision and sends nothing.
func halfCall(t *testing.T, conn *grpc.ClientConn) (grpc.ClientStream, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, authv3.Authorization_Check_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	return stream, cancel
}

// closedAtOnce reports whether a connection is closed before anything is said.
func closedAtOnce(t *testing.T, address string) bool {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err = conn.Read(make([]byte, 1))
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)
}

// TestConnectionsAreBounded: one too many is closed at once, whoever comes after
// another has gone is served, and one listener takes nothing from another.
func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	s := startServer(t, "", "grpc.max_connections=2")
	var open []net.Conn
	for range 2 {
		conn, err := net.Dial("tcp", s.start.GRPC.Address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		open = append(open, conn)
	}
	eventually(t, "both are counted", func() bool { return s.metric(t, "tiergate_connections", "grpc") == 2 })
	if !closedAtOnce(t, s.start.GRPC.Address) {
		t.Error("a third connection stays")
	}
	eventually(t, "it is counted", func() bool { return s.metric(t, "tiergate_connections_refused_total", "grpc") == 1 })
	response, err := http.Get("http://" + s.start.Operator.Address + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	open[0].Close()
	eventually(t, "it is gone", func() bool { return s.metric(t, "tiergate_connections", "grpc") == 1 })
	if err := checkOnce(t.Context(), dial(t, s.start.GRPC.Address), &authv3.CheckRequest{}); err != nil {
		t.Error(err)
	}
}

// TestHTTPConnectionsAreBounded on both listeners.
func TestHTTPConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	s := startServer(t, "")
	for name, address := range map[string]string{"operator": s.start.Operator.Address, "customer": s.start.Customer.Address} {
		for range maxHTTPConnections {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
		}
		eventually(t, "all are counted", func() bool { return s.metric(t, "tiergate_connections", name) == maxHTTPConnections })
		if !closedAtOnce(t, address) {
			t.Errorf("%s: one more stays", name)
		}
	}
}

// TestCallsAreBounded: what is one too many is refused at once; streams have a bound of
// their own, and health is told in any case.
func TestCallsAreBounded(t *testing.T) {
	t.Parallel()
	s := startServer(t, "", "grpc.max_calls=2", "grpc.max_connections=3")
	one, other := dial(t, s.start.GRPC.Address), dial(t, s.start.GRPC.Address)
	const streams = streamsOfConnection * 3
	for range streams {
		if _, err := alsv3.NewAccessLogServiceClient(one).StreamAccessLogs(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the streams are open", func() bool { return s.bounds.logs.Load() == streams })
	soon, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	more, err := alsv3.NewAccessLogServiceClient(other).StreamAccessLogs(soon)
	if err == nil {
		err = more.RecvMsg(&alsv3.StreamAccessLogsResponse{})
	}
	if status.Code(err) != codes.Unavailable || status.Convert(err).Message() != "too many streams are open: see grpc.max_connections" {
		t.Errorf("one stream too many: %v", err)
	}
	if err := checkOnce(t.Context(), one, &authv3.CheckRequest{}); err != nil {
		t.Errorf("streams took the place of a decision: %v", err)
	}
	eventually(t, "it has ended", func() bool { return s.metric(t, "tiergate_calls", "") == 0 })
	_, first := halfCall(t, one)
	_, second := halfCall(t, other)
	defer second()
	eventually(t, "both are under way", func() bool { return s.metric(t, "tiergate_calls", "") == 2 })
	for _, conn := range []*grpc.ClientConn{one, other} {
		err := checkOnce(t.Context(), conn, &authv3.CheckRequest{})
		if status.Code(err) != codes.Unavailable || status.Convert(err).Message() != "too many calls are under way: see grpc.max_calls" {
			t.Errorf("one call too many: %v", err)
		}
	}
	if r, err := healthpb.NewHealthClient(one).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil || r.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", r, err)
	}
	if calls, streams := s.metric(t, "tiergate_overload_refused_total", "call"), s.metric(t, "tiergate_overload_refused_total", "stream"); calls != 2 || streams != 1 {
		t.Errorf("refused: %v calls, %v streams", calls, streams)
	}
	first()
	eventually(t, "there is room again", func() bool { return checkOnce(t.Context(), one, &authv3.CheckRequest{}) == nil })
}

// TestMessagesAndHeadersAreBounded: what is too long is refused, and the connection
// goes on.
func TestMessagesAndHeadersAreBounded(t *testing.T) {
	t.Parallel()
	s := startServer(t, "", "grpc.max_message_bytes=2048")
	conn := dial(t, s.start.GRPC.Address)
	long := func(n int) *authv3.CheckRequest {
		return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{ContextExtensions: map[string]string{"x": strings.Repeat("x", n)}}}
	}
	if err := checkOnce(t.Context(), conn, long(2000)); err != nil {
		t.Error(err)
	}
	if err := checkOnce(t.Context(), conn, long(2049)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a long message: %v", err)
	}
	eventually(t, "it has no place", func() bool { return s.metric(t, "tiergate_calls", "") == 0 })
	header := func(n int) context.Context {
		return metadata.AppendToOutgoingContext(t.Context(), "x", strings.Repeat("x", n))
	}
	if err := checkOnce(header(maxHeaderBytes/2), conn, long(1)); err != nil {
		t.Error(err)
	}
	if err := checkOnce(header(maxHeaderBytes), conn, long(1)); err == nil {
		t.Error("long headers are read")
	}
	if err := checkOnce(t.Context(), conn, long(1)); err != nil {
		t.Error(err)
	}
	for _, address := range []string{s.start.Operator.Address, s.start.Customer.Address} {
		r, err := http.NewRequest(http.MethodGet, "http://"+address+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X", strings.Repeat("x", 2*maxHeaderBytes))
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("long headers: %s", response.Status)
		}
	}
}

// server is a server that keeps to the bounds.
func (b *bounds) server() *rpc.Server {
	o := b.options()
	o.Codec = envoyapi.Codec{}
	return rpc.NewServer(o)
}

// quiet serves the bounds in a bubble of its own time.
func quiet(t *testing.T, test func(t *testing.T, b *bounds, l *bufconn.Listener)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBounds(config.Listener{MaxCalls: 10, MaxConnections: 10, MaxMessageBytes: 1 << 20}, newMetrics())
		server, l := b.server(), bufconn.Listen(1<<20)
		authv3.RegisterAuthorizationServer(server, authv3.UnimplementedAuthorizationServer{})
		go func() { _ = server.Serve(l) }()
		test(t, b, l)
		server.Stop()
		l.Close()
	})
}

// TestCallsEnd: one that sends nothing ends after a while, whatever deadline it has.
func TestCallsEnd(t *testing.T) {
	t.Parallel()
	quiet(t, func(t *testing.T, b *bounds, l *bufconn.Listener) {
		conn := dial(t, "passthrough:///x", grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
		defer conn.Close()
		for _, deadline := range []time.Duration{time.Second, callTimeout, time.Hour, 0} {
			ctx, cancel := t.Context(), context.CancelFunc(func() {})
			if deadline > 0 {
				ctx, cancel = context.WithTimeout(ctx, deadline)
			}
			began := time.Now()
			stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, authv3.Authorization_Check_FullMethodName)
			if err != nil {
				t.Fatal(err)
			}
			want := callTimeout
			if deadline > 0 {
				want = min(deadline, callTimeout)
			}
			if err := stream.RecvMsg(&authv3.CheckResponse{}); status.Code(err) != codes.DeadlineExceeded || time.Since(began) != want {
				t.Errorf("with a deadline of %s: %v after %s", deadline, err, time.Since(began))
			}
			cancel()
			synctest.Wait()
			if n := b.calls.Load(); n != 0 {
				t.Errorf("%d calls are counted", n)
			}
		}
	})
}

// lingering is a service whose decisions go on after the caller has gone.
type lingering struct {
	authv3.UnimplementedAuthorizationServer

	ended, release chan struct{}
}

func (l lingering) Check(ctx context.Context, _ *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	<-ctx.Done()
	l.ended <- struct{}{}
	<-l.release
	return &authv3.CheckResponse{}, nil
}

// TestPlacesAreHeldToTheEnd: a call whose caller has gone keeps its place while something
// is done for it, and no longer.
func TestPlacesAreHeldToTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBounds(config.Listener{MaxCalls: 1, MaxConnections: 10, MaxMessageBytes: 1 << 20}, newMetrics())
		server, l := b.server(), bufconn.Listen(1<<20)
		service := lingering{ended: make(chan struct{}, 2), release: make(chan struct{})}
		authv3.RegisterAuthorizationServer(server, service)
		go func() { _ = server.Serve(l) }()
		conn := dial(t, "passthrough:///x", grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = checkOnce(ctx, conn, &authv3.CheckRequest{}) }()
		synctest.Wait()
		cancel()
		<-service.ended
		synctest.Wait()
		if n := b.calls.Load(); n != 1 {
			t.Errorf("%d calls are counted while one is handled", n)
		}
		if err := checkOnce(t.Context(), conn, &authv3.CheckRequest{}); status.Code(err) != codes.Unavailable {
			t.Errorf("a second call: %v", err)
		}
		close(service.release)
		synctest.Wait()
		if n := b.calls.Load(); n != 0 {
			t.Errorf("%d calls are counted at the end", n)
		}
		conn.Close()
		server.Stop()
		l.Close()
	})
}

// frameLog is a connection that keeps what was read.
type frameLog struct {
	net.Conn

	mu   sync.Mutex
	read bytes.Buffer
}

// Read implements net.Conn.
func (c *frameLog) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read.Write(p[:n])
	return n, err
}

// count returns how many frames of each type were read.
func (c *frameLog) count() map[http2.FrameType]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	counts := map[http2.FrameType]int{}
	framer := http2.NewFramer(io.Discard, bytes.NewReader(c.read.Bytes()))
	for {
		f, err := framer.ReadFrame()
		if err != nil { // the end, or half a frame
			return counts
		}
		counts[f.Header().Type]++
	}
}

// TestCallsAreNotPinged: for each call there comes its answer and nothing else.
func TestCallsAreNotPinged(t *testing.T) {
	t.Parallel()
	quiet(t, func(t *testing.T, _ *bounds, l *bufconn.Listener) {
		var log *frameLog
		conn := dial(t, "passthrough:bufconn", grpc.WithStaticStreamWindowSize(1<<20), grpc.WithStaticConnWindowSize(1<<20),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				c, err := l.DialContext(ctx)
				log = &frameLog{Conn: c}
				return log, err
			}))
		for range 20 {
			if err := checkOnce(t.Context(), conn, &authv3.CheckRequest{}); status.Code(err) != codes.Unimplemented {
				t.Fatal(err)
			}
		}
		frames := log.count()
		if frames[http2.FrameHeaders] < 20 || frames[http2.FramePing] > 0 {
			t.Errorf("frames that came: %v, want 20 HEADERS at the least and no PING", frames)
		}
	})
}

// TestKeepaliveOfASecond: PINGs half a second apart, as those of a keepalive of a second may be
// whose timers are early, are no abuse on a connection without calls, and any that are closer are.
func TestKeepaliveOfASecond(t *testing.T) {
	t.Parallel()
	for apart, ends := range map[time.Duration]int{time.Second / 2: 0, time.Second/2 - time.Millisecond: 1} {
		quiet(t, func(t *testing.T, _ *bounds, l *bufconn.Listener) {
			c, err := l.DialContext(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			log := &frameLog{Conn: c}
			go func() { _, _ = io.Copy(io.Discard, log) }()
			client := http2.NewFramer(c, nil)
			_, err = io.WriteString(c, http2.ClientPreface)
			for err = errors.Join(err, client.WriteSettings()); err == nil && log.count()[http2.FramePing] < 60; {
				time.Sleep(apart)
				err = client.WritePing(false, [8]byte{})
				synctest.Wait()
			}
			if frames := log.count(); frames[http2.FrameGoAway] != ends || (err != nil) != (ends > 0) {
				t.Errorf("PINGs %s apart: %v, frames that came: %v, want %d GOAWAY", apart, err, frames, ends)
			}
			c.Close()
		})
	}
}

// unread is an access log service that reads nothing.
type unread struct {
	alsv3.UnimplementedAccessLogServiceServer
}

func (unread) StreamAccessLogs(stream alsv3.AccessLogService_StreamAccessLogsServer) error {
	<-stream.Context().Done()
	return stream.Context().Err()
}

// TestUnreadLogsHoldUpNoCall: streams of the same connection that are behind, with more in
// them than the connection's window, leave decisions alone.
func TestUnreadLogsHoldUpNoCall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBounds(config.Listener{MaxCalls: 10, MaxConnections: 10, MaxMessageBytes: 1 << 20}, newMetrics())
		server, l := b.server(), bufconn.Listen(1<<20)
		authv3.RegisterAuthorizationServer(server, authv3.UnimplementedAuthorizationServer{})
		alsv3.RegisterAccessLogServiceServer(server, unread{})
		go func() { _ = server.Serve(l) }()
		conn := dial(t, "passthrough:///x", grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
		ctx, cancel := context.WithCancel(t.Context())
		m := &alsv3.StreamAccessLogsMessage{Identifier: &alsv3.StreamAccessLogsMessage_Identifier{LogName: strings.Repeat("x", 32<<10)}}
		var sent atomic.Int64
		for range streamsOfConnection * 10 {
			stream, err := alsv3.NewAccessLogServiceClient(conn).StreamAccessLogs(ctx)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				for stream.Send(m) == nil {
					sent.Add(int64(len(m.GetIdentifier().GetLogName())))
				}
			}()
		}
		synctest.Wait()
		if n := sent.Load(); n < 2*connectionWindow {
			t.Errorf("%d bytes are unread: want more than two windows", n)
		}
		for range 3 {
			short, end := context.WithTimeout(ctx, time.Second)
			if err := checkOnce(short, conn, &authv3.CheckRequest{}); status.Code(err) != codes.Unimplemented {
				t.Errorf("a decision beside %d unread bytes: %v", sent.Load(), err)
			}
			end()
		}
		cancel()
		conn.Close()
		server.Stop()
		l.Close()
	})
}

// TestDeadConnectionsEnd: one that never speaks, and one that speaks no more.
func TestDeadConnectionsEnd(t *testing.T) {
	t.Parallel()
	for preface, want := range map[string]time.Duration{"": handshakeTimeout, http2.ClientPreface: deadAfter + signOfLife} {
		quiet(t, func(t *testing.T, _ *bounds, l *bufconn.Listener) {
			conn, err := l.Dial()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			began := time.Now()
			if preface != "" {
				if _, err := io.WriteString(conn, preface); err != nil {
					t.Fatal(err)
				}
				if err := http2.NewFramer(conn, nil).WriteSettings(); err != nil {
					t.Fatal(err)
				}
			}
			_, _ = io.Copy(io.Discard, conn) // until it is closed
			if took := time.Since(began); took < want || took > want+time.Second {
				t.Errorf("after %q: closed after %s, want %s", preface, took, want)
			}
		})
	}
}

// TestSocketMode: the socket has it, a stale one is replaced, and the process' own mask
// is as before.
func TestSocketMode(t *testing.T) { //nolint:paralleltest // the mask is the whole process's
	dir := t.TempDir()
	mask := func() int {
		m := syscall.Umask(0)
		syscall.Umask(m)
		return m
	}
	former := mask()
	for _, mode := range []os.FileMode{0o660, 0o600, 0o777} {
		path := filepath.Join(dir, "socket")
		l, err := listen(t.Context(), config.Address{Network: "unix", Address: path}, mode)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if have := info.Mode().Perm(); have != mode {
			t.Errorf("mode %o, want %o", have, mode)
		}
		unix, ok := l.(*net.UnixListener)
		if !ok {
			t.Fatalf("%T", l)
		}
		unix.SetUnlinkOnClose(false) // as a killed server does
		l.Close()
	}
	if mask() != former {
		t.Errorf("umask %o, was %o", mask(), former)
	}
}

// TestWatchesTakeNoAccessLogsStream: whoever watches the health leaves settlements their streams.
func TestWatchesTakeNoAccessLogsStream(t *testing.T) {
	t.Parallel()
	s := startServer(t, "", "grpc.max_connections=10")
	watching := dial(t, s.start.GRPC.Address)
	for range streamsOfConnection * 10 {
		w, err := healthpb.NewHealthClient(watching).Watch(t.Context(), &healthpb.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := alsv3.NewAccessLogServiceClient(dial(t, s.start.GRPC.Address)).StreamAccessLogs(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stream is open", func() bool { return s.bounds.logs.Load() == 1 })
}

// TestHealthChecksAreBounded: those that are never sent whole are as few as calls may be.
func TestHealthChecksAreBounded(t *testing.T) {
	t.Parallel()
	s := startServer(t, "", "grpc.max_connections=10", "grpc.max_calls=1")
	conn := dial(t, s.start.GRPC.Address)
	for range spareCalls {
		if _, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, healthpb.Health_Check_FullMethodName); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the checks are under way", func() bool { return s.bounds.checks.Load() == spareCalls })
	_, err := healthpb.NewHealthClient(dial(t, s.start.GRPC.Address)).Check(t.Context(), &healthpb.HealthCheckRequest{})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("one more: %v", err)
	}
}

// An endedCounter counts the calls that had ended when they were handled.
type endedCounter struct {
	authv3.UnimplementedAuthorizationServer

	ended atomic.Int64
}

func (c *endedCounter) Check(ctx context.Context, _ *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	if ctx.Err() != nil {
		c.ended.Add(1)
	}
	return &authv3.CheckResponse{}, nil
}

// TestEndedCallsAreNotHandled: a call that its caller has given up before it is handled is not
// decided, though all of its message has come.
func TestEndedCallsAreNotHandled(t *testing.T) {
	t.Parallel()
	const calls = 2000
	b := newBounds(config.Listener{MaxCalls: calls, MaxConnections: 1, MaxMessageBytes: 1 << 20}, newMetrics())
	options := b.options()
	options.Codec, options.Unary = envoyapi.Codec{}, (&server{}).survive
	g := rpc.NewServer(options)
	counter := &endedCounter{}
	authv3.RegisterAuthorizationServer(g, counter)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var out, block bytes.Buffer
	out.WriteString(http2.ClientPreface)
	headers := hpack.NewEncoder(&block)
	frames := http2.NewFramer(&out, nil)
	err = frames.WriteSettings()
	for i := range uint32(calls) {
		block.Reset()
		for _, h := range [][2]string{
			{":method", "POST"},
			{":scheme", "http"},
			{":path", authv3.Authorization_Check_FullMethodName},
			{":authority", "x"},
			{"content-type", "application/grpc"},
			{"te", "trailers"},
			{"grpc-timeout", "1S"},
		} {
			err = errors.Join(err, headers.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}))
		}
		err = errors.Join(err,
			frames.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: block.Bytes(), EndHeaders: true}),
			frames.WriteData(2*i+1, true, make([]byte, 5)), // an empty message
			frames.WriteRSTStream(2*i+1, http2.ErrCodeCancel))
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, conn) }() // until it is closed
	if _, err := conn.Write(out.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	g.GracefulStop() // when all that was sent is read, and all handlers have ended
	if err := errors.Join(<-served, conn.Close()); err != nil {
		t.Fatal(err)
	}
	if ended := counter.ended.Load(); ended > calls/100 { // some may end at that moment
		t.Errorf("%d of %d calls were handled after they had ended", ended, calls)
	}
}
