package store

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"github.com/tiergate/tiergate/internal/devstack"
	"github.com/tiergate/tiergate/internal/quota"
)

// free is an order of one request that no limit can refuse.
func free(account, request string) quota.Order {
	o := of(account, charge(quota.Month, quota.NoMax, 1))
	if request != "" {
		o.Request, o.Secret = request, "secret-"+request
	}
	return o
}

// newSlowProxy passes on what is said to a Redis and answered, at once until slow is called.
func newSlowProxy(t *testing.T, redis string) *toxiproxy.Proxy {
	t.Helper()
	address, err := devstack.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	proxy := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), "redis", address, redis)
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Stop)
	return proxy
}

// slow makes answers take so much longer, in whole ms.
func slow(t *testing.T, proxy *toxiproxy.Proxy, late time.Duration) {
	t.Helper()
	text := `{"name": "slow", "type": "latency", "stream": "downstream", "attributes": {"latency": ` + strconv.FormatInt(late.Milliseconds(), 10) + `}}`
	if _, err := proxy.Toxics.AddToxicJson(strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
}

// slowRedis is a store on a server whose answers take so much longer.
func slowRedis(t *testing.T, server *devstack.Stack, late time.Duration) *Redis {
	t.Helper()
	proxy := newSlowProxy(t, server.Options.RedisAddress)
	slow(t, proxy, late)
	return hastyStore(t, proxy.Listen, 5*time.Second)
}

// lookFree returns what Redis has counted.
func lookFree(t *testing.T, r *Redis) int64 {
	t.Helper()
	return take(t, r, of("a", charge(quota.Month, quota.NoMax, 0))).Used[0]
}

// TestUnlimitedDoesNotWait for a Redis that is 30 ms away, and is counted there to the last.
func TestUnlimitedDoesNotWait(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	f := fallbackOn(slowRedis(t, server, 30*time.Millisecond), nil)
	median := func(o quota.Order) time.Duration {
		var took []time.Duration
		for range 21 {
			began := time.Now()
			take(t, f, o)
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		return took[len(took)/2]
	}
	limited, unlimited := median(of("limited", charge(quota.Month, 1000, 1))), median(free("a", ""))
	t.Logf("limited %s, unlimited %s", limited, unlimited)
	if limited < 30*time.Millisecond || unlimited > limited/2 {
		t.Errorf("limited takes %s, unlimited %s: want 30 ms, and far less", limited, unlimited)
	}
	f.Drain(t.Context())
	if n := lookFree(t, redisStore(t, server)); n != 21 || f.AnsweredAhead() != 21 {
		t.Errorf("%d are counted, %d answered ahead: want 21", n, f.AnsweredAhead())
	}
}

// TestUsedGoesOn: one after the other, at one instance, Used counts every request, whatever
// has arrived of them.
func TestUsedGoesOn(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	for name, r := range map[string]*Redis{"fast": redisStore(t, server), "slow": slowRedis(t, server, 5*time.Millisecond)} {
		f := fallbackOn(r, nil)
		for i := range int64(500) {
			wantTaken(t, take(t, f, free(name, strconv.FormatInt(i, 10))), true, i+1)
		}
		look := of(name, charge(quota.Month, quota.NoMax, 0))
		wantTaken(t, take(t, f, look), true, 500)
		f.Drain(t.Context())
		wantTaken(t, take(t, f, look), true, 500)
		wantTaken(t, take(t, redisStore(t, server), look), true, 500)
		wantTaken(t, take(t, f, free(name, "")), true, 501)
	}
}

// TestUsedGoesOnWhereCallsFail: what was answered before its call failed is used all the time, on
// its way and then as something that Redis is owed.
func TestUsedGoesOnWhereCallsFail(t *testing.T) {
	t.Parallel()
	for range 100 {
		f := fallbackOn(noRedis(t), nil)
		for i := range int64(500) {
			wantTaken(t, take(t, f, free("a", "")), true, i+1)
		}
		f.Drain(t.Context())
		wantTaken(t, take(t, f, free("a", "")), true, 501)
	}
}

// TestUsedGoesOnAcrossWindows: it begins anew with each, and never goes back within one.
func TestUsedGoesOnAcrossWindows(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	f := fallbackOn(slowRedis(t, server, 5*time.Millisecond), nil)
	o := of("a", charge(quota.Second, quota.NoMax, 1), charge(quota.Month, quota.NoMax, 1))
	var start, last, total int64
	for windows := 0; windows < 4; {
		taken := take(t, f, o)
		total++
		if s := windowStart(quota.Second, taken.Now); s != start {
			windows++
			start, last = s, 0
		}
		if taken.Used[0] <= last || taken.Used[1] != total {
			t.Fatalf("used %v after %d and %d", taken.Used, last, total-1)
		}
		if last = taken.Used[0]; last%10 == 0 {
			f.Drain(t.Context())
		}
	}
	f.Drain(t.Context())
	if n := lookFree(t, redisStore(t, server)); n != total {
		t.Errorf("%d are counted, want %d", n, total)
	}
}

// TestUnlimitedAtTwoInstances: each knows of the other what Redis has answered, and nothing
// is counted twice or lost.
func TestUnlimitedAtTwoInstances(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	var group sync.WaitGroup
	fleet := []*Fallback{fallbackOn(redisStore(t, server), nil), fallbackOn(redisStore(t, server), func(o *FallbackOptions) { o.Instance = "two" })}
	for _, f := range fleet {
		group.Go(func() {
			last := int64(0)
			for range 1000 {
				if used := take(t, f, free("a", "")).Used[0]; used <= last {
					t.Errorf("used %d after %d", used, last)
				} else {
					last = used
				}
			}
			f.Drain(context.Background())
		})
	}
	group.Wait()
	for i, f := range fleet {
		wantTaken(t, take(t, f, of("a", charge(quota.Month, quota.NoMax, 0))), true, 2000+int64(i))
		wantTaken(t, take(t, f, free("a", "")), true, 2001+int64(i))
		f.Drain(t.Context())
	}
}

// TestUnlimitedIsCountedAtAStop: all that was answered before is in Redis.
func TestUnlimitedIsCountedAtAStop(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	f := fallbackOn(slowRedis(t, server, 20*time.Millisecond), nil)
	stop := runs(t, f)
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			for range 50 {
				take(t, f, free("a", ""))
			}
		})
	}
	group.Wait()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if n := lookFree(t, redisStore(t, server)); n != 1000 {
		t.Errorf("%d of 1000 are counted", n)
	}
	take(t, f, free("a", ""))
	if n := lookFree(t, redisStore(t, server)); n != 1001 {
		t.Errorf("after the stop it is answered before it is counted: %d", n)
	}
}

// TestUnlimitedRepeats are counted once, and each knows at last what it was.
func TestUnlimitedRepeats(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	var counted, repeated atomic.Int64
	fleet := []*Fallback{fallbackOn(slowRedis(t, server, 20*time.Millisecond), nil), fallbackOn(redisStore(t, server), nil)}
	for i := range 30 {
		for k, f := range []*Fallback{fleet[0], fleet[0], fleet[1]} {
			o := free("a", strconv.Itoa(i))
			o.Secret += strconv.Itoa(k)
			taken := take(t, f, o)
			if !taken.Admitted || taken.Secret != o.Secret {
				t.Fatalf("%+v", taken)
			}
			taken.Pending(func(again bool) {
				if again {
					repeated.Add(1)
				} else {
					counted.Add(1)
				}
			})
		}
	}
	for _, f := range fleet {
		f.Drain(t.Context())
	}
	if counted.Load() != 30 || repeated.Load() != 60 {
		t.Errorf("%d counted, %d repeated: want 30 and 60", counted.Load(), repeated.Load())
	}
	if n := lookFree(t, fleet[1].redis); n != 30 {
		t.Errorf("Redis has counted %d, want 30", n)
	}
	take(t, fleet[0], free("a", ""))
	fleet[0].Drain(t.Context())
	wantTaken(t, take(t, fleet[0], free("a", "")), true, 32)
}

// TestUnlimitedThatFails: what Redis has not heard of is given back to it, and what is in
// doubt is not, whatever the key's tier says of outages.
func TestUnlimitedThatFails(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	proxy := newLossyProxy(t, server.Options.RedisAddress)
	f := fallbackOn(hastyStore(t, proxy.address, time.Second), nil)
	o := free("a", "")
	o.OnFailure = quota.Deny
	take(t, f, o)
	f.Drain(t.Context())
	proxy.losing.Store(true)
	taken := take(t, f, o)
	wantTaken(t, taken, true, 2)
	f.Drain(t.Context())
	told := 0
	taken.Pending(func(repeated bool) {
		if told++; repeated {
			t.Error("what is in doubt is said to be a repeat")
		}
	})
	if f.owing() != 0 || told != 1 {
		t.Errorf("%d accounts are owed what is in doubt; it is told %d times that it is", f.owing(), told)
	}
	wantTaken(t, take(t, f, o), true, 3)
	f.Drain(t.Context())
	if n := lookFree(t, redisStore(t, server)); n != 3 {
		t.Errorf("%d are counted, want 3", n)
	}

	gone := fallbackOn(noRedis(t), nil)
	wantTaken(t, take(t, gone, o), true, 1)
	gone.Drain(t.Context())
	if gone.owing() != 1 || !gone.State().Degraded {
		t.Errorf("%d accounts are owed something, want 1", gone.owing())
	}
	if b := gone.part("a").ledger.batch("a", gone.now(), gone.batchName); len(b.counts) != 1 || b.counts[0].amount != 1 {
		t.Errorf("%+v", b)
	}
}

// TestTooManyAhead wait for their answers, as others do; so does what is to be settled, and
// a credit.
func TestTooManyAhead(t *testing.T) {
	t.Parallel()
	f := fallbackOn(redisStore(t, redisServer(t)), nil)
	ahead := func(o quota.Order) bool {
		taken := take(t, f, o)
		f.Drain(t.Context())
		return taken.Pending != nil
	}
	if !ahead(free("a", "")) {
		t.Fatal("nothing is answered ahead")
	}
	f.inFlight.Store(mostAhead)
	wantTaken(t, take(t, f, free("a", "")), true, 2)
	if n := lookFree(t, f.redis); n != 2 {
		t.Errorf("one too many does not wait: %d are counted", n)
	}
	f.inFlight.Store(0)
	kept := free("a", "r")
	kept.Keep = time.Minute
	mixed := free("a", "")
	mixed.Charges = append(mixed.Charges, charge(quota.Week, 10, 1))
	for name, o := range map[string]quota.Order{
		"settled": kept, "limited": mixed, "credit": of("a", charge(quota.Month, quota.NoMax, -1)), "look": of("a", charge(quota.Month, quota.NoMax, 0)),
	} {
		if ahead(o) {
			t.Errorf("%s: it is answered ahead", name)
		}
	}
}

// TestAnswersInAnyOrder: whichever answer comes first, Used goes on.
func TestAnswersInAnyOrder(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, order := range map[string][]int64{"as sent": {1, 2, 3}, "the other way": {3, 2, 1}, "mixed": {2, 1, 3}} {
		for _, apart := range []time.Duration{0, time.Millisecond} {
			l := newLedger(100)
			o := free("a", "")
			var start []int64
			for range 3 {
				_, start, _ = l.ahead(o, now)
			}
			for i, used := range order {
				taken := quota.Taken{Now: now.Add(time.Duration(used) * apart), Admitted: true, Used: []int64{used}}
				l.complete(o, start, taken)
				if look, _, _ := l.ahead(of("a", charge(quota.Month, quota.NoMax, 0)), now); look.Used[0] != 3 {
					t.Errorf("%s, %s apart: used %d after %d answers, want 3", name, apart, look.Used[0], i+1)
				}
			}
		}
	}
}

// TestARepeatAheadIsTakenBack: what turns out to be a repeat is not used any more.
func TestARepeatAheadIsTakenBack(t *testing.T) {
	t.Parallel()
	now := time.Now()
	l := newLedger(100)
	first, again := free("a", "r"), free("a", "r")
	again.Secret = "another"
	_, start, _ := l.ahead(first, now)
	l.ahead(again, now)
	answer := quota.Taken{Now: now, Admitted: true, Used: []int64{1}, Secret: first.Secret}
	l.complete(first, start, answer)
	answer.Repeated = true
	l.complete(again, start, answer)
	if next, _, _ := l.ahead(free("a", ""), now); next.Used[0] != 2 {
		t.Errorf("used %d, want 2", next.Used[0])
	}
}

// TestALimitedOrderIsNotHeldUpForEver by unlimited ones of the same counter, as where a
// route has a limit of its own (ratelimit.limit_override), or a trusted source names another
// tier: there is always one on its way.
func TestALimitedOrderIsNotHeldUpForEver(t *testing.T) {
	t.Parallel()
	r := slowRedis(t, redisServer(t), 20*time.Millisecond)
	r.options.Timeout = time.Second
	f := fallbackOn(r, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ended := make(chan struct{})
	_, _ = f.Take(ctx, free("a", ""))
	go func() {
		defer close(ended)
		for waits(ctx, time.Millisecond) {
			_, _ = f.Take(ctx, free("a", ""))
		}
	}()
	began := time.Now()
	limit, stop := context.WithTimeout(ctx, 8*time.Second)
	defer stop()
	taken, err := f.Take(limit, of("a", charge(quota.Month, 1000, 1)))
	took := time.Since(began)
	cancel()
	<-ended
	if took > r.options.Timeout*3/2 || err != nil || taken.Degraded {
		t.Errorf("it waited %s (%v, %+v)", took, err, taken)
	}
}

// TestALimitedOrderIsSentAfterwards: when what was answered ahead has been counted, so that Redis
// decides it by that.
func TestALimitedOrderIsSentAfterwards(t *testing.T) {
	t.Parallel()
	r := slowRedis(t, redisServer(t), 20*time.Millisecond)
	f := fallbackOn(r, nil)
	limited := of("a", charge(quota.Month, 1, 1))
	var sent, early atomic.Int64
	r.options.Sent = func(int) {
		if sent.Add(1) == 2 && f.part("a").ledger.inFlight(limited) {
			early.Add(1)
		}
	}
	r.lane = r.newLane(r.sendTogether)
	take(t, f, free("a", ""))
	wantTaken(t, take(t, f, limited), false, 1)
	if sent.Load() != 2 || early.Load() != 0 {
		t.Errorf("%d calls, the second while the first is on its way: %t", sent.Load(), early.Load() > 0)
	}
}

// TestALimitedOrderWaitsOneTimeOut: behind an unlimited one of the same counter too, where
// Redis answers neither.
func TestALimitedOrderWaitsOneTimeOut(t *testing.T) {
	t.Parallel()
	const timeout = time.Second
	server := redisServer(t)
	r := hastyStore(t, server.Options.RedisAddress, timeout)
	warm(t, r)
	f := fallbackOn(r, nil)
	take(t, f, free("a", ""))
	f.Drain(t.Context())
	signal(t, server, syscall.SIGSTOP)
	wantTaken(t, take(t, f, free("a", "")), true, 2)
	began := time.Now()
	taken := take(t, f, of("a", charge(quota.Month, 10, 5)))
	took := time.Since(began)
	wantTaken(t, taken, true, 7)
	if !taken.Degraded || took > timeout*3/2 {
		t.Errorf("it took %s: want no more than %s; %+v", took, timeout, taken)
	}
	f.Drain(t.Context())
	if n := f.part("a").failures.Load(); n != 2 {
		t.Errorf("%d calls failed and are awaited: want 2", n)
	}
	signal(t, server, syscall.SIGCONT)
	// What Redis was sent it carries out now; nothing of it is given back beside that.
	becomes(t, "Redis has counted all", func() bool { return lookFree(t, r) == 7 })
	if f.owing() != 0 {
		t.Error("what is in doubt is to be given back")
	}
}

// TestWhatIsLateDoesNotCountItself: an order that has waited for others is under way itself when it
// is decided. It is taken off what is, by as much as it counts there: nothing where it gives back.
func TestWhatIsLateDoesNotCountItself(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	r := hastyStore(t, server.Options.RedisAddress, time.Minute)
	f := fallbackOn(r, nil)
	calls := holdCalls(r)
	for _, c := range []struct{ cost, used int64 }{{5, 5}, {-2, 3}} {
		o := of("a", charge(quota.Month, 10, c.cost))
		answered := make(chan error, 1)
		go func() {
			_, err := f.redis.Take(t.Context(), o)
			answered <- err
		}()
		call := <-calls
		taken, err := f.decide(f.part("a"), o, true, errLate)
		if err != nil {
			t.Fatal(err)
		}
		wantTaken(t, taken, true, c.used)
		call.carryOut <- false
		if err := <-answered; err == nil {
			t.Error("a call that is to fail is answered")
		}
	}
}

// TestAPanicAheadIsOutlived: it is the failure of one order, which is in doubt.
func TestAPanicAheadIsOutlived(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	r := hastyStore(t, server.Options.RedisAddress, time.Second)
	var sent atomic.Int64
	r.options.Sent = func(int) {
		if sent.Add(1) == 1 {
			panic("one")
		}
	}
	r.lane = r.newLane(r.sendTogether)
	var told atomic.Int64
	f := fallbackOn(r, func(o *FallbackOptions) {
		o.Notices.Called = func(call string, _ time.Duration, err error) {
			if call == CallTake && errors.Is(err, errNotSent) {
				told.Add(1)
			}
		}
	})
	wantTaken(t, take(t, f, free("a", "")), true, 1)
	f.Drain(t.Context())
	if f.owing() != 0 || f.inFlight.Load() != 0 {
		t.Errorf("%d are owed something, %d on their way", f.owing(), f.inFlight.Load())
	}
	if n := f.part("a").failures.Load(); n != 1 || told.Load() != 1 {
		t.Errorf("it counts as %d failures and is told %d times: want 1", n, told.Load())
	}
	take(t, f, free("a", ""))
	f.Drain(t.Context())
	if n := lookFree(t, f.redis); n != 1 {
		t.Errorf("%d are counted, want 1", n)
	}
}
