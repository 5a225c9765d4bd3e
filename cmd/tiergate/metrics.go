package main

import (
	"regexp"
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
