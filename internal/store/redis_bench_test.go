package store

import (
	"fmt"
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

// bareSource is the least that a script can do which counts many requests exactly: three
// counters of each in a hash, no other plans, windows, costs, answers or faults than these.
const bareSource = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lengths, names, maxima, starts = {60000, 3600000, 86400000}, {'requests/minute', 'requests/hour', 'requests/day'}, {}, {}
for i = 1, 3 do
  maxima[i] = tonumber(ARGV[i])
  starts[i] = now - now % lengths[i]
end
local reply = {now}
for k = 1, #KEYS do
  local values = redis.call('HMGET', KEYS[k], unpack(names))
  local used, refused = {}, 0
  for i = 1, 3 do
    used[i] = 0
    if values[i] then
      local start, count = string.match(values[i], '^(%d+) (%d+)$')
      if tonumber(start) == starts[i] then used[i] = tonumber(count) end
    end
    if used[i] + 1 > maxima[i] then refused = 1 end
  end
  if refused == 0 then
    local writes = {}
    for i = 1, 3 do
      used[i] = used[i] + 1
      writes[2 * i - 1] = names[i]
      writes[2 * i] = string.format('%.0f %.0f', starts[i], used[i])
    end
    redis.call('HSET', KEYS[k], unpack(writes))
    if not values[3] then redis.call('PEXPIRE', KEYS[k], 86400000) end
  end
  reply[#reply + 1] = 1 - refused
  for i = 1, 3 do reply[#reply + 1] = used[i] end
end
return reply
`

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

// A redisCost is what a Redis has spent: in scripts, and in all.
type redisCost struct{ scripts, cpu float64 } // µs

func costOf(b *testing.B, r *Redis) redisCost {
	b.Helper()
	info, err := r.patient.Do(b.Context(), "info", "everything").Text()
	if err != nil {
		b.Fatal(err)
	}
	number := func(before, name string) float64 {
		_, rest, _ := strings.Cut(info, before)
		_, rest, found := strings.Cut(rest, name)
		if !found {
			return 0
		}
		n, err := strconv.ParseFloat(rest[:strings.IndexAny(rest, ",\r")], 64)
		if err != nil {
			b.Fatal(err)
		}
		return n
	}
	return redisCost{number("cmdstat_evalsha:", "usec="), 1e6 * (number("# CPU", "used_cpu_user:") + number("# CPU", "used_cpu_sys:"))}
}

// report says what Redis spent on n requests since then.
func (c redisCost) report(b *testing.B, r *Redis, n int) {
	b.Helper()
	now := costOf(b, r)
	b.ReportMetric((now.scripts-c.scripts)/float64(n), "script-µs/request")
	b.ReportMetric((now.cpu-c.cpu)/float64(n), "redis-µs/request")
}

// benchOrder is of three limits on requests, or on requests and tokens.
func benchOrder(i int, kept, tokenized bool) *quota.Order {
	o := &quota.Order{Account: "key_" + strconv.Itoa(i%1000), Charges: []quota.Charge{
		charge(quota.Minute, 1_000_000, 1), charge(quota.Hour, 1_000_000_000, 1), charge(quota.Day, 1_000_000_000, 1),
	}}
	if tokenized {
		cost := int64(100 + i%1000)
		o.Charges[1], o.Charges[2] = tokens(quota.Tokens, quota.Minute, 1_000_000_000, cost), tokens(quota.Tokens, quota.Day, 1_000_000_000, cost)
		o.Keep = time.Minute
	}
	if kept {
		o.Request, o.Secret = fmt.Sprintf("%08d-e89b-12d3-a456-426614174000", i), fmt.Sprintf("abcdefghijklmnopqr%08d", i)
	}
	return o
}

// BenchmarkScript measures what Redis spends on a request, in batches of 32 and of one: by
// the bare script, and by ours for what there is.
func BenchmarkScript(b *testing.B) {
	bare := redis.NewScript(bareSource)
	ours := func(one func(i int) *operation) func(*testing.B, *Redis, int, int) {
		return func(b *testing.B, r *Redis, first, n int) {
			b.Helper()
			together := operations(n, func(i int) *operation { return one(first + i) })
			keys, args := batchArguments(r.prefix, together)
			reply, err := r.run(b.Context(), r.client, r.batch, keys, args)
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
	order := func(kept, tokenized bool) func(int) *operation {
		return func(i int) *operation { return &operation{order: benchOrder(i, kept, tokenized)} }
	}
	for _, kind := range []struct {
		name   string
		before func(int) *operation // nil: nothing
		run    func(b *testing.B, r *Redis, first, n int)
	}{
		{"bare", nil, func(b *testing.B, r *Redis, first, n int) {
			b.Helper()
			keys := make([]string, n)
			for i := range keys {
				keys[i] = countsKey(r.prefix, "key_"+strconv.Itoa((first+i)%1000))
			}
			if err := bare.EvalSha(b.Context(), r.client, keys, 1_000_000, 1_000_000_000, 1_000_000_000).Err(); err != nil {
				b.Fatal(err)
			}
		}},
		{"requests", nil, ours(order(false, false))},
		{"requests with an ID", nil, ours(order(true, false))},
		{"tokens", nil, ours(order(true, true))},
		{"settlements", order(true, true), ours(func(i int) *operation {
			o := benchOrder(i, true, true)
			return &operation{settlement: &quota.Settlement{Account: o.Account, Request: o.Request, Secret: o.Secret, Used: quota.Cost{
				Tokens: 70, InputTokens: 40, OutputTokens: 30,
			}}}
		})},
		{"refused", nil, ours(func(i int) *operation {
			o := benchOrder(i, false, false)
			o.Charges[0].Limit.Max = 0
			return &operation{order: o}
		})},
	} {
		for _, n := range []int{32, 1} {
			b.Run(fmt.Sprintf("%s/%d", kind.name, n), func(b *testing.B) {
				r := benchRedis(b)
				if err := bare.Load(b.Context(), r.client).Err(); err != nil {
					b.Fatal(err)
				}
				if err := r.batch.Load(b.Context(), r.client).Err(); err != nil {
					b.Fatal(err)
				}
				if kind.before != nil {
					prepare := ours(kind.before)
					for i := range b.N {
						prepare(b, r, i*n, n)
					}
				}
				for i := range 1000 / n {
					kind.run(b, r, (b.N+i)*n, n)
				}
				began := costOf(b, r)
				b.ResetTimer()
				for i := range b.N {
					kind.run(b, r, i*n, n)
				}
				b.StopTimer()
				began.report(b, r, b.N*n)
			})
		}
	}
}

func operations(n int, one func(i int) *operation) []*operation {
	all := make([]*operation, n)
	for i := range all {
		all[i] = one(i)
	}
	return all
}

// BenchmarkTogether measures requests that come at once: with a call for each, with those of
// go-redis' AutoPipeline, and as they go together in a lane.
func BenchmarkTogether(b *testing.B) {
	for _, flying := range []int{1, 16, 64, 256} {
		for _, way := range []string{"a call for each", "half-duplex", "full-duplex", "lane"} {
			b.Run(fmt.Sprintf("%s/%d", way, flying), func(b *testing.B) {
				r := benchRedis(b)
				options := r.single(r.options.Address, r.options.Timeout)
				options.PipelinePoolSize = 0
				client := redis.NewClient(options)
				b.Cleanup(func() { _ = client.Close() })
				pipeline := redis.DefaultBlockingAutoPipelineOptions()
				pipeline.FullDuplex = way == "full-duplex"
				auto, err := client.AutoPipelineWithOptions(pipeline)
				if err != nil {
					b.Fatal(err)
				}
				if err := r.batch.Load(b.Context(), r.client).Err(); err != nil {
					b.Fatal(err)
				}
				r.warm(b.Context(), 0)
				one := func(i int) error {
					o := &operation{order: benchOrder(i, false, false)}
					switch way {
					case "lane":
						r.carryOut(b.Context(), o)
						return o.err
					case "a call for each":
						ctx, cancel := r.soon(b.Context())
						defer cancel()
						r.sendTogether(ctx, []*operation{o})
						return o.err
					default:
						keys, args := batchArguments(r.prefix, []*operation{o})
						reply := auto.EvalSha(b.Context(), r.batch.Hash(), keys, args...)
						if reply.Err() == nil {
							answer([]*operation{o}, reply)
						}
						return reply.Err()
					}
				}
				began, own := costOf(b, r), cpuTime(b)
				b.ResetTimer()
				var next atomic.Int64
				var group sync.WaitGroup
				for range flying {
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
				began.report(b, r, b.N)
			})
		}
	}
}
