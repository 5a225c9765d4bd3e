package store

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/devstack"
	"github.com/tiergate/tiergate/internal/quota"
)

// leastScript is the least that a script can do which counts many requests exactly. It is
// that of the benchmarks of the whole program.
const leastScript = "../../bench/counters.lua"

// benchRedis starts a redis-server.
func benchRedis(b *testing.B) *Redis {
	b.Helper()
	server, err := devstack.StartRedisServer(b.Context(), b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	r := NewRedis(RedisOptions{Address: server.Address, KeyPrefix: "tiergate", Timeout: 10 * time.Second, PoolSize: 32})
	b.Cleanup(func() {
		if err := r.Close(); err != nil {
			b.Error(err)
		}
		if err := server.Stop(); err != nil {
			b.Error(err)
		}
	})
	return r
}

// redisCPU returns the CPU time that a Redis has spent, in µs.
func redisCPU(b *testing.B, r *Redis) float64 {
	b.Helper()
	info, err := r.patient.Info(b.Context(), "cpu").Result()
	if err != nil {
		b.Fatal(err)
	}
	numbers, err := devstack.ParseInfo(info)
	if err != nil {
		b.Fatal(err)
	}
	spent := 0.0
	for _, name := range []string{"used_cpu_user", "used_cpu_sys"} {
		n, ok := numbers[name]
		if !ok {
			b.Fatalf("Redis does not say its %s: %q", name, info)
		}
		spent += 1e6 * n
	}
	return spent
}

// benchOrder is of three limits on requests, or of two and one on tokens.
func benchOrder(i int, kept, tokenized bool) *quota.Order {
	o := &quota.Order{Account: "key_" + strconv.Itoa(i%1000), Charges: []quota.Charge{
		charge(quota.Minute, 1_000_000, 1), charge(quota.Hour, 1_000_000_000, 1), charge(quota.Day, 1_000_000_000, 1),
	}}
	if tokenized {
		cost := int64(100 + i%1000)
		o.Charges[1] = tokens(quota.Tokens, quota.Minute, 1_000_000_000, cost)
		o.Keep = time.Minute
	}
	if kept {
		o.Request = fmt.Sprintf("%08d-e89b-12d3-a456-426614174000", i)
	}
	if kept && tokenized {
		o.Secret = fmt.Sprintf("abcdefghijklmnopqr%08d", i)
	}
	return o
}

// A scriptBench has a Redis run scripts in batches.
type scriptBench struct {
	*testing.B

	redis *Redis
	least *redis.Script
	size  int // of a batch
	next  int // the number of the next request
}

// calls are how many calls a round has.
const calls = 50

// round returns what Redis spends on a request, in µs, in calls that do what they are told
// with the requests from first on.
func (b *scriptBench) round(call func(first int)) float64 {
	b.Helper()
	began := redisCPU(b.B, b.redis)
	for i := range calls {
		call(b.next + i*b.size)
	}
	return (redisCPU(b.B, b.redis) - began) / float64(calls*b.size)
}

// bare counts by the least script.
func (b *scriptBench) bare(first int) {
	b.Helper()
	keys := make([]string, b.size)
	for i := range keys {
		keys[i] = fmt.Sprintf("least:{key_%d}:counts", (first+i)%1000)
	}
	if err := b.least.EvalSha(b.Context(), b.redis.client, keys, 60_000, 1e9, 3_600_000, 1e9, 86_400_000, 1e9).Err(); err != nil {
		b.Fatal(err)
	}
}

// ours carries out operations by batch.lua.
func (b *scriptBench) ours(one func(i int) *operation) func(first int) {
	return func(first int) {
		b.Helper()
		together := operations(b.size, func(i int) *operation { return one(first + i) })
		keys, args := batchArguments(b.redis.prefix, together)
		reply, err := b.redis.run(b.Context(), b.redis.client, b.redis.batch, keys, args)
		if err != nil {
			b.Fatal(err)
		}
		answer(together, reply)
		for _, o := range together {
			if o.err != nil {
				b.Fatal(o.err)
			}
		}
	}
}

// BenchmarkScript measures what Redis spends on a request, in batches of 32 and of one: the
// least script and our function take turns, and the ratio is the median of those of all rounds.
func BenchmarkScript(b *testing.B) {
	source, err := os.ReadFile(leastScript)
	if err != nil {
		b.Fatal(err)
	}
	order := func(kept, tokenized bool) func(int) *operation {
		return func(i int) *operation { return &operation{order: benchOrder(i, kept, tokenized)} }
	}
	settlement := func(i int) *operation {
		o := benchOrder(i, true, true)
		return &operation{settlement: &quota.Settlement{Account: o.Account, Request: o.Request, Secret: o.Secret, Used: quota.Cost{
			Tokens: 70, InputTokens: 40, OutputTokens: 30,
		}}}
	}
	for _, kind := range []struct {
		name       string
		operations []func(int) *operation // one after the other
	}{
		{"requests", []func(int) *operation{order(false, false)}},
		{"requests with an ID", []func(int) *operation{order(true, false)}},
		{"tokens", []func(int) *operation{order(true, true)}},
		{"tokens settled", []func(int) *operation{order(true, true), settlement}},
		{"refused", []func(int) *operation{func(i int) *operation {
			o := benchOrder(i, false, false)
			o.Charges[0].Limit.Max = 0
			return &operation{order: o}
		}}},
	} {
		for _, n := range []int{32, 1} {
			b.Run(fmt.Sprintf("%s/%d", kind.name, n), func(b *testing.B) {
				s := &scriptBench{B: b, redis: benchRedis(b), least: redis.NewScript(string(source)), size: n}
				if err := s.least.Load(b.Context(), s.redis.client).Err(); err != nil {
					b.Fatal(err)
				}
				var least, spent, ratios []float64
				for i := range warmRounds + b.N {
					bare, ours := s.round(s.bare), 0.0
					for _, one := range kind.operations {
						ours += s.round(s.ours(one))
					}
					s.next += calls * n
					if i >= warmRounds {
						least, spent, ratios = append(least, bare), append(spent, ours), append(ratios, ours/bare)
					}
				}
				b.ReportMetric(median(least), "least-µs/request")
				b.ReportMetric(median(spent), "redis-µs/request")
				b.ReportMetric(median(ratios), "ratio")
			})
		}
	}
}

// warmRounds are before those that count.
const warmRounds = 5

func median(of []float64) float64 {
	slices.Sort(of)
	return of[len(of)/2]
}

func operations(n int, one func(i int) *operation) []*operation {
	all := make([]*operation, n)
	for i := range all {
		all[i] = one(i)
	}
	return all
}

// BenchmarkTogether measures requests that come at once: with a call for each, with those of
// go-redis' AutoPipeline, and as they go together, without what goes on while Redis
// is away and with it.
func BenchmarkTogether(b *testing.B) {
	for _, inFlight := range []int{1, 16, 64, 256} {
		for _, way := range []string{"a call for each", "half-duplex", "half-duplex, 4 shards", "half-duplex, 4 at a time", "half-duplex, 100 µs", "full-duplex", "full-duplex, 4 shards", "together", "together, by the fallback"} {
			b.Run(fmt.Sprintf("%s/%d", way, inFlight), func(b *testing.B) {
				r := benchRedis(b)
				options := r.single(r.options.Address, r.options.Timeout)
				options.PipelinePoolSize = 0
				client := redis.NewClient(options)
				b.Cleanup(func() { _ = client.Close() })
				pipeline := redis.DefaultBlockingAutoPipelineOptions()
				pipeline.FullDuplex = strings.HasPrefix(way, "full-duplex")
				switch _, setting, _ := strings.Cut(way, ", "); setting {
				case "4 shards":
					pipeline.NumShards, pipeline.Unordered = 4, !pipeline.FullDuplex
				case "4 at a time":
					pipeline.MaxConcurrentBatches, pipeline.Unordered = 4, true
				case "100 µs":
					pipeline.MaxFlushDelay = 100 * time.Microsecond
				}
				auto, err := client.AutoPipelineWithOptions(pipeline)
				if err != nil {
					b.Fatal(err)
				}
				if err := r.client.FunctionLoad(b.Context(), r.batch.function.library).Err(); err != nil {
					b.Fatal(err)
				}
				r.warm(b.Context(), 0)
				began := time.Now()
				f := NewFallback(r, FallbackOptions{
					Instance: "a", MaxAccounts: 10_000, MaxQueued: 1, Now: time.Now, Elapsed: func() time.Duration { return time.Since(began) },
				})
				one := func(i int) error {
					o := &operation{order: benchOrder(i, false, false)}
					switch way {
					case "together":
						_, err := r.Take(b.Context(), *o.order)
						return err
					case "together, by the fallback":
						_, err := f.Take(b.Context(), *o.order)
						return err
					case "a call for each":
						ctx, cancel := r.soon(b.Context())
						defer cancel()
						r.sendTogether(ctx, []*operation{o})
						return o.err
					default:
						keys, args := batchArguments(r.prefix, []*operation{o})
						reply := auto.FCall(b.Context(), r.batch.function.name, keys, args...)
						if reply.Err() == nil {
							answer([]*operation{o}, reply)
						}
						return reply.Err()
					}
				}
				b.ReportAllocs()
				spent, own := redisCPU(b, r), cpuTime(b)
				b.ResetTimer()
				var next atomic.Int64
				var group sync.WaitGroup
				for range inFlight {
					group.Go(func() {
						for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
							if err := one(int(i)); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				group.Wait()
				b.StopTimer()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
				b.ReportMetric(float64((cpuTime(b)-own).Nanoseconds())/1000/float64(b.N), "client-µs/request")
				b.ReportMetric((redisCPU(b, r)-spent)/float64(b.N), "redis-µs/request")
			})
		}
	}
}
