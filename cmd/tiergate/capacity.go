package main

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tiergate/tiergate/internal/quota"
)

// capacityGauges say how full the pools of resources are, by the decisions that have been made:
// to be asked for, a pool costs no call of the store.
type capacityGauges struct {
	now         func() time.Time
	used, limit *prometheus.Desc
	pools       atomic.Pointer[map[poolLimit]*poolGauge]
}

// poolLimit is what all priorities' limits of a pool count together.
type poolLimit struct {
	resource string
	metric   quota.Metric
	window   quota.Window
}

func poolLimitOf(l quota.Limit) poolLimit { return poolLimit{l.Resource, l.Metric, l.Window} }

// A poolGauge is what was used of one when a decision last saw it.
type poolGauge struct {
	limits []quota.Limit // of each priority

	mu    sync.Mutex
	used  int64
	reset time.Time // when the window of that ends
}

func newCapacityGauges(now func() time.Time) *capacityGauges {
	limit := []string{"resource", "metric", "per"}
	c := &capacityGauges{
		now:   now,
		used:  prometheus.NewDesc("tiergate_capacity_used", "What all keys together use of a resource's pool in its window, as the last decision saw it.", limit, nil),
		limit: prometheus.NewDesc("tiergate_capacity_limit", "How much of a resource's pool may be used when a request of a priority is admitted.", append(limit, "priority"), nil),
	}
	c.use(nil)
	return c
}

// use takes up the pools of a configuration. What is known of them stays known.
func (c *capacityGauges) use(pools map[string]*quota.Pool) {
	next := map[poolLimit]*poolGauge{}
	for _, p := range pools {
		for _, l := range p.Limits() {
			g := next[poolLimitOf(l)]
			if g == nil {
				g = new(poolGauge)
				next[poolLimitOf(l)] = g
			}
			g.limits = append(g.limits, l)
		}
	}
	if before := c.pools.Load(); before != nil {
		for at, g := range *before {
			if n := next[at]; n != nil {
				n.used, n.reset = g.state()
			}
		}
	}
	c.pools.Store(&next)
}

// note takes what a decision saw of its pool. What an instance that goes on by itself sees is
// its share, and what a repeat is answered is of before.
func (c *capacityGauges) note(d *quota.Decision) {
	if d.Degraded || d.Repeated {
		return
	}
	for s := range d.Pooled {
		// Of decisions at one moment one is enough, and none waits.
		if g := (*c.pools.Load())[poolLimitOf(s.Limit)]; g != nil && g.mu.TryLock() {
			g.used, g.reset = s.Used, s.Reset
			g.mu.Unlock()
		}
	}
}

func (g *poolGauge) state() (used int64, reset time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.used, g.reset
}

// Describe implements prometheus.Collector.
func (c *capacityGauges) Describe(descs chan<- *prometheus.Desc) { descs <- c.used; descs <- c.limit }

// Collect implements prometheus.Collector.
func (c *capacityGauges) Collect(metrics chan<- prometheus.Metric) {
	for at, g := range *c.pools.Load() {
		labels := []string{at.resource, at.metric.String(), at.window.String()}
		used, reset := g.state()
		if !c.now().Before(reset) { // nobody has asked since
			used = 0
		}
		metrics <- prometheus.MustNewConstMetric(c.used, prometheus.GaugeValue, float64(used), labels...)
		for _, l := range g.limits {
			metrics <- prometheus.MustNewConstMetric(c.limit, prometheus.GaugeValue, float64(l.Max), append(labels, l.Priority.Number())...)
		}
	}
}
