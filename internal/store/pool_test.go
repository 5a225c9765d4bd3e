package store

import (
	"crypto/rand"
	"errors"
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
	before := commandCalls(t, r)["fcall"]
	for range 1000 {
		if d := ask(); d.Admitted || d.RefusedBy.Name() != "requests_per_month" || d.RefusedUsed != 1 {
			t.Fatalf("%+v", d)
		}
	}
	// A minute may end meanwhile, whose count is shown: then it is asked once more.
	if calls := commandCalls(t, r)["fcall"] - before; calls > 3 || f.Remembered() < 999 {
		t.Errorf("%d calls of Redis, %d refusals from memory: want 0 and 1,000", calls, f.Remembered())
	}
}

// TestRefusedThoughThePoolIsUnknown: a key that has nothing left is refused, whether it can be told
// of its pool or not.
func TestRefusedThoughThePoolIsUnknown(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	limiter := quota.NewLimiter(fallbackOn(openRedis(t, at(server.Address)), nil))
	r := pooled("a", 1)
	r.Tier.Tier.OnFailure = quota.Deny
	r.Firm = false
	ask := func() (quota.Decision, error) {
		r.ID = rand.Text() // it might repeat another, so no refusal that is remembered serves
		return limiter.Decide(t.Context(), r, time.Now())
	}
	for i := range 2 {
		if d, err := ask(); err != nil || d.Admitted != (i == 0) {
			t.Fatalf("%+v, %v", d, err)
		}
	}
	do(t, server, "SET", countsKey("test", "capacity:chat"), "text")
	if d, err := ask(); err != nil || d.Admitted || d.RefusedBy.Name() != "requests_per_month" {
		t.Errorf("%+v, %v: want a refusal by the key's own limit", d, err)
	}
}

// TestPoolFindsRoom: keys, however many come, leave a pool its place.
func TestPoolFindsRoom(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	const most = 10
	pool := of("capacity:chat", charge(quota.Minute, 100, 1))
	pool.Charges[0].Limit.Pooled = true
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		now := now
		m := NewMemory(func() time.Time { return now }, most)
		for i := range most {
			take(t, m, of(strconv.Itoa(i), charge(quota.Minute, 10, 1)))
		}
		wantTaken(t, take(t, m, pool), true, 1)
		wantTaken(t, take(t, m, pool), true, 2)
		if _, err := m.Take(t.Context(), of("other", charge(quota.Minute, 10, 1))); !errors.Is(err, ErrFull) {
			t.Errorf("another key: %v, want ErrFull", err)
		}
		now = now.Add(time.Minute)
		m.Sweep()
		if left := m.accounts.left.Load(); left != most {
			t.Errorf("room for %d when all windows have ended: want %d", left, most)
		}
	})
	t.Run("without Redis", func(t *testing.T) {
		t.Parallel()
		l, local := newLedger(1), manner{quota.Local, 1, false, nil}
		if _, err := l.take(of(neighbour(l, pool.Account), charge(quota.Minute, 10, 1)), local, now); err != nil {
			t.Fatal(err)
		}
		taken, err := l.take(pool, local, now)
		if err != nil {
			t.Fatal(err)
		}
		wantTaken(t, taken, true, 1)
	})
}

// TestVoidMakesRoom: a refusal that is remembered does not outlive what an undone order gives back,
// though nothing else ever would.
func TestVoidMakesRoom(t *testing.T) {
	t.Parallel()
	f := fallbackOn(redisStore(t, redisServer(t)), nil)
	o := firm("r", charge(quota.Month, 10, 10))
	o.Secret, o.Undoable = "s", true
	wantTaken(t, take(t, f, o), true, 10)
	next := firm("", charge(quota.Month, 10, 1))
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
