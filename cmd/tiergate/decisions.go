package main

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tiergate/tiergate/internal/envoyapi"
	"github.com/tiergate/tiergate/internal/quota"
)

// decisionLabels are the labels of a decision. Their values come from the configuration.
type decisionLabels struct {
	outcome                     envoyapi.Outcome
	code, limit, tier, resource string
	priority                    quota.Priority
}

// decisionCounters count decisions by their labels. Each counter is looked up in the
// CounterVec once: that costs more than to count.
type decisionCounters struct {
	*prometheus.CounterVec

	mu    sync.Mutex // of those who add
	found atomic.Pointer[map[decisionLabels]prometheus.Counter]
}

func newDecisionCounters(o prometheus.CounterOpts) *decisionCounters {
	c := &decisionCounters{CounterVec: prometheus.NewCounterVec(o, []string{"outcome", "code", "limit", "tier", "resource", "priority"})}
	c.found.Store(&map[decisionLabels]prometheus.Counter{})
	return c
}

// of returns the counter with these labels.
func (c *decisionCounters) of(l decisionLabels) prometheus.Counter {
	if counter, ok := (*c.found.Load())[l]; ok {
		return counter
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	counter := c.WithLabelValues(string(l.outcome), l.code, l.limit, l.tier, l.resource, l.priority.Number())
	found := maps.Clone(*c.found.Load())
	found[l] = counter
	c.found.Store(&found)
	return counter
}
