package store

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

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
	for end := time.Now().Add(time.Minute); !ask(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not so after a minute: %s", what)
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
	becomes(t, "Redis has the function", func() bool { // whose loading may take longer than the store's time-out
		_, err := r.Take(t.Context(), of("warm", charge(quota.Month, quota.NoMax, 1)))
		return err == nil
	})
	for part := range r.parts() {
		r.warm(t.Context(), part)
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
	if err := f.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "not reached since") {
		t.Errorf("Redis is not there, and Ping says %v", err)
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

// TestLookWhereAllPass: without Redis a look says of requests that all pass that they do,
// whatever is used.
func TestLookWhereAllPass(t *testing.T) {
	t.Parallel()
	limiter := quota.NewLimiter(fallbackOn(noRedis(t), nil))
	tier := quota.Tier{Name: "any", OnFailure: quota.Allow, Limits: []quota.Limit{{Metric: quota.Requests, Window: quota.Month, Max: 1}}}
	r := quota.Request{Account: "a", Tier: quota.NewPlan(tier, quota.ByKey, nil), Resource: quota.DefaultResource, Priority: quota.Low, Cost: quota.Cost{Requests: 1}}
	for range 3 {
		if d, err := limiter.Look(t.Context(), r, time.Now()); err != nil || !d.Admitted || !d.Degraded {
			t.Errorf("a look: %+v, %v", d, err)
		}
		if d, err := limiter.Decide(t.Context(), r, time.Now()); err != nil || !d.Admitted {
			t.Errorf("a request: %+v, %v", d, err)
		}
	}
}

// A heldCall is a call of Redis that waits until it is said what becomes of it.
type heldCall struct {
	carryOut chan bool     // or fail as one that got no answer in time
	answered chan struct{} // one that is carried out, and its callers do not know yet
	goOn     chan struct{} // they are told
}

// holdCalls returns the calls that a store makes from now on.
func holdCalls(r *Redis) <-chan heldCall {
	calls := make(chan heldCall)
	r.lane = r.newLane(func(ctx context.Context, together []*operation) {
		c := heldCall{make(chan bool), make(chan struct{}), make(chan struct{})}
		calls <- c
		if !<-c.carryOut {
			fail(together, failed(context.DeadlineExceeded, true))
			return
		}
		r.sendTogether(ctx, together)
		close(c.answered)
		<-c.goOn
	})
	return calls
}

// TestOneThatFailsKnowsOfOthersUnderWay: a request without an answer of Redis is decided by what
// remains when those of its key that are under way are admitted, and by what Redis has answered to
// others as soon as it has, though none of them was told yet.
func TestOneThatFailsKnowsOfOthersUnderWay(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	for i, of3 := range []func(cost int64) quota.Charge{
		func(cost int64) quota.Charge { return charge(quota.Month, 3, cost) },
		func(cost int64) quota.Charge { return sliding(quota.Month, 3, cost) },
	} {
		account := strconv.Itoa(i)
		r := hastyStore(t, server.Options.RedisAddress, time.Minute)
		f := fallbackOn(r, nil)
		calls := holdCalls(r)
		later := func(cost int64) <-chan quota.Taken {
			taken := make(chan quota.Taken, 1)
			go func() {
				have, err := f.Take(t.Context(), of(account, of3(cost)))
				if err != nil {
					t.Error(err)
				}
				taken <- have
			}()
			return taken
		}
		fails, firstCall := later(1), <-calls
		passes, secondCall := later(3), <-calls
		if n := r.underWay(&quota.Order{Account: "another", Charges: []quota.Charge{of3(1)}}); n[0] != 0 {
			t.Errorf("%d of another key are under way, want 0", n[0])
		}
		firstCall.carryOut <- false
		wantTaken(t, <-fails, false, 3)
		secondCall.carryOut <- true
		<-secondCall.answered
		taken, err := f.part(account).ledger.take(of(account, of3(0)), manner{quota.Local, 1, false, nil}, f.now())
		if err != nil {
			t.Fatal(err)
		}
		wantTaken(t, taken, true, 3)
		close(secondCall.goOn)
		wantTaken(t, <-passes, true, 3)
	}
}
