package main

import (
	"context"
	"fmt"
	"time"
)

const (
	// quietInterval is usage.interval of a TierGate whose requests are measured: the longest
	// there is, for a run begins where no flush of usage is to come before its end.
	quietInterval = time.Minute
	// flushInterval is that of the one whose flushes are measured: each round of a load through
	// Envoy has some, and they come at all times of its turns.
	flushInterval = 1100 * time.Millisecond
	// shippedInterval is that of the shipped configuration.
	shippedInterval = 5 * time.Second
	// flushTime is how long a flush may take.
	flushTime = 500 * time.Millisecond
)

// flushRounds are the first ones, in which flushes are measured: each takes seconds.
const flushRounds = 2

// eachInFlight is how many calls are made at a time where each key makes one.
const eachInFlight = 16

// flushName is the name of the results of flushes.
const flushName = "flush of usage"

// flushes are when a TierGate writes usage to its store: once between these times, and
// then again in every interval.
type flushes struct {
	from, to time.Time
	every    time.Duration // 0: never
}

// free returns when something may begin that is to last for so long without a flush: now,
// or after the next.
func (f flushes) free(now time.Time, lasts time.Duration) time.Time {
	if f.every == 0 || now.Add(lasts).Before(f.next(now).Add(f.from.Sub(f.to))) {
		return now
	}
	return f.next(now)
}

// next returns when the next flush is over.
func (f flushes) next(now time.Time) time.Time {
	done := max(0, now.Sub(f.to)/f.every) // since the first
	if next := f.to.Add(done * f.every); next.After(now) {
		return next
	}
	return f.to.Add((done + 1) * f.every)
}

// await waits until then.
func await(ctx context.Context, then time.Time) error {
	timer := time.NewTimer(time.Until(then))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// askAll makes a call for each key, all of them between two flushes.
func (f flushes) askAll(ctx context.Context, g *generator) error {
	const tries = 5
	for range tries {
		if err := await(ctx, f.next(time.Now())); err != nil {
			return err
		}
		next := f.next(time.Now()).Add(f.from.Sub(f.to)) // may begin then
		if err := g.each(ctx, eachInFlight); err != nil || time.Now().Before(next) {
			return err
		}
	}
	return fmt.Errorf("%d requests do not pass between two flushes", len(g.load.keys))
}

// measureFlush measures what a flush costs for each key that had a request since the one
// before: what is done between two flushes where all keys had one, less what is done where
// none had.
func (b *bed) measureFlush(ctx context.Context) (figures, error) {
	t := b.targets["usage"]
	g, err := newGenerator(ctx, t.address, load{protocol: rls, keys: b.keys["requests"], connections: 1})
	if err != nil {
		return nil, err
	}
	defer g.close()
	keys := int64(len(b.keys["requests"]))
	interval := func(ask bool) (figures, error) {
		begin := func() error { return await(ctx, t.flushes.next(time.Now())) }
		if ask {
			begin = func() error { return t.flushes.askAll(ctx, g) }
		}
		if err := begin(); err != nil {
			return nil, err
		}
		m, err := newMeter(ctx, t)
		if err != nil {
			return nil, err
		}
		if err := m.on(ctx); err != nil {
			return nil, err
		}
		if err := await(ctx, t.flushes.next(time.Now())); err != nil {
			return nil, err
		}
		if err := m.off(ctx); err != nil {
			return nil, err
		}
		return m.figures(keys), nil
	}
	idle, err := interval(false)
	if err != nil {
		return nil, err
	}
	f, err := interval(true)
	if err != nil {
		return nil, err
	}
	for _, name := range []figure{serverCPU, redisCPU, commands} {
		f[name] -= idle[name]
	}
	return f, nil
}
