package main

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/tiergate/tiergate/internal/envoyapi"
	"github.com/tiergate/tiergate/internal/quota"
)

// observer returns one that also writes verdicts and settlements on the span of their
// call.
func (t *tracing) observer(o envoyapi.Observer) envoyapi.Observer {
	if t == nil {
		return o
	}
	return spanObserver{o}
}

// spanObserver writes on spans what metrics and logs have too: names that the
// configuration or the operators chose, and nothing that the client sent.
type spanObserver struct{ envoyapi.Observer }

// Judged implements envoyapi.Observer.
func (o spanObserver) Judged(ctx context.Context, v envoyapi.Verdict, took time.Duration) {
	o.Observer.Judged(ctx, v, took)
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(
		attribute.String("tiergate.outcome", string(v.Outcome)),
		attribute.String("tiergate.tier", v.Tier),
		attribute.String("tiergate.resource", v.Resource),
		attribute.String("tiergate.priority", v.Priority.String()),
		attribute.Bool("tiergate.degraded", v.Decision.Degraded),
	)
	if v.Key != nil {
		span.SetAttributes(attribute.String("tiergate.key_id", v.Key.ID))
	}
	if limit := v.Label(); limit != "" {
		span.SetAttributes(attribute.String("tiergate.limit", limit))
	}
	if v.Outcome == envoyapi.Failed {
		span.SetStatus(codes.Error, "")
	}
}

// Settled implements envoyapi.Observer.
func (o spanObserver) Settled(ctx context.Context, r envoyapi.SettlementReport) {
	o.Observer.Settled(ctx, r)
	trace.SpanFromContext(ctx).SetAttributes(attribute.String("tiergate.settlement", r.Result))
}

// counts returns ones whose calls have spans of their own, within those of the calls
// that they are made for.
func (t *tracing) counts(c quota.Counts) quota.Counts {
	if t == nil {
		return c
	}
	return spanCounts{c, t.tracer}
}

// spanCounts makes a span of each call to the store.
type spanCounts struct {
	quota.Counts

	tracer trace.Tracer
}

// Take implements quota.Counts.
func (c spanCounts) Take(ctx context.Context, o quota.Order) (quota.Taken, error) {
	ctx, end := c.start(ctx, "store take")
	taken, err := c.Counts.Take(ctx, o)
	end(err)
	return taken, err
}

// Settle implements quota.Counts.
func (c spanCounts) Settle(ctx context.Context, s quota.Settlement) (quota.Outcome, error) {
	ctx, end := c.start(ctx, "store settle")
	outcome, err := c.Counts.Settle(ctx, s)
	end(err)
	return outcome, err
}

// start begins a span where the call is traced. What it returns ends it; of an error
// it writes the kind only.
func (c spanCounts) start(ctx context.Context, name string) (within context.Context, end func(error)) {
	if !trace.SpanFromContext(ctx).IsRecording() {
		return ctx, func(error) {}
	}
	ctx, span := c.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindClient))
	return ctx, func(err error) {
		if err != nil {
			span.SetAttributes(attribute.String("error.type", reason(err)))
			span.SetStatus(codes.Error, "")
		}
		span.End()
	}
}
