package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/tiergate/tiergate/internal/config"
	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/store"
)

// A watcher tells metrics and the log how an instance does with Redis, and without.
type watcher struct {
	instance string
	metrics  *metrics
	log      *slog.Logger
}

// fallback returns what counts in Redis and goes on without it.
func (w watcher) fallback(redis *store.Redis, c config.Store) *store.Fallback {
	began := time.Now()
	f := store.NewFallback(redis, store.FallbackOptions{
		Instance: w.instance, MaxAccounts: c.MaxKeys, MaxQueued: c.MaxQueuedSettlements, AssumedInstances: c.AssumedInstances,
		Now: time.Now, Elapsed: func() time.Duration { return time.Since(began) },
		Notices: store.FallbackNotices{Called: w.metrics.called, Began: w.began, Explained: w.explained, Ended: w.ended, Lost: w.lost},
	})
	w.metrics.addFallback(f)
	return f
}

// began tells of an outage: one line, however many requests it hits.
func (w watcher) began(o store.Outage) {
	w.log.Error("Redis cannot be reached: requests are decided as on_store_failure says until it is back", "error", o.Err)
}

// explained tells what can be done about it, where that was not known when it began.
func (w watcher) explained(o store.Outage) {
	w.log.Error("why Redis still cannot be reached", "error", o.Err)
}

// ended tells what became of it.
func (w watcher) ended(o store.Outage) {
	t := o.Totals
	level := slog.LevelInfo
	if t.Lost+t.LostCounts > 0 {
		level = slog.LevelWarn
	}
	w.log.Log(context.Background(), level, "Redis is back, and counts are shared again",
		"after", o.Duration.Round(time.Millisecond), "local", t.Local, "denied", t.Denied, "allowed", t.Allowed,
		"keys_given_back", t.Accounts, "counts_given_back", t.Counts, "counts_ended", t.Ended, "counts_lost", t.LostCounts,
		"settlements_queued", t.Queued, "settlements_lost", t.Lost)
}

// What Redis has left of what it knew.
const (
	lossEmptied = "emptied" // nothing
	lossOlder   = "older"   // an older state
)

// lost tells that limits may be used once more, which nothing else shows.
func (w watcher) lost(since, until time.Time) {
	if since.IsZero() {
		w.metrics.losses.WithLabelValues(lossEmptied).Inc()
		w.log.Warn("Redis was emptied, and counting begins anew: see whether it persists, and what empties it", "until", until)
		return
	}
	w.metrics.losses.WithLabelValues(lossOlder).Inc()
	w.log.Warn("Redis has lost what was counted since it had this state, as by a fail-over or where a backup was restored", "since", since, "until", until)
}

// addFallback makes the metrics of counting without Redis.
func (m *metrics) addFallback(f *store.Fallback) {
	gauge := func(name, help string, value func() float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("tiergate_degraded", "1 while Redis, or a part of a Cluster, cannot be reached.", func() float64 {
		if f.State().Degraded {
			return 1
		}
		return 0
	})
	gauge("tiergate_instances", "Instances that share Redis, as was last known.", func() float64 { return float64(f.Instances()) })
	gauge("tiergate_settlements_waiting", "Settlements that wait for Redis.", func() float64 { return float64(f.State().Waiting) })
	m.registry.MustRegister(m.losses)
	for _, kind := range []string{lossEmptied, lossOlder} {
		m.losses.WithLabelValues(kind)
	}
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "tiergate_remembered_refusals_total", Help: "Requests refused without asking Redis, which was known to refuse them.",
	}, func() float64 { return float64(f.Remembered()) }))
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "tiergate_answered_ahead_total", Help: "Requests of keys without limits answered before Redis had counted them.",
	}, func() float64 { return float64(f.AnsweredAhead()) }))
	counters := func(name, help, label string, values map[string]func(store.Totals) int64) {
		for value, of := range values {
			m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
				Name: name, Help: help, ConstLabels: prometheus.Labels{label: value},
			}, func() float64 { return float64(of(f.Totals())) }))
		}
	}
	counters("tiergate_degraded_decisions_total", "Requests decided without Redis, by mode (local, deny, allow).", "mode", map[string]func(store.Totals) int64{
		quota.Local.String(): func(t store.Totals) int64 { return t.Local },
		quota.Deny.String():  func(t store.Totals) int64 { return t.Denied },
		quota.Allow.String(): func(t store.Totals) int64 { return t.Allowed },
	})
	counters("tiergate_returned_counts_total", "Counts of keys that were made without Redis, by what became of them (added, ended, lost).", "result", map[string]func(store.Totals) int64{
		"added": func(t store.Totals) int64 { return t.Counts },
		"ended": func(t store.Totals) int64 { return t.Ended },
		"lost":  func(t store.Totals) int64 { return t.LostCounts },
	})
	counters("tiergate_queued_settlements_total", "Settlements that had to wait for Redis, by what became of them (settled, duplicate, not_found, lost).", "result", map[string]func(store.Totals) int64{
		quota.Settled.String():   func(t store.Totals) int64 { return t.Settled },
		quota.Duplicate.String(): func(t store.Totals) int64 { return t.Duplicate },
		quota.NotFound.String():  func(t store.Totals) int64 { return t.Unknown },
		"lost":                   func(t store.Totals) int64 { return t.Lost },
	})
}

// noteOnFailure notes whether any request is answered while Redis is away.
func (s *server) noteOnFailure(plans map[string]*quota.Plan) {
	goesOn := false
	for _, p := range plans {
		goesOn = goesOn || p.Tier.OnFailure != quota.Deny
	}
	s.goesOn.Store(goesOn)
}

// ready says why this instance is not to be sent requests, or what to know of how it
// decides them.
func (s *server) ready(ctx context.Context) (note string, err error) {
	if health, err := s.health.Check(ctx, &healthpb.HealthCheckRequest{}); err != nil || health.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return "", errors.New("stopping")
	}
	err = s.stores.counts.Ping(ctx)
	if err != nil && s.goesOn.Load() {
		return fmt.Sprintf("degraded: counting by this instance alone: %s", err), nil
	}
	return "", err
}

// runFallback brings back to Redis what it could not be told of.
func (s *server) runFallback(ctx context.Context) error {
	if s.stores.fallback == nil {
		return nil
	}
	if err := s.stores.fallback.Run(ctx); err != nil {
		s.log.Error("counts are lost", "error", err)
	}
	return nil
}
