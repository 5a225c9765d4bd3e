package store

import (
	"strconv"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// TestGivenOnce: where it is unknown whether a batch has arrived it is sent again, and
// counts once.
func TestGivenOnce(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	proxy := newLossyProxy(t, server.Options.RedisAddress)
	f := fallbackOn(hastyStore(t, proxy.address, 5*time.Second), nil)
	direct := redisStore(t, server)
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 100, 10))), true, 10)
	p := f.part("a")
	loadAdd(t, f)
	o := perMinuteAndDay("r")
	o.Charges = append(o.Charges, charge(quota.Month, 100, 1))
	if _, err := p.ledger.take(o, manner{quota.Local, 1, false, nil}, f.now()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.ledger.take(of("a", charge(quota.Month, 100, 5)), manner{quota.Local, 1, false, nil}, f.now()); err != nil {
		t.Fatal(err)
	}
	proxy.losing.Store(true)
	if f.giveBack(t.Context(), p) {
		t.Error("the lost answer arrived")
	}
	month := of("a", charge(quota.Month, 100, 0))
	wantTaken(t, take(t, direct, month), true, 16)
	// In between, it is counted as what may not have arrived, and more is admitted.
	if taken, err := p.ledger.take(of("a", charge(quota.Month, 100, 2)), manner{quota.Local, 1, false, nil}, f.now()); err != nil || taken.Used[0] != 18 {
		t.Errorf("%+v, %v", taken, err)
	}
	wantTaken(t, take(t, direct, of("a", charge(quota.Month, 100, 1))), true, 17)
	for range 2 { // the batch, and the rest
		if !f.giveBack(t.Context(), p) {
			t.Error("something is not given back")
		}
	}
	if f.owing() > 0 {
		t.Error("something is owed")
	}
	wantTaken(t, take(t, direct, month), true, 19)
	wantTaken(t, take(t, f, month), true, 19)
	wantOutcome(t, settle(t, direct, settlement("r", 30)), quota.Settled)
	wantTaken(t, take(t, direct, of("a", tokens(quota.Tokens, quota.Day, 10_000, 0))), true, 30)
}

// TestGivenAfterAll: a batch that did not arrive is kept, and what comes after it too.
func TestGivenAfterAll(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	f := fallbackOn(hastyStore(t, server.Options.RedisAddress, time.Second), nil)
	p := f.part("a")
	kill(t, server)
	take(t, f, of("a", charge(quota.Month, 10, 5)))
	if f.giveBack(t.Context(), p) {
		t.Error("given to nobody")
	}
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 2))), true, 7)
	start(t, server)
	becomes(t, "all is given back", func() bool { f.mend(t.Context(), p); return allShared(f) })
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 0))), true, 7)
}

// TestGivenToABadKey: what Redis finds wrong in the keys of one account is given up after some
// attempts. The others get theirs meanwhile, once, and Redis is taken for there.
func TestGivenToABadKey(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	f := fallbackOn(r, nil)
	p := f.part("bad")
	if err := r.client.Set(t.Context(), countsKey("test", "bad"), "text", 0).Err(); err != nil {
		t.Fatal(err)
	}
	for _, account := range []string{"bad", "good"} {
		if _, err := p.ledger.take(of(account, charge(quota.Month, 100, 5), charge(quota.Week, 100, 5)), manner{quota.Local, 1, false, nil}, f.now()); err != nil {
			t.Fatal(err)
		}
	}
	for attempt := range mostAnswers {
		last := attempt == mostAnswers-1
		if done := f.giveBack(t.Context(), p); done != last {
			t.Errorf("attempt %d: all is given back or given up: %t", attempt, done)
		}
		lost, owing := int64(0), int64(1)
		if last {
			lost, owing = 2, 0
		}
		if n := f.Totals(); n.Counts != 2 || n.LostCounts != lost || f.owing() != owing || f.State().Degraded {
			t.Errorf("attempt %d: %+v, %d are owed something: want %d lost and %d", attempt, n, f.owing(), lost, owing)
		}
	}
	wantTaken(t, take(t, r, of("good", charge(quota.Month, 100, 0), charge(quota.Week, 100, 0))), true, 5, 5)
}

// TestGivenForSoLong: a batch of which nobody knows whether it has arrived is sent as long as Redis
// would know it again. After that it counts as made.
func TestGivenForSoLong(t *testing.T) {
	t.Parallel()
	f := standstillOn(noRedis(t))
	p := f.part("a")
	if _, err := p.ledger.take(of("a", charge(quota.Month, 100, 5)), manner{quota.Local, 1, false, nil}, f.now()); err != nil {
		t.Fatal(err)
	}
	for _, after := range []time.Duration{0, giveTime - time.Millisecond} {
		f.wait(after)
		if f.giveBack(t.Context(), p) || f.owing() != 1 {
			t.Errorf("%s later: it is given up", after)
		}
	}
	f.wait(time.Millisecond)
	if !f.giveBack(t.Context(), p) || f.owing() != 0 {
		t.Error("it is sent after Redis would have forgotten it")
	}
	if n := f.Totals(); n.Counts != 0 || n.LostCounts != 0 {
		t.Errorf("%+v", n)
	}
}

// TestOwedIsKeptFree: what is yet to be given back is not given away by Redis meanwhile.
func TestOwedIsKeptFree(t *testing.T) {
	t.Parallel()
	f := fallbackOn(redisStore(t, redisServer(t)), nil)
	p := f.part("a")
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 1))), true, 1)
	if _, err := p.ledger.take(of("a", charge(quota.Month, 10, 5)), manner{quota.Local, 1, false, nil}, f.now()); err != nil {
		t.Fatal(err)
	}
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 5))), false, 6)
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 4))), true, 10)
	wantTaken(t, take(t, f, of("a", charge(quota.Month, quota.NoMax, 1))), true, 11)
	f.mend(t.Context(), p)
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 20, 1))), true, 12)
}

// loadAdd gives back something, so that Redis knows the script: else an answer that is lost
// would be that it does not.
func loadAdd(t *testing.T, f *Fallback) {
	t.Helper()
	p := f.part("first")
	if _, err := p.ledger.take(of("first", charge(quota.Month, 100, 1)), manner{quota.Local, 1, false, nil}, f.now()); err != nil {
		t.Fatal(err)
	}
	if !f.giveBack(t.Context(), p) {
		t.Fatal("it is not given back")
	}
}

// TestWindowEndsDuringAnOutage: what belongs to a window that has ended is dropped, and
// what is given back is never in another.
func TestWindowEndsDuringAnOutage(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	r := hastyStore(t, server.Options.RedisAddress, time.Second)
	f := fallbackOn(r, nil)
	const window = quota.Second
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 100, 1))), true, 1)
	kill(t, server)
	first := take(t, f, of("a", charge(window, 5, 2), charge(quota.Month, 100, 2)))
	wantTaken(t, first, true, 2, 3)
	_, end := window.Bounds(first.Now)
	becomes(t, "the window is over", func() bool { return !f.now().Before(end) })
	wantTaken(t, take(t, f, of("a", charge(window, 5, 5), charge(quota.Month, 100, 2))), true, 5, 5)
	_, end = window.Bounds(f.now())
	becomes(t, "another one too", func() bool { return !f.now().Before(end) })
	start(t, server)
	runs(t, f)
	becomes(t, "counts are shared again", func() bool { return allShared(f) })
	direct := redisStore(t, server)
	wantTaken(t, take(t, direct, of("a", charge(window, 5, 0), charge(quota.Month, 100, 0))), true, 0, 4)
	if n := f.Totals(); n.Ended != 2 || n.Counts != 1 {
		t.Errorf("%d ended, %d given back: want 2 and 1", n.Ended, n.Counts)
	}
	// Redis' own clock is what counts: a window that it has left gets nothing.
	b := &batch{account: "b", id: "late", counts: []given{{"requests/minute", quota.Minute, 60_000, 120_000, 7}}}
	if _, used, err := addReply(f.send(t.Context(), []*batch{b})[0], 1); err != nil || used[0] != -1 || direct.client.Exists(t.Context(), "test:{b}:counts").Val() != 0 {
		t.Errorf("given to a window of 1970: %v %v", used, err)
	}
}

// TestManyAccountsAreGivenBack within 2 s: 10,000 of them.
func TestManyAccountsAreGivenBack(t *testing.T) {
	t.Parallel()
	const accounts = 10_000
	server := redisServer(t)
	f := fallbackOn(hastyStore(t, server.Options.RedisAddress, 500*time.Millisecond), nil)
	runs(t, f)
	becomes(t, "the instance is counted", func() bool { return f.fleet.live.Load() == 1 })
	kill(t, server)
	for i := range accounts {
		take(t, f, of("a"+strconv.Itoa(i), charge(quota.Month, 100, 7), charge(quota.Week, 100, 7)))
	}
	start(t, server)
	began := time.Now()
	becomes(t, "counts are shared again", func() bool { return allShared(f) })
	t.Logf("%d accounts given back within %s", accounts, time.Since(began))
	if took := time.Since(began); took > 8*time.Second { // of a machine with better things to do; else 2 s
		t.Errorf("%d accounts took %s", accounts, took)
	}
	for i := range accounts {
		wantTaken(t, take(t, f, of("a"+strconv.Itoa(i), charge(quota.Month, 100, 0), charge(quota.Week, 100, 0))), true, 7, 7)
	}
}
