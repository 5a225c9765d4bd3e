package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// The results of two TierGates that count in memory: all keys of both are in use, of one
// as many as in the other cases, and of one many.
const (
	fewName  = "few keys, memory, RLS"
	manyName = "many keys, memory, RLS"
)

const (
	loadTime figure = "time to start"   // seconds
	perKey   figure = "bytes of a key"  // of memory, that it takes once it has had a request
	gcPauses figure = "GC pauses"       // how many, of two in a run of the collector
	gcShort  figure = "GC pauses below" // percent of these that are shorter than shortPause
)

// shortPause is the bound of a bucket of Go's metrics of pauses, in seconds: the longest below 1 ms.
const shortPause = "0.0009175039999999999"

// An instance is a TierGate whose keys are all in use.
type instance struct {
	*measurement

	facts  figures // of the whole
	before pauses  // when no key was in use yet
}

// newInstance starts a TierGate with so many keys and has each make a request. Usage is
// counted for all keys together, so that what a key takes is that of its counters.
func (t *table) newInstance(ctx context.Context, b *bed, name string, keys int) (c *instance, err error) {
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
	c = &instance{
		measurement: &measurement{of: benchCase{name: name}, target: b.targets[name]}, facts: figures{loadTime: time.Since(begun).Seconds()},
	}
	c.target.flushes = flushes{} // which cost little where usage is that of all keys together
	if err := dontPreempt(c.target.pid); err != nil {
		return nil, err
	}
	l := load{protocol: rls, keys: secrets["requests"], inFlight: t.spread.inFlight, connections: t.spread.connections}
	g, err := newGenerator(ctx, c.target.address, l)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	c.generator = g
	counts := keys > t.keys // of few, connections take more than keys
	if counts {             // or what was read at the start counts as living
		if err := c.target.collect(ctx); err != nil {
			return nil, err
		}
	}
	unused, err := c.target.live(ctx)
	if err != nil {
		return nil, err
	}
	if c.before, err = c.target.pauses(ctx); err != nil {
		return nil, err
	}
	if err := c.generator.each(ctx, l.inFlight); err != nil || !counts {
		return c, err
	}
	if err := c.target.collect(ctx); err != nil {
		return nil, err
	}
	used, err := c.target.live(ctx)
	c.facts[perKey] = (used - unused) / float64(keys)
	return c, err
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
	var both []*instance
	var measurements []*measurement
	for _, of := range []struct {
		name string
		keys int
	}{{fewName, t.keys}, {manyName, t.manyKeys}} {
		c, err := t.newInstance(ctx, b, of.name, of.keys)
		if err != nil {
			return fmt.Errorf("%s: %w", of.name, err)
		}
		defer c.close()
		both, measurements = append(both, c), append(measurements, c.measurement)
	}
	for round := range t.rounds {
		for _, c := range both {
			if err := c.start(ctx); err != nil {
				return err
			}
		}
		if err := takeTurns(ctx, measurements, t.spread.duration, turns); err != nil {
			return err
		}
		for _, c := range both {
			f, err := c.figures()
			if err != nil {
				return fmt.Errorf("%s: %w", c.of.name, err)
			}
			maps.Copy(f, c.facts)
			r[c.of.name] = append(r[c.of.name], f)
			fmt.Fprintf(progress, "round %d of %d: %s: %.0f requests/s, %.1f µs\n", round+1, t.rounds, c.of.name, f[perSecond], f[serverCPU])
		}
	}
	for _, c := range both {
		after, err := c.target.pauses(ctx)
		if err != nil {
			return err
		}
		if n := after.all - c.before.all; n > 0 {
			last := r[c.of.name][t.rounds-1] // has those of all rounds: one has few
			last[gcPauses], last[gcShort] = n, 100*(after.short-c.before.short)/n
		}
	}
	return nil
}

// pauses are how many the collector has made since the start, and how many were short.
type pauses struct{ all, short float64 }

func (t target) pauses(ctx context.Context) (p pauses, err error) {
	const name = "go_sched_pauses_total_gc_seconds_"
	text, err := t.metrics(ctx)
	if err != nil {
		return p, err
	}
	if p.all, err = sumOf(text, name+"count ", ""); err != nil {
		return p, err
	}
	p.short, err = sumOf(text, name+`bucket{le="`+shortPause+`"}`, "")
	if err == nil && p.all > 0 && p.short == 0 {
		err = fmt.Errorf("of %.0f pauses of the collector none is below %s s: has the metric %sbucket other bounds?", p.all, shortPause, name)
	}
	return p, err
}

// dontPreempt has the threads of a process that wake up wait until a processor is free, or
// their turn comes (SCHED_BATCH). Go looks how long it had stopped all for the collector when
// it has woken them again: where they take the processor of the thread that has, it finds a
// pause of milliseconds, in which all others ran.
func dontPreempt(pid int) error {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return fmt.Errorf("find the threads of a process: %w", err)
	}
	for _, thread := range threads {
		id, err := strconv.Atoi(thread.Name())
		if err != nil {
			return fmt.Errorf("find the threads of a process: %w", err)
		}
		a, err := unix.SchedGetAttr(id, 0)
		if err == nil {
			a.Policy = unix.SCHED_BATCH
			err = unix.SchedSetAttr(id, a, 0)
		}
		if err != nil {
			return fmt.Errorf("schedule a thread as SCHED_BATCH: %w", err)
		}
	}
	return nil
}
