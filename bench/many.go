package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// The results of two TierGates that count in memory: all keys of both are in use, of one
// as many as in the other cases, and of one many.
const (
	fewName  = "few keys, memory, RLS"
	manyName = "many keys, memory, RLS"
)

const (
	loadTime figure = "time to start"  // seconds
	perKey   figure = "bytes of a key" // of memory, that it takes once it has had a request
	gcMedian figure = "GC, median"     // ms that all wait in a run of the collector, both its pauses together
	gcMost   figure = "GC, longest"    // ms
)

// An instance is a TierGate whose keys are all in use, and what asks it.
type instance struct {
	target    target
	generator *generator
	facts     figures
}

// newInstance starts a TierGate with so many keys and has each make a request. Usage is
// counted for all keys together, so that what a key takes is that of its counters.
func (t *table) newInstance(ctx context.Context, b *bed, name string, keys int) (*instance, error) {
	dir := filepath.Join(b.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make a directory: %w", err)
	}
	config, secrets, err := configure(t.root, dir, keys, "requests")
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	if err := b.startTierGate(ctx, t.bedOptions, started{name: name, store: "memory", config: config, flush: quietInterval, sets: []string{"usage.max_series=1"}}); err != nil {
		return nil, err
	}
	c := &instance{target: b.targets[name], facts: figures{loadTime: time.Since(begun).Seconds()}}
	l := load{protocol: rls, keys: secrets["requests"], inFlight: t.spread.inFlight, connections: t.spread.connections}
	if c.generator, err = newGenerator(ctx, c.target.address, l); err != nil {
		return nil, err
	}
	var live [2]float64
	for i, use := range []func() error{func() error { return nil }, func() error { return c.generator.each(ctx, l.inFlight) }} {
		if err := use(); err != nil {
			return nil, err
		}
		if err := c.target.collect(ctx); err != nil {
			return nil, err
		}
		if live[i], err = c.target.live(ctx); err != nil {
			return nil, err
		}
	}
	c.facts[perKey] = (live[1] - live[0]) / float64(keys)
	return c, nil
}

// collect has the collector of garbage run twice, the second time from its beginning: what
// metrics are read for is garbage soon.
func (t target) collect(ctx context.Context) error {
	runs := func() (float64, error) { return t.metric(ctx, "go_gc_duration_seconds_count ", "") }
	begun, err := runs()
	for now := begun; err == nil && now < begun+2; {
		now, err = runs()
	}
	return err
}

// live is the memory in use that the collector has found last, in bytes: it starts again
// when there is so many percent more.
func (t target) live(ctx context.Context) (float64, error) {
	next, err := t.metric(ctx, "go_memstats_next_gc_bytes ", "")
	if err != nil {
		return 0, err
	}
	percent, err := t.metric(ctx, "go_gc_gogc_percent ", "")
	return next / (1 + percent/100), err
}

// many measures what a request costs where many keys are in use, beside one of few.
func (t *table) many(ctx context.Context, b *bed, r results, progress io.Writer) error {
	instances := map[string]*instance{}
	for name, keys := range map[string]int{fewName: t.keys, manyName: t.manyKeys} {
		c, err := t.newInstance(ctx, b, name, keys)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		defer c.generator.close()
		instances[name] = c
	}
	for round := range t.rounds {
		for _, name := range []string{fewName, manyName} {
			c := instances[name]
			f, err := c.measure(ctx, t.spread.duration)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			r[name] = append(r[name], f)
			fmt.Fprintf(progress, "round %d of %d: %s: %.0f requests/s, %.1f µs\n", round+1, t.rounds, name, f[perSecond], f[serverCPU])
		}
	}
	return nil
}

// measure runs the load, in which keys are asked for as often as others.
func (c *instance) measure(ctx context.Context, duration time.Duration) (figures, error) {
	if err := await(ctx, c.target.flushes.free(time.Now(), duration)); err != nil {
		return nil, err
	}
	m := meter{target: c.target}
	if err := m.start(ctx); err != nil {
		return nil, err
	}
	o := c.generator.run(ctx, duration)
	if o.failed > 0 || o.requests == 0 || o.admitted != o.requests {
		return nil, fmt.Errorf("%d of %d requests were admitted: %w", o.admitted, o.requests, o.err)
	}
	f, err := m.stop(ctx, o.requests)
	if err != nil {
		return nil, err
	}
	f.add(o)
	for name, quantile := range map[figure]string{gcMedian: "0.5", gcMost: "1"} {
		seconds, err := c.target.metric(ctx, "go_gc_duration_seconds{", `quantile="`+quantile+`"`)
		if err != nil {
			return nil, err
		}
		f[name] = 1000 * seconds
	}
	f[loadTime], f[perKey] = c.facts[loadTime], c.facts[perKey]
	return f, nil
}
