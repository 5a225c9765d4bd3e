package main

import (
	"crypto/rand"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/store"
)

// TestCapacityGauges: they say what decisions saw of a pool until its window ends, and how much
// each priority may use of it; a reload forgets nothing, and what is no pool any more is gone.
func TestCapacityGauges(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 30, 0, time.UTC)
	clock := func() time.Time { return now }
	gauges := newCapacityGauges(clock)
	pool := quota.NewPool("chat", []quota.Limit{
		{Metric: quota.Requests, Window: quota.Minute, Max: 20}, {Metric: quota.Tokens, Window: quota.Hour, Max: 1000},
	}, quota.UsualShares())
	limiter := quota.NewLimiter(store.NewMemory(clock, 10))
	r := quota.Request{
		Account: "key", Tier: quota.NewPlan(quota.Tier{Name: "t", Limits: []quota.Limit{{Metric: quota.Requests, Window: quota.Minute, Max: 100}}}, quota.ByKey, nil),
		Resource: "chat", Priority: quota.Low, Pool: pool, Cost: quota.Cost{Requests: 1, Tokens: 30}, Secret: rand.Text, Keep: time.Hour,
	}
	ask := func() {
		d, err := limiter.Decide(t.Context(), r, now)
		if err != nil {
			t.Fatal(err)
		}
		gauges.note(&d)
	}
	want := func(when string, requests, tokens float64) {
		t.Helper()
		want := map[string]float64{}
		for priority, share := range map[string]float64{"1": 0.5, "2": 0.75, "3": 0.9, "4": 1} {
			want["tiergate_capacity_limit requests minute "+priority+" chat"] = 20 * share
			want["tiergate_capacity_limit tokens hour "+priority+" chat"] = 1000 * share
		}
		want["tiergate_capacity_used requests minute chat"], want["tiergate_capacity_used tokens hour chat"] = requests, tokens
		if got := gathered(t, gauges); !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	ask() // before there is a pool, as where a request is decided while it is taken up
	gauges.use(map[string]*quota.Pool{"chat": pool})
	want("before any decision", 0, 0)
	for range 12 {
		ask() // the last three are shed
	}
	want("of 13 requests", 10, 300)
	gauges.use(map[string]*quota.Pool{"chat": pool})
	want("after a reload", 10, 300)
	alone, err := quota.NewLimiter(store.NewMemory(clock, 10)).Decide(t.Context(), r, now)
	if alone.Degraded = true; err != nil || !alone.Admitted {
		t.Fatalf("%+v, %v", alone, err)
	}
	gauges.note(&alone)
	want("after what an instance saw by itself", 10, 300)
	now = now.Add(30 * time.Second)
	want("in the next minute", 0, 300)
	ask()
	want("of one more", 1, 330)
	gauges.use(nil)
	if got := gathered(t, gauges); len(got) != 0 {
		t.Errorf("without a pool: %v", got)
	}
}

// gathered is what a collector says: the values of gauges by their names and those of their
// labels, in the order of the labels' names.
func gathered(t *testing.T, c prometheus.Collector) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			names := []string{f.GetName()}
			for _, l := range m.GetLabel() {
				names = append(names, l.GetValue())
			}
			all[strings.Join(names, " ")] = m.GetGauge().GetValue()
		}
	}
	return all
}
