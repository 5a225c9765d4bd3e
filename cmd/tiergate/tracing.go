package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/stats"

	"github.com/tiergate/tiergate/internal/config"
)

// tracing sends spans to a collector. Nil traces nothing and costs nothing.
type tracing struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	log      *slog.Logger
}

// maxSpans is how many spans wait for the collector. Further ones are dropped.
const maxSpans = 2048

// flushTimeout is how long a stop waits for the collector to take the last spans.
const flushTimeout = 2 * time.Second

// newTracing returns nil where no collector is configured. It does not wait for the
// collector. An error is one of the file of roots or of the environment.
func newTracing(c config.Tracing, m *metrics, log *slog.Logger, instance string) (*tracing, error) {
	dropped := m.addSpans()
	if c.Endpoint == "" {
		return nil, nil //nolint:nilnil // nothing is traced
	}
	ctx := context.Background() // nothing here waits for anybody
	// OpenTelemetry's own log would quote what it cannot read of the environment.
	otel.SetLogger(logr.New(messages{log}))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("OpenTelemetry reports a fault", "error", err) }))
	options := []otlptracegrpc.Option{otlptracegrpc.WithEndpoint(c.Endpoint)}
	if c.Insecure {
		options = append(options, otlptracegrpc.WithInsecure())
	} else {
		roots, err := readRoots("tracing.ca_file", c.CAFile)
		if err != nil {
			return nil, err
		}
		options = append(options, otlptracegrpc.WithTLSCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12})))
	}
	client, err := otlptracegrpc.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("trace to tracing.endpoint %s: %w", c.Endpoint, err)
	}
	about, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithAttributes(
		attribute.String("service.name", "tiergate"),
		attribute.String("service.version", buildVersion()["version"]),
		attribute.String("service.instance.id", instance),
	), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("read OTEL_RESOURCE_ATTRIBUTES: %w: want name=value, joined by commas", err)
	}
	exporter := &spanExporter{SpanExporter: client, dropped: dropped, log: log}
	t := &tracing{log: log, provider: sdktrace.NewTracerProvider(
		sdktrace.WithResource(about),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(c.SampleRatio))),
		sdktrace.WithSpanProcessor(&spanQueue{sdktrace.NewBatchSpanProcessor(exporter, sdktrace.WithMaxQueueSize(maxSpans)), exporter}),
	)}
	t.tracer = t.provider.Tracer("github.com/tiergate/tiergate")
	return t, nil
}

// handler makes a span of each call that decides or settles, in Envoy's trace
// where the call names one. Others are not traced: health, reflection, and the access
// log, a stream that lasts as long as its connection.
func (t *tracing) handler() stats.Handler {
	if t == nil {
		return nil
	}
	return otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(t.provider),
		otelgrpc.WithMeterProvider(noop.NewMeterProvider()),
		otelgrpc.WithPropagators(parent{}),
		otelgrpc.WithFilter(func(info *stats.RPCTagInfo) bool {
			switch info.FullMethodName {
			case authv3.Authorization_Check_FullMethodName, rlsv3.RateLimitService_ShouldRateLimit_FullMethodName:
				return true
			default:
				return false
			}
		}),
	)
}

// parent reads which trace a call belongs to. What the client may have written beside
// that, the tracestate, would be sent to the collector with the span.
type parent struct{ propagation.TraceContext }

// Extract implements propagation.TextMapPropagator.
func (p parent) Extract(ctx context.Context, carrier propagation.TextMapCarrier) context.Context {
	ctx = p.TraceContext.Extract(ctx, carrier)
	return trace.ContextWithRemoteSpanContext(ctx, trace.SpanContextFromContext(ctx).WithTraceState(trace.TraceState{}))
}

// close sends the spans that wait, for a short time. The context's values are used, not
// its end.
func (t *tracing) close(ctx context.Context) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.log.WarnContext(ctx, "the last spans were not sent", "error", err)
	}
}

// A spanExporter counts what the collector does not take, and logs when that begins and
// when it ends.
type spanExporter struct {
	sdktrace.SpanExporter

	dropped *prometheus.CounterVec
	log     *slog.Logger
	waiting atomic.Int64 // spans that have ended and are not exported yet
	failing bool         // of the one goroutine that exports
}

// ExportSpans implements sdktrace.SpanExporter.
func (e *spanExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	e.waiting.Add(-int64(len(spans)))
	failed := err != nil
	if failed {
		e.dropped.WithLabelValues("collector").Add(float64(len(spans)))
	}
	switch {
	case failed == e.failing:
	case failed:
		e.log.WarnContext(ctx, "traces do not reach the collector: spans are dropped until they do", "error", err)
	default:
		e.log.InfoContext(ctx, "traces reach the collector again")
	}
	e.failing = failed
	return nil // it is handled
}

// A spanQueue lets no more spans wait than the SDK's queue holds, which drops them
// without saying so.
type spanQueue struct {
	sdktrace.SpanProcessor

	exporter *spanExporter
}

// OnEnd implements sdktrace.SpanProcessor. It never waits.
func (q *spanQueue) OnEnd(s sdktrace.ReadOnlySpan) {
	if q.exporter.waiting.Add(1) > maxSpans {
		q.exporter.waiting.Add(-1)
		q.exporter.dropped.WithLabelValues("queue_full").Inc()
		return
	}
	q.SpanProcessor.OnEnd(s)
}

// addSpans makes the metric of spans, all series at 0.
func (m *metrics) addSpans() *prometheus.CounterVec {
	dropped := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tiergate_spans_dropped_total",
		Help: "Spans of traces that are missing, by reason: queue_full, too many wait for the collector; collector, it did not take a batch, or not all of it.",
	}, []string{"reason"})
	for _, reason := range []string{"queue_full", "collector"} {
		dropped.WithLabelValues(reason)
	}
	m.registry.MustRegister(dropped)
	return dropped
}

// messages is a logr.LogSink that passes on which setting of the environment
// OpenTelemetry cannot use, and never what it says: it may be a secret.
type messages struct{ log *slog.Logger }

// Init implements logr.LogSink.
func (m messages) Init(logr.RuntimeInfo) {}

// Enabled implements logr.LogSink.
func (m messages) Enabled(int) bool { return false }

// Info implements logr.LogSink.
func (m messages) Info(int, string, ...any) {}

// Error implements logr.LogSink.
func (m messages) Error(_ error, message string, _ ...any) {
	m.log.Error("OpenTelemetry cannot use a variable of the environment: look at those that begin with OTEL_", "problem", message)
}

// WithValues implements logr.LogSink.
func (m messages) WithValues(...any) logr.LogSink { return m }

// WithName implements logr.LogSink.
func (m messages) WithName(string) logr.LogSink { return m }
