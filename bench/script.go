package main

import (
	"context"
	_ "embed"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

//go:embed counters.lua
var counters string

// maxBatch is how many requests one call of the script carries at most.
const maxBatch = 128

// scriptCalls is how many calls are under way at most: while Redis runs one, the next waits.
const scriptCalls = 2

// A script is calls of the least script that is exact.
type script struct {
	redis *redis.Client
	keys  []string
	zipf  float64 // as of a load
	batch int     // requests in a call
	rate  float64 // calls per second
}

// run makes calls for so long, each when it is due, and one that is late as soon as it can.
func (s script) run(ctx context.Context, duration time.Duration) *outcome {
	return drive(ctx, newOutcomes(scriptCalls), schedule(ctx, s.rate, duration), func(i int, o *outcome) call {
		next := chooser(rand.New(rand.NewPCG(uint64(i), uint64(s.batch))), len(s.keys), s.zipf)
		names := make([]string, s.batch)
		least := redis.NewScript(counters)
		return func(ctx context.Context, due time.Time) {
			for j := range names {
				names[j] = s.keys[next()]
			}
			o.requests++
			if err := least.EvalSha(ctx, s.redis, names, 60_000, unreached, 3_600_000, unreached, 86_400_000, unreached).Err(); err != nil {
				o.fail(err)
				return
			}
			o.took(time.Since(due))
		}
	})
}

// A floor is what Redis would spend on a request of a case if it ran the least script that is
// exact, as often and in the batches of the case. Meanwhile the canned answer takes the load of the case,
// so that Redis has no more of the machine, and no warmer caches, than with TierGate.
type floor struct {
	figure figure
	script script // with no batch until it is known how large those of the case are
	canned *generator

	cpu      time.Duration // of Redis
	requests int64
	due      float64 // requests
}

// newFloors returns the floors of a case with the load that the canned answer takes meanwhile.
func (b *bed) newFloors(ctx context.Context, canned *generator) ([]*floor, error) {
	client := b.targets["ratelimit"].redis
	if err := redis.NewScript(counters).Load(ctx, client).Err(); err != nil {
		return nil, fmt.Errorf("load the script: %w", err)
	}
	s := script{redis: client, keys: canned.load.keys, zipf: canned.load.zipf}
	in32 := s
	in32.batch = 32
	return []*floor{{figure: floorIn32, script: in32, canned: canned}, {figure: floorHere, script: s, canned: canned}}, nil
}

// warm learns how large the batches of the case are, and runs for a while.
func (f *floor) warm(ctx context.Context, of *outcome, batch float64, duration time.Duration) error {
	if f.script.batch == 0 {
		f.script.batch = min(max(int(math.Round(batch)), 1), maxBatch)
	}
	err := f.measure(ctx, of, duration)
	f.cpu, f.requests, f.due = 0, 0, 0
	return err
}

// measure runs the script for a while, for as many requests and settlements a second as the case had
// so far.
func (f *floor) measure(ctx context.Context, of *outcome, duration time.Duration) error {
	rate := float64(of.requests+of.settlements) / of.elapsed.Seconds()
	f.script.rate = rate / float64(f.script.batch)
	before, err := usageOf(ctx, f.script.redis)
	if err != nil {
		return err
	}
	o, err := besides(ctx, f.canned, f.script, duration)
	if err != nil {
		return err
	}
	after, err := usageOf(ctx, f.script.redis)
	if err != nil {
		return err
	}
	f.cpu += after.since(before).cpu
	f.requests += o.requests * int64(f.script.batch)
	f.due += rate * o.elapsed.Seconds()
	return nil
}

// add adds what was measured to the figures of the case.
func (f *floor) add(to figures) error {
	if f.requests == 0 {
		return fmt.Errorf("%s: %.0f calls of the script a second: none was due in the time of a turn", f.figure, f.script.rate)
	}
	to[f.figure] = perRequest(f.cpu, f.requests)
	kept := min(float64(f.requests)/f.due, 1) // the last are made a little early
	if other, ok := to[floorKept]; ok {
		kept = min(kept, other)
	}
	to[floorKept] = kept
	return nil
}

// besides calls a script for so long while a server takes a load.
func besides(ctx context.Context, g *generator, s script, duration time.Duration) (*outcome, error) {
	var calls, answers *outcome
	var group sync.WaitGroup
	group.Go(func() { calls = s.run(ctx, duration) })
	group.Go(func() { answers = g.run(ctx, duration) })
	group.Wait()
	if calls.failed > 0 {
		return nil, fmt.Errorf("%d of %d calls of the script failed: %w", calls.failed, calls.requests, calls.err)
	}
	if answers.failed > 0 {
		return nil, fmt.Errorf("%d of %d canned answers failed: %w", answers.failed, answers.requests, answers.err)
	}
	return calls, nil
}
