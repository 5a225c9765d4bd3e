package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// anyRequest returns a request of one of few accounts, of a tier whose limits it may use up.
func anyRequest(random *rand.Rand, id string, onFailure quota.OnFailure) quota.Request {
	limits := []quota.Limit{
		{Metric: quota.Requests, Window: quota.Month, Max: 20},
		{Metric: quota.Tokens, Window: quota.Month.Slide(), Max: 900},
		{Metric: quota.OutputTokens, Window: quota.Month, Max: 400, Resource: "chat"},
		{Metric: quota.Requests, Window: quota.Month, Max: 5, Priority: quota.Low},
	}
	tier := quota.Tier{Name: "any", Limits: limits[:1+random.IntN(len(limits))], OnFailure: onFailure}
	r := quota.Request{
		Account: fmt.Sprint("a", random.IntN(6)), Tier: quota.NewPlan(tier, quota.CountBy(random.IntN(2)), []quota.Resource{{Name: "chat"}}),
		Resource: []string{quota.DefaultResource, "chat"}[random.IntN(2)], Priority: quota.Priorities()[random.IntN(4)],
		Cost: quota.Cost{Requests: 1 + random.Int64N(2)}, Keep: time.Minute * time.Duration(random.IntN(2)), ID: id, Secret: func() string { return "s" + id },
	}
	if random.IntN(3) > 0 {
		r.Cost.OutputTokens = random.Int64N(450)
		r.Cost.Tokens = r.Cost.OutputTokens
	}
	r.Estimate = quota.Cost{Tokens: random.Int64N(1000), OutputTokens: random.Int64N(200)}
	if random.IntN(4) == 0 {
		r.Overrides = []quota.Override{{Limit: quota.Limit{Metric: quota.Requests, Window: quota.Month, Max: random.Int64N(12)}}}
	}
	return r
}

// decided is what a decision says. The limit of a minute, which only counts here, may end
// between two of them.
func decided(d quota.Decision) string {
	text := []any{fmt.Sprint(d.Admitted, d.TooLarge, d.Declared, d.RefusedBy, d.RefusedUsed, d.Asked, d.Degraded)}
	for s := range d.Limits {
		if s.Limit.Window.Fixed() == quota.Month {
			text = append(text, s.Limit.Name(), s.Used, s.Limit.Max)
		}
	}
	return fmt.Sprint(text...)
}

// previews compares previews of many requests with what becomes of them.
func previews(t *testing.T, counts quota.Counts, onFailure quota.OnFailure) {
	t.Helper()
	random := rand.New(rand.NewPCG(1, uint64(onFailure))) // to be the same each time
	limiter := quota.NewLimiter(counts)
	seen := map[string]int{}
	for i := range 400 {
		r := anyRequest(random, fmt.Sprint("r", i), onFailure)
		var p quota.Preview
		for range 2 { // the first takes nothing
			var err error
			if p, err = limiter.Preview(t.Context(), r, time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		d, err := limiter.Decide(t.Context(), r, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if have, want := decided(p.Decision), decided(d); have != want {
			t.Fatalf("request %d, %+v: previewed\n%s, decided\n%s", i, r, have, want)
		}
		refuses := slices.ContainsFunc(p.Demands, func(m quota.Demand) bool { return m.Refuses })
		if refuses == d.Admitted {
			t.Errorf("request %d: admitted %t, and the demands are %+v", i, d.Admitted, p.Demands)
		}
		seen[fmt.Sprint(d.Admitted, d.TooLarge)]++
	}
	if onFailure == quota.Local && len(seen) != 3 {
		t.Errorf("the requests had %v: want all kinds of decisions", seen)
	}
}

// TestPreviewsComeTrue: what is previewed is decided right afterwards, in every store, and
// without Redis too.
func TestPreviewsComeTrue(t *testing.T) {
	t.Parallel()
	kinds(t, func(t *testing.T, counts quota.Counts) { previews(t, counts, quota.Local) })
	t.Run("all pass without Redis", func(t *testing.T) {
		t.Parallel()
		previews(t, fallbackOn(noRedis(t), nil), quota.Allow)
	})
}

// TestPreviewsTakeNothing: what stores hold is the same afterwards, to the byte.
func TestPreviewsTakeNothing(t *testing.T) {
	t.Parallel()
	memory, r := NewMemory(time.Now, 1000), redisStore(t, redisServer(t))
	f := fallbackOn(r, nil)
	for name, c := range map[string]struct {
		counts quota.Counts
		held   func() string
	}{
		"memory": {memory, func() string { return memoryText(memory) }},
		"redis": {f, func() string {
			return redisText(t, r) + fmt.Sprint(f.part("a").exhausted.kept.Load(), f.Totals(), f.AnsweredAhead(), f.Remembered())
		}},
	} {
		random := rand.New(rand.NewPCG(2, 2)) // to be the same each time
		limiter := quota.NewLimiter(c.counts)
		for i := range 60 {
			if _, err := limiter.Decide(t.Context(), anyRequest(random, fmt.Sprint("r", i), quota.Local), time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		before := c.held()
		for i := range 200 {
			request := anyRequest(random, fmt.Sprint("p", i), quota.Local)
			request.Account += []string{"", "new"}[i%2]
			if _, err := limiter.Preview(t.Context(), request, time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		if after := c.held(); after != before {
			t.Errorf("%s held\n%s\nand holds\n%s", name, before, after)
		}
	}
}

// memoryText is all that a Memory holds.
func memoryText(m *Memory) string {
	var lines []string
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		for id, counters := range s.accounts.all {
			lines = append(lines, fmt.Sprint(id, counters))
		}
		for id, r := range s.reservations {
			lines = append(lines, fmt.Sprintf("%x %+v", id, r))
		}
		s.mu.Unlock()
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// redisText is all that a Redis holds, and until when, which one of before version 7 does not say.
func redisText(t *testing.T, r *Redis) string {
	t.Helper()
	ctx := context.Background()
	keys, err := r.client.Keys(ctx, "*").Result()
	if err != nil || len(keys) == 0 {
		t.Fatal(keys, err)
	}
	slices.Sort(keys)
	var text strings.Builder
	for _, key := range keys {
		dump, err := r.client.Dump(ctx, key).Result()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&text, "%s %q until %s\n", key, dump, r.client.PExpireTime(ctx, key).Val())
	}
	return text.String()
}
