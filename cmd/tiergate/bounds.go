package main

import (
	"context"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/tiergate/tiergate/internal/config"
)

// The bounds that are fixed.
const (
	// maxHTTPConnections is how many connections there may be to each of the HTTP
	// listeners.
	maxHTTPConnections = 1000
	// maxHeaderBytes is how long the headers of a request may be, over HTTP and gRPC.
	// Envoy's own bound is 60 KiB.
	maxHeaderBytes = 64 << 10
	// handshakeTimeout is how long a connection may take until it speaks HTTP/2.
	handshakeTimeout = 10 * time.Second
	// callTimeout is how long a call may take, streams excepted. Envoy asks for less.
	callTimeout = 10 * time.Second
	// deadAfter is how long nothing must come of a connection until it is asked for a sign
	// of life, and signOfLife how long that may take.
	deadAfter  = 30 * time.Second
	signOfLife = 10 * time.Second
	// spareCalls may be there on a connection beside grpc.max_calls: those that are not
	// counted, and those that are refused.
	spareCalls = 1000
	// streamsOfConnection is how many streams (of access logs, and as many others) there may be
	// for each of grpc.max_connections. Envoy opens one for each worker, which has one
	// connection.
	streamsOfConnection = 2
	// streamWindow is how many bytes a call may send before they are read, and
	// connectionWindow how many all calls of a connection may before they have arrived: one
	// that is not read holds up no other. They are fixed: windows that follow the network
	// cost a PING and its answer for every round trip, which is almost as often as there are
	// calls.
	streamWindow     = 256 << 10
	connectionWindow = 1 << 20
	// streamWorkers is how many goroutines wait for calls. Each keeps the stack that calls
	// need, which a new goroutine grows step by step: that was a sixth of the processor
	// time. Calls beyond get goroutines of their own.
	streamWorkers = 128
)

// bounds hold what clients can make the process do at once, and count what they refuse.
type bounds struct {
	listener config.Listener

	connections        *prometheus.GaugeVec
	connectionsRefused *prometheus.CounterVec
	calls, checks      bound
	logs, watches      bound // streams
}

// A bound is how many calls of some kind are being handled, and how many may be.
type bound struct {
	atomic.Int64 // under way

	most    int64
	lasts   bool // such a call lasts as long as the client likes: it is a stream
	refused prometheus.Counter
	err     error // the answer to calls that are one too many
}

func (b *bound) limit(most int, refused prometheus.Counter, err error) {
	b.most, b.refused, b.err = int64(most), refused, err
}

// enter takes a place, which the caller is to leave. It returns false where there is none.
func (b *bound) enter() bool {
	if b.Add(1) <= b.most {
		return true
	}
	b.leave()
	b.refused.Inc()
	return false
}

// leave gives the place back.
func (b *bound) leave() { b.Add(-1) }

// full reports whether there is no place, and counts the call that finds none.
func (b *bound) full() bool {
	if b.Load() < b.most {
		return false
	}
	b.refused.Inc()
	return true
}

func newBounds(c config.Listener, m *metrics) *bounds {
	b := &bounds{
		listener: c,
		connections: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "tiergate_connections", Help: "Open connections by listener (grpc, operator, customer).",
		}, []string{"listener"}),
		connectionsRefused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tiergate_connections_refused_total", Help: "Connections closed at once because there were too many, by listener (grpc, operator, customer).",
		}, []string{"listener"}),
	}
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tiergate_overload_refused_total", Help: "gRPC calls refused because too many were under way, by kind (call, stream).",
	}, []string{"kind"})
	call, stream := refused.WithLabelValues("call"), refused.WithLabelValues("stream")
	b.calls.limit(c.MaxCalls, call, errCalls)
	b.checks.limit(max(c.MaxCalls, spareCalls), call, errCalls)
	for _, streams := range []*bound{&b.logs, &b.watches} {
		streams.limit(streamsOfConnection*c.MaxConnections, stream, errStreams)
		streams.lasts = true
	}
	m.registry.MustRegister(b.connections, b.connectionsRefused, refused, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tiergate_calls", Help: "gRPC calls under way; health checks and streams are not counted.",
	}, func() float64 { return float64(b.calls.Load()) }))
	return b
}

// of makes a listener close further connections than so many.
func (b *bounds) of(l net.Listener, name string, most int) net.Listener {
	return &boundedListener{
		Listener: l, most: int64(most), gauge: b.connections.WithLabelValues(name), refused: b.connectionsRefused.WithLabelValues(name),
	}
}

// all bounds every listener.
func (b *bounds) all(l listeners) listeners {
	return listeners{
		grpc: b.of(l.grpc, "grpc", b.listener.MaxConnections), operator: b.of(l.operator, "operator", maxHTTPConnections),
		customer: b.of(l.customer, "customer", maxHTTPConnections),
	}
}

// options make a gRPC server keep to the bounds.
func (b *bounds) options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(b.listener.MaxMessageBytes),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		// More than may be under way at all, so that Envoy never waits for one to end.
		grpc.MaxConcurrentStreams(uint32(min(b.listener.MaxCalls+spareCalls, math.MaxInt32))), //nolint:gosec // not negative
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: deadAfter, Timeout: signOfLife}),
		// Envoy's keepalive pings are no abuse, on idle connections either.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		grpc.InTapHandle(b.admit),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connectionWindow),
		grpc.NumStreamWorkers(streamWorkers),
	}
}

// The answers to calls that are one too many.
var (
	errCalls   = status.Error(codes.Unavailable, "too many calls are under way: see grpc.max_calls")
	errStreams = status.Error(codes.Unavailable, "too many streams are open: see grpc.max_connections")
)

// ofMethod returns the bound of a method. Streams have bounds of their own, so that those of access
// logs take no decision's place, and nobody's watches take theirs. Health checks are not
// counted with the calls, so that a busy instance is not taken for a dead one; those that are
// never sent whole end as calls do.
func (b *bounds) ofMethod(name string) *bound {
	switch {
	case name == healthpb.Health_Check_FullMethodName:
		return &b.checks
	case name == alsv3.AccessLogService_StreamAccessLogs_FullMethodName:
		return &b.logs
	case name == healthpb.Health_Watch_FullMethodName, strings.HasPrefix(name, "/grpc.reflection."):
		return &b.watches
	default:
		return &b.calls
	}
}

// A boundedServer is a gRPC server that handles no more calls of its services at a time than
// the bounds allow. A call counts from before its message is read until its handler has
// ended, whether its caller waits for it or not.
type boundedServer struct {
	*grpc.Server

	bounds *bounds
}

// RegisterService implements grpc.ServiceRegistrar.
func (s boundedServer) RegisterService(d *grpc.ServiceDesc, service any) {
	own := *d
	own.Methods, own.Streams = slices.Clone(d.Methods), slices.Clone(d.Streams)
	for i := range own.Methods {
		m := &own.Methods[i]
		b, handle := s.bounds.ofMethod("/"+d.ServiceName+"/"+m.MethodName), m.Handler
		m.Handler = func(service any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
			if !b.enter() {
				return nil, b.err
			}
			defer b.leave()
			return handle(service, ctx, decode, intercept)
		}
	}
	for i := range own.Streams {
		m := &own.Streams[i]
		b, handle := s.bounds.ofMethod("/"+d.ServiceName+"/"+m.StreamName), m.Handler
		m.Handler = func(service any, stream grpc.ServerStream) error {
			if !b.enter() {
				return b.err
			}
			defer b.leave()
			return handle(service, stream)
		}
	}
	s.Server.RegisterService(&own, service)
}

// admit is asked before anything is spent on a call. It refuses one for which there is no
// place now; else the call takes its place later, in its handler. It gives a call an end where
// the caller gives it none, or a late one: else calls that say nothing more would take the
// places of others for ever.
func (b *bounds) admit(ctx context.Context, info *tap.Info) (context.Context, error) {
	bound := b.ofMethod(info.FullMethodName)
	if bound.full() {
		return nil, bound.err
	}
	if end, ends := ctx.Deadline(); bound.lasts || ends && time.Until(end) <= callTimeout {
		return ctx, nil
	}
	soon, cancel := context.WithTimeout(ctx, callTimeout) //nolint:gosec // ended with ctx, which ends with the call
	_ = cancel
	return soon, nil
}

// A boundedListener closes connections that are too many. They do not wait for others to
// end: whoever connects knows at once, and can go elsewhere.
type boundedListener struct {
	net.Listener

	most    int64
	open    atomic.Int64
	gauge   prometheus.Gauge
	refused prometheus.Counter
}

// Accept implements net.Listener.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) > l.most {
			l.open.Add(-1)
			l.refused.Inc()
			_ = conn.Close() // nothing was said
			continue
		}
		l.gauge.Inc()
		return &countedConn{Conn: conn, end: sync.OnceFunc(func() {
			l.open.Add(-1)
			l.gauge.Dec()
		})}, nil
	}
}

// A countedConn tells when it is closed.
type countedConn struct {
	net.Conn

	end func()
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	defer c.end()
	return c.Conn.Close()
}
