package main

import (
	"context"
	"errors"
	"log/slog"
	"regexp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/tiergate/tiergate/internal/envoyapi"
	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/store"
	"github.com/tiergate/tiergate/internal/usage"
)

// metrics are what the program tells of itself. Every label value comes from
// the configuration, never from a client.
type metrics struct {
	registry      *prometheus.Registry
	decisions     *decisionCounters
	decisionTime  prometheus.Histogram
	storeTime     map[string]prometheus.Observer // by call
	misnamed      prometheus.Counter
	invalid       prometheus.Counter
	storeErrors   *prometheus.CounterVec
	losses        *prometheus.CounterVec // with Redis
	reloads       *prometheus.CounterVec
	reloadOK      prometheus.Gauge
	lastReload    prometheus.Gauge
	files         *prometheus.GaugeVec
	keys          *prometheus.GaugeVec
	keysInStep    prometheus.Gauge
	needsRestart  prometheus.Gauge
	demoKeysInUse prometheus.Gauge
	settlements   *prometheus.CounterVec
	accuracy      *prometheus.HistogramVec
	capacity      *capacityGauges
}

// The metrics that a pulse reads too.
const (
	decisionsName    = "tiergate_decisions_total"
	decisionTimeName = "tiergate_decision_duration_seconds"
)

// pauses are those of Go's metrics that say how long the garbage collector stopped all: from
// the moment that it wanted to, and of that until all had stopped.
var pauses = regexp.MustCompile(`^/sched/pauses/(total|stopping)/gc:seconds$`)

func newMetrics() *metrics {
	fast := []float64{1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 1}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		decisions: newDecisionCounters(prometheus.CounterOpts{
			Name: decisionsName,
			Help: "Decided requests by outcome (allowed, limited, too_large, unauthenticated, forbidden, failed, unrecognised), by the code of the error that was answered, by the limit that refused, tier, resource and priority.",
		}),
		decisionTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: decisionTimeName, Help: "Time to decide a request, the store included.", Buckets: fast,
		}),
		storeTime: map[string]prometheus.Observer{},
		misnamed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tiergate_unknown_resources_total", Help: "Requests whose route or descriptor names a resource that is not configured.",
		}),
		invalid: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tiergate_invalid_calls_total", Help: "Calls of the rate limit service that were answered with INVALID_ARGUMENT.",
		}),
		storeErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tiergate_store_errors_total", Help: "Failed calls to the store by reason (timeout, canceled, other).",
		}, []string{"reason"}),
		losses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tiergate_redis_losses_total", Help: "How often Redis was found not to know any more what it knew, by kind (emptied, older).",
		}, []string{"kind"}),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tiergate_config_reloads_total", Help: "Reloads of the configuration by result (success, failure).",
		}, []string{"result"}),
		reloadOK: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tiergate_config_last_reload_successful", Help: "1 if the files as they are now are in use, 0 if they were refused.",
		}),
		lastReload: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tiergate_config_last_reload_success_timestamp_seconds", Help: "When the configuration in use was loaded, Unix seconds.",
		}),
		files: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "tiergate_config_hash", Help: "The first 48 bits of SHA-256 of a file in use, by file (config, keys), without the secrets that it names.",
		}, []string{"file"}),
		keys: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "tiergate_keys", Help: "API keys on record by source (file, store).",
		}, []string{"source"}),
		keysInStep: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tiergate_keys_in_step", Help: "1 if the store's directory of keys is followed, 0 if keys stay as they were known.",
		}),
		needsRestart: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tiergate_config_restart_needed", Help: "1 if the files hold changes that only a restart takes up.",
		}),
		demoKeysInUse: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tiergate_demo_keys_allowed", Help: "1 if the public demo keys work.",
		}),
		capacity: newCapacityGauges(time.Now),
	}
	m.addSettlements()
	for _, reason := range []string{"timeout", "canceled", "other"} {
		m.storeErrors.WithLabelValues(reason)
	}
	storeTime := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "tiergate_store_duration_seconds", Help: "Time of a call to the store (take, settle).", Buckets: fast,
	}, []string{"call"})
	for _, call := range []string{store.CallTake, store.CallSettle} {
		m.storeTime[call] = storeTime.WithLabelValues(call) // once: to look it up costs more than to count
	}
	for _, source := range []string{"file", "store"} {
		m.keys.WithLabelValues(source)
	}
	for _, result := range []string{"success", "failure"} {
		m.reloads.WithLabelValues(result)
	}
	m.registry.MustRegister(
		m.decisions, m.decisionTime, m.misnamed, m.invalid, storeTime, m.storeErrors, m.reloads, m.reloadOK, m.lastReload, m.files, m.keys, m.keysInStep,
		m.needsRestart, m.demoKeysInUse, m.settlements, m.accuracy, m.capacity,
		collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(collectors.GoRuntimeMetricsRule{Matcher: pauses})), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewBuildInfoCollector(),
	)
	return m
}

// decided are the metrics that a pulse reads, without those of the process and of Go,
// which cost more to read.
func (m *metrics) decided() prometheus.Gatherer {
	r := prometheus.NewRegistry()
	r.MustRegister(m.decisions, m.decisionTime)
	return r
}

// addUsage makes the metrics of the counting for dashboards.
func (m *metrics) addUsage(r *usage.Recorder) {
	m.registry.MustRegister(
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "tiergate_usage_overflowed_total", Help: "Requests and answers counted for all keys together only, because usage.max_series was reached.",
		}, func() float64 { return float64(r.Overflowed()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "tiergate_usage_dropped_total", Help: "Requests missing in usage, because the store was away for too long.",
		}, func() float64 { return float64(r.Dropped()) }),
	)
}

// addSettlements makes the metrics of settlements, all series at 0.
func (m *metrics) addSettlements() {
	m.settlements = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tiergate_settlements_total",
		Help: "Settlements by how they were reported (access_log, ratelimit) and result (settled, queued, duplicate, not_found, unreserved, invalid, failed, lost).",
	}, []string{"by", "result"})
	m.accuracy = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "tiergate_reserved_to_used_ratio",
		Help:    "Tokens reserved for a request, divided by those it used, by where the number came from (declaration, history, default, maximum).",
		Buckets: []float64{0.1, 0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 2, 4, 10, 100},
	}, []string{"source"})
	for _, by := range envoyapi.SettlementWays() {
		for _, result := range envoyapi.SettlementResults() {
			m.settlements.WithLabelValues(by, result)
		}
	}
	for _, source := range estimated() {
		m.accuracy.WithLabelValues(string(source))
	}
}

// estimated are the sources of reservations that can be compared with what was used.
func estimated() []quota.Source {
	return []quota.Source{quota.ByDeclaration, quota.ByHistory, quota.ByDefault, quota.ByMaximum}
}

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

// calm is how long a store must not have failed to count as back.
const calm = time.Second

// watchedCounts measures a store in memory and logs when it begins to fail, for want of
// room, and when that is over: a line each, however many requests it hits.
type watchedCounts struct {
	quota.Counts

	metrics    *metrics
	log        *slog.Logger
	lastFailed atomic.Int64 // Unix nanoseconds; 0: the store is fine
}

// Take implements quota.Counts.
func (w *watchedCounts) Take(ctx context.Context, o quota.Order) (quota.Taken, error) {
	began := time.Now()
	taken, err := w.Counts.Take(ctx, o)
	w.watch(ctx, store.CallTake, began, err)
	return taken, err
}

// Settle implements quota.Counts.
func (w *watchedCounts) Settle(ctx context.Context, s quota.Settlement) (quota.Outcome, error) {
	began := time.Now()
	outcome, err := w.Counts.Settle(ctx, s)
	w.watch(ctx, store.CallSettle, began, err)
	return outcome, err
}

func (w *watchedCounts) watch(ctx context.Context, call string, began time.Time, err error) {
	w.metrics.called(call, time.Since(began), nil)
	if err != nil {
		w.failed(ctx, err)
	} else if last := w.lastFailed.Load(); last != 0 && began.UnixNano()-last > int64(calm) && w.lastFailed.CompareAndSwap(last, 0) {
		w.log.InfoContext(ctx, "the store answers again")
	}
}

// called measures a call of the store.
func (m *metrics) called(call string, took time.Duration, err error) {
	m.storeTime[call].Observe(took.Seconds())
	if err != nil {
		m.storeErrors.WithLabelValues(reason(err)).Inc()
	}
}

func (w *watchedCounts) failed(ctx context.Context, err error) {
	why := reason(err)
	if ctx.Err() != nil { // the caller gave up, whatever the store would have said
		why = "canceled"
	}
	w.metrics.storeErrors.WithLabelValues(why).Inc()
	if why != "canceled" && w.lastFailed.Swap(time.Now().UnixNano()) == 0 {
		w.log.ErrorContext(ctx, "the store fails: requests are answered with 503 until it is back", "error", err)
	}
}

func reason(err error) string {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	default:
		return "other"
	}
}
