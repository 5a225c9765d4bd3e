package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"github.com/redis/go-redis/v9"
)

// poolSize is REDIS_POOL_SIZE of envoyproxy/ratelimit where nothing is said.
const poolSize = 10

// baseline does for a request what envoyproxy/ratelimit does: INCRBY and EXPIRE of a
// counter for each limit, in one pipeline over a pool of connections. It charges what it
// refuses. It has no keys, tokens, metrics or configuration.
type baseline struct {
	*canned

	redis *redis.Client
}

func newBaseline(address string) *baseline {
	return &baseline{canned: newCanned(), redis: redis.NewClient(&redis.Options{Addr: address, PoolSize: poolSize, MaxRetries: -1})}
}

// A window is a limit's: of a name, for so many seconds.
type window struct {
	name    string
	seconds int64
	unit    rlsv3.RateLimitResponse_RateLimit_Unit
}

func windows() [3]window {
	return [...]window{
		{"requests_per_minute", 60, rlsv3.RateLimitResponse_RateLimit_MINUTE},
		{"requests_per_hour", 3600, rlsv3.RateLimitResponse_RateLimit_HOUR},
		{"requests_per_day", 86400, rlsv3.RateLimitResponse_RateLimit_DAY},
	}
}

const unreached = 1_000_000_000 // as a limit

// count adds 1 to the three counters of a key, and returns them.
func (b *baseline) count(ctx context.Context, key string) ([3]int64, error) {
	var used [3]int64
	var results [3]*redis.IntCmd
	now := time.Now().Unix()
	pipeline := b.redis.Pipeline()
	for i, w := range windows() {
		counter := "tiergate_api_key_" + key + "_" + w.name + "_" + strconv.FormatInt(now-now%w.seconds, 10)
		results[i] = pipeline.IncrBy(ctx, counter, 1)
		pipeline.Expire(ctx, counter, time.Duration(w.seconds)*time.Second)
	}
	if _, err := pipeline.Exec(ctx); err != nil {
		return used, fmt.Errorf("count a request: %w", err)
	}
	for i, r := range results {
		used[i] = r.Val()
	}
	return used, nil
}

// Check charges the key in authorization.
func (b *baseline) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	if _, err := b.count(ctx, r.GetAttributes().GetRequest().GetHttp().GetHeaders()["authorization"]); err != nil {
		return nil, err
	}
	return b.allowed, nil
}

// ShouldRateLimit charges the key of the descriptor.
func (b *baseline) ShouldRateLimit(ctx context.Context, r *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
	key := ""
	for _, d := range r.GetDescriptors() {
		for _, e := range d.GetEntries() {
			if e.GetKey() == "api_key" {
				key = e.GetValue()
			}
		}
	}
	used, err := b.count(ctx, key)
	if err != nil {
		return nil, err
	}
	answer := &rlsv3.RateLimitResponse{OverallCode: rlsv3.RateLimitResponse_OK}
	for i, w := range windows() {
		s := status(w.name, unreached, w.unit, uint32(max(unreached-used[i], 0)))
		if used[i] > unreached {
			s.Code, answer.OverallCode = rlsv3.RateLimitResponse_OVER_LIMIT, rlsv3.RateLimitResponse_OVER_LIMIT
		}
		answer.Statuses = append(answer.Statuses, s)
	}
	return answer, nil
}
