package store

import (
	"strconv"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/usage"
)

// BenchmarkUsageInRedis adds batches of a minute that is known already, each of 1,000
// accounts that have used one resource, whose blocks are half full. It says what Redis'
// CPU and commands come to for an account.
func BenchmarkUsageInRedis(b *testing.B) {
	const accounts = 1000
	for _, way := range []string{"together", "apart"} { // as in a Cluster
		b.Run(way, func(b *testing.B) {
			r := benchRedis(b)
			r.keepApart.Store(way == "apart")
			half := noon().Add(15 * time.Minute)
			now := half
			u := NewRedisUsage(r, func() time.Time { return now })
			recorder := usage.NewRecorder(usage.RecorderOptions{Instance: "a", Now: func() time.Time { return now }})
			batch := func() usage.Batch {
				for i := range accounts {
					d := usage.Decided{Account: "key_" + strconv.Itoa(i), Tier: "pro", Resource: "chat", Priority: quota.High, Requests: 1, At: now}
					recorder.Decided(d, nil)
					recorder.Settled(usage.Settled{Account: d.Account, Tier: "pro", Resource: "chat", Priority: quota.High, At: now, Input: 100, Output: 100})
				}
				return recorder.Flush()
			}
			add := func(batch usage.Batch) {
				if err := u.Add(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
			}
			for _, fill := range []struct {
				step  time.Duration
				times int
			}{{24 * time.Hour, 15}, {time.Hour, 12}, {time.Minute, 15}} {
				for i := range fill.times {
					now = half.Add(-time.Duration(fill.times-i) * fill.step)
					add(batch())
				}
			}
			now = half
			add(batch())
			commands, cpu := commandsOf(b, r), redisCPU(b, r)
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				b.StopTimer()
				some := batch()
				b.StartTimer()
				add(some)
			}
			b.StopTimer()
			n := float64(b.N * accounts)
			cpu = redisCPU(b, r) - cpu
			b.ReportMetric((commandsOf(b, r)-commands)/n, "commands/account")
			b.ReportMetric(cpu/n, "redis-µs/account")
		})
	}
}

// commandsOf returns how many commands a Redis has run, in scripts and from clients.
func commandsOf(b *testing.B, r *Redis) float64 {
	b.Helper()
	all := 0
	for _, calls := range commandCalls(b, r) {
		all += calls
	}
	return float64(all)
}

// BenchmarkUsageCalls puts the script calls of a batch together, and sends none.
func BenchmarkUsageCalls(b *testing.B) {
	for _, accounts := range []int{1000, 100_000} {
		b.Run(strconv.Itoa(accounts), func(b *testing.B) {
			recorder := usage.NewRecorder(usage.RecorderOptions{Instance: "a", Now: noon})
			for i := range accounts {
				recorder.Decided(usage.Decided{Account: "key_" + strconv.Itoa(i), Tier: "pro", Resource: "chat", Priority: quota.High, Requests: 1, At: noon()}, nil)
			}
			batch := recorder.Flush()
			u := NewRedisUsage(NewRedis(RedisOptions{}), noon)
			b.ReportAllocs()
			for b.Loop() {
				for _, err := range u.calls(&batch, false) {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
