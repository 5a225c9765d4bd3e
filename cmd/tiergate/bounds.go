package main

import (
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/tiergate/tiergate/internal/config"
	"github.com/tiergate/tiergate/internal/rpc"
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
	// that is not read holds up no other.
	streamWindow     = 256 << 10
	connectionWindow = 1 << 20
	// workers is how many goroutines wait for calls. Each keeps the stack that calls
	// need, which a new goroutine grows step by step: that was a sixth of the processor
	// time. Calls beyond get goroutines of their own.
	workers = 128
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
	refused prometheus.Counter
	err     error // the answer to calls that are one too many
}

func (b *bound) limit(most int, refused prometheus.Counter, err error) {
	b.most, b.refused, b.err = int64(most), refused, err
}

// Enter implements rpc.Bound.
func (b *bound) Enter() error {
	if b.Add(1) <= b.most {
		return nil
	}
	b.Leave()
	b.refused.Inc()
	return b.err
}

// Leave implements rpc.Bound.
func (b *bound) Leave() { b.Add(-1) }

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
func (b *bounds) options() rpc.Options {
	return rpc.Options{
		Now:             time.Now,
		MaxMessageBytes: b.listener.MaxMessageBytes, MaxHeaderBytes: maxHeaderBytes,
		MaxStreams: b.listener.MaxCalls + spareCalls, // more than may be under way at all, so that Envoy never waits for one to end
		Workers:    workers, StreamWindow: streamWindow, Window: connectionWindow,
		HandshakeTimeout: handshakeTimeout, CallTimeout: callTimeout, IdleTime: deadAfter, PingTimeout: signOfLife,
		MinPing: time.Second / 2, // a keepalive of a second is no abuse, on idle connections either, and its timers may be early
		Bound:   func(method string) rpc.Bound { return b.ofMethod(method) },
		Endless: func(method string) bool { return b.ofMethod(method) == &b.watches },
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
