// Package rpc serves gRPC over HTTP/2 to callers like Envoy, who make many short calls on a
// few connections that last. It does what grpc-go's server does for them, with the services,
// codecs, credentials, interceptors and statistics of grpc-go, and takes less of the processor: a
// call is read and answered without goroutines, timers and queues of its own, and what is
// answered at the same time is written together.
//
// The protocol is that of RFC 9113 and of gRPC's "PROTOCOL-HTTP2.md". Messages are not
// compressed; headers and trailers of handlers are not sent.
//
// It does not know which services there are, nor what they decide.
package rpc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
)

// Options say what a server is held to. All are needed but those that may be nil.
type Options struct {
	Codec       Codec
	Credentials credentials.TransportCredentials // nil: in clear
	Unary       grpc.UnaryServerInterceptor      // nil: none
	Stream      grpc.StreamServerInterceptor     // nil: none
	Stats       stats.Handler                    // told of calls; nil: nobody is
	// Bound returns what bounds the calls of a method that are under way. Nil: nothing does.
	Bound func(method string) Bound
	// Endless reports whether calls of a method last as long as their clients like, so that a
	// graceful stop does not wait for them. Nil: none does.
	Endless func(method string) bool

	Now func() time.Time // the clock; timers go by that of the process

	Workers         int // goroutines that wait for calls; those beyond have one of their own
	MaxStreams      int // of a connection, at a time
	MaxMessageBytes int // of a request
	MaxHeaderBytes  int // of a call, counted as RFC 9113 6.5.2 does
	StreamWindow    int // bytes that a call may send before they are read
	Window          int // bytes that all calls of a connection may send before they have arrived

	HandshakeTimeout time.Duration // until a connection speaks HTTP/2
	CallTimeout      time.Duration // of a call with one request and one answer, whatever its caller allows
	IdleTime         time.Duration // that nothing comes of a connection until it is asked for a sign of life
	PingTimeout      time.Duration // that this may take
	MinPing          time.Duration // between PINGs of a client that has got no answer meanwhile
}

// A Codec encodes and decodes messages.
type Codec interface {
	// Marshal returns what is sent as it is and not changed any more.
	Marshal(message any) ([]byte, error)
	// Unmarshal does not keep the data.
	Unmarshal(data []byte, message any) error
}

// A Bound has places for calls. One has its place from its beginning, before anything is spent
// on it, until it has ended and so has its handler, whether its caller waits for it or not.
type Bound interface {
	// Enter takes a place. Its error is the answer to a call for which there is none.
	Enter() error
	Leave() // gives it back
}

// Server serves the services that are registered. It is safe for concurrent use, but for
// RegisterService, which goes before Serve.
type Server struct {
	options  Options
	methods  map[string]*method
	services map[string]grpc.ServiceInfo
	calls    chan *stream
	idle     atomic.Int64  // workers that wait, or will at once
	ended    chan struct{} // closed when all connections are

	mu        sync.Mutex
	stopping  bool
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	active    sync.WaitGroup // connections
	workers   sync.Once
}

// A method is one that can be called: with one request and one answer, or with a stream.
type method struct {
	name    string // /service/method
	service any
	unary   grpc.MethodHandler // nil: it is a stream
	stream  *grpc.StreamDesc
	bound   Bound // nil: none
	endless bool
}

// NewServer returns a server without services.
func NewServer(o Options) *Server {
	return &Server{
		options: o, methods: map[string]*method{}, services: map[string]grpc.ServiceInfo{}, calls: make(chan *stream, o.Workers), ended: make(chan struct{}),
		listeners: map[net.Listener]struct{}{}, conns: map[*conn]struct{}{},
	}
}

// RegisterService implements grpc.ServiceRegistrar.
func (s *Server) RegisterService(d *grpc.ServiceDesc, service any) {
	info := grpc.ServiceInfo{Metadata: d.Metadata}
	for i := range d.Methods {
		m := &d.Methods[i]
		name := "/" + d.ServiceName + "/" + m.MethodName
		s.add(&method{name: name, service: service, unary: m.Handler})
		info.Methods = append(info.Methods, grpc.MethodInfo{Name: m.MethodName})
	}
	for i := range d.Streams {
		m := &d.Streams[i]
		name := "/" + d.ServiceName + "/" + m.StreamName
		s.add(&method{name: name, service: service, stream: m})
		info.Methods = append(info.Methods, grpc.MethodInfo{Name: m.StreamName, IsClientStream: m.ClientStreams, IsServerStream: m.ServerStreams})
	}
	s.services[d.ServiceName] = info
}

func (s *Server) add(m *method) {
	if s.options.Bound != nil {
		m.bound = s.options.Bound(m.name)
	}
	m.endless = s.options.Endless != nil && s.options.Endless(m.name)
	s.methods[m.name] = m
}

// GetServiceInfo returns what is registered, by the service's name.
func (s *Server) GetServiceInfo() map[string]grpc.ServiceInfo { return maps.Clone(s.services) }

// Serve accepts connections until the listener fails, or the server stops: then it returns nil,
// when all connections have ended.
func (s *Server) Serve(l net.Listener) error {
	if !s.listen(l) {
		return l.Close() //nolint:wrapcheck // nothing was tried
	}
	s.workers.Do(func() {
		s.idle.Add(int64(s.options.Workers))
		for range s.options.Workers {
			go s.work()
		}
	})
	pause := time.Duration(0)
	for {
		socket, err := l.Accept()
		if err == nil {
			pause = 0
			s.serve(socket)
			continue
		}
		if s.stopped() {
			<-s.ended
			return nil
		}
		var passing interface{ Temporary() bool }
		if !errors.As(err, &passing) || !passing.Temporary() {
			return fmt.Errorf("accept a connection: %w", err)
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		s.wait(pause)
	}
}

// wait waits for a while, or until the server has stopped.
func (s *Server) wait(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.ended:
	}
}

func (s *Server) listen(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopping {
		s.listeners[l] = struct{}{}
	}
	return !s.stopping
}

func (s *Server) stopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopping
}

// serve serves a connection, in goroutines of its own.
func (s *Server) serve(socket net.Conn) {
	c := newConn(s, socket)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		_ = socket.Close() // nothing was said
		return
	}
	s.conns[c] = struct{}{}
	s.active.Go(func() {
		c.run()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	})
}

// GracefulStop takes no more connections, tells clients to make no more calls on those that
// there are, and returns when all calls have ended, and their handlers. Those without an end it ends
// when their clients have heard.
func (s *Server) GracefulStop() { s.stop((*conn).drain) }

// Stop ends all connections at once, and the calls on them. Handlers are told so by their
// contexts; it does not wait for them.
func (s *Server) Stop() { s.stop((*conn).abandon) }

var errStopped = errors.New("the server stops")

func (s *Server) stop(each func(c *conn)) {
	s.mu.Lock()
	first := !s.stopping
	s.stopping = true
	for l := range s.listeners {
		_ = l.Close() // what can be done about it is done
	}
	clear(s.listeners)
	conns := slices.Collect(maps.Keys(s.conns))
	s.mu.Unlock()
	for _, c := range conns {
		each(c)
	}
	s.active.Wait()
	if first {
		close(s.calls) // nobody reads calls any more
		close(s.ended)
	}
	<-s.ended
}

// work handles calls until the server has stopped.
func (s *Server) work() {
	for st := range s.calls {
		st.handle()
		s.idle.Add(1)
	}
}

// dispatch has a call handled by a worker that waits, or else by a goroutine of its own.
func (s *Server) dispatch(st *stream) {
	if s.idle.Add(-1) >= 0 {
		s.calls <- st // there is room for as many as there are workers
		return
	}
	s.idle.Add(1)
	go st.handle()
}

// handshake secures a connection.
func (s *Server) handshake(socket net.Conn) (net.Conn, error) {
	if s.options.Credentials == nil {
		return socket, nil
	}
	secured, _, err := s.options.Credentials.ServerHandshake(socket)
	return secured, err //nolint:wrapcheck // the credentials report it
}

// follow has statistics follow a call, which are told when it has ended.
func (s *Server) follow(ctx context.Context, st *stream) (followed context.Context, ended func(err error)) {
	handler := s.options.Stats
	if handler == nil {
		return ctx, func(error) {}
	}
	ctx = handler.TagRPC(metadata.NewIncomingContext(ctx, st.metadata), &stats.RPCTagInfo{FullMethodName: st.method.name})
	began, streams := s.options.Now(), st.method.stream != nil
	handler.HandleRPC(ctx, &stats.Begin{BeginTime: began, IsClientStream: streams, IsServerStream: streams})
	return ctx, func(err error) {
		handler.HandleRPC(ctx, &stats.End{BeginTime: began, EndTime: s.options.Now(), Error: err})
	}
}
