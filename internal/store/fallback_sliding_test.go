package store

import (
	"context"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// TestShareOfWhatSlides: this instance admits its share of what remained, which grows as the
// window before weighs less, and what it has admitted itself weighs whole.
func TestShareOfWhatSlides(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 3, 1, 12, 0, 30, 0, time.UTC)
	l := newLedger(10_000) // so that no two share the room of one shard
	o := of("a", sliding(quota.Minute, 10, 1))
	l.note(o, &quota.Taken{Now: begin, Admitted: true, Used: []int64{2}, Before: []int64{8}})
	two := manner{quota.Local, 2, false, nil}
	for _, step := range []struct {
		after     time.Duration
		admits    int
		remaining int64
	}{
		{0, 2, 0},                 // half of 10 - 2 - 8 × 30/60
		{15 * time.Second, 1, 0},  // of 10 - 2 - 8 × 15/60
		{30 * time.Second, 1, 0},  // the next minute: of 10 - 2, less the 3 of its own
		{75 * time.Second, 3, 0},  // of 10 - 2 × 15/60, rounded up, less 3 × 15/60 and 1
		{90 * time.Second, 1, 0},  // the next: half of 10, less 4
		{10 * time.Minute, 5, 0},  // nothing before, nothing of its own
		{610 * time.Second, 0, 0}, // what it has admitted in this window stays
	} {
		now := begin.Add(step.after)
		n := 0
		for {
			taken, err := l.take(o, two, now)
			if err != nil {
				t.Fatal(err)
			}
			remaining := 10 - counts(&taken, 0, &o.Charges[0])
			if !taken.Admitted {
				if n != step.admits || remaining != step.remaining {
					t.Errorf("after %s: admits %d, %d remain: want %d and %d", step.after, n, remaining, step.admits, step.remaining)
				}
				break
			}
			if n++; n > 10 {
				t.Fatalf("after %s: admits all", step.after)
			}
		}
	}
	// When more fits follows from its half of what was used before.
	l.note(of("c", sliding(quota.Minute, 10, 1)), &quota.Taken{Now: begin, Used: []int64{2}, Before: []int64{8}})
	taken, err := l.take(of("c", sliding(quota.Minute, 10, 2)), two, begin)
	if err != nil {
		t.Fatal(err)
	}
	wantBoth(t, taken, true, 8, 4)
	// Where nothing remains, there is nothing to share.
	l.note(of("b", sliding(quota.Minute, 10, 1)), &quota.Taken{Now: begin, Used: []int64{6}, Before: []int64{8}})
	look := of("b", sliding(quota.Minute, 10, 1))
	if taken, err := l.take(look, two, begin); err != nil || taken.Admitted || counts(&taken, 0, &look.Charges[0]) != 10 {
		t.Errorf("%+v, %v", taken, err)
	}
}

// nearEdge returns a window that ends in 1 to 5 s, the longest of up to 1000 s.
func nearEdge(t *testing.T, now time.Time) quota.Window {
	t.Helper()
	for w := 1000 * quota.Second; w >= 4*quota.Second; w -= quota.Second {
		if _, end := w.Bounds(now); end.Sub(now) >= time.Second && end.Sub(now) < 5*time.Second {
			return w
		}
	}
	t.Fatal("there is no such window")
	return 0
}

// TestSlidingWindowEndsDuringAnOutage: what was admitted in the window before the current one
// is given back to that.
func TestSlidingWindowEndsDuringAnOutage(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	f := fallbackOn(hastyStore(t, server.Options.RedisAddress, time.Second), nil)
	p := f.part("a")
	take(t, f, of("a", charge(quota.Month, 100, 1))) // Redis has told its time
	w := nearEdge(t, f.now())
	order := func(cost int64) quota.Order { return of("a", sliding(w, 100, cost)) }
	wantBoth(t, take(t, f, order(5)), true, 5, 0)
	kill(t, server)
	first := take(t, f, order(3))
	wantBoth(t, first, true, 8, 0)
	_, end := w.Bounds(first.Now)
	becomes(t, "the window is over", func() bool { return !f.now().Before(end) })
	wantBoth(t, take(t, f, order(2)), true, 2, 8)
	p.ledger.sweep(f.now())
	start(t, server) // empty
	becomes(t, "all is given back", func() bool { f.mend(t.Context(), p); return allShared(f) })
	direct := redisStore(t, server)
	wantBoth(t, take(t, direct, order(0)), true, 2, 3)
	wantBoth(t, take(t, direct, order(1)), true, 3, 3)
	wantBoth(t, take(t, f, order(0)), true, 3, 3)
	if n := f.Totals(); n.Ended != 0 || n.Counts != 2 {
		t.Errorf("%d ended, %d given back: want 0 and 2", n.Ended, n.Counts)
	}
}

// TestOwedToTheWindowBefore: what Redis is yet to be given of it counts at once, and is added
// to what is there, whether anything has been counted since or not.
func TestOwedToTheWindowBefore(t *testing.T) {
	t.Parallel()
	f := fallbackOn(redisStore(t, redisServer(t)), nil)
	p := f.part("a")
	take(t, f, of("a", charge(quota.Month, 100, 1)))
	w := nearEdge(t, f.now())
	order := func(account string, limit, cost int64) quota.Order { return of(account, sliding(w, limit, cost)) }
	for _, account := range []string{"a", "b"} {
		wantBoth(t, take(t, f, order(account, 100, 5)), true, 5, 0)
		taken, err := p.ledger.take(order(account, 100, 3), manner{quota.Local, 1, false, nil}, f.now())
		if err != nil {
			t.Fatal(err)
		}
		wantBoth(t, taken, true, 8, 0)
	}
	_, end := w.Bounds(f.now())
	becomes(t, "the window is over", func() bool { return !take(t, f, of("c", sliding(w, 100, 0))).Now.Before(end) })
	wantBoth(t, take(t, f, order("a", 9, 4)), false, 0, 8)
	wantBoth(t, take(t, f, order("a", 9, 1)), true, 1, 8)
	f.mend(t.Context(), p)
	for account, used := range map[string]int64{"a": 1, "b": 0} {
		wantBoth(t, take(t, f, order(account, 100, 0)), true, used, 8)
		wantBoth(t, take(t, f, order(account, 100, 2)), true, used+2, 8)
	}
	// One that ends before the one before is dropped.
	b := &batch{account: "d", id: "late", counts: []given{{"requests/minute", quota.Minute.Slide(), 60_000, 180_000, 7}}}
	if _, used, err := addReply(f.send(t.Context(), []*batch{b})[0], 1); err != nil || used[0] != -1 || f.redis.client.Exists(t.Context(), "test:{d}:counts").Val() != 0 {
		t.Errorf("given to a window of 1970: %v %v", used, err)
	}
}

// TestAlgorithmIsChangedWithoutRedis: what was admitted is given to the window in which it was,
// and what was seen is that of the current window, whichever algorithm counted before.
func TestAlgorithmIsChangedWithoutRedis(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 3, 1, 12, 0, 30, 0, time.UTC)
	minute := begin.Truncate(time.Minute).UnixMilli()
	local := manner{quota.Local, 1, false, nil}
	charged := func(l *ledger, c quota.Charge, after time.Duration) quota.Taken {
		t.Helper()
		taken, err := l.take(of("a", c), local, begin.Add(after))
		if err != nil || !taken.Admitted {
			t.Fatalf("%+v, %v", taken, err)
		}
		return taken
	}
	wantGiven := func(l *ledger, after time.Duration, want ...given) {
		t.Helper()
		b := l.batch("a", begin.Add(after), func() string { return "one" })
		if b == nil || !slices.Equal(b.counts, want) {
			t.Errorf("given back: %+v, want %+v", b, want)
		}
	}

	l := newLedger(10)
	charged(l, charge(quota.Minute, 10, 3), 0)
	wantBoth(t, charged(l, sliding(quota.Minute, 10, 1), 40*time.Second), true, 1, 3)
	wantGiven(l, 45*time.Second,
		given{"requests/minute", quota.Minute.Slide(), minute + 60_000, minute + 180_000, 1},
		given{"requests/minute", quota.Minute.Slide(), minute, minute + 120_000, 3})

	l = newLedger(10)
	charged(l, sliding(quota.Minute, 10, 3), 0)
	charged(l, charge(quota.Minute, 10, 1), 10*time.Second)
	wantGiven(l, 45*time.Second, given{"requests/minute", quota.Minute, minute, minute + 60_000, 4})

	for _, w := range []quota.Window{quota.Minute, quota.Month} {
		l = newLedger(10)
		at, _ := w.Bounds(begin)
		_, end := w.Bounds(begin)
		l.note(of("a", sliding(w, 10, 0)), &quota.Taken{Now: at, Admitted: true, Used: []int64{2}, Before: []int64{0}})
		l.note(of("a", charge(w, 10, 0)), &quota.Taken{Now: end, Admitted: true, Used: []int64{5}})
		wantTaken(t, charged(l, charge(w, 10, 1), end.Sub(begin)), true, 6)
	}
}

// TestWhatIsOwedRefuses: what Redis refuses because of what it is yet to be given does not fit by
// what is told of it either, so that a limit is named that refuses.
func TestWhatIsOwedRefuses(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 4)) // to be the same each time
	begin := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	refused := 0
	for range 10_000 {
		now := begin.Add(time.Duration(random.Int64N(60_000)) * time.Millisecond)
		c := sliding(quota.Minute, 20, 1+random.Int64N(3))
		used, before := random.Int64N(12), random.Int64N(12)
		d := debt{used: random.Int64N(6) - 1}
		d.note(c, &own{mine: random.Int64N(12) - 2}, now)
		o := lessen(of("a", c), []debt{d})
		told := quota.Taken{Now: now, Used: []int64{used}, Before: []int64{before}}
		told.Admitted = !o.Charges[0].Exceeds(counts(&told, 0, &o.Charges[0]))
		d.tell(&told, 0, &c)
		if exceeds := c.Exceeds(counts(&told, 0, &c)); exceeds == told.Admitted {
			t.Fatalf("at %s, %d and %d used, %+v owed: admitted %t, and of %+v exceeds %t", now, used, before, d, told.Admitted, told, exceeds)
		}
		if !told.Admitted {
			refused++
		}
	}
	if refused < 1000 {
		t.Errorf("%d refused", refused)
	}
}

// byItself counts by a ledger alone, as one of some instances.
type byItself struct {
	ledger *ledger
	how    manner
	now    time.Time
}

func (b *byItself) Take(_ context.Context, o quota.Order) (quota.Taken, error) {
	return b.ledger.take(o, b.how, b.now)
}

func (b *byItself) Settle(_ context.Context, s quota.Settlement) (quota.Outcome, error) {
	outcome, _ := b.ledger.settle(s, b.how.instances, b.now)
	return outcome, nil
}

// TestItFitsThenWithoutRedis: a request that is refused passes at the moment that it is told, and
// not 1 ms before that, however many instances share the limit.
func TestItFitsThenWithoutRedis(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(5, 6)) // to be the same each time
	begin := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	refused := 0
	for range 3000 {
		const most = 12
		counts := &byItself{newLedger(10), manner{quota.Local, 1 + random.Int64N(3), false, nil}, begin}
		limits := []quota.Limit{{Metric: quota.Requests, Window: quota.Minute.Slide(), Max: most}}
		limiter, plan := quota.NewLimiter(counts), quota.NewPlan(quota.Tier{Limits: limits}, quota.ByKey, nil)
		ask := func(cost int64, look bool) quota.Decision {
			t.Helper()
			decide := limiter.Decide
			if look {
				decide = limiter.Look
			}
			r := quota.Request{Account: "a", Tier: plan, Resource: quota.DefaultResource, Priority: quota.Normal, Cost: quota.Cost{Requests: cost}}
			d, err := decide(t.Context(), r, counts.now)
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		seen := quota.Taken{Now: begin, Used: []int64{random.Int64N(6)}, Before: []int64{random.Int64N(7)}}
		counts.ledger.note(of("a", sliding(quota.Minute, most, 1)), &seen)
		for range 8 {
			counts.now = counts.now.Add(time.Duration(random.Int64N(30_000)) * time.Millisecond)
			cost := 1 + random.Int64N(most/counts.how.instances)
			d := ask(cost, false)
			if d.Used+d.Remaining != most || d.Remaining < 0 {
				t.Fatalf("%d used, %d remain", d.Used, d.Remaining)
			}
			if d.Admitted {
				continue
			}
			refused++
			at := counts.now
			counts.now = d.Reset.Add(-time.Millisecond)
			early := ask(cost, true).Admitted
			counts.now = d.Reset
			if then := ask(cost, true).Admitted; early || !then {
				t.Fatalf("%d of %d instances, refused at %s: at %s it fits %t, and 1 ms before %t", cost, counts.how.instances, at, d.Reset, then, early)
			}
			if random.IntN(2) == 0 {
				counts.now = at
			}
		}
	}
	if refused < 3000 {
		t.Errorf("%d refused", refused)
	}
}

// TestRepeatOfWhatSlid: Redis answers a repeat of what was admitted without it as the first was
// answered, with what was used in the windows before, which has been settled since.
func TestRepeatOfWhatSlid(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	f := fallbackOn(r, nil)
	p, now := f.part("a"), f.now()
	order := func(request string) quota.Order {
		return quota.Order{Account: "a", Request: request, Secret: "secret-" + request, Keep: 24 * time.Hour, Charges: []quota.Charge{
			tokens(quota.Tokens, quota.Hour.Slide(), 100, 5), charge(quota.Month, 100, 3), charge(quota.Day.Slide(), 100, 2),
		}}
	}
	var first quota.Taken
	for request, at := range []time.Time{now.Add(-24 * time.Hour), now.Add(-time.Hour), now} {
		var err error
		if first, err = p.ledger.take(order(strconv.Itoa(request)), manner{quota.Local, 1, false, nil}, at); err != nil {
			t.Fatal(err)
		}
	}
	if !f.giveBack(t.Context(), p) {
		t.Fatal("it is not given back")
	}
	wantOutcome(t, settle(t, r, settlement("1", 1)), quota.Settled)
	again := take(t, r, order("2"))
	if !again.Repeated || !slices.Equal(again.Used, first.Used) || !slices.Equal(again.Before, first.Before) || first.UsedBefore(0) != 5 {
		t.Errorf("%+v, want the first answer, %+v", again, first)
	}
}
