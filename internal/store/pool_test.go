package store

import (
	"crypto/rand"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// pooled is a request of a key with so many requests a month, of a resource whose pool has 100
// in a month.
func pooled(account string, limit int64) quota.Request {
	tier := quota.Tier{Name: "t", Limits: []quota.Limit{{Metric: quota.Requests, Window: quota.Month, Max: limit}}}
	return quota.Request{
		Account: account, Tier: quota.NewPlan(tier, quota.ByKey, nil), Resource: quota.DefaultResource, Priority: quota.Critical,
		Pool: quota.NewPool("chat", []quota.Limit{{Metric: quota.Requests, Window: quota.Month, Max: 100}}, quota.UsualShares()),
		Cost: quota.Cost{Requests: 1}, Secret: rand.Text, Keep: time.Hour, Firm: true,
	}
}

// TestPoolIsExactUnderConcurrency: keys with little left and keys with much ask at the same
// time, and of the pool of all no more is used than what was admitted, to its last request.
func TestPoolIsExactUnderConcurrency(t *testing.T) {
	eachKind(t, func(t *testing.T, counts quota.Counts) {
		limiter := quota.NewLimiter(counts)
		var admitted atomic.Int64
		ask := func(r quota.Request) quota.Decision {
			d, err := limiter.Decide(t.Context(), r, time.Now())
			if err != nil {
				t.Error(err)
			}
			if d.Admitted {
				admitted.Add(1)
			}
			return d
		}
		var group sync.WaitGroup
		for i := range 10 {
			group.Go(func() {
				for n := range 20 {
					r := pooled("small"+strconv.Itoa(i), 5)
					if n%2 == 0 {
						r.ID = strconv.Itoa(n)
					}
					ask(r)
				}
			})
		}
		group.Wait()
		if n := admitted.Load(); n != 50 {
			t.Errorf("%d of 10 keys with 5 each were admitted", n)
		}
		for range 8 {
			group.Go(func() {
				for range 10 {
					ask(pooled("large", 1000))
				}
			})
		}
		group.Wait()
		if n := admitted.Load(); n != 100 {
			t.Errorf("%d were admitted to a pool of 100: what keys were refused is not given back, or was given twice", n)
		}
		d := ask(pooled("large", 1000))
		if d.Admitted || d.RefusedBy.Name() != quota.CapacityName || d.RefusedUsed != 100 {
			t.Errorf("%+v", d)
		}
		left := 0
		for s := range d.Limits {
			if s.Limit.Max == 1000 && s.Used == 50 {
				left++
			}
		}
		if left != 1 {
			t.Error("the key was charged for requests that were shed")
		}
	})
}

// TestHammeringLeavesThePoolAlone: a key that has used up its requests asks on, and neither its
// counters nor the pool's are asked for.
func TestHammeringLeavesThePoolAlone(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	f := fallbackOn(r, nil)
	limiter := quota.NewLimiter(f)
	ask := func() quota.Decision {
		d, err := limiter.Decide(t.Context(), pooled("a", 1), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	if d := ask(); !d.Admitted {
		t.Fatalf("%+v", d)
	}
	ask() // by Redis
	before := commandCalls(t, r)["evalsha"]
	for range 1000 {
		if d := ask(); d.Admitted || d.RefusedBy.Name() != "requests_per_month" || d.RefusedUsed != 1 {
			t.Fatalf("%+v", d)
		}
	}
	// A minute may end meanwhile, whose count is shown: then it is asked once more.
	if calls := commandCalls(t, r)["evalsha"] - before; calls > 3 || f.Remembered() < 999 {
		t.Errorf("%d calls of Redis, %d refusals from memory: want 0 and 1,000", calls, f.Remembered())
	}
}

// TestRefusedKeyLeavesThePoolAlone: a key that has nothing left asks without end, many times at
// once, and nobody is shed for that.
func TestRefusedKeyLeavesThePoolAlone(t *testing.T) {
	eachKind(t, func(t *testing.T, counts quota.Counts) {
		limiter := quota.NewLimiter(counts)
		var requests atomic.Int64
		ask := func(account string, limit int64) quota.Decision {
			r := pooled(account, limit)
			r.Pool = quota.NewPool("chat", []quota.Limit{{Metric: quota.Requests, Window: quota.Month, Max: 21}}, quota.UsualShares())
			r.ID = strconv.FormatInt(requests.Add(1), 10)
			d, err := limiter.Decide(t.Context(), r, time.Now())
			if err != nil {
				t.Error(err)
			}
			return d
		}
		ask("small", 1)
		ask("small", 1)
		stop := make(chan struct{})
		var group sync.WaitGroup
		for range 32 {
			group.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if d := ask("small", 1); d.Admitted || d.RefusedBy.Name() != "requests_per_month" {
						t.Errorf("the key with nothing left: admitted %t, refused by %s", d.Admitted, d.RefusedBy.Name())
						return
					}
				}
			})
		}
		for i := range 20 {
			if d := ask("large", 1000); !d.Admitted {
				t.Errorf("request %d of 20 is refused by %s", i, d.RefusedBy.Name())
			}
		}
		close(stop)
		group.Wait()
	})
}

// TestKeyGetsBackWhatIsShed: where a key has room again in the moment when it is asked, and the
// pool has none, the key is not charged.
func TestKeyGetsBackWhatIsShed(t *testing.T) {
	eachKind(t, func(t *testing.T, counts quota.Counts) {
		limiter := quota.NewLimiter(counts)
		decide := func(r quota.Request) quota.Decision {
			d, err := limiter.Decide(t.Context(), r, time.Now())
			if err != nil {
				t.Error(err)
			}
			return d
		}
		small := pooled("small", 1)
		small.Firm = false
		decide(small)
		decide(small)
		for range 100 {
			decide(pooled("large", 1000))
		}
		unpooled := small
		unpooled.Pool = nil
		credit := unpooled
		credit.Credit = true
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				for range 100 {
					if d := decide(small); d.Admitted {
						t.Error("more than the pool has is admitted")
					}
				}
			})
		}
		for range 20 { // it has room, until the next request
			decide(credit)
			becomes(t, "what was shed is given back to the key", func() bool { return decide(unpooled).Admitted })
		}
		group.Wait()
		if decide(unpooled).Admitted {
			t.Error("the key got back more than it was charged")
		}
	})
}

// TestVoidMakesRoom: a refusal that is remembered does not outlive what an undone order gives back.
func TestVoidMakesRoom(t *testing.T) {
	t.Parallel()
	f := fallbackOn(redisStore(t, redisServer(t)), nil)
	o := of("a", charge(quota.Month, 10, 10))
	o.Request, o.Secret = "r", "s"
	wantTaken(t, take(t, f, o), true, 10)
	next := of("a", charge(quota.Month, 10, 1))
	for range 5 {
		wantTaken(t, take(t, f, next), false, 10)
	}
	if f.Remembered() == 0 {
		t.Fatal("no refusal was remembered")
	}
	wantOutcome(t, settle(t, f, quota.Settlement{Account: "a", Request: "r", Secret: "s", Void: true}), quota.Settled)
	wantTaken(t, take(t, f, next), true, 1)
}

// TestPoolAroundAnOutage: without Redis a pool goes on by what was last seen of it, and what was
// admitted and given back meanwhile is what Redis has of it afterwards.
func TestPoolAroundAnOutage(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	f := fallbackOn(hastyStore(t, server.Options.RedisAddress, time.Second), nil)
	runs(t, f)
	becomes(t, "the instance is counted", func() bool { return f.Instances() == 1 })
	limiter := quota.NewLimiter(f)
	ask := func(account string, limit int64) quota.Decision {
		t.Helper()
		d, err := limiter.Decide(t.Context(), pooled(account, limit), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for range 30 {
		ask("a", 1000)
	}
	if err := redisStore(t, server).client.Save(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	kill(t, server)
	for i := range 90 { // 20 of which the key's limit refuses
		ask("small", 20)
		if d := ask("a", 1000); d.Admitted != (i < 50) || !d.Degraded {
			t.Fatalf("request %d without Redis: %+v: want 50 to be left", i, d)
		}
	}
	start(t, server)
	becomes(t, "all is given back", func() bool { return f.owing() == 0 && !f.State().Degraded && allShared(f) })
	d := ask("a", 1000)
	if d.Admitted || d.Degraded || d.RefusedBy.Name() != quota.CapacityName || d.RefusedUsed != 100 {
		t.Errorf("when Redis is back: %+v: want 100 used", d)
	}
}

// TestPoolGetsBackWhatIsNotKept: where no more reservations are kept, as in an outage with many
// requests, what a key's limits refuse is given back all the same.
func TestPoolGetsBackWhatIsNotKept(t *testing.T) {
	t.Parallel()
	limiter := quota.NewLimiter(fallbackOn(noRedis(t), nil))
	requests := 0
	ask := func(account string, limit int64) quota.Decision {
		t.Helper()
		r := pooled(account, limit)
		r.Pool = quota.NewPool("chat", []quota.Limit{{Metric: quota.Requests, Window: quota.Month, Max: minReservations + 200}}, quota.UsualShares())
		requests++
		r.ID = strconv.Itoa(requests)
		d, err := limiter.Decide(t.Context(), r, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for i := range minReservations {
		if d := ask("key"+strconv.Itoa(i%100), 1000); !d.Admitted {
			t.Fatalf("request %d is refused by %s", i, d.RefusedBy.Name())
		}
	}
	for i := range 500 {
		if d := ask("small", 5); d.Admitted != (i < 5) || (!d.Admitted && d.RefusedBy.Name() != "requests_per_month") {
			t.Fatalf("request %d of 5: admitted %t, refused by %s", i, d.Admitted, d.RefusedBy.Name())
		}
	}
	for i := range 200 {
		if d := ask("large", 1000); d.Admitted != (i < 195) {
			t.Fatalf("request %d of the 195 that are left: admitted %t, refused by %s", i, d.Admitted, d.RefusedBy.Name())
		}
	}
}

// TestFullQueueOfPool: where settlements wait for Redis, and there is no more room for those of a
// pool, those of keys wait once.
func TestFullQueueOfPool(t *testing.T) {
	t.Parallel()
	f := fallbackOn(noRedis(t), func(o *FallbackOptions) { o.MaxQueued = 30 })
	limiter := quota.NewLimiter(f)
	pool := quota.NewPool("chat", []quota.Limit{{Metric: quota.Tokens, Window: quota.Month, Max: 100}}, quota.UsualShares())
	for i := range 15 {
		s := quota.Settlement{Account: "key" + strconv.Itoa(i), Request: "r", Secret: "s", Pool: pool}
		if outcome, err := limiter.Settle(t.Context(), s); outcome != quota.Queued || err != nil {
			t.Errorf("of key %d: %s, %v: want it to wait, so that nobody repeats it", i, outcome, err)
		}
	}
	if n := f.Totals().Lost; n == 0 {
		t.Error("none of the pool's was lost: the test fills no queue")
	}
}
