package quota_test

import (
	"fmt"
	"slices"
	"strings"
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
	for s := range d.Limits {
		all[s.Limit.Name()] = s.Used
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

// TestTooLargeForSeveral names the lowest of the limits that can never take it.
func TestTooLargeForSeveral(t *testing.T) {
	t.Parallel()
	limiter, r := newLimiter()
	r.Cost.OutputTokens, r.Cost.Tokens = 2000, 2000
	d := decide(t, limiter, r)
	p, err := limiter.Preview(t.Context(), r, noon)
	if err != nil || !d.TooLarge || d.RefusedBy.Max != 100 || p.Decision.RefusedBy != d.RefusedBy {
		t.Errorf("refused by %s, and in a preview by %s (%v): want output_tokens_per_minute", d.RefusedBy.Name(), p.Decision.RefusedBy.Name(), err)
	}
	r.Cost.Requests, r.Cost.OutputTokens, r.Cost.Tokens = 1_000_000, 0, 2000
	if d := decide(t, limiter, r); !d.TooLarge || d.RefusedBy.Metric != quota.Requests {
		t.Errorf("refused by %s: want requests, which come first, whatever their number", d.RefusedBy.Name())
	}
}

// TestTooLargeNamesTheLowest whatever the order of the limits; but one on requests comes first,
// though its number is larger.
func TestTooLargeNamesTheLowest(t *testing.T) {
	t.Parallel()
	limits := []quota.Limit{
		{Metric: quota.OutputTokens, Window: quota.Minute, Max: 5},
		{Metric: quota.Tokens, Window: quota.Minute, Max: 7},
		{Metric: quota.InputTokens, Window: quota.Minute, Max: 6},
	}
	requests := quota.Limit{Metric: quota.Requests, Window: quota.Minute, Max: 10}
	for _, c := range []struct {
		asked int64
		want  string
	}{{1, "output_tokens_per_minute"}, {11, "requests_per_minute"}} {
		limiter, r := newLimiter()
		r.Tier = quota.NewPlan(quota.Tier{Name: "small", Limits: append([]quota.Limit{requests}, limits...)}, quota.ByKey, nil)
		r.Cost = quota.Cost{Requests: c.asked, Tokens: 20, InputTokens: 20, OutputTokens: 20}
		if d := decide(t, limiter, r); !d.TooLarge || d.RefusedBy.Name() != c.want {
			t.Errorf("%d requests: refused by %s: want %s", c.asked, d.RefusedBy.Name(), c.want)
		}
	}
}

// TestALimitOfNoRequests is not one that a smaller request would fit, and one of no tokens is.
func TestALimitOfNoRequests(t *testing.T) {
	t.Parallel()
	for metric, tooLarge := range map[quota.Metric]bool{quota.Requests: false, quota.Tokens: true} {
		limiter, r := newLimiter()
		r.Tier = quota.NewPlan(quota.Tier{Name: "none", Limits: []quota.Limit{{Metric: metric, Window: quota.Hour}}}, quota.ByKey, nil)
		r.Cost.Tokens = 20
		if d := decide(t, limiter, r); d.Admitted || d.TooLarge != tooLarge || !d.Never() || d.RefusedBy.Metric != metric {
			t.Errorf("no %s: %+v", metric, d)
		}
	}
}

// TestLimitsOfOneRequest hold for that request alone, and count as the tier's do.
func TestLimitsOfOneRequest(t *testing.T) {
	t.Parallel()
	limiter, r := newLimiter()
	own := r
	own.Limits = []quota.Limit{{Metric: quota.Requests, Window: quota.Minute, Max: 2}, {Metric: quota.Requests, Window: quota.Hour, Max: 5}}
	for i, c := range []struct {
		request         quota.Request
		admitted        bool
		most, used, all int64
	}{{own, true, 2, 1, 2}, {r, true, 10, 2, 1}, {own, false, 2, 2, 2}, {r, true, 10, 3, 1}} {
		d := decide(t, limiter, c.request)
		requests := int64(0)
		for s := range d.Limits {
			if s.Limit.Metric == quota.Requests {
				requests++
			}
		}
		if d.Admitted != c.admitted || d.Shown.Max != c.most || d.Used != c.used || requests != c.all {
			t.Errorf("request %d: %d of %d are used, admitted %t, by %d limits on requests: want %+v", i, d.Used, d.Shown.Max, d.Admitted, requests, c)
		}
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

// TestStates lists every limit that can apply, with what is used, and takes nothing.
func TestStates(t *testing.T) {
	t.Parallel()
	tier := quota.Tier{Name: "free", Priority: quota.Low, Limits: []quota.Limit{
		{Metric: quota.Requests, Window: quota.Minute, Max: 10},
		{Metric: quota.Tokens, Window: quota.Minute, Max: 1000},
		{Metric: quota.Requests, Window: quota.Minute, Max: 2, Resource: "images"},
		{Metric: quota.Requests, Window: quota.Day, Max: 5, Priority: quota.High},
	}}
	resources := []quota.Resource{{Name: "chat"}, {Name: "images"}}
	for countBy, want := range map[quota.CountBy]string{
		quota.ByKey: "requests_per_minute 1/10, tokens_per_minute 30/1000, high_requests_per_day 0/7, images_requests_per_minute 0/2",
		quota.ByKeyAndResource: "default_requests_per_minute 0/10, default_tokens_per_minute 0/1000, default_high_requests_per_day 0/7, " +
			"chat_requests_per_minute 1/10, chat_tokens_per_minute 30/1000, chat_high_requests_per_day 0/7, " +
			"images_tokens_per_minute 0/1000, images_requests_per_minute 0/2, images_high_requests_per_day 0/7",
	} {
		limiter := quota.NewLimiter(store.NewMemory(func() time.Time { return noon }, 100))
		r := quota.Request{
			Account: "a", Tier: quota.NewPlan(tier, countBy, resources), Resource: "chat", Priority: quota.Low,
			Cost:      quota.Cost{Requests: 1, Tokens: 30},
			Overrides: []quota.Override{{Limit: quota.Limit{Metric: quota.Requests, Window: quota.Day, Max: 7, Priority: quota.High}}},
		}
		decide(t, limiter, r)
		for range 2 {
			standing, err := limiter.States(t.Context(), r, noon)
			if err != nil || !standing.Now.Equal(noon) || standing.Degraded {
				t.Fatal(standing, err)
			}
			var have []string
			for _, s := range standing.States {
				have = append(have, fmt.Sprintf("%s %d/%d", s.Limit.Name(), s.Used, s.Limit.Max))
				if s.Reset.Before(noon) || s.Remaining() != s.Limit.Max-s.Used {
					t.Errorf("%+v", s)
				}
			}
			if text := strings.Join(have, ", "); text != want {
				t.Errorf("%s\nwant %s", text, want)
			}
		}
	}
}

// TestUnlimitedCountsEverything: what is used of no limit is used by all requests, those
// with a limit of their own among them.
func TestUnlimitedCountsEverything(t *testing.T) {
	t.Parallel()
	tier := quota.Tier{Name: "enterprise", Unlimited: true, Limits: []quota.Limit{
		{Metric: quota.Requests, Window: quota.Minute, Max: 2, Resource: "images"},
		{Metric: quota.Requests, Window: quota.Minute, Max: 2, Priority: quota.Low},
	}}
	resources := []quota.Resource{{Name: "chat"}, {Name: "images"}}
	type request struct {
		resource string
		priority quota.Priority
	}
	requests := []request{{"images", quota.High}, {"images", quota.Low}, {"chat", quota.Low}, {"images", quota.High}, {"chat", quota.High}}
	for countBy, want := range map[quota.CountBy][]string{
		quota.ByKey:            {"1 of 2", "2 of 2", "2 of 2", "refused", "4 of no limit"},
		quota.ByKeyAndResource: {"1 of 2", "2 of 2", "1 of 2", "refused", "2 of no limit"},
	} {
		limiter := quota.NewLimiter(store.NewMemory(func() time.Time { return noon }, 100))
		var have []string
		for _, q := range requests {
			d := decide(t, limiter, quota.Request{
				Account: "a", Tier: quota.NewPlan(tier, countBy, resources), Resource: q.resource, Priority: q.priority, Cost: quota.Cost{Requests: 1},
			})
			switch {
			case !d.Admitted:
				have = append(have, "refused")
			case d.Unlimited():
				have = append(have, fmt.Sprintf("%d of no limit", d.Used))
			default:
				have = append(have, fmt.Sprintf("%d of %d", d.Used, d.Shown.Max))
			}
		}
		if !slices.Equal(have, want) {
			t.Errorf("counting by %d: %q, want %q", countBy, have, want)
		}
	}
}

// TestSecretsAreMadeForWhatIsKept, and for nothing else.
func TestSecretsAreMadeForWhatIsKept(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		id               string
		keep             time.Duration
		reserved, tokens bool
		want             int
	}{
		{want: 0},
		{keep: time.Minute, want: 0},
		{keep: time.Minute, reserved: true, want: 1},
		{keep: time.Minute, tokens: true, want: 1},
		{tokens: true, want: 0},
		{id: "r", want: 0},
		{id: "r", keep: time.Minute, tokens: true, want: 1},
	} {
		limiter, r := newLimiter()
		if !c.tokens {
			r.Tier = quota.NewPlan(quota.Tier{Limits: []quota.Limit{{Metric: quota.Requests, Window: quota.Minute, Max: 10}}}, quota.ByKey, nil)
		}
		made := 0
		r.ID, r.Keep, r.Reserved = c.id, c.keep, c.reserved
		r.Secret = func() string {
			made++
			return "s"
		}
		d := decide(t, limiter, r)
		if made != c.want || (d.Secret == "s") != (c.want == 1) || (d.Reservation != "") != (c.keep > 0 && c.want == 1) {
			t.Errorf("%+v: %d made; %+v", c, made, d)
		}
	}
}
