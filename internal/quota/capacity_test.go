package quota_test

import (
	"crypto/rand"
	"strconv"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/store"
)

// newPooled returns a limiter, and a request of a tier with 10 requests per minute for which a
// pool has 20 requests and 1,000 tokens per minute.
func newPooled() (*quota.Limiter, quota.Request) {
	limiter, r := newLimiter()
	r.Pool = quota.NewPool("chat", []quota.Limit{
		{Metric: quota.Requests, Window: quota.Minute, Max: 20}, {Metric: quota.Tokens, Window: quota.Minute, Max: 1000},
	}, quota.UsualShares())
	r.Secret, r.Keep = rand.Text, time.Hour
	return limiter, r
}

// TestPoolShedsTheLowFirst: each priority may use the pool of all keys up to its share, and
// whoever is shed pays nothing.
func TestPoolShedsTheLowFirst(t *testing.T) {
	t.Parallel()
	limiter, r := newPooled()
	r.Tier = quota.NewPlan(quota.Tier{Name: "large", Limits: []quota.Limit{{Metric: quota.Requests, Window: quota.Minute, Max: 100}}}, quota.ByKey, nil)
	admitted := 0
	for _, c := range []struct {
		priority quota.Priority
		upTo     int
	}{{quota.Low, 10}, {quota.Normal, 15}, {quota.Low, 15}, {quota.High, 18}, {quota.Critical, 20}, {quota.Normal, 20}} {
		r.Priority, r.Account = c.priority, "key-"+c.priority.String()
		before := quota.Decision{}
		for range 25 {
			d := decide(t, limiter, r)
			if d.Admitted {
				admitted, before = admitted+1, d
			}
			if got := ofPool(d); got[quota.Requests] != int64(admitted) {
				t.Errorf("%s: %v are said to be used of the pool: want %d requests", c.priority, got, admitted)
			}
			if d.Admitted {
				continue
			}
			if d.RefusedBy.Name() != "capacity" || d.Wait != 30*time.Second || d.Reset.Unix() != noon.Add(30*time.Second).Unix() || d.Never() {
				t.Errorf("%s: refused by %s for %s: want capacity, to the end of the minute", c.priority, d.RefusedBy.Name(), d.Wait)
			}
			if d.Shown.Max != 100 || (before.Admitted && d.Used != before.Used) {
				t.Errorf("%s: %d of %d are used of the key's limit: want what it was before, %d of 100", c.priority, d.Used, d.Shown.Max, before.Used)
			}
			for s := range d.Limits {
				if s.Limit.Pooled {
					t.Errorf("%s: the pool is told of as a limit of the key", c.priority)
				}
			}
		}
		if admitted != c.upTo {
			t.Errorf("%d requests have passed when those of priority %s are shed: want %d", admitted, c.priority, c.upTo)
		}
	}
}

// ofPool is what a decision says is used of its pool.
func ofPool(d quota.Decision) map[quota.Metric]int64 {
	used := map[quota.Metric]int64{}
	for s := range d.Pooled {
		used[s.Limit.Metric] = s.Used
	}
	return used
}

// TestPoolGetsBack what a key's own limits refuse.
func TestPoolGetsBack(t *testing.T) {
	t.Parallel()
	limiter, r := newPooled()
	r.Priority = quota.Critical
	for i := range 30 {
		r.ID = "r" + strconv.Itoa(i)
		if d := decide(t, limiter, r); d.Admitted != (i < 10) || (!d.Admitted && d.RefusedBy.Name() != "requests_per_minute") {
			t.Errorf("request %d of 10: admitted %t, refused by %s", i, d.Admitted, d.RefusedBy.Name())
		} else if n := len(ofPool(d)); (n > 0) != d.Admitted {
			t.Errorf("request %d of 10: what is given back is said to be used", i)
		}
	}
	r.Account = "b"
	for i := range 10 {
		r.ID = "s" + strconv.Itoa(i)
		if d := decide(t, limiter, r); !d.Admitted {
			t.Errorf("request %d of another key is refused by %s: what was refused is still in the pool", i, d.RefusedBy.Name())
		}
	}
}

// TestPoolKnowsRepeats: a call that is repeated is charged to the pool once, and to another
// key's request of the same ID anew.
func TestPoolKnowsRepeats(t *testing.T) {
	t.Parallel()
	limiter, r := newPooled()
	r.ID, r.Priority = "r", quota.Critical
	for range 30 {
		if d := decide(t, limiter, r); !d.Admitted || d.Used != 1 {
			t.Fatalf("a repeat: %+v", d)
		}
	}
	for i := range 20 {
		r.Account = "other" + strconv.Itoa(i)
		if d := decide(t, limiter, r); d.Admitted != (i < 19) {
			t.Errorf("key %d: admitted %t: want 20 in all", i, d.Admitted)
		}
	}
}

// TestPoolKnowsRepeatsOfTheRefused: an admitted call is repeated when its key has nothing left
// and has been refused, and gets the first answer.
func TestPoolKnowsRepeatsOfTheRefused(t *testing.T) {
	t.Parallel()
	limiter, r := newPooled()
	r.Priority = quota.Critical
	for i := range 12 {
		r.ID = strconv.Itoa(i)
		if d := decide(t, limiter, r); d.Admitted != (i < 10) {
			t.Fatalf("request %d of 10: %+v", i, d)
		}
	}
	for i := range 10 {
		r.ID = strconv.Itoa(i)
		if d := decide(t, limiter, r); !d.Admitted || !d.Repeated || d.Used != int64(i+1) {
			t.Errorf("request %d again: %+v", i, d)
		}
	}
	r.Account = "b"
	for i := range 10 {
		r.ID = strconv.Itoa(i)
		if d := decide(t, limiter, r); !d.Admitted {
			t.Errorf("request %d of another key is refused by %s: want 20 in all", i, d.RefusedBy.Name())
		}
	}
}

// TestPoolOutlastsTheKey: where a key has nothing left and its pool neither, the wait is the longer
// one, also of a key that was refused before the pool was full.
func TestPoolOutlastsTheKey(t *testing.T) {
	t.Parallel()
	limiter, r := newPooled()
	r.Priority = quota.Critical
	r.Pool = quota.NewPool("chat", []quota.Limit{{Metric: quota.Requests, Window: quota.Day, Max: 15}}, quota.UsualShares())
	for i := range 11 {
		if d := decide(t, limiter, r); d.Admitted != (i < 10) || (!d.Admitted && d.Wait != 30*time.Second) {
			t.Fatalf("request %d of 10: %+v", i, d)
		}
	}
	l, p := foretold(t, limiter, r)
	if l.Admitted || l.RefusedBy.Name() != "requests_per_minute" || p.Decision.Admitted || p.Decision.RefusedBy != l.RefusedBy {
		t.Errorf("the pool has room: a look says %+v, a preview %+v: want a refusal by the key's limit", l, p.Decision)
	}
	other := r
	other.Account = "b"
	for range 5 {
		decide(t, limiter, other)
	}
	l, p = foretold(t, limiter, r)
	d := decide(t, limiter, r)
	if d.Admitted || d.RefusedBy.Name() != quota.CapacityName || d.Wait != 12*time.Hour-30*time.Second || d.Reset != l.Reset || d.Reset != p.Decision.Reset {
		t.Errorf("refused by %s for %s, a look says for %s: want capacity, to the end of the day", d.RefusedBy.Name(), d.Wait, l.Wait)
	}
	if d.Used != 10 || d.Remaining != 0 || ofPool(d)[quota.Requests] != 15 {
		t.Errorf("%d of the key's requests are said to be used and %v of the pool: want 10 and 15", d.Used, ofPool(d))
	}
}

// TestPoolIsSettled: what a request has really used is what it takes of the pool, once, also
// where its key has no limit on tokens.
func TestPoolIsSettled(t *testing.T) {
	t.Parallel()
	for _, tier := range []quota.Tier{
		{Name: "unlimited", Unlimited: true},
		{Name: "tokens", Limits: []quota.Limit{{Metric: quota.Requests, Window: quota.Minute, Max: 100}, {Metric: quota.Tokens, Window: quota.Minute, Max: 100_000}}},
	} {
		limiter, r := newPooled()
		r.Tier, r.Priority, r.Estimate = quota.NewPlan(tier, quota.ByKey, nil), quota.Critical, quota.Cost{Tokens: 900}
		first := decide(t, limiter, r)
		if !first.Admitted || first.Reservation == "" {
			t.Fatalf("%s: %+v: want a reservation", tier.Name, first)
		}
		if d := decide(t, limiter, r); d.Admitted || d.RefusedBy.Name() != "capacity" {
			t.Errorf("%s: a second estimate of 900 of 1,000: admitted %t", tier.Name, d.Admitted)
		}
		s := quota.Settlement{Account: r.Account, Request: first.Reservation, Secret: first.Secret, Pool: r.Pool, Used: quota.Cost{Requests: 1, Tokens: 100}}
		for _, want := range []quota.Outcome{quota.Settled, quota.Duplicate} {
			if outcome, err := limiter.Settle(t.Context(), s); err != nil || outcome != want {
				t.Errorf("%s: %s, %v: want %s", tier.Name, outcome, err, want)
			}
		}
		if d := decide(t, limiter, r); !d.Admitted {
			t.Errorf("%s: 100 of 1,000 are used, and 900 are refused by %s", tier.Name, d.RefusedBy.Name())
		}
		if d := decide(t, limiter, r); d.Admitted {
			t.Errorf("%s: all of the pool is used, and more is admitted", tier.Name)
		}
	}
}

// TestPoolIsNotRefunded: what failed in the end was work for the backend too.
func TestPoolIsNotRefunded(t *testing.T) {
	t.Parallel()
	limiter, r := newPooled()
	r.Priority, r.Cost.Tokens = quota.Critical, 900
	d := decide(t, limiter, r)
	s := quota.Settlement{Account: r.Account, Request: d.Reservation, Secret: d.Secret, Pool: r.Pool, Used: quota.Cost{Requests: 1, Tokens: 200}, RefundShare: 1000}
	if outcome, err := limiter.Settle(t.Context(), s); err != nil || outcome != quota.Settled {
		t.Fatalf("%s, %v", outcome, err)
	}
	if d := decide(t, limiter, r); d.Admitted || d.RefusedBy.Name() != "capacity" {
		t.Errorf("900 where 200 of 1,000 are used: %+v", d)
	}
	r.Cost.Tokens = 800
	if d := decide(t, limiter, r); !d.Admitted || used(d)["tokens_per_minute"] != 800 {
		t.Errorf("800 there, of a key that got all back: %+v", d)
	}
}

// TestPoolHasRoomForOne: a request that takes more than the share of its priority passes where
// nobody else uses the pool, and only there; a share of nothing admits nobody.
func TestPoolHasRoomForOne(t *testing.T) {
	t.Parallel()
	limiter, r := newPooled()
	tier := quota.Tier{Name: "large", Limits: []quota.Limit{
		{Metric: quota.Requests, Window: quota.Minute, Max: 100}, {Metric: quota.Tokens, Window: quota.Minute, Max: 100_000},
	}}
	r.Tier, r.Cost.Tokens = quota.NewPlan(tier, quota.ByKey, nil), 600
	if d := decide(t, limiter, r); !d.Admitted {
		t.Errorf("the only request is refused by %s", d.RefusedBy.Name())
	}
	if d := decide(t, limiter, r); d.Admitted || d.TooLarge || d.Never() {
		t.Errorf("the second: %+v: want a wait", d)
	}
	r.Pool = quota.NewPool("images", []quota.Limit{{Metric: quota.Requests, Window: quota.Minute, Max: 20}}, quota.Shares{quota.High: 1000})
	if d := decide(t, limiter, r); d.Admitted || !d.Never() {
		t.Errorf("a share of 0: %+v", d)
	}
}

// TestPoolCreditIsCut: who asked for more than there is and gives it back gives back no more than
// it had.
func TestPoolCreditIsCut(t *testing.T) {
	t.Parallel()
	limiter, r := newPooled()
	r.Tier = quota.NewPlan(quota.Tier{Name: "unlimited", Unlimited: true}, quota.ByKey, nil)
	large := r
	large.Account, large.Priority, large.Cost.Requests = "large", quota.Low, 1000
	r.Priority, r.Cost.Requests = quota.Critical, 10
	for _, request := range []quota.Request{large, r} { // 10 each of 20
		if d := decide(t, limiter, request); !d.Admitted {
			t.Fatalf("%+v", d)
		}
	}
	large.Credit = true
	decide(t, limiter, large)
	for _, admitted := range []bool{true, false} {
		if d := decide(t, limiter, r); d.Admitted != admitted {
			t.Errorf("10 more: admitted %t, want %t", d.Admitted, admitted)
		}
	}
}

// foretold returns what a look and a preview say of a request.
func foretold(t *testing.T, limiter *quota.Limiter, r quota.Request) (quota.Decision, quota.Preview) {
	t.Helper()
	l, err := limiter.Look(t.Context(), r, noon)
	if err != nil {
		t.Fatal(err)
	}
	p, err := limiter.Preview(t.Context(), r, noon)
	if err != nil {
		t.Fatal(err)
	}
	return l, p
}

// TestPoolIsLookedAt: a look and a preview say what a decision would, and take nothing of the
// pool.
func TestPoolIsLookedAt(t *testing.T) {
	t.Parallel()
	limiter, r := newPooled()
	for i := range 12 {
		l, p := foretold(t, limiter, r)
		r.Account = "key" + strconv.Itoa(i)
		d := decide(t, limiter, r)
		if d.Admitted != (i < 10) || l.Admitted != d.Admitted || p.Decision.Admitted != d.Admitted || p.Decision.Reset != d.Reset || p.Decision.RefusedBy != d.RefusedBy || l.RefusedBy != d.RefusedBy {
			t.Errorf("request %d: %+v, a look says %+v, a preview %+v", i, d, l, p.Decision)
		}
		last := p.Demands[len(p.Demands)-2]
		if !last.Limit.Pooled || last.Used != int64(min(i, 10)) || last.Asks != 1 || last.Refuses == d.Admitted {
			t.Errorf("request %d: what it asks of the pool is said to be %+v", i, last)
		}
	}
	r.Credit = true
	if d := decide(t, limiter, r); !d.Admitted {
		t.Errorf("giving back: %+v", d)
	}
	if l, err := limiter.Look(t.Context(), quota.Request{Account: "b", Tier: r.Tier, Pool: r.Pool, Resource: r.Resource, Priority: quota.Low, Cost: quota.Cost{Requests: 1}}, noon); err != nil || !l.Admitted {
		t.Errorf("there is room again for what was given back: %+v, %v", l, err)
	}
}

// TestPoolBesideSlidingLimits: who is shed is told how the key's limits are, those that slide too.
func TestPoolBesideSlidingLimits(t *testing.T) {
	t.Parallel()
	now := noon.Add(-time.Minute)
	limiter := quota.NewLimiter(store.NewMemory(func() time.Time { return now }, 1000))
	_, r := newPooled()
	r.Tier = quota.NewPlan(quota.Tier{Name: "sliding", Limits: []quota.Limit{{Metric: quota.Requests, Window: quota.Minute.Slide(), Max: 100}}}, quota.ByKey, nil)
	for range 10 {
		decide(t, limiter, r)
	}
	now = noon // half of the 10 count yet, and none of the pool
	for i := range int64(12) {
		l, p := foretold(t, limiter, r)
		d := decide(t, limiter, r)
		want := min(i, 10)
		if d.Admitted != (i < 10) || l.Admitted != d.Admitted || p.Decision.Admitted != d.Admitted || l.Used != 5+want || d.Used != 5+min(i+1, 10) || p.Demands[0].Used != 5+want {
			t.Errorf("request %d: %+v, a look says %+v, a preview %+v", i, d, l, p)
		}
	}
}
