package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"os"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/tiergate/tiergate/internal/usage"
)

// pulseInterval is how often an instance tells of itself.
const pulseInterval = 2 * time.Second

// A pulse tells the store how this instance does, for the operators' dashboard.
type pulse struct {
	id      string
	started time.Time
	keys    func() int
	ping    func(context.Context) error
	tell    func(context.Context, usage.Instance) error
	decided prometheus.Gatherer
	log     *slog.Logger

	last     time.Time
	outcomes map[string]int64 // counted until the last time
	buckets  map[float64]uint64
	failed   bool
}

// newInstanceID names a process.
func newInstanceID() string {
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "unknown"
	}
	return hostname + "-" + rand.Text()[:6]
}

// run tells at once and in every interval, until ctx is done.
func (p *pulse) run(ctx context.Context) error {
	tick := time.NewTicker(pulseInterval)
	defer tick.Stop()
	p.last = p.started
	for now := time.Now(); ; {
		p.beat(ctx, now)
		select {
		case <-ctx.Done():
			return nil
		case now = <-tick.C:
		}
	}
}

// beat tells once, and logs when that begins to fail and when it works again.
func (p *pulse) beat(ctx context.Context, now time.Time) {
	instance, err := p.take(ctx, now)
	if err == nil {
		err = p.tell(ctx, instance)
	}
	failed := err != nil
	if ctx.Err() != nil || failed == p.failed {
		return
	}
	p.failed = failed
	if failed {
		p.log.WarnContext(ctx, "this instance is missing in the operators' dashboard: it cannot tell of itself", "error", err)
		return
	}
	p.log.InfoContext(ctx, "this instance is in the operators' dashboard again")
}

// take measures what has happened since the last time.
func (p *pulse) take(ctx context.Context, now time.Time) (usage.Instance, error) {
	outcomes, buckets := map[string]int64{}, map[float64]uint64{}
	families, err := p.decided.Gather()
	if err != nil {
		return usage.Instance{}, fmt.Errorf("read the metrics: %w", err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			switch f.GetName() {
			case decisionsName:
				outcomes[labelOf(m, "outcome")] += int64(m.GetCounter().GetValue())
			case decisionTimeName:
				for _, b := range m.GetHistogram().GetBucket() {
					buckets[b.GetUpperBound()] = b.GetCumulativeCount()
				}
				buckets[math.Inf(1)] = m.GetHistogram().GetSampleCount()
			}
		}
	}
	i := usage.Instance{ID: p.id, Version: buildVersion()["version"], Started: p.started, Seen: now, Rates: map[string]int64{}, Interval: now.Sub(p.last), Keys: p.keys()}
	for outcome, n := range outcomes {
		i.Rates[outcome] = n - p.outcomes[outcome]
	}
	lately := map[float64]uint64{}
	for bound, n := range buckets {
		lately[bound] = n - p.buckets[bound]
	}
	i.P50, i.P99 = quantile(lately, 0.5), quantile(lately, 0.99)
	p.last, p.outcomes, p.buckets = now, outcomes, buckets
	if err := p.ping(ctx); err != nil {
		i.Store = err.Error()
	}
	return i, nil
}

func labelOf(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// quantile returns what a share of the observations does not exceed, from cumulative
// counts by upper bound in seconds, linear within a bucket as Prometheus does it; 0
// where there are none.
func quantile(cumulative map[float64]uint64, share float64) time.Duration {
	rank := share * float64(cumulative[math.Inf(1)])
	if rank == 0 {
		return 0
	}
	lower, below := 0.0, uint64(0)
	for _, bound := range slices.Sorted(maps.Keys(cumulative)) {
		n := cumulative[bound]
		if float64(n) >= rank {
			if math.IsInf(bound, 1) {
				return time.Duration(lower * float64(time.Second))
			}
			within := (rank - float64(below)) / float64(n-below)
			return time.Duration((lower + (bound-lower)*within) * float64(time.Second))
		}
		lower, below = bound, n
	}
	return 0
}
