package main

import (
	"bytes"
	"context"
	"encoding/pem"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/tiergate/tiergate/internal/config"
	"github.com/tiergate/tiergate/internal/envoyapi"
	"github.com/tiergate/tiergate/internal/rpc"
)

// A taker takes spans, as a collector does.
type taker struct {
	collectorv1.UnimplementedTraceServiceServer

	address string
	arrived chan struct{} // closed with the first export
	answer  chan struct{} // closed: exports are answered

	mu    sync.Mutex
	spans []*tracev1.Span
}

// take starts a collector that answers once its gate is opened.
func take(t *testing.T, options ...grpc.ServerOption) *taker {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &taker{address: l.Addr().String(), arrived: make(chan struct{}), answer: make(chan struct{})}
	server := grpc.NewServer(options...)
	collectorv1.RegisterTraceServiceServer(server, c)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return c
}

// Export implements the service of collectors.
func (c *taker) Export(ctx context.Context, r *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	first := len(c.spans) == 0
	for _, group := range r.GetResourceSpans() {
		for _, scope := range group.GetScopeSpans() {
			c.spans = append(c.spans, scope.GetSpans()...)
		}
	}
	c.mu.Unlock()
	if first {
		close(c.arrived)
	}
	select {
	case <-c.answer:
	case <-ctx.Done():
	}
	return &collectorv1.ExportTraceServiceResponse{}, ctx.Err()
}

// taken returns how many spans have come, and what they say.
func (c *taker) taken() (int, string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var text strings.Builder
	for _, s := range c.spans {
		text.WriteString(s.String())
	}
	return len(c.spans), text.String()
}

// tracingTo makes tracing of everything to a collector.
func tracingTo(t *testing.T, c config.Tracing, log *bytes.Buffer) (*tracing, *metrics) {
	t.Helper()
	c.SampleRatio = 1
	m := newMetrics()
	tracing, err := newTracing(c, m, slog.New(slog.NewTextHandler(log, nil)), "one")
	if err != nil {
		t.Fatal(err)
	}
	return tracing, m
}

// TestSpansNeverWait: ending a span returns at once while the collector says nothing;
// what is too much is dropped and counted, and the rest arrives when it answers again.
func TestSpansNeverWait(t *testing.T) {
	c := take(t)
	tracing, m := tracingTo(t, config.Tracing{Endpoint: c.address, Insecure: true}, &bytes.Buffer{})
	const all = maxSpans + 1000
	for range all {
		_, span := tracing.tracer.Start(t.Context(), "a span")
		span.End()
	}
	select {
	case <-c.arrived:
	case <-time.After(10 * time.Second):
		t.Fatal("no span has arrived")
	}
	close(c.answer)
	tracing.close(t.Context())
	taken, _ := c.taken()
	full, refused := dropped(t, m, "queue_full"), dropped(t, m, "collector")
	if full == 0 || refused != 0 || taken+full != all {
		t.Errorf("of %d spans %d arrived, %d found the queue full, %d were refused", all, taken, full, refused)
	}
}

// dropped reads the metric of spans.
func dropped(t *testing.T, m *metrics, reason string) int {
	t.Helper()
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, one := range f.GetMetric() {
			if f.GetName() == "tiergate_spans_dropped_total" && labelOf(one, "reason") == reason {
				return int(one.GetCounter().GetValue())
			}
		}
	}
	t.Fatalf("no tiergate_spans_dropped_total of %s", reason)
	return 0
}

// TestCollectorByTLS: the collector is believed by its certificate's root, and nothing is
// sent to another.
func TestCollectorByTLS(t *testing.T) {
	web := httptest.NewTLSServer(nil)
	defer web.Close()
	root := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(root, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]int{root: 1, "": 0} { // else the system's roots
		c := take(t, grpc.Creds(credentials.NewServerTLSFromCert(&web.TLS.Certificates[0])))
		close(c.answer)
		tracing, _ := tracingTo(t, config.Tracing{Endpoint: c.address, CAFile: file}, &bytes.Buffer{})
		_, span := tracing.tracer.Start(t.Context(), "a span")
		span.End()
		tracing.close(t.Context())
		if n, _ := c.taken(); n != want {
			t.Errorf("ca_file %q: %d spans arrived, want %d", file, n, want)
		}
	}
	for _, file := range []string{"tracing_test.go", "nothing.pem"} {
		if _, err := newTracing(config.Tracing{Endpoint: "127.0.0.1:1", CAFile: file}, newMetrics(), slog.New(slog.DiscardHandler), "one"); err == nil || !strings.Contains(err.Error(), "tracing.ca_file") {
			t.Errorf("ca_file %s: %v", file, err)
		}
	}
}

// A panicking service quotes the request where nobody must look.
type panicking struct {
	authv3.UnimplementedAuthorizationServer
}

// Check implements the service.
func (panicking) Check(_ context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	panic(r.GetAttributes().GetRequest().GetHttp().GetPath())
}

// TestPanicsLeaveNoTrace: neither span, log nor answer of a call that panics has the
// panic's value; the span says that it failed.
func TestPanicsLeaveNoTrace(t *testing.T) {
	const canary = "sk-canary-in-a-panic"
	c := take(t)
	close(c.answer)
	var log bytes.Buffer
	tracing, _ := tracingTo(t, config.Tracing{Endpoint: c.address, Insecure: true}, &log)
	s := &server{log: slog.New(slog.NewTextHandler(&log, nil)), tracing: tracing}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	options := newBounds(config.Listener{MaxCalls: 10, MaxConnections: 10, MaxMessageBytes: 1 << 20}, newMetrics()).options()
	options.Codec, options.Unary, options.Stats = envoyapi.Codec{}, s.survive, tracing.handler()
	g := rpc.NewServer(options)
	authv3.RegisterAuthorizationServer(g, panicking{})
	go func() { _ = g.Serve(l) }()
	defer g.Stop()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = authv3.NewAuthorizationClient(conn).Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{Path: canary}},
	}})
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), canary) {
		t.Errorf("the answer: %v", err)
	}
	g.GracefulStop()
	tracing.close(t.Context())
	n, spans := c.taken()
	if n != 1 || !strings.Contains(spans, "STATUS_CODE_ERROR") || strings.Contains(spans, canary) {
		t.Errorf("%d spans: %s", n, spans)
	}
	if text := log.String(); !strings.Contains(text, "a call panicked") || strings.Contains(text, canary) {
		t.Errorf("the log: %s", text)
	}
}
