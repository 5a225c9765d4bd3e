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
	return drive(ctx, scriptCalls, schedule(ctx, s.rate, duration), func(i int, o *outcome) call {
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

// floors measures what Redis would spend on a request of a case if it ran the least script
// that is exact, at the rate and in the batches of the run of TierGate whose figures these
// are, and also in batches of 32. Meanwhile the canned answer takes the load of the case,
// so that Redis has no more of the machine, and no warmer caches, than with TierGate.
func (b *bed) floors(ctx context.Context, c benchCase, s spread, of figures) error {
	l := load{protocol: c.protocol, keys: b.keys[c.tier], inFlight: s.inFlight, connections: s.connections, zipf: s.zipf}
	if c.settle == atOnce {
		l.settle = atOnce
	}
	g, err := newGenerator(ctx, b.targets["canned"].address, l)
	if err != nil {
		return err
	}
	defer g.close()
	client := b.targets["ratelimit"].redis
	if err := redis.NewScript(counters).Load(ctx, client).Err(); err != nil {
		return fmt.Errorf("load the script: %w", err)
	}
	requests, kept := of[callRate]*of[batchSize], 1.0 // a second; which part of them the driver sent
	for _, floor := range []struct {
		figure figure
		batch  int
	}{{floorIn32, 32}, {floorHere, min(max(int(math.Round(of[batchSize])), 1), maxBatch)}} {
		least := script{client, b.keys[c.tier], s.zipf, floor.batch, requests / float64(floor.batch)}
		if _, err := besides(ctx, g, least, s.duration/5); err != nil {
			return err
		}
		before, err := usageOf(ctx, client)
		if err != nil {
			return err
		}
		o, err := besides(ctx, g, least, s.duration*3/4)
		if err != nil {
			return err
		}
		if o.requests == 0 {
			return fmt.Errorf("%.0f calls of the script a second: none was due in the time of a run", least.rate)
		}
		after, err := usageOf(ctx, client)
		if err != nil {
			return err
		}
		of[floor.figure] = perRequest(after.since(before).cpu, o.requests*int64(floor.batch))
		kept = min(kept, o.perSecond()/least.rate)
	}
	of[floorKept] = kept
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
