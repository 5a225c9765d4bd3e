package main

import (
	"context"
	_ "embed"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"
)

//go:embed counters.lua
var counters string

// maxBatch is how many requests one call of the script carries at most.
const maxBatch = 128

// scriptCalls is how many calls are under way: while Redis runs one, the next waits.
const scriptCalls = 2

// batchScript has Redis count requests in full batches by the least script that is exact,
// for so long, and returns the CPU µs of Redis for a request: the floor for what a
// decision costs there.
func batchScript(ctx context.Context, client *redis.Client, keys []string, batch int, duration time.Duration) (float64, error) {
	if batch < 1 || batch > maxBatch {
		return 0, fmt.Errorf("a batch of %d requests: want 1 to %d", batch, maxBatch)
	}
	script := redis.NewScript(counters)
	if err := script.Load(ctx, client).Err(); err != nil {
		return 0, fmt.Errorf("load the script: %w", err)
	}
	before, err := usageOf(ctx, client)
	if err != nil {
		return 0, err
	}
	var requests atomic.Int64
	var group errgroup.Group
	end := time.Now().Add(duration)
	for i := range scriptCalls {
		group.Go(func() error {
			chance := rand.New(rand.NewPCG(uint64(i), 0))
			names := make([]string, batch)
			for time.Now().Before(end) {
				for j := range names {
					names[j] = keys[chance.IntN(len(keys))]
				}
				if err := script.EvalSha(ctx, client, names, 60_000, unreached, 3_600_000, unreached, 86_400_000, unreached).Err(); err != nil {
					return fmt.Errorf("count a batch: %w", err)
				}
				requests.Add(int64(batch))
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	after, err := usageOf(ctx, client)
	return perRequest(after.since(before).cpu, requests.Load()), err
}
