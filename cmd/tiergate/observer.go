package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/tiergate/tiergate/internal/envoyapi"
	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/store"
	"github.com/tiergate/tiergate/internal/usage"
)

// observer tells metrics, usage and the decision log of verdicts.
type observer struct {
	metrics *metrics
	usage   *usage.Recorder // nil: nobody counts
	log     *slog.Logger

	failed, misnamed, invalid *seldom
}

func newObserver(m *metrics, u *usage.Recorder, log *slog.Logger) observer {
	return observer{m, u, log, new(seldom), new(seldom), new(seldom)}
}

// Judged implements envoyapi.Observer.
func (o observer) Judged(ctx context.Context, v envoyapi.Verdict, took time.Duration) {
	o.metrics.decisionTime.Observe(took.Seconds())
	o.metrics.decisions.of(decisionLabels{v.Outcome, v.Code(), v.Label(), v.Tier, v.Resource, v.Priority}).Inc()
	o.metrics.capacity.note(&v.Decision)
	o.count(&v)
	if v.Misnamed != "" {
		o.misnames(ctx, &v)
	}
	if v.Outcome != envoyapi.Allowed {
		o.refused(ctx, &v)
	}
}

// count counts a request of a known key for its usage.
func (o observer) count(v *envoyapi.Verdict) {
	if o.usage == nil || v.Key == nil || v.Requests == 0 {
		return
	}
	d := usage.Decided{
		Account: v.Key.ID, Tier: v.Tier, Resource: v.Resource, Priority: v.Priority, At: v.At, Requests: v.Requests,
	}
	switch v.Outcome {
	case envoyapi.Limited:
		d.Reason = v.Label()
	case envoyapi.TooLarge:
		d.Reason = usage.TooLarge
	case envoyapi.Forbidden:
		d.Reason = usage.Forbidden
	case envoyapi.Failed:
		d.Reason = usage.Failed
	case envoyapi.Allowed, envoyapi.Unauthenticated, envoyapi.Unrecognised:
	}
	if v.Decision.Pending == nil {
		o.usage.Decided(d, &v.Decision)
		return
	}
	decision := v.Decision
	decision.Pending(func(repeated bool) {
		if !repeated {
			o.usage.Decided(d, &decision)
		}
	})
}

// Settled implements envoyapi.Observer.
func (o observer) Settled(ctx context.Context, r envoyapi.SettlementReport) {
	o.metrics.settlements.WithLabelValues(r.By, r.Result).Inc()
	// A ticket comes back from Envoy, so its source is checked before it is a label.
	if r.Result == quota.Settled.String() && r.Used > 0 && slices.Contains(estimated(), r.Source) {
		o.metrics.accuracy.WithLabelValues(string(r.Source)).Observe(float64(r.Reserved) / float64(r.Used))
	}
	if r.Result == envoyapi.Lost && !errors.Is(r.Err, store.ErrQueueFull) { // of those, the end of the outage tells
		o.log.ErrorContext(ctx, "a settlement is lost: its reservation stands", "by", r.By, "error", r.Err)
	} else if r.Result != quota.Settled.String() {
		o.log.LogAttrs(ctx, slog.LevelDebug, "not settled", slog.String("by", r.By), slog.String("result", r.Result), slog.Any("error", r.Err))
	}
}

// Used implements envoyapi.Observer.
func (o observer) Used(u envoyapi.Use) {
	if o.usage != nil {
		o.usage.Settled(usage.Settled(u))
	}
}
