package store

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/metrics"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// BenchmarkMemory charges three limits of a key taken by chance, of so many that are
// active: without an ID, with one, which is remembered for repeats, and with a settlement
// after that. It says too what CPU that took, with the garbage collector's, and how long
// this stopped all at the longest.
func BenchmarkMemory(b *testing.B) {
	requests := make([]string, 1<<20)
	for i := range requests {
		requests[i] = requestOf(i)
	}
	for _, n := range []int{1_000, 10_000, 100_000, 1_000_000} {
		accounts := accountsOf(n)
		m := NewMemory(time.Now, 1_250_000)
		fill(b, m, accounts, false)
		next := 0
		for _, kind := range []string{"take", "repeatable", "settled"} {
			b.Run(fmt.Sprintf("%s/keys=%d", kind, n), func(b *testing.B) {
				o := tierOrder()
				m.Sweep()
				runtime.GC()
				before, cpu := gcPauses(), cpuTime(b)
				b.ReportAllocs()
				for b.Loop() {
					o.Account = accounts[rand.IntN(n)]
					if kind != "take" {
						o.Request, o.Secret = requests[next%len(requests)], "SECRETSECRETSECRETSECRET42"
						next++
					}
					taken, err := m.Take(b.Context(), o)
					if err != nil || !taken.Admitted {
						b.Fatal(taken, err)
					}
					if kind == "settled" {
						if _, err := m.Settle(b.Context(), settlementOf(o)); err != nil {
							b.Fatal(err)
						}
					}
				}
				b.ReportMetric(float64((cpuTime(b)-cpu).Nanoseconds())/float64(b.N), "cpu-ns/op")
				b.ReportMetric(float64(longest(before, gcPauses()).Nanoseconds()), "longest-pause-ns")
			})
		}
		runtime.KeepAlive(m)
	}
}

// BenchmarkMemoryMinute charges each of 100,000 keys once in each minute, at whose beginning all
// are swept, and says what CPU that took, without the garbage collector's.
func BenchmarkMemoryMinute(b *testing.B) {
	now := time.Unix(1_800_000_000, 0)
	accounts, m := accountsOf(100_000), NewMemory(func() time.Time { return now }, 100_000)
	fill(b, m, accounts, false)
	o := tierOrder()
	runtime.GC()
	cpu := cpuTime(b)
	for i := 0; b.Loop(); i++ {
		if i%len(accounts) == 0 {
			now = now.Add(time.Minute)
			m.Sweep()
		}
		o.Account = accounts[i%len(accounts)]
		if taken, err := m.Take(b.Context(), o); err != nil || !taken.Admitted {
			b.Fatal(taken, err)
		}
	}
	b.ReportMetric(float64((cpuTime(b)-cpu).Nanoseconds())/float64(b.N), "cpu-ns/op")
}

// BenchmarkMemorySweep looks at all windows of 1,000,000 keys, none of which has ended, and
// says how long a shard was locked, in half of the cases at the longest.
func BenchmarkMemorySweep(b *testing.B) {
	m := NewMemory(time.Now, 1_000_000)
	fill(b, m, accountsOf(1_000_000), false)
	var locked []time.Duration
	cpu := cpuTime(b)
	for b.Loop() {
		for i := range m.shards {
			began := time.Now()
			m.shards[i].soonest = 0 // else there is nothing to do
			m.sweepShard(&m.shards[i], began)
			locked = append(locked, time.Since(began))
		}
	}
	b.ReportMetric(float64((cpuTime(b)-cpu).Microseconds())/1000/float64(b.N), "cpu-ms/op")
	slices.Sort(locked)
	b.ReportMetric(float64(locked[len(locked)/2].Nanoseconds())/1000, "median-lock-us")
}

// BenchmarkMemoryCollected collects garbage while 1,000,000 keys are active, and says what CPU
// that takes.
func BenchmarkMemoryCollected(b *testing.B) {
	m := NewMemory(time.Now, 1_000_000)
	fill(b, m, accountsOf(1_000_000), false)
	cpu := cpuTime(b)
	for b.Loop() {
		runtime.GC()
	}
	b.ReportMetric(float64((cpuTime(b)-cpu).Microseconds())/1000/float64(b.N), "cpu-ms/op")
	runtime.KeepAlive(m)
}

// tierOrder charges what most tiers limit.
func tierOrder() quota.Order {
	const most = quota.MaxMax
	return quota.Order{Keep: time.Minute, Charges: []quota.Charge{
		charge(quota.Minute, most, 1), tokens(quota.Tokens, quota.Minute, most, 500), charge(quota.Day, most, 1),
	}}
}

func settlementOf(o quota.Order) quota.Settlement {
	return quota.Settlement{
		Account: o.Account, Request: o.Request, Secret: o.Secret,
		Used: quota.Cost{Requests: 1, Tokens: 321, InputTokens: quota.Unknown, OutputTokens: quota.Unknown},
	}
}

// accountsOf are IDs of keys, as long as real ones.
func accountsOf(n int) []string {
	accounts := make([]string, n)
	for i := range accounts {
		accounts[i] = fmt.Sprintf("key_%016d", i)
	}
	return accounts
}

// requestOf is an ID as Envoy makes them.
func requestOf(i int) string { return fmt.Sprintf("%08x-a5b8-4c1e-9d5f-%012x", i, i) }

// fill makes keys active, each by one request, with an ID or without.
func fill(tb testing.TB, m *Memory, accounts []string, repeatable bool) {
	tb.Helper()
	o := tierOrder()
	for i, account := range accounts {
		o.Account = account
		if repeatable {
			o.Request, o.Secret = requestOf(i), fmt.Sprintf("%026d", i)
		}
		if taken, err := m.Take(tb.Context(), o); err != nil || !taken.Admitted || (taken.Secret != "") != repeatable {
			tb.Fatal(i, taken, err)
		}
	}
}

// cpuTime is what the process has used.
func cpuTime(tb testing.TB) time.Duration {
	tb.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func gcPauses() *metrics.Float64Histogram {
	s := []metrics.Sample{{Name: "/sched/pauses/total/gc:seconds"}}
	metrics.Read(s)
	h := *s[0].Value.Float64Histogram()
	h.Counts = slices.Clone(h.Counts)
	return &h
}

// longest returns the longest pause between two moments, rounded up to the histogram's
// bucket.
func longest(before, after *metrics.Float64Histogram) time.Duration {
	for i, n := range slices.Backward(after.Counts) {
		if n > before.Counts[i] {
			return time.Duration(after.Buckets[i+1] * 1e9)
		}
	}
	return 0
}
