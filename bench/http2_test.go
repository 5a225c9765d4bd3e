package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// A scripted server answers a Check by a function, and keeps the reservations that are
// settled.
type scripted struct {
	*canned

	check func(context.Context) (*authv3.CheckResponse, error)
	hears chan struct{} // settlements are read when it is closed; nil: at once

	mu      sync.Mutex
	tickets []string
	settled chan struct{} // closed when there are want
	want    int
}

func (s *scripted) Check(ctx context.Context, _ *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return s.check(ctx)
}

func (s *scripted) StreamAccessLogs(stream alsv3.AccessLogService_StreamAccessLogsServer) error {
	if s.hears != nil {
		<-s.hears
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		s.mu.Lock()
		for _, e := range m.GetHttpLogs().GetLogEntry() {
			metadata := e.GetCommonProperties().GetMetadata().GetFilterMetadata()["envoy.filters.http.ext_authz"]
			s.tickets = append(s.tickets, metadata.GetFields()["reservation"].GetStringValue())
		}
		if len(s.tickets) == s.want {
			close(s.settled)
		}
		s.mu.Unlock()
	}
}

// start serves until the test ends, and returns the address.
func (s *scripted) start(t *testing.T, o ...grpc.ServerOption) (address string, server *grpc.Server) {
	t.Helper()
	s.canned = newCanned()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server = grpc.NewServer(o...)
	authv3.RegisterAuthorizationServer(server, s)
	alsv3.RegisterAccessLogServiceServer(server, s)
	go server.Serve(l)
	t.Cleanup(server.Stop)
	return l.Addr().String(), server
}

func dial(t *testing.T, address string, timeout time.Duration) *connection {
	t.Helper()
	c, err := connect(t.Context(), address, timeout)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return c
}

func (c *connection) ask(s *stream, m proto.Message) ([]byte, error) {
	request, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	return c.call(s, check.method(), request)
}

// TestManyCalls: calls that share a connection each have their own answer, also when they
// are more than the server takes at a time, and together longer than all windows.
func TestManyCalls(t *testing.T) {
	t.Parallel()
	const workers, calls, most = 32, 30, 5
	running := make(chan struct{}, most)
	s := scripted{check: func(ctx context.Context) (*authv3.CheckResponse, error) {
		select {
		case running <- struct{}{}:
			defer func() { <-running }()
		default:
			return nil, grpcstatus.Error(codes.Internal, "too many calls at a time")
		}
		if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > longest {
			return nil, grpcstatus.Errorf(codes.Internal, "the deadline is %s", deadline)
		}
		return &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_DeniedResponse{
			DeniedResponse: &authv3.DeniedHttpResponse{Body: strings.Repeat("x", 10_000)},
		}}, nil
	}}
	address, _ := s.start(t, grpc.MaxConcurrentStreams(most))
	c := dial(t, address, longest)
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			stream := newStream()
			for range calls {
				var r authv3.CheckResponse
				answer, err := c.ask(stream, checkRequest("Bearer "+strings.Repeat("k", 5000)))
				if err == nil {
					err = proto.Unmarshal(answer, &r)
				}
				if err != nil || len(r.GetDeniedResponse().GetBody()) != 10_000 {
					t.Errorf("have %v, %d bytes", err, len(answer))
					return
				}
			}
		})
	}
	group.Wait()
}

// TestCallsTakeTurns: where the server takes fewer calls at a time than there are, those that wait are
// made in the order in which they came, before any that comes later and does not wait.
func TestCallsTakeTurns(t *testing.T) {
	t.Parallel()
	goOn := make(chan struct{})
	s := scripted{check: func(context.Context) (*authv3.CheckResponse, error) {
		<-goOn
		return &authv3.CheckResponse{}, nil
	}}
	address, _ := s.start(t, grpc.MaxConcurrentStreams(1))
	c := dial(t, address, longest)
	begin := func(s *stream, wait bool) error { return c.start(s, check.method(), longest, nil, wait) }
	streams := make([]*stream, 20)
	last := len(streams) - 1
	var hasty []error // of calls that do not wait, at the end of each but the last
	var group sync.WaitGroup
	for i := range streams {
		streams[i] = newStream()
		if i < last {
			streams[i].then = func() { hasty = append(hasty, begin(newStream(), false)) }
		}
		group.Go(func() {
			if err := begin(streams[i], true); err != nil {
				t.Error(err)
			}
		})
		for came := false; !came; runtime.Gosched() {
			c.mu.Lock()
			came = c.arrived == i+1
			c.mu.Unlock()
		}
	}
	close(goOn)
	group.Wait()
	<-streams[last].done
	for i, s := range streams {
		if want := uint32(1 + 2*i); s.id != want {
			t.Errorf("call %d is stream %d, want %d", i, s.id, want)
		}
	}
	for i, err := range hasty {
		if !errors.Is(err, errBusy) {
			t.Errorf("a call that does not wait goes before those that do, after call %d: %v", i, err)
		}
	}
	if len(hasty) != last {
		t.Errorf("%d calls have ended before the last: want %d", len(hasty), last)
	}
}

// TestFailures: each tells what was wrong, and the next call of the same connection is
// made where there can be one.
func TestFailures(t *testing.T) {
	t.Parallel()
	var s scripted
	address, server := s.start(t)
	c, stream := dial(t, address, longest), newStream()
	answer := func(bytes int) func(context.Context) (*authv3.CheckResponse, error) {
		return func(context.Context) (*authv3.CheckResponse, error) {
			return &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_DeniedResponse{
				DeniedResponse: &authv3.DeniedHttpResponse{Body: strings.Repeat("x", bytes)},
			}}, nil
		}
	}
	for _, tt := range []struct {
		name, want string
		check      func(context.Context) (*authv3.CheckResponse, error)
		key        string
	}{
		{"an error", "the call failed: Unavailable: not now", func(context.Context) (*authv3.CheckResponse, error) {
			return nil, grpcstatus.Error(codes.Unavailable, "not now")
		}, ""},
		{"a long answer", "", answer(answerBytes / 2), ""},
		{"too long an answer", "the answer has 1048576 bytes or more", answer(2 * answerBytes), ""},
		{"too long a request", "bytes is too long: want 16379 at most", answer(1), strings.Repeat("k", frameBytes)},
		{"after these", "", answer(1), ""},
	} {
		s.check = tt.check
		if _, err := c.ask(stream, checkRequest(tt.key)); (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: have %v, want %q", tt.name, err, tt.want)
		}
	}
	// Neither the server nor the client waits for longer than the time-out.
	hasty := dial(t, address, 200*time.Millisecond)
	waited := make(chan error, 1)
	s.check = func(ctx context.Context) (*authv3.CheckResponse, error) {
		<-ctx.Done()
		waited <- ctx.Err()
		return nil, ctx.Err()
	}
	if _, err := hasty.ask(stream, checkRequest("")); err == nil {
		t.Error("a call that is not answered succeeded")
	}
	<-waited
	s.check = func(ctx context.Context) (*authv3.CheckResponse, error) {
		go server.Stop()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	_, err := c.ask(stream, checkRequest(""))
	if err == nil {
		t.Error("a call succeeded whose server has gone")
	}
	if _, again := c.ask(stream, checkRequest("")); again == nil || c.send(stream, nil, true) == nil {
		t.Errorf("a call succeeded after %v", err)
	}
}

// TestNoServer: one that speaks no HTTP/2 is told.
func TestNoServer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	want := "does not answer within 50ms"
	for range 2 { // the second time nobody listens
		if _, err := connect(t.Context(), address, 50*time.Millisecond); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("have %v, want %q", err, want)
		}
		l.Close()
		want = "connection refused"
	}
}

// TestSettlements: all of them come, in order, and together are longer than the windows.
func TestSettlements(t *testing.T) {
	t.Parallel()
	s := scripted{want: 1000, settled: make(chan struct{})}
	address, _ := s.start(t)
	g, err := newGenerator(t.Context(), address, load{protocol: check, keys: []string{"a"}, connections: 1, settle: later})
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	o := newOutcome()
	for i := range s.want {
		o.tickets = append(o.tickets, fmt.Sprintf("%*d", 10+i%3, i))
	}
	if err := g.settle(o); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.settled:
	case <-time.After(longest):
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(s.tickets, o.tickets) {
		t.Errorf("%d settlements came, or others: want %d", len(s.tickets), s.want)
	}
}

// TestHeaders: calls have the same headers whatever came before, in a few bytes once the
// server knows them.
func TestHeaders(t *testing.T) {
	t.Parallel()
	for name, table := range map[string]uint32{"a table": tableBytes, "none": 0} {
		var h headers
		h.encoder = hpack.NewEncoder(&h.encoded)
		h.encoder.SetMaxDynamicTableSizeLimit(table)
		decoder := hpack.NewDecoder(table, nil)
		size := 0
		for i, method := range []string{"/a/B", "/a/B", "/a/B", "/c/D", "/a/B", "/a/B", "/a/B"} {
			encoded, err := h.of("host:1", method, time.Second)
			if err != nil {
				t.Fatal(err)
			}
			size = len(encoded)
			fields, err := decoder.DecodeFull(bytes.Clone(encoded))
			if have := fmt.Sprint(fields); err != nil || !strings.Contains(have, `":path" = "`+method+`"`) || !strings.Contains(have, `"grpc-timeout" = "1000m"`) {
				t.Errorf("%s, call %d: have %s, %v", name, i, have, err)
			}
		}
		if table > 0 && size > 8 {
			t.Errorf("headers that are known have %d bytes", size)
		}
	}
}
