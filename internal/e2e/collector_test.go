package e2e

import (
	"context"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/tiergate/tiergate/internal/devstack"
)

// What the environment of all programs says to OpenTelemetry: a header that lets
// TierGate in, and another that cannot be read.
const (
	collectorSecret = "collector-canary-8c21"
	brokenHeader    = "header-canary-5d07"
)

// traceEnvironment also makes spans come soon, and the absence of a collector show soon.
func traceEnvironment() error {
	return errors.Join(
		os.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20"+collectorSecret+","+brokenHeader),
		os.Setenv("OTEL_BSP_SCHEDULE_DELAY", "100"),
		os.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "500"),
	)
}

// A collector takes spans, as one of OpenTelemetry does.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer

	address string

	mu       sync.Mutex
	spans    []span
	raw      []byte // all that TierGate has sent
	admitted int    // exports of TierGate that had the secret
}

// A span is one that was sent.
type span struct {
	*tracev1.Span

	service    string
	attributes map[string]string
}

func (s span) trace() string  { return hex.EncodeToString(s.GetTraceId()) }
func (s span) id() string     { return hex.EncodeToString(s.GetSpanId()) }
func (s span) parent() string { return hex.EncodeToString(s.GetParentSpanId()) }

// collect starts a collector, at a free address if none is given.
func collect(t *testing.T, address string) *collector {
	t.Helper()
	if address == "" {
		var err error
		if address, err = devstack.FreeAddress(); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{address: address}
	server := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(server, c)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return c
}

// Export implements the service of collectors.
func (c *collector) Export(ctx context.Context, r *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, group := range r.GetResourceSpans() {
		service := ""
		for _, a := range group.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				service = a.GetValue().GetStringValue()
			}
		}
		for _, scope := range group.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				attributes := map[string]string{}
				for _, a := range s.GetAttributes() {
					attributes[a.GetKey()] = a.GetValue().GetStringValue()
				}
				c.spans = append(c.spans, span{s, service, attributes})
			}
		}
		if service != "tiergate" {
			continue
		}
		sent, err := proto.Marshal(group)
		if err != nil {
			return nil, err
		}
		c.raw = append(c.raw, sent...)
		if md, _ := metadata.FromIncomingContext(ctx); strings.Join(md.Get("authorization"), "") == "Bearer "+collectorSecret {
			c.admitted++
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// find returns the spans of a service that satisfy a condition.
func (c *collector) find(service string, want func(span) bool) []span {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []span
	for _, s := range c.spans {
		if s.service == service && want(s) {
			found = append(found, s)
		}
	}
	return found
}

// sent returns all that TierGate has sent.
func (c *collector) sent() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.raw)
}
