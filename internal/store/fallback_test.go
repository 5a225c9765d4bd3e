package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/devstack"
	"github.com/tiergate/tiergate/internal/quota"
)

// fallbackOn returns a Fallback on a Redis. change changes its options.
func fallbackOn(r *Redis, change func(*FallbackOptions)) *Fallback {
	began := time.Now()
	o := FallbackOptions{
		Instance: "one", MaxAccounts: 100_000, MaxQueued: 100_000, AssumedInstances: 1,
		Now: time.Now, Elapsed: func() time.Duration { return time.Since(began) },
	}
	if change != nil {
		change(&o)
	}
	return NewFallback(r, o)
}

// runs runs a Fallback until the test ends, or the function that is returned is called,
// which returns what Run does.
func runs(t *testing.T, f *Fallback) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() { _ = stop() })
	return stop
}

// hastyStore is redisStore with the given time-out.
func hastyStore(t *testing.T, address string, timeout time.Duration) *Redis {
	t.Helper()
	r := NewRedis(RedisOptions{Address: address, KeyPrefix: "test", Timeout: timeout, PoolSize: 64})
	t.Cleanup(func() { r.Close() })
	return r
}

// noRedis is where none is.
func noRedis(t *testing.T) *Redis {
	t.Helper()
	address, err := devstack.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	return hastyStore(t, address, time.Second)
}

// becomes waits until something is so.
func becomes(t *testing.T, what string, ask func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(15 * time.Second); !ask(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not so after 15 s: %s", what)
		}
	}
}

func signal(t *testing.T, s *devstack.Stack, sig syscall.Signal) {
	t.Helper()
	if err := s.Redis.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// kill kills the server, and all it knows with it.
func kill(t *testing.T, s *devstack.Stack) {
	t.Helper()
	signal(t, s, syscall.SIGKILL)
	<-s.Redis.Done()
}

func start(t *testing.T, s *devstack.Stack) {
	t.Helper()
	if err := s.StartRedis(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// allShared reports whether all is in Redis.
func allShared(f *Fallback) bool {
	s := f.State()
	return !s.Degraded && s.Waiting == 0 && f.owing() == 0
}

// warm makes connections enough for calls at once, so that a stopped Redis has what is
// sent to it, and executes it when it goes on.
func warm(t *testing.T, r *Redis) {
	t.Helper()
	take(t, r, of("warm", charge(quota.Month, quota.NoMax, 1))) // Redis knows the script
	for part := range r.parts() {
		r.warm(t.Context(), part)
	}
}

// TestStoppedRedisIsNotWaitedFor: while Redis stands still no call takes longer than its
// time-out, and all but the first take nothing of it; the limit holds; when it goes on,
// everything that was admitted is counted there, once.
func TestStoppedRedisIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	const timeout, most = 200 * time.Millisecond, 1000
	server := redisServer(t)
	r := hastyStore(t, server.Options.RedisAddress, timeout)
	var told []string
	var mu sync.Mutex
	f := fallbackOn(r, func(o *FallbackOptions) {
		o.Notices.Began = func(out Outage) { mu.Lock(); told = append(told, "began: "+out.Err.Error()); mu.Unlock() }
		o.Notices.Ended = func(out Outage) { mu.Lock(); told = append(told, fmt.Sprintf("ended: %+v", out.Totals)); mu.Unlock() }
	})
	warm(t, r)
	runs(t, f)
	becomes(t, "the instance is counted", func() bool { return f.fleet.live.Load() == 1 })
	var admitted, degraded, slow atomic.Int64
	once := func() {
		began := time.Now()
		taken, err := f.Take(t.Context(), of("a", charge(quota.Month, most, 1)))
		if err != nil {
			t.Error(err)
			return
		}
		if time.Since(began) > 2*timeout {
			slow.Add(1)
		}
		if taken.Degraded {
			degraded.Add(1)
		}
		if taken.Admitted {
			admitted.Add(1)
		}
	}
	for range 100 {
		once()
	}
	signal(t, server, syscall.SIGSTOP)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 50 {
				once()
			}
		})
	}
	group.Wait()
	if n := degraded.Load(); n != 400 || slow.Load() != 0 {
		t.Errorf("%d of 400 decided without Redis, %d slow", n, slow.Load())
	}
	if s := f.State(); !s.Degraded || s.Err == nil {
		t.Errorf("%+v", s)
	}
	signal(t, server, syscall.SIGCONT)
	began := time.Now()
	becomes(t, "counts are shared again", func() bool { return allShared(f) })
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("counts are shared again after %s: want 2 s", took)
	}
	direct := redisStore(t, server)
	if used := take(t, direct, of("a", charge(quota.Month, most, 0))).Used[0]; used != admitted.Load() {
		t.Errorf("%d used, %d admitted", used, admitted.Load())
	}
	for range 8 {
		group.Go(func() {
			for range 100 {
				once()
			}
		})
	}
	group.Wait()
	if n := admitted.Load(); n != most {
		t.Errorf("%d admitted of %d", n, most)
	}
	becomes(t, "the end of the outage is told", func() bool { mu.Lock(); defer mu.Unlock(); return len(told) >= 2 })
	mu.Lock()
	defer mu.Unlock()
	if len(told) != 2 {
		t.Errorf("told: %q", told)
	}
	t.Log(told)
}

// TestNeverMoreThroughAnOutage: requests all the time while Redis stops and goes on several
// times get exactly the limit of a single instance.
func TestNeverMoreThroughAnOutage(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	r := hastyStore(t, server.Options.RedisAddress, 50*time.Millisecond)
	warm(t, r)
	f := fallbackOn(r, nil)
	runs(t, f)
	var group sync.WaitGroup
	var admitted [20]atomic.Int64
	done := make(chan struct{})
	for k := range 8 {
		group.Go(func() {
			for i := k; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				account := i % len(admitted)
				taken, err := f.Take(t.Context(), of("a"+strconv.Itoa(account), charge(quota.Month, 1500, 1)))
				if err != nil {
					t.Error(err)
					return
				}
				if taken.Admitted {
					admitted[account].Add(1)
				}
				if taken.Degraded {
					<-time.After(time.Millisecond) // else the limit is reached in no time
				}
			}
		})
	}
	for range 3 {
		signal(t, server, syscall.SIGSTOP)
		becomes(t, "degraded", func() bool { return f.State().Degraded })
		<-time.After(100 * time.Millisecond)
		signal(t, server, syscall.SIGCONT)
		becomes(t, "back", func() bool { return !f.State().Degraded })
	}
	becomes(t, "all limits are reached", func() bool {
		for i := range admitted {
			if admitted[i].Load() < 1400 {
				return false
			}
		}
		return true
	})
	close(done)
	group.Wait()
	becomes(t, "counts are shared", func() bool { return allShared(f) })
	for i := range admitted {
		used := take(t, f, of("a"+strconv.Itoa(i), charge(quota.Month, 1500, 0))).Used[0]
		if n := admitted[i].Load(); n > 1500 || used < n || used > n+24 {
			t.Errorf("account %d: %d admitted of 1500, %d used: want as many, and those that Redis admitted and nobody heard of", i, n, used)
		}
	}
}

// TestKilledRedis: a Redis that is gone is noticed by its first refusal; when it is back,
// empty, it gets what was admitted while it was away, and no more.
func TestKilledRedis(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	f := fallbackOn(hastyStore(t, server.Options.RedisAddress, time.Second), nil)
	runs(t, f)
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 6))), true, 6)
	kill(t, server)
	began := time.Now()
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 3))), true, 9) // of what remained
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 2))), false, 9)
	wantTaken(t, take(t, f, of("b", charge(quota.Month, 10, 2), charge(quota.Week, 2, 2))), true, 2, 2)
	if took := time.Since(began); took > 500*time.Millisecond {
		t.Errorf("three requests took %s", took)
	}
	start(t, server)
	becomes(t, "counts are shared again", func() bool { return allShared(f) })
	direct := redisStore(t, server)
	wantTaken(t, take(t, direct, of("a", charge(quota.Month, 10, 0))), true, 3)
	wantTaken(t, take(t, direct, of("b", charge(quota.Month, 10, 0), charge(quota.Week, 2, 0))), true, 2, 2)
	if n := f.Totals(); n.Local != 3 || n.Accounts != 2 || n.Counts != 3 || n.Ended != 0 {
		t.Errorf("%+v", n)
	}
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 1))), true, 4)
	keys := direct.client.Keys(t.Context(), "*").Val()
	for _, key := range keys {
		if ttl := direct.client.PTTL(t.Context(), key).Val(); ttl <= 0 {
			t.Errorf("%s has no TTL", key)
		}
	}
}

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
	if _, err := p.ledger.take(o, manner{quota.Local, 1, false}, f.now()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.ledger.take(of("a", charge(quota.Month, 100, 5)), manner{quota.Local, 1, false}, f.now()); err != nil {
		t.Fatal(err)
	}
	proxy.losing.Store(true)
	if f.giveBack(t.Context(), p) {
		t.Error("the lost answer arrived")
	}
	month := of("a", charge(quota.Month, 100, 0))
	wantTaken(t, take(t, direct, month), true, 16)
	// In between, it is counted as what may not have arrived, and more is admitted.
	if taken, err := p.ledger.take(of("a", charge(quota.Month, 100, 2)), manner{quota.Local, 1, false}, f.now()); err != nil || taken.Used[0] != 18 {
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

// TestOwedIsKeptFree: what is yet to be given back is not given away by Redis meanwhile.
func TestOwedIsKeptFree(t *testing.T) {
	t.Parallel()
	f := fallbackOn(redisStore(t, redisServer(t)), nil)
	p := f.part("a")
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 1))), true, 1)
	if _, err := p.ledger.take(of("a", charge(quota.Month, 10, 5)), manner{quota.Local, 1, false}, f.now()); err != nil {
		t.Fatal(err)
	}
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 5))), false, 6)
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 4))), true, 10)
	wantTaken(t, take(t, f, of("a", charge(quota.Month, quota.NoMax, 1))), true, 11)
	f.mend(t.Context(), p)
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 20, 1))), true, 12)
}

// TestDoubtEnds: what is in doubt is held against this instance until Redis says what is
// used, and no longer.
func TestDoubtEnds(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	proxy := newLossyProxy(t, server.Options.RedisAddress)
	f := fallbackOn(hastyStore(t, proxy.address, time.Second), nil)
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 1))), true, 1)
	proxy.losing.Store(true)
	doubtful := take(t, f, of("a", charge(quota.Month, 10, 2)))
	wantTaken(t, doubtful, true, 3)
	if !doubtful.Degraded || f.owing() > 0 {
		t.Errorf("%+v: want it in doubt", doubtful)
	}
	becomes(t, "another moment of Redis", func() bool {
		return take(t, f, of("a", charge(quota.Month, 10, 0))).Now.After(doubtful.Now)
	})
	kill(t, server)
	becomes(t, "Redis is missed", func() bool {
		_, _ = f.Take(t.Context(), of("b", charge(quota.Month, 10, 1)))
		return f.State().Degraded
	})
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 7))), true, 10)
}

// loadAdd gives back something, so that Redis knows the script: else an answer that is lost
// would be that it does not.
func loadAdd(t *testing.T, f *Fallback) {
	t.Helper()
	p := f.part("first")
	if _, err := p.ledger.take(of("first", charge(quota.Month, 100, 1)), manner{quota.Local, 1, false}, f.now()); err != nil {
		t.Fatal(err)
	}
	if !f.giveBack(t.Context(), p) {
		t.Fatal("it is not given back")
	}
}

// TestShares: instances that cannot reach Redis share what remained, rounded up, and a
// window that nobody has seen.
func TestShares(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	var fleet []*Fallback
	for i := range 3 {
		f := fallbackOn(hastyStore(t, server.Options.RedisAddress, time.Second), func(o *FallbackOptions) {
			o.Instance, o.AssumedInstances = strconv.Itoa(i), 7
		})
		if f.Instances() != 7 {
			t.Errorf("%d instances assumed: want 7", f.Instances())
		}
		runs(t, f)
		fleet = append(fleet, f)
	}
	for _, f := range fleet {
		becomes(t, "all three are known", func() bool { return f.Instances() == 3 })
	}
	for i := range int64(3) {
		wantTaken(t, take(t, fleet[0], of("a", charge(quota.Month, 10, 1))), true, i+1)
	}
	for _, f := range fleet[1:] {
		wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 0))), true, 3)
	}
	kill(t, server)
	for _, f := range fleet {
		for i := range int64(3) { // 7 remained: 3 for each, and the limit stays
			taken := take(t, f, of("a", charge(quota.Month, 10, 1)))
			wantTaken(t, taken, true, 8+i)
			if !taken.Degraded {
				t.Error("degraded is not said")
			}
		}
		wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 1))), false, 10)
		wantTaken(t, take(t, f, of("new", charge(quota.Month, 10, 4))), true, 10)
		wantTaken(t, take(t, f, of("new", charge(quota.Month, quota.NoMax, 4))), true, 8)
		if f.Instances() != 3 {
			t.Errorf("%d instances: want those last known", f.Instances())
		}
	}
	start(t, server)
	for _, f := range fleet {
		becomes(t, "counts are shared again", func() bool { return allShared(f) })
	}
	wantTaken(t, take(t, fleet[0], of("a", charge(quota.Month, 10, 0))), true, 9) // Redis forgot the 3 from before
	wantTaken(t, take(t, fleet[1], of("new", charge(quota.Month, 10, 0))), true, 24)
	if f := fleet[2]; f.Instances() != 3 {
		t.Errorf("%d instances after the outage: want 3", f.Instances())
	}
}

// TestInstancesComeAndGo: one that stops is no longer counted soon, nor one that is killed.
func TestInstancesComeAndGo(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	one := fallbackOn(r, nil)
	two := fallbackOn(r, func(o *FallbackOptions) { o.Instance = "two" })
	ctx := t.Context()
	one.beat(ctx, false)
	two.beat(ctx, false)
	one.beat(ctx, false)
	if one.Instances() != 2 || two.Instances() != 2 {
		t.Errorf("%d and %d instances: want 2", one.Instances(), two.Instances())
	}
	two.beat(ctx, true)
	for i := range fewerBeats {
		if one.Instances() != 2 {
			t.Errorf("one fewer after %d beats: want %d", i, fewerBeats)
		}
		one.beat(ctx, false)
	}
	if one.Instances() != 1 {
		t.Errorf("%d instances: want 1", one.Instances())
	}
	r.client.ZAdd(ctx, "test:{~fleet}:live", zAt(float64(time.Now().Add(-silent).UnixMilli()), "killed"))
	one.beat(ctx, false)
	if one.Instances() != 1 {
		t.Errorf("%d instances with one that is silent: want 1", one.Instances())
	}
	if ttl := r.client.PTTL(ctx, "test:{~fleet}:live").Val(); ttl <= 0 {
		t.Error("the fleet has no TTL")
	}
}

// TestWindowEndsDuringAnOutage: what belongs to a window that has ended is dropped, and
// what is given back is never in another.
func TestWindowEndsDuringAnOutage(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	r := hastyStore(t, server.Options.RedisAddress, time.Second)
	f := fallbackOn(r, nil)
	window := 3 * quota.Second
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
	b := &batch{account: "b", id: "late", counts: []given{{"requests/minute", 60_000, 120_000, 7}}}
	if _, used, err := addReply(f.send(t.Context(), []*batch{b})[0], 1); err != nil || used[0] != -1 || direct.client.Exists(t.Context(), "test:{b}:counts").Val() != 0 {
		t.Errorf("given to a window of 1970: %v %v", used, err)
	}
}

// TestWallClockJumps: windows go by Redis' clock and go on when it is away, whatever is
// done to the clock of this machine.
func TestWallClockJumps(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	var jump atomic.Int64
	f := fallbackOn(hastyStore(t, server.Options.RedisAddress, time.Second), func(o *FallbackOptions) {
		o.Now = func() time.Time { return time.Now().Add(time.Duration(jump.Load())) }
	})
	jump.Store(int64(-time.Hour))
	wantTaken(t, take(t, f, of("a", charge(quota.Day, 10, 4))), true, 4)
	kill(t, server)
	for _, by := range []time.Duration{40 * 24 * time.Hour, -40 * 24 * time.Hour} {
		jump.Store(int64(by))
		taken := take(t, f, of("a", charge(quota.Day, 10, 1)))
		if off := time.Since(taken.Now).Abs(); off > 5*time.Second || !taken.Degraded {
			t.Errorf("the clock is off by %s", off)
		}
	}
	wantTaken(t, take(t, f, of("a", charge(quota.Day, 10, 5))), false, 6)
}

// TestLongOutage: accounts whose windows have ended leave their room to others, though
// nothing could be given back.
func TestLongOutage(t *testing.T) {
	t.Parallel()
	now := time.Now()
	l := newLedger(1)
	first := of("a", charge(quota.Minute, 10, 1))
	other := "b"
	for i := 0; l.shard(other) != l.shard("a"); i++ {
		other = "b" + strconv.Itoa(i)
	}
	second := of(other, charge(quota.Minute, 10, 1))
	local := manner{quota.Local, 1, false}
	if _, err := l.take(first, local, now); err != nil {
		t.Fatal(err)
	}
	if _, err := l.take(second, local, now); !errors.Is(err, ErrFull) {
		t.Errorf("%v: want ErrFull", err)
	}
	now = now.Add(time.Minute)
	l.sweep(now.UnixMilli())
	if _, err := l.take(second, local, now); err != nil || l.owing.Load() != 1 || l.ended.Load() != 1 {
		t.Errorf("%v, %d owed, %d ended: want 1 and 1", err, l.owing.Load(), l.ended.Load())
	}
}

// TestNeverThereRedis: without Redis from the start an instance goes on by the wall clock
// and the assumed number of instances.
func TestNeverThereRedis(t *testing.T) {
	t.Parallel()
	f := fallbackOn(noRedis(t), func(o *FallbackOptions) { o.AssumedInstances = 4 })
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 1))), true, 8)
	if !f.State().Degraded {
		t.Error("a connection that is refused is not enough")
	}
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 2))), true, 10)
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 1))), false, 10)
	if err := f.Ping(t.Context()); err == nil {
		t.Error("Redis is not there, and Ping says nothing")
	}
}

// TestAnOutageThatComesAndGoes is one.
func TestAnOutageThatComesAndGoes(t *testing.T) {
	t.Parallel()
	var began, ended int
	f := fallbackOn(redisStore(t, redisServer(t)), func(o *FallbackOptions) {
		o.Notices.Began = func(Outage) { began++ }
		o.Notices.Ended = func(out Outage) {
			if ended++; out.Duration <= 0 || out.Totals.Local != 3 {
				t.Errorf("%+v", out)
			}
		}
	})
	p := f.part("a")
	for range 3 {
		for i := range mostFailures {
			if f.State().Degraded {
				t.Errorf("degraded after %d failures: want %d", i, mostFailures)
			}
			f.failed(p, errors.New("too slow"))
		}
		take(t, f, of("a", charge(quota.Month, 10, 1)))
		f.mend(t.Context(), p)
		f.outage.end(f, calm)
	}
	if began != 1 || ended != 0 {
		t.Errorf("began %d times, ended %d times: want 1 and 0", began, ended)
	}
	becomes(t, "it is over", func() bool { f.outage.end(f, calm); return ended == 1 })
	f.failed(p, errors.New("too slow"))
	take(t, f, of("a", charge(quota.Month, 10, 0))) // succeeds: the next are not in a row
	for range mostFailures - 1 {
		f.failed(p, errors.New("too slow"))
	}
	if f.State().Degraded || began != 1 {
		t.Error("failures that are not in a row are too many")
	}
}

// TestDenyAndAllow: an order says itself what becomes of it.
func TestDenyAndAllow(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	f := fallbackOn(hastyStore(t, server.Options.RedisAddress, time.Second), nil)
	deny, allow := of("a", charge(quota.Month, 3, 1)), of("a", charge(quota.Month, 3, 2))
	deny.OnFailure, allow.OnFailure = quota.Deny, quota.Allow
	wantTaken(t, take(t, f, deny), true, 1)
	kill(t, server)
	for range 5 {
		if _, err := f.Take(t.Context(), deny); !errors.Is(err, ErrAway) {
			t.Errorf("%v: want ErrAway", err)
		}
	}
	for i := range int64(3) {
		taken := take(t, f, allow)
		wantTaken(t, taken, true, 3+2*i)
		if !taken.Degraded {
			t.Error("degraded is not said")
		}
	}
	start(t, server)
	runs(t, f)
	becomes(t, "counts are shared again", func() bool { return allShared(f) })
	wantTaken(t, take(t, f, deny), false, 6)
	if n := f.Totals(); n.Denied != 5 || n.Allowed != 3 || n.Local != 0 {
		t.Errorf("%+v", n)
	}
}

// TestCallersHangUp: a caller who goes away neither breaks a connection nor is a failure.
func TestCallersHangUp(t *testing.T) {
	t.Parallel()
	f := fallbackOn(redisStore(t, redisServer(t)), nil)
	gone, hangUp := context.WithCancel(t.Context())
	hangUp()
	for i := range int64(5) {
		taken, err := f.Take(gone, of("a", charge(quota.Month, 100, 1)))
		if err != nil || taken.Degraded || taken.Used[0] != i+1 {
			t.Errorf("%+v, %v", taken, err)
		}
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

// TestOneLostAnswer: a single call that fails does not degrade the next, and what is in doubt
// counts as made.
func TestOneLostAnswer(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	proxy := newLossyProxy(t, server.Options.RedisAddress)
	f := fallbackOn(hastyStore(t, proxy.address, 5*time.Second), nil)
	runs(t, f)
	o := perMinuteAndDay("r")
	o.Charges = o.Charges[2:]
	take(t, f, of("a", tokens(quota.Tokens, quota.Day, 10_000, 1)))
	proxy.losing.Store(true)
	var taken quota.Taken
	becomes(t, "a request loses its answer, rather than a beat", func() bool {
		taken = take(t, f, o)
		if !taken.Degraded {
			proxy.losing.Store(true)
			o.Request += "r"
		}
		return taken.Degraded
	})
	if taken.Secret != o.Secret || !taken.Admitted || f.State().Degraded {
		t.Errorf("%+v", taken)
	}
	used := take(t, f, of("a", tokens(quota.Tokens, quota.Day, 10_000, 0)))
	if used.Degraded || used.Used[0]%100 != 1 || used.Used[0] < 101 || f.owing() != 0 {
		t.Errorf("the request in doubt counts as made: %+v", used)
	}
	wantOutcome(t, settle(t, f, quota.Settlement{Account: "a", Request: o.Request, Secret: o.Secret, Used: quota.Cost{Tokens: 20}}), quota.Settled)
	wantTaken(t, take(t, f, of("a", tokens(quota.Tokens, quota.Day, 10_000, 0))), true, used.Used[0]-80)
}

// TestStopWhileDegraded: what could not be given back is said; what can be is.
func TestStopWhileDegraded(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	f := fallbackOn(hastyStore(t, server.Options.RedisAddress, time.Second), nil)
	stop := runs(t, f)
	kill(t, server)
	take(t, f, of("a", charge(quota.Month, 10, 3)))
	if err := stop(); err == nil {
		t.Error("nothing is said of what is lost")
	} else {
		t.Log(err)
	}
	again := fallbackOn(hastyStore(t, server.Options.RedisAddress, time.Second), nil)
	take(t, again, of("a", charge(quota.Month, 10, 3)))
	start(t, server)
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if err := again.Run(done); err != nil {
		t.Error(err)
	}
	wantTaken(t, take(t, redisStore(t, server), of("a", charge(quota.Month, 10, 0))), true, 3)
}

// TestRefusedByRedis: what Redis refuses, because it is a replica, is not done there, and so
// given back.
func TestRefusedByRedis(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	direct := redisStore(t, server)
	f := fallbackOn(hastyStore(t, server.Options.RedisAddress, time.Second), nil)
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 1))), true, 1)
	address, err := devstack.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(address)
	if err := direct.client.Do(t.Context(), "replicaof", host, port).Err(); err != nil { // READONLY
		t.Fatal(err)
	}
	for i := range int64(5) {
		wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 1))), true, i+2)
	}
	if !f.State().Degraded {
		t.Error("not degraded")
	}
	if err := direct.client.Do(t.Context(), "replicaof", "no", "one").Err(); err != nil {
		t.Fatal(err)
	}
	runs(t, f)
	becomes(t, "counts are shared again", func() bool { return allShared(f) })
	wantTaken(t, take(t, direct, of("a", charge(quota.Month, 10, 0))), true, 6)
}

func zAt(score float64, member string) redis.Z { return redis.Z{Score: score, Member: member} }

// TestOneBadKeyDegradesNobodyElse: a key whose counts are of a wrong type in Redis fails alone.
func TestOneBadKeyDegradesNobodyElse(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	f := fallbackOn(r, nil)
	if err := r.patient.Set(t.Context(), countsKey(r.prefix, "bad"), "text", 0).Err(); err != nil {
		t.Fatal(err)
	}
	for range 2 * mostFailures {
		if taken := take(t, f, of("bad", charge(quota.Month, 1000, 1))); !taken.Degraded {
			t.Error("it is counted")
		}
	}
	if taken := take(t, f, of("good", charge(quota.Month, 1000, 1))); taken.Degraded || f.State().Degraded {
		t.Errorf("others are degraded too: %+v", f.State())
	}
}

// TestTimeOutsBesideAnswers: calls that take too long open nothing while others are answered.
func TestTimeOutsBesideAnswers(t *testing.T) {
	t.Parallel()
	f := fallbackOn(redisStore(t, redisServer(t)), nil)
	take(t, f, of("a", charge(quota.Month, 1000, 1)))
	for range 2 * mostFailures {
		f.failed(f.part("a"), context.DeadlineExceeded)
	}
	if f.State().Degraded {
		t.Error("Redis is taken for away, though it has just answered")
	}
}
