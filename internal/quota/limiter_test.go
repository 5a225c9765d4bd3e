package quota_test

import (
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/store"
)

var noon = time.Date(2026, 3, 1, 12, 0, 30, 0, time.UTC)

// newLimiter returns a limiter and a request of a tier with 10 requests, 1,000
// tokens and 100 output tokens per minute.
func newLimiter() (*quota.Limiter, quota.Request) {
	tier := quota.Tier{Name: "free", Priority: quota.Low, Limits: []quota.Limit{
		{Metric: quota.Requests, Window: quota.Minute, Max: 10},
		{Metric: quota.Tokens, Window: quota.Minute, Max: 1000},
		{Metric: quota.OutputTokens, Window: quota.Minute, Max: 100},
	}}
	limiter := quota.NewLimiter(store.NewMemory(func() time.Time { return noon }, 1000))
	return limiter, quota.Request{
		Account: "a", Tier: quota.NewPlan(tier, quota.ByKey, nil), Resource: quota.DefaultResource, Priority: quota.Low,
		Cost: quota.Cost{Requests: 1},
	}
}

func decide(t *testing.T, l *quota.Limiter, r quota.Request) quota.Decision {
	t.Helper()
	d, err := l.Decide(t.Context(), r, noon)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// used returns what a decision says is used of each limit.
func used(d quota.Decision) map[string]int64 {
	all := map[string]int64{}
	for l, n := range d.Limits {
		all[l.Name()] = n
	}
	return all
}

// TestLook says what a decision would, and takes nothing.
func TestLook(t *testing.T) {
	t.Parallel()
	limiter, r := newLimiter()
	for i := range int64(10) {
		if d := decide(t, limiter, r); !d.Admitted || d.Used != i+1 {
			t.Fatalf("%+v", d)
		}
	}
	for range 3 {
		d, err := limiter.Look(t.Context(), r, noon)
		if err != nil || d.Admitted || d.Used != 10 || d.RefusedBy.Name() != "requests_per_minute" || d.Wait != 30*time.Second {
			t.Errorf("%+v, %v", d, err)
		}
	}
	r.Account = "b"
	if d, err := limiter.Look(t.Context(), r, noon); err != nil || !d.Admitted || d.Used != 0 || d.Remaining != 10 {
		t.Errorf("%+v, %v", d, err)
	}
}

// TestGuessesAreCutToTheLimit: what is only estimated refuses no untouched limit;
// what is declared beyond the whole of one can never pass, and costs nothing.
func TestGuessesAreCutToTheLimit(t *testing.T) {
	t.Parallel()
	limiter, r := newLimiter()
	r.Estimate = quota.Cost{Tokens: 5_000_000, OutputTokens: 7}
	d := decide(t, limiter, r)
	if !d.Admitted || used(d)["tokens_per_minute"] != 1000 || used(d)["output_tokens_per_minute"] != 7 {
		t.Errorf("an estimate: %+v", d)
	}
	if d := decide(t, limiter, r); d.Admitted || d.TooLarge || d.RefusedBy.Name() != "tokens_per_minute" {
		t.Errorf("when something is used: %+v", d)
	}
	r.Account = "b"
	r.Cost.OutputTokens, r.Cost.Tokens = 101, 101
	if d := decide(t, limiter, r); d.Admitted || !d.TooLarge || d.RefusedBy.Max != 100 || d.Declared != 101 || d.Used != 0 {
		t.Errorf("a declaration: %+v", d)
	}
	r.Cost.OutputTokens, r.Cost.Tokens = 100, 100
	if d := decide(t, limiter, r); !d.Admitted || used(d)["output_tokens_per_minute"] != 100 || used(d)["tokens_per_minute"] != 1000 {
		t.Errorf("a declaration that just fits, and an estimate: %+v", d)
	}
}

// TestCredit gives back what was taken.
func TestCredit(t *testing.T) {
	t.Parallel()
	limiter, r := newLimiter()
	r.Cost.Requests = 8
	decide(t, limiter, r)
	r.Credit, r.Cost.Requests = true, 5
	if d := decide(t, limiter, r); !d.Admitted || d.Used != 3 {
		t.Errorf("%+v", d)
	}
}
