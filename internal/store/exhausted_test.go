package store

import (
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
	"github.com/tiergate/tiergate/internal/quota"
)

// A standstill is a Fallback whose clock moves only when it is told to.
type standstill struct {
	*Fallback

	elapsed atomic.Int64
}

func standstillOn(r *Redis) *standstill {
	s := &standstill{}
	s.elapsed.Store(int64(time.Minute))
	s.Fallback = fallbackOn(r, func(o *FallbackOptions) {
		o.Elapsed = func() time.Duration { return time.Duration(s.elapsed.Load()) }
	})
	return s
}

func (s *standstill) wait(d time.Duration) { s.elapsed.Add(int64(d)) }

// scriptCalls returns how often a Redis has run functions and scripts.
func scriptCalls(t *testing.T, r *Redis) int {
	t.Helper()
	calls := commandCalls(t, r)
	return calls["fcall"] + calls["evalsha"] + calls["eval"]
}

// asks fails where a call of a Fallback does not ask Redis so often.
func asks(t *testing.T, r *Redis, want int, what string, call func()) {
	t.Helper()
	before := scriptCalls(t, r)
	call()
	if n := scriptCalls(t, r) - before; n != want {
		t.Errorf("%s: Redis is asked %d times, want %d", what, n, want)
	}
}

// firm is an order of one request that nothing gives back.
func firm(request string, charges ...quota.Charge) quota.Order {
	o := of("a", charges...)
	o.Firm = true
	if request != "" {
		o.Request = request
	}
	return o
}

// TestHammeringAsksRedisNothing where nobody may repeat a request.
func TestHammeringAsksRedisNothing(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	f := standstillOn(r)
	o := firm("", charge(quota.Month, 2, 1), charge(quota.Week, 50, 1))
	for i := range int64(2) {
		wantTaken(t, take(t, f, o), true, i+1, i+1)
	}
	var first quota.Taken
	asks(t, r, 1, "the first refusal", func() { first = take(t, f, o) })
	wantTaken(t, first, false, 2, 2)
	asks(t, r, 0, "the next", func() {
		for i := range 1000 {
			f.wait(10 * time.Millisecond)
			taken := take(t, f, o)
			wantTaken(t, taken, false, 2, 2)
			if taken.Degraded || taken.Secret != "" || taken.Now.Sub(first.Now) != time.Duration(i+1)*10*time.Millisecond {
				t.Fatalf("%+v after %+v", taken, first)
			}
		}
	})
	if n := f.Remembered(); n != 1000 {
		t.Errorf("%d remembered, want 1000", n)
	}
	asks(t, r, 1, "a look", func() {
		wantTaken(t, take(t, f, firm("", charge(quota.Month, 2, 0), charge(quota.Week, 50, 0))), true, 2, 2)
	})
	asks(t, r, 1, "another account", func() {
		other := o
		other.Account = "b"
		wantTaken(t, take(t, f, other), true, 1, 1)
	})
}

// TestHammeringWithIDs: a request that may repeat one that was admitted is asked for until
// that cannot be any more.
func TestHammeringWithIDs(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	f, other := standstillOn(r), fallbackOn(r, nil)
	limit := charge(quota.Month, 2, 1)
	last := firm("last", limit)
	wantTaken(t, take(t, other, firm("first", limit)), true, 1)
	wantTaken(t, take(t, other, last), true, 2)
	n := 0
	used := int64(2)
	another := func() { n++; wantTaken(t, take(t, f, firm(strconv.Itoa(n), limit)), false, used) }
	asks(t, r, 10, "for 10 s", func() {
		for range 10 {
			another()
			f.wait(time.Second)
		}
	})
	if taken := take(t, f, last); !taken.Admitted || !taken.Repeated || taken.Used[0] != 2 {
		t.Errorf("a repeat of the last that was admitted: %+v", taken)
	}
	f.wait(20 * time.Millisecond)
	asks(t, r, 0, "after that", func() {
		for range 100 {
			another()
			f.wait(firmKept / 200)
		}
	})
	limit.Limit.Max, used = 3, 3
	asks(t, r, 1, "a raised limit", func() { wantTaken(t, take(t, f, firm("raised", limit)), true, 3) })
	asks(t, r, 1, "the next", another)
	f.wait(11 * time.Second)
	asks(t, r, 0, "10 s later", another)
	limit.Limit.Max = 2
	asks(t, r, 2, "a lowered limit", func() { another(); another() })
}

// TestRefusesAsTakeDoes: what is refused before a request is read is what would be refused by its
// order: nothing while Redis is away, or is owed something of the account.
func TestRefusesAsTakeDoes(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	f := standstillOn(redisStore(t, server))
	full := charge(quota.Month, 1, 1)
	o := firm("", full)
	o.OnFailure = quota.Allow
	wantTaken(t, take(t, f, o), true, 1)
	wantTaken(t, take(t, f, o), false, 1)
	f.wait(quota.RepeatWindow * 2)
	refuses := func(what string, o quota.Order, want bool) {
		t.Helper()
		if _, known := f.Refuses(o); known != want {
			t.Errorf("%s: it is refused at once: %t", what, known)
		}
	}
	refuses("a full limit", o, true)
	refuses("a full limit, with an ID", firm("r", full), true)

	p := f.part("a")
	if _, err := p.ledger.take(firm("r", full), manner{quota.Allow, 1, false, nil}, f.now()); err != nil {
		t.Fatal(err)
	}
	refuses("something is owed", o, false)
	refuses("a repeat of that", firm("r", full), false)
	if taken := take(t, f, firm("r", full)); !taken.Admitted || !taken.Repeated {
		t.Errorf("a repeat: %+v", taken)
	}
	if !f.giveBack(t.Context(), p) {
		t.Fatal("it is not given back")
	}
	refuses("it is given back", o, true)

	kill(t, server)
	becomes(t, "Redis is missed", func() bool {
		_, _ = f.Take(t.Context(), of("b", full))
		return f.State().Degraded
	})
	refuses("Redis is away", o, false)
	wantTaken(t, take(t, f, o), true, 3)
}

// TestHammeringAtAMovingCount: a count that has grown since may have done so by the request
// that is repeated.
func TestHammeringAtAMovingCount(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	f, other := standstillOn(r), fallbackOn(r, nil)
	one, two := charge(quota.Month, 3, 1), charge(quota.Month, 3, 2)
	wantTaken(t, take(t, other, firm("first", two)), true, 2)
	wantTaken(t, take(t, f, firm("", two)), false, 2)
	f.wait(11 * time.Second)
	wantTaken(t, take(t, other, firm("late", one)), true, 3)
	wantTaken(t, take(t, f, firm("", two)), false, 3)
	wantTaken(t, take(t, f, firm("late", one)), true, 3)
}

// TestRefusedFromMemoryAsByRedis: what a client is told is made of the decision, which is
// the same but for the moment.
func TestRefusedFromMemoryAsByRedis(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	f := fallbackOn(r, nil)
	tier := quota.Tier{Limits: []quota.Limit{
		{Metric: quota.Requests, Window: quota.Minute, Max: 1000},
		{Metric: quota.Tokens, Window: quota.Day, Max: 1000},
		{Metric: quota.Requests, Window: quota.Month, Max: 3},
		{Metric: quota.Requests, Window: quota.Week, Max: 3},
	}}
	request := quota.Request{
		Account: "a", Tier: quota.NewPlan(tier, quota.ByKey, nil), Resource: quota.DefaultResource, Priority: quota.Normal,
		Cost: quota.Cost{Requests: 1, Tokens: 10}, Firm: true,
	}
	decide := func(counts quota.Counts) quota.Decision {
		d, err := quota.NewLimiter(counts).Decide(t.Context(), request, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for range 4 {
		decide(f)
	}
	if f.Remembered() != 0 {
		t.Fatal("it is not Redis that refuses first")
	}
	becomes(t, "both refuse within one minute", func() bool {
		remembered := f.Remembered()
		own, by := decide(f), decide(r)
		if f.Remembered() == remembered || by.Now.Truncate(time.Minute) != own.Now.Truncate(time.Minute) {
			return false
		}
		if apart := by.Now.Sub(own.Now); apart < -5*time.Millisecond || apart > time.Second {
			t.Errorf("the clocks are %s apart", apart)
		}
		own.Wait -= by.Now.Sub(own.Now)
		own.Now = by.Now
		if have, want := fmt.Sprintf("%+v", own), fmt.Sprintf("%+v", by); have != want || own.Admitted {
			t.Errorf("from memory: %s\nby Redis:    %s", have, want)
		}
		return true
	})
}

// TestWindowEndsWhileHammering: a request that comes after Redis has begun another window is
// admitted.
func TestWindowEndsWhileHammering(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	r := redisStore(t, server)
	f := fallbackOn(r, nil)
	const window = quota.Second
	o, look := firm("", charge(window, 1, 1)), firm("", charge(window, 1, 0))
	for range 2 {
		first := quota.Taken{}
		becomes(t, "a request is admitted", func() bool { first = take(t, f, o); return first.Admitted })
		start := windowStart(window, first.Now)
		for {
			now := take(t, r, look).Now
			taken := take(t, f, o)
			if windowStart(window, now) != start {
				wantTaken(t, taken, true, 1)
				break
			}
			if taken.Admitted && windowStart(window, taken.Now) == start {
				t.Fatal("more than one is admitted")
			} else if taken.Admitted {
				break
			}
		}
	}
	if f.Remembered() == 0 {
		t.Error("nothing is refused from memory")
	}
}

// TestTokenRefusalsAreForgotten after 100 ms, and a smaller cost is asked for.
func TestTokenRefusalsAreForgotten(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	f := standstillOn(r)
	order := func(cost int64) quota.Order { return firm("", tokens(quota.Tokens, quota.Month, 1000, cost)) }
	reserved := order(950)
	reserved.Request, reserved.Secret, reserved.Keep = "r", "secret-r", time.Hour
	wantTaken(t, take(t, f, reserved), true, 950)
	asks(t, r, 1, "the first", func() { wantTaken(t, take(t, f, order(100)), false, 950) })
	asks(t, r, 0, "the same and a larger cost", func() {
		f.wait(99 * time.Millisecond)
		wantTaken(t, take(t, f, order(100)), false, 950)
		wantTaken(t, take(t, f, order(500)), false, 950)
	})
	asks(t, r, 1, "a smaller one that is too much as well", func() { wantTaken(t, take(t, f, order(60)), false, 950) })
	asks(t, r, 0, "after that", func() { wantTaken(t, take(t, f, order(60)), false, 950) })
	asks(t, r, 1, "100 ms later", func() {
		f.wait(100 * time.Millisecond)
		wantTaken(t, take(t, f, order(60)), false, 950)
	})
	asks(t, r, 3, "one that may be a repeat", func() {
		for i := range 3 {
			o := order(100)
			o.Request, o.Secret, o.Keep = strconv.Itoa(i), "s", time.Hour
			wantTaken(t, take(t, f, o), false, 950)
		}
	})
	wantOutcome(t, settle(t, f, settlement("r", 10)), quota.Settled)
	wantTaken(t, take(t, f, order(100)), true, 110)
}

// TestWhatIsGivenBackIsAskedFor: requests are, by hits or by refunds.
func TestWhatIsGivenBackIsAskedFor(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	f := standstillOn(r)
	order := func(cost int64) quota.Order { return of("a", charge(quota.Month, 1, cost)) }
	reserved := order(1)
	reserved.Request, reserved.Secret, reserved.Keep = "r", "secret-r", time.Hour
	wantTaken(t, take(t, f, reserved), true, 1)
	full := func() {
		t.Helper()
		f.wait(time.Millisecond)
		asks(t, r, 1, "the first, and no more", func() {
			wantTaken(t, take(t, f, order(1)), false, 1)
			wantTaken(t, take(t, f, order(1)), false, 1)
		})
	}
	full()
	refund := settlement("r", quota.Unknown)
	refund.RefundShare = 1000
	wantOutcome(t, settle(t, f, refund), quota.Settled)
	wantTaken(t, take(t, f, order(1)), true, 1)
	full()
	take(t, f, order(-1))
	wantTaken(t, take(t, f, order(1)), true, 1)
	full()
	take(t, r, order(-1)) // by another instance
	f.wait(refusalKept)
	wantTaken(t, take(t, f, order(1)), true, 1)

	// Once nothing is given back any more, what was refused before is not held to be so.
	asks(t, r, 2, "changed settings", func() {
		wantTaken(t, take(t, f, order(1)), false, 1)
		f.wait(refusalKept)
		wantTaken(t, take(t, f, firm("", charge(quota.Month, 1, 1))), false, 1)
	})
}

// TestShownCountsAreNotOld: beside what refuses, other requests may change what is shown.
func TestShownCountsAreNotOld(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	for name, c := range map[string]struct {
		full, beside quota.Charge
		asked        int
	}{
		"the same requests":    {full: charge(quota.Month, 1, 1), beside: charge(quota.Week, 10, 1)},
		"tokens":               {full: charge(quota.Month, 1, 1), beside: tokens(quota.Tokens, quota.Week, 1000, 10), asked: 1},
		"of other resources":   {full: named(charge(quota.Month, 1, 1), "images", 0), beside: charge(quota.Week, 10, 1), asked: 1},
		"of the same resource": {full: named(charge(quota.Month, 1, 1), "images", 0), beside: named(charge(quota.Week, 10, 1), "images", 0)},
		"of other priorities":  {full: named(charge(quota.Month, 1, 1), "", quota.Low), beside: charge(quota.Week, 10, 1), asked: 1},
	} {
		f := standstillOn(r)
		o := firm("", c.full, c.beside)
		o.Account = name
		take(t, f, o)
		take(t, f, o)
		asks(t, r, c.asked, name, func() {
			for range 10 {
				f.wait(100 * time.Millisecond)
				if take(t, f, o).Admitted {
					t.Errorf("%s: admitted", name)
				}
			}
		})
	}
}

func named(c quota.Charge, resource string, priority quota.Priority) quota.Charge {
	c.Limit.Resource, c.Limit.Priority = resource, priority
	c.Counter += "@" + resource + "#" + priority.Number()
	return c
}

// TestOutageForgetsRefusals: Redis may have lost what it counted.
func TestOutageForgetsRefusals(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	f := fallbackOn(hastyStore(t, server.Options.RedisAddress, time.Second), nil)
	o := firm("", charge(quota.Month, 1, 1))
	wantTaken(t, take(t, f, o), true, 1)
	wantTaken(t, take(t, f, o), false, 1)
	wantTaken(t, take(t, f, o), false, 1)
	if f.Remembered() != 1 {
		t.Fatalf("%d remembered, want 1", f.Remembered())
	}
	kill(t, server)
	take(t, f, firm("", charge(quota.Week, 1, 1)))
	if !f.State().Degraded {
		t.Fatal("the outage is not noticed")
	}
	start(t, server)
	becomes(t, "counts are shared again", func() bool { f.mend(t.Context(), f.part("a")); return allShared(f) })
	wantTaken(t, take(t, f, o), true, 1)
}

// TestUnseenRestartIsFoundOut: while a key is refused from memory, nobody may hear that Redis
// was away, and what it has lost.
func TestUnseenRestartIsFoundOut(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	f := standstillOn(hastyStore(t, server.Options.RedisAddress, time.Second))
	o := firm("", charge(quota.Month, 1, 1))
	wantTaken(t, take(t, f, o), true, 1)
	wantTaken(t, take(t, f, o), false, 1)
	kill(t, server)
	wantTaken(t, take(t, f, o), false, 1)
	start(t, server)
	f.wait(firmKept)
	if f.State().Degraded {
		t.Fatal("the outage is noticed")
	}
	wantTaken(t, take(t, f, o), true, 1)
}

// TestRefusalsAreBounded: by accounts and by kinds of orders, and they end.
func TestRefusalsAreBounded(t *testing.T) {
	t.Parallel()
	now := time.Now()
	x := newExhausted(shardCount)
	refused := func(o quota.Order) quota.Taken { return quota.Taken{Now: now, Used: []int64{o.Charges[0].Limit.Max}} }
	for i := range 100 * shardCount {
		o := firm("", charge(quota.Minute, 1, 1))
		o.Account = "a" + strconv.Itoa(i)
		x.remember(o, refused(o), 1, 1)
		if _, known := x.refuse(o, 1); !known {
			t.Fatal("the latest is not remembered")
		}
	}
	if n := x.kept.Load(); n > shardCount {
		t.Errorf("%d remembered, want %d", n, shardCount)
	}
	for i := range 3 * mostKinds {
		o := firm("", named(charge(quota.Minute, 1, 1), "r"+strconv.Itoa(i), 0))
		x.remember(o, refused(o), time.Duration(i+2), time.Duration(i+2))
		if _, known := x.refuse(o, time.Duration(i+2)); !known {
			t.Fatal("the latest kind is not remembered")
		}
	}
	if n := len(x.shard("a").accounts["a"]); n > mostKinds {
		t.Errorf("%d kinds remembered, want %d", n, mostKinds)
	}
	x.sweep(now.Add(-time.Minute).UnixMilli())
	if x.kept.Load() == 0 {
		t.Error("swept before its window ends")
	}
	x.sweep(now.Add(time.Minute).UnixMilli())
	if n := x.kept.Load(); n != 0 {
		t.Errorf("%d remembered after their windows", n)
	}
}

// TestLateRefusalsAreNotRemembered: what was asked for before something was given back says
// nothing of after that.
func TestLateRefusalsAreNotRemembered(t *testing.T) {
	t.Parallel()
	o, now := firm("", charge(quota.Month, 1, 1)), time.Now()
	held := firm("", tokens(quota.Tokens, quota.Month, 1, 1))
	for name, c := range map[string]struct {
		order  quota.Order
		change func(x *exhausted)
	}{
		"given back": {o, func(x *exhausted) { x.forget("a", 5) }},
		"an outage":  {o, func(x *exhausted) { x.clear(5) }},
		"settled":    {held, func(x *exhausted) { x.settle("a", 5) }},
	} {
		x := newExhausted(100)
		c.change(x)
		x.remember(c.order, quota.Taken{Now: now, Used: []int64{1}}, 4, 6)
		if _, known := x.refuse(c.order, 6); known {
			t.Errorf("%s: an answer from before is believed", name)
		}
		x.remember(c.order, quota.Taken{Now: now, Used: []int64{1}}, 6, 7)
		if _, known := x.refuse(c.order, 7); !known {
			t.Errorf("%s: an answer from after that is not believed", name)
		}
	}
}

// TestRefusalsAfterRedisClockWentBack: where that was set, or another server's answers, what it
// says now is remembered, and what it said before is not held against it.
func TestRefusalsAfterRedisClockWentBack(t *testing.T) {
	t.Parallel()
	x, o, noon := newExhausted(100), firm("", charge(quota.Hour, 1, 1)), time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	x.remember(o, quota.Taken{Now: noon, Used: []int64{1}}, 1, 2)
	for _, back := range []time.Duration{time.Hour, 3 * time.Hour} {
		asked := time.Duration(back.Hours()) * 2 * time.Minute
		x.remember(o, quota.Taken{Now: noon.Add(-back), Used: []int64{1}}, asked, asked+1)
		taken, known := x.refuse(o, asked+2)
		if !known || taken.Now.After(noon.Add(time.Minute-back)) {
			t.Errorf("%v back: %v %t", back, taken.Now, known)
		}
	}
}

// BenchmarkRefused is what a refusal costs that Redis is asked for, and one that it is not.
func BenchmarkRefused(b *testing.B) {
	server, err := devstack.StartRedisServer(b.Context(), b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = server.Stop() })
	f := fallbackOn(NewRedis(at(server.Address)), nil)
	for name, metric := range map[string]quota.Metric{"asked": quota.Tokens, "remembered": quota.Requests} {
		o := firm("", charge(quota.Month, 0, 1), charge(quota.Week, 10, 1))
		o.Account, o.Charges[0].Limit.Metric = name, metric
		if metric == quota.Tokens {
			o.Request = "r"
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if taken, err := f.Take(b.Context(), o); err != nil || taken.Admitted {
					b.Fatalf("%+v, %v", taken, err)
				}
			}
		})
	}
}
