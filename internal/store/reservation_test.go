package store

import (
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// eachTimedStore runs a test against every store, with a clock that the test sets.
func eachTimedStore(t *testing.T, test func(t *testing.T, counts quota.Counts, now *time.Time)) {
	t.Helper()
	t.Parallel()
	begin := time.Date(2026, 3, 1, 12, 0, 50, 0, time.UTC) // 10 s before the end of a minute
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		now := begin
		test(t, NewMemory(func() time.Time { return now }, 1000), &now)
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		scripted := newScriptedRedis(t, redisServer(t))
		scripted.now = begin
		test(t, scripted, &scripted.now)
	})
	t.Run("fallback without Redis", func(t *testing.T) {
		t.Parallel()
		now := begin
		test(t, fallbackOn(noRedis(t), func(o *FallbackOptions) {
			o.Now = func() time.Time { return now }
			o.Elapsed = func() time.Duration { return now.Sub(begin) }
		}), &now)
	})
}

// tokens is a charge of tokens.
func tokens(metric quota.Metric, window quota.Window, limit, cost int64) quota.Charge {
	l := quota.Limit{Metric: metric, Window: window, Max: limit}
	return quota.Charge{Limit: l, Counter: metric.String() + "/" + window.String(), Cost: cost}
}

// perMinuteAndDay is an order of one request and 100 tokens of 1,000.
func perMinuteAndDay(request string) quota.Order {
	return quota.Order{
		Account: "a", Request: request, Secret: "secret-" + request, Keep: time.Hour,
		Charges: []quota.Charge{
			charge(quota.Minute, 10, 1), tokens(quota.Tokens, quota.Minute, 1000, 100), tokens(quota.Tokens, quota.Day, 10_000, 100),
		},
	}
}

// used looks at the counters of perMinuteAndDay.
func used(t *testing.T, counts quota.Counts, want ...int64) {
	t.Helper()
	o := perMinuteAndDay("")
	for i := range o.Charges {
		o.Charges[i].Cost = 0
	}
	wantTaken(t, take(t, counts, o), true, want...)
}

func settlement(request string, tokens int64) quota.Settlement {
	return quota.Settlement{
		Account: "a", Request: request, Secret: "secret-" + request,
		Used: quota.Cost{Requests: 1, Tokens: tokens, InputTokens: quota.Unknown, OutputTokens: quota.Unknown},
	}
}

func wantOutcome(t *testing.T, have, want quota.Outcome) {
	t.Helper()
	if have != want {
		t.Errorf("%s, want %s", have, want)
	}
}

// wantUnknown is what becomes of the settlement of a reservation that there is not: while
// Redis is away, nobody knows that there is none.
func wantUnknown(t *testing.T, counts quota.Counts, have quota.Outcome) {
	t.Helper()
	want := quota.NotFound
	if f, ok := counts.(*Fallback); ok && f.State().Degraded {
		want = quota.Queued
	}
	wantOutcome(t, have, want)
}

// TestRepeat: a repeated order gets the first one's answer and is not charged,
// in the next window too; after RepeatWindow it is a new one.
func TestRepeat(t *testing.T) {
	eachTimedStore(t, func(t *testing.T, counts quota.Counts, now *time.Time) {
		begin := *now
		first := take(t, counts, perMinuteAndDay("r"))
		wantTaken(t, first, true, 1, 100, 100)
		take(t, counts, perMinuteAndDay("other"))
		for _, after := range []time.Duration{0, 5 * time.Second, quota.RepeatWindow - time.Millisecond} {
			*now = begin.Add(after)
			again := perMinuteAndDay("r")
			again.Secret = "another"
			taken := take(t, counts, again)
			wantTaken(t, taken, true, 1, 100, 100)
			if !taken.Repeated || taken.Secret != "secret-r" || !taken.Now.Equal(first.Now) {
				t.Errorf("after %s: secret %q, time %s: want those of the first", after, taken.Secret, taken.Now)
			}
		}
		used(t, counts, 2, 200, 200)
		*now = begin.Add(quota.RepeatWindow)
		wantTaken(t, take(t, counts, perMinuteAndDay("r")), true, 1, 100, 300)
		mine := perMinuteAndDay("r")
		mine.Account = "b"
		wantTaken(t, take(t, counts, mine), true, 1, 100, 100)
	})
}

// TestRefusedIsNotKept: a refusal reserves nothing, and the same request may pass
// when there is room.
func TestRefusedIsNotKept(t *testing.T) {
	eachTimedStore(t, func(t *testing.T, counts quota.Counts, now *time.Time) {
		full := perMinuteAndDay("full")
		full.Charges[1].Cost = 950
		take(t, counts, full)
		refused := take(t, counts, perMinuteAndDay("r"))
		wantTaken(t, refused, false, 1, 950, 100)
		if refused.Secret != "" {
			t.Error("a refused order has a reservation")
		}
		wantUnknown(t, counts, settle(t, counts, settlement("r", 0)))
		*now = now.Add(10 * time.Second)
		wantTaken(t, take(t, counts, perMinuteAndDay("r")), true, 1, 100, 200)
	})
}

// TestRepeatsOnly: of an order that nothing is to settle no secret is kept, and there is none that
// settles it.
func TestRepeatsOnly(t *testing.T) {
	eachTimedStore(t, func(t *testing.T, counts quota.Counts, _ *time.Time) {
		o := perMinuteAndDay("r")
		o.Keep, o.Secret = 0, ""
		for i := range 3 {
			taken := take(t, counts, o)
			wantTaken(t, taken, true, 1, 100, 100)
			if taken.Repeated != (i > 0) || taken.Secret != "" {
				t.Errorf("answer %d: %+v", i, taken)
			}
			for _, secret := range []string{"", "-", "0", "secret-r"} {
				s := settlement("r", 5)
				s.Secret, s.Void = secret, i == 1
				wantOutcome(t, settle(t, counts, s), quota.NotFound)
			}
		}
		used(t, counts, 1, 100, 100)
	})
}

// TestVoid: an order that is undone has never been: all it took is given back, requests too, in
// windows that are open, nothing answers a repeat, and only who knows the secret undoes it, once.
func TestVoid(t *testing.T) {
	eachTimedStore(t, func(t *testing.T, counts quota.Counts, now *time.Time) {
		void := func(request string) quota.Settlement {
			s := settlement(request, 5)
			s.Void, s.OnlyRaise = true, true
			return s
		}
		for _, r := range []string{"stays", "r", "late"} {
			take(t, counts, perMinuteAndDay(r))
		}
		forged := void("r")
		forged.Secret = "forged"
		wantOutcome(t, settle(t, counts, forged), quota.NotFound)
		wantOutcome(t, settle(t, counts, void("r")), quota.Settled)
		wantUnknown(t, counts, settle(t, counts, void("r")))
		wantUnknown(t, counts, settle(t, counts, settlement("r", 50)))
		used(t, counts, 2, 200, 200)
		again := perMinuteAndDay("r")
		again.Secret = "another"
		if taken := take(t, counts, again); taken.Secret != "another" {
			t.Errorf("secret %q: the order repeats one that has never been", taken.Secret)
		}
		used(t, counts, 3, 300, 300)
		*now = now.Add(15 * time.Second) // another minute of the same day
		wantOutcome(t, settle(t, counts, void("late")), quota.Settled)
		used(t, counts, 0, 0, 200)
	})
}

// TestSettleCorrects in both directions, once, and only who knows the secret.
func TestSettleCorrects(t *testing.T) {
	eachTimedStore(t, func(t *testing.T, counts quota.Counts, _ *time.Time) {
		for _, r := range []string{"less", "more", "unknown"} {
			take(t, counts, perMinuteAndDay(r))
		}
		used(t, counts, 3, 300, 300)
		forged := settlement("less", 0)
		forged.Secret = "secret-more"
		wantOutcome(t, settle(t, counts, forged), quota.NotFound)
		wantUnknown(t, counts, settle(t, counts, settlement("never", 0)))
		wantOutcome(t, settle(t, counts, settlement("less", 30)), quota.Settled)
		used(t, counts, 3, 230, 230)
		wantOutcome(t, settle(t, counts, settlement("less", 0)), quota.Duplicate)
		wantOutcome(t, settle(t, counts, settlement("more", 1700)), quota.Settled) // over the limit: true all the same
		used(t, counts, 3, 1830, 1830)
		wantOutcome(t, settle(t, counts, settlement("unknown", quota.Unknown)), quota.Settled)
		used(t, counts, 3, 1830, 1830)
		wantTaken(t, take(t, counts, perMinuteAndDay("next")), false, 3, 1830, 1830)
		wantTaken(t, take(t, counts, perMinuteAndDay("less")), true, 1, 100, 100) // a repeat, settled as it is
		used(t, counts, 3, 1830, 1830)
	})
}

// TestSettleInTheWindowCharged: a closed minute is let be, an open day is
// corrected; what goes beyond the charge counts in the current minute.
func TestSettleInTheWindowCharged(t *testing.T) {
	eachTimedStore(t, func(t *testing.T, counts quota.Counts, now *time.Time) {
		for _, r := range []string{"less", "more", "late"} {
			take(t, counts, perMinuteAndDay(r))
		}
		*now = now.Add(20 * time.Second)
		wantTaken(t, take(t, counts, perMinuteAndDay("next")), true, 1, 100, 400)
		settle(t, counts, settlement("less", 40))
		used(t, counts, 1, 100, 340)
		settle(t, counts, settlement("more", 150))
		used(t, counts, 1, 150, 390)
		*now = now.Add(time.Hour - 20*time.Second - time.Millisecond)
		wantOutcome(t, settle(t, counts, settlement("late", 0)), quota.Settled)
		used(t, counts, 0, 0, 290)
	})
}

// TestSettledWhenRedisClockGoesBack: where Redis' time has gone back beyond the window that
// was charged, nothing is given back in the one before.
func TestSettledWhenRedisClockGoesBack(t *testing.T) {
	t.Parallel()
	r := newScriptedRedis(t, redisServer(t))
	before := time.Date(2026, 3, 1, 12, 0, 50, 0, time.UTC)
	r.now = before
	take(t, r, perMinuteAndDay("of this minute"))
	r.now = before.Add(20 * time.Second)
	take(t, r, perMinuteAndDay("of the next"))
	r.now = before
	take(t, r, perMinuteAndDay("of this minute again"))
	wantOutcome(t, settle(t, r, settlement("of the next", 0)), quota.Settled)
	used(t, r, 1, 100, 200)
}

// TestOnlyRaise: an answer that did not end well lowers nothing.
func TestOnlyRaise(t *testing.T) {
	eachTimedStore(t, func(t *testing.T, counts quota.Counts, _ *time.Time) {
		for i, c := range []struct{ used, minute int64 }{{0, 100}, {99, 200}, {quota.Unknown, 300}, {150, 450}} {
			r := "r" + strconv.Itoa(i)
			take(t, counts, perMinuteAndDay(r))
			s := settlement(r, c.used)
			s.OnlyRaise = true
			wantOutcome(t, settle(t, counts, s), quota.Settled)
			used(t, counts, int64(i+1), c.minute, c.minute)
		}
	})
}

// TestSplitMetrics: each metric is settled by its own number.
func TestSplitMetrics(t *testing.T) {
	eachTimedStore(t, func(t *testing.T, counts quota.Counts, _ *time.Time) {
		o := perMinuteAndDay("r")
		o.Charges = []quota.Charge{
			tokens(quota.InputTokens, quota.Minute, 1000, 10), tokens(quota.OutputTokens, quota.Minute, 1000, 0), tokens(quota.Tokens, quota.Minute, 1000, 10),
		}
		wantTaken(t, take(t, counts, o), true, 10, 0, 10)
		s := settlement("r", 75)
		s.Used.InputTokens, s.Used.OutputTokens = 5, 70
		settle(t, counts, s)
		for i := range o.Charges {
			o.Charges[i].Cost = 0
		}
		o.Request = ""
		wantTaken(t, take(t, counts, o), true, 5, 70, 75)
	})
}

// TestRefunds give back whole charges, up to a share of each limit in a window.
func TestRefunds(t *testing.T) {
	eachTimedStore(t, func(t *testing.T, counts quota.Counts, now *time.Time) {
		refund := func(r string) {
			s := settlement(r, 5000)
			s.RefundShare = 150 // 1.5 requests, 150 and 1,500 tokens
			s.OnlyRaise = true  // what Envoy answers by itself does not end cleanly
			wantOutcome(t, settle(t, counts, s), quota.Settled)
		}
		for _, r := range []string{"1", "2", "3", "4"} {
			take(t, counts, perMinuteAndDay(r))
		}
		refund("1")
		used(t, counts, 3, 300, 300)
		refund("2")
		used(t, counts, 3, 250, 200)
		refund("3")
		used(t, counts, 3, 250, 100)
		*now = now.Add(time.Minute)
		refund("4") // its minute is over
		used(t, counts, 0, 0, 0)
		take(t, counts, perMinuteAndDay("5"))
		refund("5") // a new minute, a new share
		used(t, counts, 0, 0, 0)
	})
}

// TestShareOfRefundsIsLowered: what was given back beyond a share that is less now is not charged
// to the next that is given back.
func TestShareOfRefundsIsLowered(t *testing.T) {
	eachTimedStore(t, func(t *testing.T, counts quota.Counts, _ *time.Time) {
		for i, share := range []int64{500, 10} { // of 1,000 tokens 500 and 10
			request := strconv.Itoa(i)
			take(t, counts, perMinuteAndDay(request))
			s := settlement(request, 100)
			s.RefundShare = share
			wantOutcome(t, settle(t, counts, s), quota.Settled)
		}
		used(t, counts, 1, 100, 100)
	})
}

// TestSettledOnceUnderConcurrency: of many settlements of one reservation at once
// a single one counts.
func TestSettledOnceUnderConcurrency(t *testing.T) {
	eachStore(t, func(t *testing.T, counts quota.Counts) {
		const reservations, settlements = 50, 16
		var settled, duplicates atomic.Int64
		var group sync.WaitGroup
		long := func(request string, cost int64) quota.Order {
			return quota.Order{
				Account: "a", Request: request, Secret: "secret-" + request, Keep: time.Hour,
				Charges: []quota.Charge{tokens(quota.Tokens, quota.Month, 1_000_000, cost)},
			}
		}
		for i := range reservations {
			r := strconv.Itoa(i)
			take(t, counts, long(r, 1000))
			for k := range int64(settlements) {
				group.Go(func() {
					outcome, err := counts.Settle(t.Context(), settlement(r, 10+k%2))
					switch {
					case err != nil:
						t.Error(err)
					case outcome == quota.Settled:
						settled.Add(1)
					case outcome == quota.Duplicate:
						duplicates.Add(1)
					}
				})
			}
		}
		group.Wait()
		if settled.Load() != reservations || duplicates.Load() != reservations*(settlements-1) {
			t.Errorf("%d settled, %d duplicates: want %d and the others", settled.Load(), duplicates.Load(), reservations)
		}
		if n := take(t, counts, long("", 0)).Used[0]; n < 10*reservations || n > 11*reservations {
			t.Errorf("%d used: want 10 or 11 for each of %d", n, reservations)
		}
	})
}

// TestCredit gives back and never goes below nothing.
func TestCredit(t *testing.T) {
	eachStore(t, func(t *testing.T, counts quota.Counts) {
		wantTaken(t, take(t, counts, of("a", charge(quota.Month, 10, 10))), true, 10)
		wantTaken(t, take(t, counts, of("a", charge(quota.Month, 10, -4))), true, 6)
		wantTaken(t, take(t, counts, of("a", charge(quota.Month, 10, -40))), true, 0)
		wantTaken(t, take(t, counts, of("a", charge(quota.Month, 10, 10))), true, 10)
	})
}

// TestOneCommandForEachStep: a request whose tokens are limited makes one
// call at its admission and one at its settlement, and nothing else.
func TestOneCommandForEachStep(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	once := func(request string) {
		take(t, r, perMinuteAndDay(request))
		wantOutcome(t, settle(t, r, settlement(request, 70)), quota.Settled)
	}
	once("first") // loads the function
	if err := r.client.ConfigResetStat(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	for i := range 9 {
		once(strconv.Itoa(i))
	}
	calls := commandCalls(t, r)
	t.Logf("9 admissions and 9 settlements: %v", calls)
	if calls["fcall"] != 18 || calls["evalsha"] != 0 || calls["eval"] != 0 || calls["function"] != 0 {
		t.Errorf("want 18 FCALL and nothing else on the wire")
	}
	keys := r.client.Keys(t.Context(), "*").Val()
	for _, key := range keys {
		if ttl := r.client.PTTL(t.Context(), key).Val(); ttl <= 0 {
			t.Errorf("%s has no TTL", key)
		}
	}
	if len(keys) != 11 {
		t.Errorf("%d keys: want the counters and 10 reservations", len(keys))
	}
}

// TestMemoryReservationsAreBounded: where there is no room an old one makes some, a
// settled one first; none younger than its repeats can be. Without a reservation the
// request passes all the same.
func TestMemoryReservationsAreBounded(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	m := NewMemory(func() time.Time { return now }, 2)
	most := m.reservations.own + int(m.reservations.rest.left.Load()) // of one shard
	order := func(i int) quota.Order {
		return quota.Order{Account: "a", Request: strconv.Itoa(i), Secret: "s", Keep: time.Hour, Charges: []quota.Charge{charge(quota.Day, 1_000_000, 1)}}
	}
	for i := range most {
		if taken := take(t, m, order(i)); taken.Secret != "s" {
			t.Fatalf("reservation %d is not kept", i)
		}
	}
	taken := take(t, m, order(most))
	wantTaken(t, taken, true, int64(most)+1)
	if taken.Secret != "" {
		t.Error("there is no room, and yet a reservation")
	}
	other := order(0)
	for i := 0; m.shard(m.hash(other.Account)) == m.shard(m.hash("a")); i++ {
		other.Account = "other" + strconv.Itoa(i)
	}
	if taken := take(t, m, other); taken.Secret != "s" {
		t.Error("one account has taken the room of all")
	}
	if outcome := settle(t, m, quota.Settlement{Account: "a", Request: "7", Secret: "s"}); outcome != quota.Settled {
		t.Error(outcome)
	}
	now = now.Add(quota.RepeatWindow)
	kept := 0
	for i := range 2 * most {
		if taken := take(t, m, order(most+1+i)); taken.Secret == "s" {
			kept++
		} else if i < most/2 {
			t.Fatalf("reservation %d is not kept, though half of the others are old", i)
		}
	}
	if kept > most || kept < most/2 {
		t.Errorf("%d kept of %d that are young: want the better part of %d, and no more", kept, 2*most, most)
	}
	now = now.Add(2 * time.Hour)
	m.Sweep()
	if s := m.shard(m.hash("a")); len(s.reservations) != 0 {
		t.Errorf("%d expired reservations are left", len(s.reservations))
	}
	if left := m.reservations.rest.left.Load(); left != int64(most-m.reservations.own) {
		t.Errorf("room for %d again: want %d", left, most-m.reservations.own)
	}
}

// TestReservationsThatAreReplaced: where all are old, a settled one makes room, else the oldest.
func TestReservationsThatAreReplaced(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	m := NewMemory(func() time.Time { return now }, 2)
	m.reservations.own = 1
	m.reservations.rest.left.Store(2)
	reserve := func(request string) {
		t.Helper()
		if taken := take(t, m, quota.Order{Account: "a", Request: request, Secret: "s", Keep: time.Hour, Charges: []quota.Charge{charge(quota.Day, 100, 1)}}); taken.Secret != "s" {
			t.Errorf("%s is not kept", request)
		}
	}
	want := func(request string, outcome quota.Outcome) {
		t.Helper()
		if have := settle(t, m, quota.Settlement{Account: "a", Request: request, Secret: "s"}); have != outcome {
			t.Errorf("%s: %s, want %s", request, have, outcome)
		}
	}
	for _, request := range []string{"1", "2", "3"} {
		reserve(request)
		now = now.Add(time.Second)
	}
	now = now.Add(quota.RepeatWindow)
	want("2", quota.Settled)
	reserve("4")
	want("2", quota.NotFound)
	reserve("5")
	want("1", quota.NotFound)
	want("3", quota.Settled)
	want("4", quota.Settled)
	now = now.Add(quota.RepeatWindow)
	reserve("5") // another request by the same ID needs no more room
	if n := len(m.shard(m.hash("a")).reservations); n != 3 {
		t.Errorf("%d are kept, want 3", n)
	}
}

// TestReservationsEnd when they are to, though nobody has swept since.
func TestReservationsEnd(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	m := NewMemory(func() time.Time { return now }, 2)
	for _, c := range []struct {
		after time.Duration
		want  quota.Outcome
	}{{time.Minute - time.Millisecond, quota.Settled}, {time.Minute, quota.NotFound}} {
		take(t, m, quota.Order{Account: "a", Request: c.after.String(), Secret: "s", Keep: time.Minute, Charges: []quota.Charge{charge(quota.Day, 100, 1)}})
		now = now.Add(c.after)
		if have := settle(t, m, quota.Settlement{Account: "a", Request: c.after.String(), Secret: "s"}); have != c.want {
			t.Errorf("after %s: %s, want %s", c.after, have, c.want)
		}
	}
}

// TestRequestsThatCollide: who has the number of another's reservation neither repeats nor settles
// that.
func TestRequestsThatCollide(t *testing.T) {
	t.Parallel()
	m := NewMemory(time.Now, 10)
	order := func(account, request string) quota.Order {
		return quota.Order{Account: account, Request: request, Secret: "s", Keep: time.Hour, Charges: []quota.Charge{charge(quota.Month, 100, 1)}}
	}
	take(t, m, order("a", "1"))
	hash := m.hash("a")
	kept := m.shard(hash).reservations[m.reservationID(hash, "1")]
	for _, other := range []quota.Order{order("a", "2"), order("b", "1")} {
		m.putReservation(other.Account, other.Request, kept)
		if outcome := settle(t, m, quota.Settlement{Account: other.Account, Request: other.Request, Secret: "s"}); outcome != quota.NotFound {
			t.Errorf("%s of %s is settled for another: %s", other.Request, other.Account, outcome)
		}
		if taken := take(t, m, other); taken.Repeated {
			t.Errorf("%s of %s is answered as another: %+v", other.Request, other.Account, taken)
		}
	}
}

// TestReservationsOfAClockThatWasAhead make room as old ones do: else their shard would keep none
// until the clock is there again, and estimates would stand.
func TestReservationsOfAClockThatWasAhead(t *testing.T) {
	t.Parallel()
	noon := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	now := noon.Add(24 * time.Hour)
	m := NewMemory(func() time.Time { return now }, 2)
	most := m.reservations.own + int(m.reservations.rest.left.Load()) // of one shard
	order := func(i int) quota.Order {
		return quota.Order{Account: "a", Request: strconv.Itoa(i), Secret: "s", Keep: time.Hour, Charges: []quota.Charge{charge(quota.Day, 1_000_000, 1)}}
	}
	for i := range most + 1 { // one more than there is room for
		take(t, m, order(i))
	}
	now = noon
	for i := range 2 {
		if taken := take(t, m, order(most+1+i)); taken.Secret != "s" {
			t.Errorf("reservation %d is not kept when the clock is right again", i)
		}
	}
}
