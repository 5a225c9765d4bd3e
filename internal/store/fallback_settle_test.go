package store

import (
	"errors"
	"maps"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
	"github.com/tiergate/tiergate/internal/quota"
)

// daily is an order of 100 tokens of a day.
func daily(request string) quota.Order {
	o := perMinuteAndDay(request)
	o.Charges = o.Charges[2:]
	return o
}

// tokensUsed looks at the counter of daily.
func tokensUsed(t *testing.T, counts quota.Counts) int64 {
	t.Helper()
	o := daily("")
	o.Charges[0].Cost = 0
	return take(t, counts, o).Used[0]
}

// twoOn returns two instances on a server, which run.
func twoOn(t *testing.T, server *devstack.Stack, timeout time.Duration) (one, two *Fallback) {
	t.Helper()
	one = fallbackOn(hastyStore(t, server.Options.RedisAddress, timeout), nil)
	two = fallbackOn(hastyStore(t, server.Options.RedisAddress, timeout), func(o *FallbackOptions) { o.Instance = "two" })
	for _, f := range []*Fallback{one, two} {
		runs(t, f)
	}
	for _, f := range []*Fallback{one, two} {
		becomes(t, "both are counted", func() bool { return f.Instances() == 2 })
	}
	return one, two
}

// TestSettlementsAroundAnOutage: a reservation made before, in or after an outage is
// settled in it or after it, once, through the instance that made it or the other.
func TestSettlementsAroundAnOutage(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	one, two := twoOn(t, server, time.Second)
	for _, r := range []string{"before", "before-other"} {
		take(t, one, daily(r))
	}
	// Of what Redis knows nothing is to be lost.
	if err := redisStore(t, server).client.Save(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	kill(t, server)
	for _, r := range []string{"in", "in-other", "in-after", "in-after-other"} {
		taken := take(t, one, daily(r))
		if !taken.Degraded || taken.Secret != "secret-"+r {
			t.Fatalf("%+v", taken)
		}
	}
	wantOutcome(t, settle(t, one, settlement("in", 10)), quota.Settled)
	wantOutcome(t, settle(t, one, settlement("in", 10)), quota.Duplicate)
	forged := settlement("in-after", 0)
	forged.Secret = "forged"
	wantOutcome(t, settle(t, one, forged), quota.NotFound)
	wantOutcome(t, settle(t, one, settlement("never", 10)), quota.Queued) // nobody knows better yet
	wantOutcome(t, settle(t, one, settlement("before", 10)), quota.Queued)
	wantOutcome(t, settle(t, two, settlement("before-other", 10)), quota.Queued)
	told := make(chan quota.Outcome, 3)
	for range 2 {
		waits := settlement("in-other", 10)
		waits.Then = func(o quota.Outcome) { told <- o }
		wantOutcome(t, settle(t, two, waits), quota.Queued)
	}
	if len(told) > 0 {
		t.Error("what waits is told of")
	}
	start(t, server)
	becomes(t, "all is given back", func() bool { return one.owing() == 0 && !one.State().Degraded && !two.State().Degraded })
	wantOutcome(t, settle(t, one, settlement("in-after", 10)), quota.Settled)
	wantOutcome(t, settle(t, two, settlement("in-after-other", 10)), quota.Settled)
	becomes(t, "all is settled", func() bool { return allShared(one) && allShared(two) })
	if used := tokensUsed(t, redisStore(t, server)); used != 60 {
		t.Errorf("%d used: want 10 for each of 6", used)
	}
	close(told)
	outcomes := map[quota.Outcome]int{}
	for o := range told {
		outcomes[o]++
	}
	if want := map[quota.Outcome]int{quota.Settled: 1, quota.Duplicate: 1}; !maps.Equal(outcomes, want) {
		t.Errorf("%v are told: want %v", outcomes, want)
	}
	if n := one.Totals(); n.Settled != 1 || n.Unknown != 1 || n.Queued != 2 || n.Lost != 0 {
		t.Errorf("%+v: want one settled, and one that nobody knew", n)
	}
	if n := two.Totals(); n.Settled != 2 || n.Duplicate != 1 || n.Queued != 3 {
		t.Errorf("%+v: want two settled, one of them twice", n)
	}
}

// TestRepeatsThroughAnOutage: an order that is repeated in or after an outage gets the
// answer of the first and is charged once.
func TestRepeatsThroughAnOutage(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	one, two := twoOn(t, server, time.Second)
	kill(t, server)
	again, only := daily("r"), daily("only") // that is kept for repeats only
	again.Secret = "another"
	only.Keep, only.Secret = 0, ""
	first, second := take(t, one, daily("r")), take(t, one, only)
	repeated := func(f *Fallback, degraded bool) {
		if taken := take(t, f, again); !taken.Repeated || taken.Secret != "secret-r" || taken.Used[0] != first.Used[0] || taken.Degraded != degraded {
			t.Errorf("%+v: want the first answer, %+v", taken, first)
		}
		if taken := take(t, f, only); !taken.Repeated || taken.Secret != "" || taken.Used[0] != second.Used[0] || taken.Degraded != degraded {
			t.Errorf("%+v: want the first answer, %+v", taken, second)
		}
		for _, secret := range []string{"", "-"} {
			forged := settlement("only", 10)
			forged.Secret = secret
			if outcome := settle(t, f, forged); outcome != quota.NotFound && outcome != quota.Queued { // until nobody knows better
				t.Errorf("%s, of a request that nothing settles", outcome)
			}
		}
	}
	for range 2 {
		repeated(one, true)
	}
	start(t, server)
	becomes(t, "counts are shared again", func() bool { return allShared(one) && allShared(two) })
	for _, f := range []*Fallback{one, two} {
		repeated(f, false)
	}
	becomes(t, "no settlement waits", func() bool { return allShared(one) && allShared(two) })
	if used := tokensUsed(t, one); used != 200 {
		t.Errorf("%d used: want 100 for each of two", used)
	}
}

// TestRepeatsOfWhatIsSettled: so does one that was settled in the outage, and its settlement is
// known to be one.
func TestRepeatsOfWhatIsSettled(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	one, two := twoOn(t, server, time.Second)
	kill(t, server)
	again := daily("r")
	again.Secret = "another"
	first := take(t, one, daily("r"))
	wantOutcome(t, settle(t, one, settlement("r", 10)), quota.Settled)
	start(t, server)
	becomes(t, "counts are shared again", func() bool { return allShared(one) && allShared(two) })
	for _, f := range []*Fallback{one, two} {
		if taken := take(t, f, again); taken.Secret != "secret-r" || taken.Used[0] != first.Used[0] {
			t.Errorf("%+v: want the first answer, %+v", taken, first)
		}
		wantOutcome(t, settle(t, f, settlement("r", 20)), quota.Duplicate)
	}
	if used := tokensUsed(t, one); used != 10 {
		t.Errorf("%d used: want 10", used)
	}
}

// TestSettledWhileOnItsWay: a settlement that comes while its reservation may have reached
// Redis or not waits until that is known, and counts once.
func TestSettledWhileOnItsWay(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	proxy := newLossyProxy(t, server.Options.RedisAddress)
	f := fallbackOn(hastyStore(t, proxy.address, 5*time.Second), nil)
	p := f.part("a")
	loadAdd(t, f)
	if _, err := p.ledger.take(daily("r"), manner{quota.Local, 1, false, nil}, f.now()); err != nil {
		t.Fatal(err)
	}
	tokensUsed(t, f)
	proxy.losing.Store(true)
	if f.giveBack(t.Context(), p) {
		t.Error("the lost answer arrived")
	}
	wantOutcome(t, settle(t, f, settlement("r", 10)), quota.Queued)
	if taken := take(t, f, daily("r")); taken.Secret != "secret-r" || !taken.Degraded { // Redis may not know it
		t.Errorf("the repeat: %+v", taken)
	}
	f.mend(t.Context(), p)
	if !allShared(f) {
		t.Error("something waits yet")
	}
	if used := tokensUsed(t, f); used != 10 {
		t.Errorf("%d used: want 10", used)
	}
}

// TestSettledTwiceWithoutRedis: what is settled here is that, also while it is on its way to
// Redis: its usage would be counted twice.
func TestSettledTwiceWithoutRedis(t *testing.T) {
	t.Parallel()
	f := fallbackOn(noRedis(t), nil)
	f.failed(f.part("a"), syscall.ECONNREFUSED)
	o := daily("r")
	take(t, f, o)
	wantOutcome(t, settle(t, f, settlement("r", 10)), quota.Settled)
	wantOutcome(t, settle(t, f, settlement("r", 10)), quota.Duplicate)
	f.part(o.Account).ledger.batch(o.Account, f.now(), f.batchName) // it is sent, and no answer comes
	wantOutcome(t, settle(t, f, settlement("r", 10)), quota.Duplicate)
	if n := f.State().Waiting; n != 0 {
		t.Errorf("%d settlements wait: want none", n)
	}
}

// TestSettledBeforeItIsGivenBack: an instance that has Redis back before another has given
// back its reservations lets their settlements wait.
func TestSettledBeforeItIsGivenBack(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	one := fallbackOn(hastyStore(t, server.Options.RedisAddress, time.Second), nil)
	two := fallbackOn(hastyStore(t, server.Options.RedisAddress, time.Second), func(o *FallbackOptions) { o.Instance = "two" })
	kill(t, server)
	take(t, one, daily("r"))
	take(t, two, of("b", charge(quota.Month, 10, 1)))
	start(t, server)
	becomes(t, "the second instance is back", func() bool { two.mend(t.Context(), two.part("a")); return allShared(two) })
	wantOutcome(t, settle(t, two, settlement("r", 10)), quota.Queued)
	two.mend(t.Context(), two.part("a"))
	becomes(t, "the first is", func() bool { one.mend(t.Context(), one.part("a")); return allShared(one) })
	becomes(t, "it is settled", func() bool { two.mend(t.Context(), two.part("a")); return allShared(two) })
	if used := tokensUsed(t, one); used != 10 {
		t.Errorf("%d used: want 10", used)
	}
}

// TestRefundsWithoutRedis: the share of a limit that may be refunded is shared too, and
// what was refunded is known to Redis afterwards.
func TestRefundsWithoutRedis(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	f := fallbackOn(hastyStore(t, server.Options.RedisAddress, time.Second), func(o *FallbackOptions) { o.AssumedInstances = 2 })
	kill(t, server)
	for i := range 10 {
		r := strconv.Itoa(i)
		take(t, f, daily(r))
		s := settlement(r, 0)
		s.RefundShare = 100 // 1,000 of 10,000, and so 500
		wantOutcome(t, settle(t, f, s), quota.Settled)
	}
	start(t, server)
	f.mend(t.Context(), f.part("a"))
	direct := redisStore(t, server)
	if used := tokensUsed(t, direct); used != 500 {
		t.Errorf("%d used: want 500", used)
	}
	for i := range 10 {
		r := "later" + strconv.Itoa(i)
		take(t, direct, daily(r))
		s := settlement(r, 0)
		s.RefundShare = 100
		wantOutcome(t, settle(t, direct, s), quota.Settled)
	}
	if used := tokensUsed(t, direct); used != 1000 {
		t.Errorf("%d used: want 1,000, since another 500 could be refunded", used)
	}
}

// TestQueueIsBounded: what finds no room in the queue is lost, and said to be. One key has
// half of it.
func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	f := fallbackOn(hastyStore(t, server.Options.RedisAddress, time.Second), func(o *FallbackOptions) { o.MaxQueued = 6 })
	for i := range 5 {
		take(t, f, daily(strconv.Itoa(i)))
	}
	if err := redisStore(t, server).client.Save(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	kill(t, server)
	for i := range 5 {
		outcome, err := f.Settle(t.Context(), settlement(strconv.Itoa(i), 10))
		if i < 3 && (err != nil || outcome != quota.Queued) || i >= 3 && !errors.Is(err, ErrQueueFull) {
			t.Errorf("settlement %d: %s, %v", i, outcome, err)
		}
	}
	start(t, server)
	runs(t, f)
	becomes(t, "those that wait are settled", func() bool { return allShared(f) })
	if used := tokensUsed(t, f); used != 3*10+2*100 {
		t.Errorf("%d used: want 230", used)
	}
	if n := f.Totals(); n.Settled != 3 || n.Lost != 2 || n.Queued != 3 {
		t.Errorf("%+v", n)
	}
}

// TestManyWaitInEachCall: each call waits for company, so that few in each would keep the last of a
// long queue from Redis for a minute and more.
func TestManyWaitInEachCall(t *testing.T) {
	t.Parallel()
	const n = 1280
	var calls atomic.Int64
	o := at(redisServer(t).Options.RedisAddress)
	o.Sent = func(int) { calls.Add(1) }
	f := fallbackOn(openRedis(t, o), nil)
	for i := range n {
		r := strconv.Itoa(i)
		order := daily(r)
		order.Charges[0].Cost = 2
		take(t, f, order)
		if _, err := f.enqueue(f.part("a"), settlement(r, 1)); err != nil {
			t.Fatal(err)
		}
	}
	calls.Store(0)
	f.settleWaiting(t.Context(), f.part("a"))
	if made := calls.Load(); made > n/16 { // some go alone on a machine that is busy
		t.Errorf("%d calls for %d settlements", made, n)
	}
	if used := tokensUsed(t, f); used != n || f.Totals().Settled != n {
		t.Errorf("%d used, %+v: want all %d to be settled", used, f.Totals(), n)
	}
}

// TestSettlementsWaitOn: where Redis goes away while those are brought to it that wait, none is
// lost, and they keep their order.
func TestSettlementsWaitOn(t *testing.T) {
	t.Parallel()
	const n = atOnce + 8
	server := redisServer(t)
	f := fallbackOn(hastyStore(t, server.Options.RedisAddress, time.Second), nil)
	p := f.part("a")
	for i := range n {
		r := strconv.Itoa(i)
		order := daily(r)
		order.Charges[0].Cost = 2
		take(t, f, order)
		if _, err := f.enqueue(p, settlement(r, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := redisStore(t, server).client.Save(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	kill(t, server)
	f.settleWaiting(t.Context(), p)
	if s := f.State(); !s.Degraded || s.Waiting != n || p.len() != n {
		t.Fatalf("%+v, %d in the queue: want Redis to be missed, and %d", s, p.len(), n)
	}
	for i, w := range p.waiting {
		if want := strconv.Itoa(i); w.settlement.Request != want {
			t.Fatalf("%s is number %s", w.settlement.Request, want)
		}
	}
	start(t, server)
	becomes(t, "all is settled", func() bool { f.mend(t.Context(), p); return allShared(f) })
	if used := tokensUsed(t, f); used != n || f.Totals().Settled != n {
		t.Errorf("%d used, %+v: want all %d to be settled", used, f.Totals(), n)
	}
}

// TestSettledAtABadKey: a settlement at which Redis fails, since other things stand in the keys of
// its account, is tried again in a while, and given up after some attempts. While Redis has no
// memory for any it is not given up.
func TestSettledAtABadKey(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	r := redisStore(t, server)
	f := standstillOn(r)
	p := f.part("a")
	take(t, f, daily("good"))
	if err := r.client.HSet(t.Context(), reservationKey("test", "a", "bad"), "no", "text").Err(); err != nil {
		t.Fatal(err)
	}
	full := func(memory string) {
		t.Helper()
		if err := r.client.ConfigSet(t.Context(), "maxmemory", memory).Err(); err != nil {
			t.Fatal(err)
		}
	}
	full("1")
	for _, request := range []string{"bad", "good"} {
		if _, err := f.enqueue(p, settlement(request, 10)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 * mostAnswers {
		f.settleWaiting(t.Context(), p)
		f.wait(patience)
		p.fine(f.options.Elapsed())
		if n := f.Totals(); n.Lost != 0 || f.State().Waiting != 2 {
			t.Fatalf("%+v, %d wait: want 2", n, f.State().Waiting)
		}
	}
	full("0")
	for range mostAnswers {
		f.settleWaiting(t.Context(), p)
		if n := f.Totals(); n.Settled != 1 || n.Lost != 0 || f.State().Waiting != 1 {
			t.Fatalf("%+v, %d wait: want 1 to be settled, and 1", n, f.State().Waiting)
		}
		asks(t, r, 0, "before it is time", func() { f.settleWaiting(t.Context(), p) })
		f.wait(patience)
	}
	f.settleWaiting(t.Context(), p)
	if n := f.Totals(); n.Settled != 1 || n.Lost != 1 || f.State().Waiting != 0 || f.State().Degraded {
		t.Errorf("%+v, %d wait: want 1 settled and 1 lost", n, f.State().Waiting)
	}
}

// TestManyReservations of one account are given back, more than go in one batch.
func TestManyReservations(t *testing.T) {
	t.Parallel()
	const n = 3*maxPromises + 7
	server := redisServer(t)
	f := fallbackOn(hastyStore(t, server.Options.RedisAddress, 2*time.Second), nil)
	kill(t, server)
	take(t, f, of("other", charge(quota.Month, 1, 0))) // the first to find out
	for i := range n {
		o := daily(strconv.Itoa(i))
		o.Charges[0].Cost = 2
		if taken := take(t, f, o); taken.Secret == "" {
			t.Fatalf("%+v", taken)
		}
	}
	start(t, server)
	f.mend(t.Context(), f.part("a"))
	if !allShared(f) {
		t.Error("something is not given back")
	}
	direct := redisStore(t, server)
	if used := tokensUsed(t, direct); used != 2*n {
		t.Errorf("%d used: want %d", used, 2*n)
	}
	for i := range n {
		wantOutcome(t, settle(t, direct, settlement(strconv.Itoa(i), 1)), quota.Settled)
	}
	if used := tokensUsed(t, direct); used != n {
		t.Errorf("%d used: want %d", used, n)
	}
}

// TestLedgerIsBounded: of accounts, those that owe nothing make room for those that are
// charged; reservations end with the room for them.
func TestLedgerIsBounded(t *testing.T) {
	t.Parallel()
	const most = 64 * 10
	l := newLedger(most)
	now := time.Now()
	for i := range 10 * most {
		l.note(of(strconv.Itoa(i), charge(quota.Month, 10, 1)), &quota.Taken{Now: now, Admitted: true, Used: []int64{1}})
	}
	size := func() (n int) {
		for i := range l.shards {
			n += len(l.shards[i].accounts)
		}
		return n
	}
	if size() != most {
		t.Errorf("%d accounts noted: want %d", size(), most)
	}
	full := 0
	for i := range 10 * most {
		if _, err := l.take(of("x"+strconv.Itoa(i), charge(quota.Month, 10, 1)), manner{quota.Local, 1, false, nil}, now); errors.Is(err, ErrFull) {
			full++
		}
	}
	if size() != most || full != 9*most {
		t.Errorf("%d accounts, %d refused: want %d and nine times as many", size(), full, most)
	}
	if _, err := l.take(of("y", charge(quota.Month, 10, 1)), manner{quota.Allow, 1, false, nil}, now); err != nil {
		t.Errorf("where all are to be admitted: %v", err)
	}
	kept := newLedger(1)
	free := func() int { return kept.room.own + int(kept.room.rest.left.Load()) } // for one shard
	room := free()
	for i := range 2 * minReservations {
		taken, err := kept.take(daily(strconv.Itoa(i)), manner{quota.Local, 1, false, nil}, now)
		if err != nil || !taken.Admitted && i < 100 {
			t.Fatal(taken, err)
		}
	}
	o := daily("r")
	o.Charges[0].Limit.Max = quota.NoMax
	for i := range 2 * room {
		o.Request = "n" + strconv.Itoa(i)
		taken, err := kept.take(o, manner{quota.Local, 1, false, nil}, now)
		if err != nil || !taken.Admitted || (taken.Secret != "") != (i < room-100) {
			t.Fatalf("%d: %+v %v", i, taken, err)
		}
	}
	kept.sweep(now.Add(2 * time.Hour))
	if kept.kept.Load() != 0 || free() != room {
		t.Errorf("%d reservations after their time, and room for %d: want it for %d", kept.kept.Load(), free(), room)
	}
}

// TestFloodsOfSettlements: whoever sends more settlements than may wait, for a key or for
// IDs of nobody, loses those of no other key, and what has left makes room.
func TestFloodsOfSettlements(t *testing.T) {
	t.Parallel()
	const most = 90
	f := fallbackOn(noRedis(t), func(o *FallbackOptions) { o.MaxQueued = most })
	f.failed(f.part("a"), syscall.ECONNREFUSED)
	n := 0
	flood := func(account func(i int) string, stranger bool) (waiting int) {
		for i := range 10 * most {
			n++
			s := settlement(strconv.Itoa(n), 1)
			s.Account, s.Stranger = account(i), stranger
			switch outcome, err := f.Settle(t.Context(), s); {
			case err == nil && outcome == quota.Queued:
				waiting++
			case !errors.Is(err, ErrQueueFull):
				t.Fatal(outcome, err)
			}
		}
		return waiting
	}
	if n := flood(func(i int) string { return "key_" + strconv.Itoa(i) }, true); n != most/2 {
		t.Errorf("%d of IDs of nobody wait: want half of %d", n, most)
	}
	if n := flood(func(int) string { return "a" }, false); n != 23 {
		t.Errorf("%d of one key wait: want half of the rest, 23", n)
	}
	if n := flood(func(int) string { return "b" }, false); n != 11 {
		t.Errorf("%d of another wait: want 11", n)
	}
	for i := range 10 {
		s := settlement("r", 1)
		s.Account = "true-" + strconv.Itoa(i)
		wantOutcome(t, settle(t, f, s), quota.Queued)
	}
	if n, lost := f.State().Waiting, f.Totals().Lost; n != 45+23+11+10 || lost != int64(3*10*most-45-23-11) {
		t.Errorf("%d wait, %d are lost", n, lost)
	}
	for _, account := range []string{"x", "y"} {
		s := settlement("r", 1)
		s.Account, s.Stranger = account, true
		f.queue.leave(s)
	}
	if n := flood(func(int) string { return "c" }, false); n != 2 {
		t.Errorf("%d more wait: want half of 3", n)
	}
}
