package usage_test

import (
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/store"
	"github.com/tiergate/tiergate/internal/usage"
)

// decisionOf returns the decision of one request to a tier with the usual limits, and more.
func decisionOf(tb testing.TB, more ...quota.Limit) *quota.Decision {
	tb.Helper()
	tier := quota.Tier{Name: "pro", Priority: quota.High, Limits: []quota.Limit{
		{Metric: quota.Requests, Window: quota.Minute, Max: 1000},
		{Metric: quota.Tokens, Window: quota.Minute.Slide(), Max: 100_000},
		{Metric: quota.Requests, Window: quota.Day, Max: 100_000},
	}}
	tier.Limits = append(tier.Limits, more...)
	limiter := quota.NewLimiter(store.NewMemory(time.Now, 10))
	d, err := limiter.Decide(tb.Context(), quota.Request{
		Account: "a", Tier: quota.NewPlan(tier, quota.ByKey, nil), Resource: quota.DefaultResource, Priority: quota.High,
		Cost: quota.Cost{Requests: 1, Tokens: 50},
	}, time.Now())
	if err != nil || !d.Admitted {
		tb.Fatal(d, err)
	}
	return &d
}

// BenchmarkRecorder is what an admitted request costs beside its decision, over many
// accounts: on one core, and on all.
func BenchmarkRecorder(b *testing.B) {
	const accounts = 10_000
	decision := decisionOf(b)
	names := make([]string, accounts)
	for i := range names {
		names[i] = "key_" + strconv.Itoa(i)
	}
	r := usage.NewRecorder(usage.RecorderOptions{Instance: "i", Now: time.Now})
	decided := usage.Decided{
		Tier: "pro", Resource: "chat", Priority: quota.High, At: decision.Now, Requests: 1,
	}
	for _, name := range names {
		decided.Account = name
		r.Decided(decided, decision)
	}
	b.Run("one", func(b *testing.B) {
		b.ReportAllocs()
		d, i := decided, 0
		for b.Loop() {
			d.Account = names[i]
			r.Decided(d, decision)
			i = (i + 7919) % accounts // a prime, so that all have their turn
		}
	})
	b.Run("all", func(b *testing.B) {
		b.ReportAllocs()
		var first atomic.Int64
		b.RunParallel(func(pb *testing.PB) {
			d, i := decided, int(first.Add(1231))
			for pb.Next() {
				d.Account = names[i]
				r.Decided(d, decision)
				i = (i + 7919) % accounts
			}
		})
	})
}

// BenchmarkFlush is what taking a batch of so many accounts costs.
func BenchmarkFlush(b *testing.B) {
	for _, accounts := range []int{1000, 100_000} {
		b.Run(strconv.Itoa(accounts), func(b *testing.B) {
			b.ReportAllocs()
			decision := decisionOf(b)
			r := usage.NewRecorder(usage.RecorderOptions{Instance: "i", Now: time.Now})
			for b.Loop() {
				b.StopTimer()
				for i := range accounts {
					r.Decided(usage.Decided{
						Account: "key_" + strconv.Itoa(i), Tier: "pro", Resource: "chat", Priority: quota.High, At: decision.Now, Requests: 1,
					}, decision)
				}
				b.StartTimer()
				if n := len(r.Flush().Accounts); n != accounts+3 {
					b.Fatal(n)
				}
			}
		})
	}
}
