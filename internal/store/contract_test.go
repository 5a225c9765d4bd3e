package store

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/devstack"
	"github.com/tiergate/tiergate/internal/quota"
)

// redisServer starts a redis-server of the test's own and returns its stack and
// address.
func redisServer(t *testing.T) *devstack.Stack {
	t.Helper()
	address, err := devstack.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	s := &devstack.Stack{Options: devstack.Options{Dir: t.TempDir(), RedisAddress: address}}
	if err := s.StartRedis(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Down(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// redisStore returns a store on a server. The time-out is long, because the
// machine may be busy with other tests.
func redisStore(t *testing.T, s *devstack.Stack) *Redis {
	t.Helper()
	r := NewRedis(RedisOptions{Address: s.Options.RedisAddress, KeyPrefix: "test", Timeout: 10 * time.Second, PoolSize: 64})
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// eachStore runs a test against every store, and every form of Redis.
func eachStore(t *testing.T, test func(t *testing.T, counts quota.Counts)) {
	t.Helper()
	t.Parallel()
	kinds(t, test)
	for _, form := range forms() {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			test(t, formStore(t, form))
		})
	}
}

// eachKind runs a test, which may take all the machine has, against memory and Redis.
func eachKind(t *testing.T, test func(t *testing.T, counts quota.Counts)) {
	t.Helper()
	t.Parallel()
	kinds(t, test)
}

func kinds(t *testing.T, test func(t *testing.T, counts quota.Counts)) {
	t.Helper()
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		test(t, NewMemory(time.Now, 1000))
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		test(t, redisStore(t, redisServer(t)))
	})
	t.Run("fallback", func(t *testing.T) {
		t.Parallel()
		f := fallbackOn(redisStore(t, redisServer(t)), nil)
		runs(t, f)
		test(t, f)
	})
	t.Run("fallback without Redis", func(t *testing.T) {
		t.Parallel()
		test(t, fallbackOn(noRedis(t), nil))
	})
}

func take(t *testing.T, counts quota.Counts, o quota.Order) quota.Taken {
	t.Helper()
	taken, err := counts.Take(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return taken
}

func settle(t *testing.T, counts quota.Counts, s quota.Settlement) quota.Outcome {
	t.Helper()
	outcome, err := counts.Settle(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return outcome
}

// of is an order without an identity.
func of(account string, charges ...quota.Charge) quota.Order {
	return quota.Order{Account: account, Charges: charges}
}

func charge(window quota.Window, limit, cost int64) quota.Charge {
	return quota.Charge{
		Limit:   quota.Limit{Metric: quota.Requests, Window: window, Max: limit},
		Counter: "requests/" + window.String(), Cost: cost,
	}
}

func wantTaken(t *testing.T, taken quota.Taken, admitted bool, used ...int64) {
	t.Helper()
	if taken.Admitted != admitted || !slices.Equal(taken.Used, used) {
		t.Errorf("admitted %t, used %v: want %t, %v", taken.Admitted, taken.Used, admitted, used)
	}
}

func TestAdmitsUpToTheMaximum(t *testing.T) {
	eachStore(t, func(t *testing.T, counts quota.Counts) {
		c := charge(quota.Month, 3, 1)
		for i := range int64(3) {
			wantTaken(t, take(t, counts, of("a", c)), true, i+1)
		}
		for range 3 {
			wantTaken(t, take(t, counts, of("a", c)), false, 3)
		}
		wantTaken(t, take(t, counts, of("b", c)), true, 1)
		c.Cost = 2
		wantTaken(t, take(t, counts, of("b", c)), true, 3)
	})
}

func TestAllOrNone(t *testing.T) {
	eachStore(t, func(t *testing.T, counts quota.Counts) {
		large, small := charge(quota.Week, 10, 1), charge(quota.Month, 1, 1)
		wantTaken(t, take(t, counts, of("a", large, small)), true, 1, 1)
		wantTaken(t, take(t, counts, of("a", large, small)), false, 1, 1)
		wantTaken(t, take(t, counts, of("a", small, large)), false, 1, 1)
		wantTaken(t, take(t, counts, of("a", large)), true, 2)
	})
}

func TestChangedMaximumKeepsCounts(t *testing.T) {
	eachStore(t, func(t *testing.T, counts quota.Counts) {
		wantTaken(t, take(t, counts, of("a", charge(quota.Month, 10, 5))), true, 5)
		wantTaken(t, take(t, counts, of("a", charge(quota.Month, 3, 1))), false, 5)
		wantTaken(t, take(t, counts, of("a", charge(quota.Month, 6, 1))), true, 6)
		wantTaken(t, take(t, counts, of("a", charge(quota.Week, 6, 1), charge(quota.Month, 7, 1))), true, 1, 7)
		wantTaken(t, take(t, counts, of("a", charge(quota.Month, quota.NoMax, 1))), true, 8)
	})
}

func TestCostZeroLooks(t *testing.T) {
	eachStore(t, func(t *testing.T, counts quota.Counts) {
		wantTaken(t, take(t, counts, of("a", charge(quota.Month, 1, 0))), true, 0)
		wantTaken(t, take(t, counts, of("a", charge(quota.Month, 5, 5))), true, 5)
		wantTaken(t, take(t, counts, of("a", charge(quota.Month, 1, 0))), true, 5)
		wantTaken(t, take(t, counts, of("a", charge(quota.Month, 1, 0), charge(quota.Week, 9, 1))), true, 5, 1)
	})
}

func TestCountsSaturate(t *testing.T) {
	eachStore(t, func(t *testing.T, counts quota.Counts) {
		c := charge(quota.Month, quota.NoMax, quota.MaxUsed-1)
		wantTaken(t, take(t, counts, of("a", c)), true, quota.MaxUsed-1)
		wantTaken(t, take(t, counts, of("a", c)), true, quota.MaxUsed)
		wantTaken(t, take(t, counts, of("a", charge(quota.Month, quota.MaxMax, 1))), false, quota.MaxUsed)
	})
}

// TestNeverMoreUnderConcurrency: 64 callers at once get exactly the maximum.
func TestNeverMoreUnderConcurrency(t *testing.T) {
	eachStore(t, func(t *testing.T, counts quota.Counts) {
		var admitted atomic.Int64
		var group sync.WaitGroup
		for range 64 {
			group.Go(func() {
				for range 50 {
					taken, err := counts.Take(t.Context(), quota.Order{Account: "a", Charges: []quota.Charge{charge(quota.Month.Slide(), 1000, 1), charge(quota.Week, 2000, 1)}})
					if err != nil {
						t.Error(err)
						return
					}
					if taken.Admitted {
						admitted.Add(1)
					}
				}
			})
		}
		group.Wait()
		if n := admitted.Load(); n != 1000 {
			t.Errorf("admitted %d of 1000", n)
		}
		wantTaken(t, take(t, counts, of("a", charge(quota.Week, 2000, 0))), true, 1000)
	})
}

// TestWindowEdges: three edges of windows of 1 s are crossed under load; none admits more than
// its maximum, and those that lie wholly in the test admit all of it.
func TestWindowEdges(t *testing.T) {
	eachKind(t, func(t *testing.T, counts quota.Counts) {
		const most, edges = 100, 3
		var mu sync.Mutex
		admitted := map[int64]int64{} // by the window's start
		var over atomic.Bool
		end := time.Now().Add(15 * time.Second) // should the clock stand still
		var group sync.WaitGroup
		for range 16 {
			group.Go(func() {
				for !over.Load() && time.Now().Before(end) {
					taken, err := counts.Take(t.Context(), quota.Order{Account: "a", Charges: []quota.Charge{charge(quota.Second, most, 1)}})
					if err != nil {
						t.Error(err)
						return
					}
					start, n := windowStart(quota.Second, taken.Now), int64(0)
					if taken.Admitted {
						n = 1
					}
					mu.Lock()
					admitted[start] += n
					over.Store(len(admitted) > edges)
					mu.Unlock()
				}
			})
		}
		group.Wait()
		starts := slices.Sorted(maps.Keys(admitted))
		for i, start := range starts {
			n, whole := admitted[start], i > 0 && i < edges
			if n > most || (whole && n < most) {
				t.Errorf("the window at %d admitted %d of %d", start, n, most)
			}
		}
		if len(starts) <= edges {
			t.Errorf("saw %d windows, want more than %d", len(starts), edges)
		}
	})
}

// A scriptedRedis runs batch.lua with a time of the test's choice, and is otherwise the real thing.
// Redis forgets counters by its own time, and so keeps them for longerKept more: else those of windows
// that end within a millisecond would be gone before the test's time has moved.
type scriptedRedis struct {
	*Redis

	source string // of batch, with that time
	now    time.Time
}

const longerKept = time.Minute

func newScriptedRedis(t *testing.T, s *devstack.Stack) *scriptedRedis {
	t.Helper()
	common := strings.Replace(commonSource, "redis.call('TIME')", "{redis.call('GET', 'now'), 0}", 1)
	common = strings.Replace(common, "time[1] * 1000", "tonumber(time[1])", 1)
	longer := fmt.Sprintf("stop - clock + %d", longerKept.Milliseconds())
	common = strings.Replace(common, "stop - clock", longer, 1)
	if strings.Count(common, "'now'") != 1 || strings.Count(common, "tonumber(time[1])") != 1 || strings.Count(common, longer) != 1 {
		t.Fatal("common.lua does not ask for the time, or keep counters, where this test expects it")
	}
	r := &scriptedRedis{Redis: redisStore(t, s), source: common + slidingSource + batchSource}
	r.batch = newFunction(r.source)
	r.prefix = "scripted"
	return r
}

func (r *scriptedRedis) Take(ctx context.Context, o quota.Order) (quota.Taken, error) {
	op := &operation{order: &o}
	r.carryOut(ctx, op)
	return op.taken, op.err
}

func (r *scriptedRedis) Settle(ctx context.Context, s quota.Settlement) (quota.Outcome, error) {
	op := &operation{settlement: &s}
	r.carryOut(ctx, op)
	return op.outcome, op.err
}

func (r *scriptedRedis) carryOut(ctx context.Context, together ...*operation) {
	if err := r.client.Set(ctx, "now", r.now.UnixMilli(), 0).Err(); err != nil {
		fail(together, err)
		return
	}
	r.sendTogether(ctx, together)
}

// TestStoresAgree makes the same random calls to both stores: first by Redis'
// own time, which the memory store is fed; then by a time that wanders over
// decades, leaps over the edges of months and weeks, and now and then back.
func TestStoresAgree(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	t.Run("real time", func(t *testing.T) {
		t.Parallel()
		var now time.Time
		memory := NewMemory(func() time.Time { return now }, 1000)
		agree(t, redisStore(t, server), memory, 3000, func(taken quota.Taken) { now = taken.Now }, nil)
	})
	t.Run("any time", func(t *testing.T) {
		t.Parallel()
		scripted := newScriptedRedis(t, server)
		scripted.now = time.Date(1999, 12, 31, 23, 59, 0, 0, time.UTC)
		memory := NewMemory(func() time.Time { return scripted.now }, 1000)
		agree(t, scripted, memory, 6000, nil, func(random *rand.Rand) { scripted.now = wander(random, scripted.now) })
	})
}

// wander moves the time by anything from nothing to months, often to just
// around the end of a month.
func wander(random *rand.Rand, now time.Time) time.Time {
	switch random.IntN(6) {
	case 0:
		return now.Add(time.Duration(random.Int64N(int64(40 * 24 * time.Hour))))
	case 1:
		_, end := quota.Month.Bounds(now)
		return end.Add(time.Duration(random.IntN(3)-1) * time.Millisecond)
	case 2:
		_, end := quota.Week.Bounds(now)
		return end.Add(time.Duration(random.IntN(3)-1) * time.Millisecond)
	default:
		return now.Add(time.Duration(random.Int64N(int64(2 * time.Second))))
	}
}

// TestBatchesAgree: orders of many plans and settlements that go in one call, in any order,
// do what each would do by itself: where Redis keeps what it has worked out for the calls to come,
// where it soon forgets that, and where it keeps nothing.
func TestBatchesAgree(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	for _, form := range []string{"function", "forgets", "script"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			scripted := newScriptedRedis(t, redisServer(t))
			forgets := strings.Replace(scripted.source, "CACHED = 10000", "CACHED = 5", 1)
			switch {
			case forgets == scripted.source:
				t.Fatal("batch.lua does not say how much it keeps where this test expects it")
			case form == "forgets":
				scripted.batch = newFunction(forgets)
			case form == "script":
				scripted.batch = newScript(scripted.batch.text)
			}
			for i := range uint64(15) {
				scripted.prefix = form + strconv.FormatUint(i, 10)
				batchesAgree(t, scripted, seed+i)
			}
		})
	}
}

func batchesAgree(t *testing.T, scripted *scriptedRedis, seed uint64) {
	t.Helper()
	began := time.Now()
	scripted.now = time.Date(2026, 3, 1, 12, 0, 50, 0, time.UTC)
	memory := NewMemory(func() time.Time { return scripted.now }, 1000)
	random := rand.New(rand.NewPCG(seed, 0))
	var orders []quota.Order
	for range 10 {
		scripted.now = wander(random, scripted.now)
		together := operations(1+random.IntN(mostTogether), func(int) *operation {
			if len(orders) > 0 && random.IntN(3) == 0 {
				s := randomSettlement(random, orders)
				return &operation{settlement: &s}
			}
			o := randomOrder(random, len(orders), orders)
			repeats := slices.ContainsFunc(orders, func(other quota.Order) bool { return o.Request == other.Request })
			if len(orders) > 0 && random.IntN(2) == 0 && (!repeats || o.Keep > 0) { // the plan of another, but for the costs
				o.Charges = slices.Clone(orders[len(orders)-1].Charges)
				o.Charges[random.IntN(len(o.Charges))].Cost = random.Int64N(4)
			}
			orders = append(orders, o)
			return &operation{order: &o}
		})
		scripted.carryOut(t.Context(), together...)
		for i, op := range together {
			if op.err != nil {
				t.Fatalf("seed %d: %v", seed, op.err)
			}
			if op.order == nil {
				two := settle(t, memory, *op.settlement)
				if op.outcome != two && (op.outcome != quota.Duplicate || two != quota.NotFound) { // as in agreeOnSettling
					t.Fatalf("seed %d, %d of %d, settling %+v: Redis %s, memory %s", seed, i, len(together), op.settlement, op.outcome, two)
				}
				continue
			}
			one, two := op.taken, take(t, memory, *op.order)
			if !sameTaken(one, two) {
				t.Fatalf("seed %d, %d of %d at %s: %+v: Redis %+v, memory %+v", seed, i, len(together), scripted.now, op.order, one, two)
			}
			if one.Admitted && !one.Repeated && i > len(together)-10 {
				wantKept(t, scripted, op.order, one.Now, time.Since(began)+time.Second)
			}
		}
	}
}

// wantKept holds that what an order has taken is kept as long as it counts, but for the time that has
// passed since the first may have been counted.
func wantKept(t *testing.T, scripted *scriptedRedis, o *quota.Order, now time.Time, passed time.Duration) {
	t.Helper()
	ttl := scripted.client.PTTL(t.Context(), countsKey(scripted.prefix, o.Account)).Val() - longerKept
	for _, c := range o.Charges {
		_, end := c.Limit.Window.Bounds(now)
		if c.Limit.Window.Sliding() {
			_, end = c.Limit.Window.Bounds(end)
		}
		if left := end.Sub(now) - passed; c.Cost != 0 && left > 0 && ttl < left {
			t.Errorf("%s at %s: %s is kept for %s, want %s at the least", o.Account, now, c.Counter, ttl, left)
		}
	}
}

func sameTaken(one, two quota.Taken) bool {
	return one.Admitted == two.Admitted && slices.Equal(one.Used, two.Used) && slices.Equal(one.Before, two.Before) &&
		one.Now.UnixMilli() == two.Now.UnixMilli() && one.Repeated == two.Repeated && one.Secret == two.Secret
}

func agree(t *testing.T, first, memory quota.Counts, calls int, after func(quota.Taken), before func(*rand.Rand)) {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	var orders []quota.Order
	for i := range calls {
		if before != nil {
			before(random)
		}
		o := randomOrder(random, i, orders)
		one := take(t, first, o)
		if after != nil {
			after(one)
		}
		two := take(t, memory, o)
		if !sameTaken(one, two) {
			t.Fatalf("seed %d, call %d at %s: %+v: Redis %+v, memory %+v", seed, i, one.Now, o, one, two)
		}
		if !one.Repeated {
			checkInvariants(t, o.Charges, one)
		}
		orders = append(orders, o)
		if before != nil && random.IntN(2) == 0 {
			agreeOnSettling(t, first, memory, randomSettlement(random, orders))
		}
	}
}

// randomOrder is a new request, one without an identity, or a repeat.
func randomOrder(random *rand.Rand, i int, before []quota.Order) quota.Order {
	if len(before) > 0 && random.IntN(8) == 0 {
		return before[len(before)-1-random.IntN(min(len(before), 5))]
	}
	windows := []quota.Window{quota.Second, 2 * quota.Second, 90 * quota.Second, quota.Minute, quota.Day, quota.Week, quota.Month}
	kind := random.IntN(3)
	o := quota.Order{Account: "account" + strconv.Itoa(kind), Keep: 10_000 * time.Hour}
	for _, k := range random.Perm(len(windows))[:1+random.IntN(4)] {
		c := charge(windows[k], random.Int64N(12), random.Int64N(4)-random.Int64N(2)*random.Int64N(2))
		c.Limit.Metric = quota.Metrics()[random.IntN(4)]
		c.Counter = c.Limit.Metric.String() + "/" + windows[k].String()
		if kind == 1 || kind == 2 && random.IntN(2) == 0 { // those of account0 are fixed, those of account2 change
			c.Limit.Window = windows[k].Slide()
		}
		o.Charges = append(o.Charges, c)
	}
	if kind == 2 { // so that Redis keeps what a fixed limit has counted, as Memory does until it sweeps
		o.Charges = append(o.Charges, charge(366*quota.Day, quota.MaxMax, 1))
	}
	if random.IntN(2) == 0 {
		o.Keep = 0
	}
	if random.IntN(3) > 0 {
		o.Request = "r" + strconv.Itoa(i)
		if o.Keep > 0 {
			o.Secret = "s" + strconv.Itoa(i)
		}
	}
	return o
}

// randomSettlement is one of a late order, which may be kept for repeats only.
func randomSettlement(random *rand.Rand, orders []quota.Order) quota.Settlement {
	o := orders[len(orders)-1-random.IntN(min(len(orders), 20))]
	used := func() int64 { return random.Int64N(1+random.Int64N(12)) - 1 }
	s := quota.Settlement{
		Account: o.Account, Request: o.Request, Secret: o.Secret, OnlyRaise: random.IntN(3) == 0,
		Used: quota.Cost{Requests: 1, Tokens: used(), InputTokens: used(), OutputTokens: used()},
	}
	switch random.IntN(8) {
	case 0:
		s.Secret += "x"
	case 1:
		s.RefundShare, s.OnlyRaise = random.Int64N(1001), false
	case 2:
		s.Secret = s.Secret[:len(s.Secret)/2]
	case 3:
		s.Void = true
	}
	return s
}

func agreeOnSettling(t *testing.T, first, memory quota.Counts, s quota.Settlement) {
	t.Helper()
	one, two := settle(t, first, s), settle(t, memory, s)
	// Memory forgets what is settled by the test's time, Redis by its own.
	if one != two && (one != quota.Duplicate || two != quota.NotFound) {
		t.Fatalf("settling %+v: Redis %s, memory %s", s, one, two)
	}
}

// checkInvariants holds for any store, whatever it agrees with.
func checkInvariants(t *testing.T, charges []quota.Charge, taken quota.Taken) {
	t.Helper()
	refusing := 0
	for i, c := range charges {
		used := counts(&taken, i, &c)
		if taken.Admitted && c.Cost > 0 && used > c.Limit.Max {
			t.Errorf("%s: admitted to %d of %d", c.Counter, used, c.Limit.Max)
		}
		if taken.Used[i] < 0 || used < taken.Used[i] || (used > taken.Used[i] && !c.Limit.Window.Sliding()) {
			t.Errorf("%s: %d used, of which %d in the current window", c.Counter, used, taken.Used[i])
		}
		if !taken.Admitted && c.Exceeds(used) {
			refusing++
		}
	}
	if !taken.Admitted && refusing == 0 {
		t.Errorf("refused, but no limit is exceeded: %+v %+v", charges, taken)
	}
}

// TestEveryRedisKeyHasATTL: as long as its longest open window, no longer, and
// never cut short by a request with shorter windows.
func TestEveryRedisKeyHasATTL(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	r := redisStore(t, server)
	taken := take(t, r, of("a", charge(quota.Month, 10, 1), charge(quota.Minute, 10, 1)))
	_, end := quota.Month.Bounds(taken.Now)
	take(t, r, of("a", charge(quota.Minute, 10, 1)))
	take(t, r, of("b", charge(quota.Second, 10, 1)))
	take(t, r, of("c", charge(quota.Second, 10, 0)))
	keys, err := r.client.Keys(t.Context(), "*").Result()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(keys, "test:{a}:counts") || slices.Contains(keys, "test:{c}:counts") {
		t.Errorf("keys %q: want test:{a}:counts, and none for c, which only looked", keys)
	}
	ttl := r.client.PTTL(t.Context(), "test:{a}:counts").Val()
	if left := end.Sub(taken.Now); ttl > left || ttl < left-time.Minute {
		t.Errorf("TTL %s: want %s", ttl, left)
	}
	if ttl := r.client.PTTL(t.Context(), "test:{b}:counts").Val(); ttl == -1 || ttl > time.Second {
		t.Errorf("TTL %s: want at most a second", ttl)
	}
}

// TestOneCommandPerRequest: nothing but one call of the function is on the wire.
func TestOneCommandPerRequest(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	take(t, r, of("a", charge(quota.Month, 1000, 1)))
	if err := r.client.ConfigResetStat(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		take(t, r, of("a", charge(quota.Month, 1000, 1), charge(quota.Week, 1000, 1), charge(quota.Minute, 1000, 1)))
	}
	calls := commandCalls(t, r)
	if calls["fcall"] != 20 || calls["evalsha"] != 0 || calls["eval"] != 0 || calls["function"] != 0 {
		t.Errorf("20 requests made these calls: %v", calls)
	}
}

// commandCalls returns how often Redis has run each command, in scripts too.
func commandCalls(tb testing.TB, r *Redis) map[string]int {
	tb.Helper()
	info, err := r.client.Info(tb.Context(), "commandstats").Result()
	if err != nil {
		tb.Fatal(err)
	}
	numbers, err := devstack.ParseInfo(info)
	if err != nil {
		tb.Fatal(err)
	}
	calls := map[string]int{}
	for name, n := range numbers {
		calls[strings.TrimPrefix(name, "cmdstat_")] = int(n)
	}
	return calls
}

// TestStoppedRedis: a call gives up at its time-out and is not made again when
// Redis goes on.
func TestStoppedRedis(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	r := NewRedis(RedisOptions{Address: server.Options.RedisAddress, KeyPrefix: "test", Timeout: 100 * time.Millisecond, PoolSize: 4})
	defer r.Close()
	slow := redisStore(t, server)
	take(t, slow, of("a", charge(quota.Month, 1000, 1)))
	if err := r.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := server.Redis.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	const calls = 5
	for range calls {
		began := time.Now()
		if _, err := r.Take(t.Context(), quota.Order{Account: "a", Charges: []quota.Charge{charge(quota.Month, 1000, 1)}}); err == nil {
			t.Error("a stopped Redis answered")
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("a call took %s: want 100 ms", took)
		}
	}
	if err := server.Redis.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// Redis may still run what had arrived, each at most once.
	if used := take(t, slow, of("a", charge(quota.Month, 1000, 1))).Used[0]; used > calls+2 {
		t.Errorf("%d used after %d calls", used, calls+2)
	}
}

// TestRedisPassword: with the password it works, without it the error says so
// and names no secret.
func TestRedisPassword(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	admin := redisStore(t, server)
	if err := admin.client.ConfigSet(t.Context(), "requirepass", "open-sesame").Err(); err != nil {
		t.Fatal(err)
	}
	options := RedisOptions{Address: server.Options.RedisAddress, KeyPrefix: "test", Timeout: 10 * time.Second, PoolSize: 4, Access: RedisAccess{Password: apikey.Redacting("open-sesame")}}
	good := NewRedis(options)
	defer good.Close()
	wantTaken(t, take(t, good, of("a", charge(quota.Month, 10, 1))), true, 1)
	options.Access.Password = apikey.Redacting("guess-42")
	bad := NewRedis(options)
	defer bad.Close()
	_, err := bad.Take(t.Context(), quota.Order{Account: "a", Charges: []quota.Charge{charge(quota.Month, 10, 1)}})
	if err == nil || !strings.Contains(err.Error(), "WRONGPASS") || strings.Contains(err.Error(), "guess-42") {
		t.Errorf("error %v: want WRONGPASS and not the password", err)
	}
}

// TestUnreachableRedis: a store can be made without a server, and says what
// fails.
func TestUnreachableRedis(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	r := NewRedis(RedisOptions{Address: address, KeyPrefix: "test", Timeout: time.Second, PoolSize: 1})
	defer r.Close()
	if err := r.Ping(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "ping Redis: ") {
		t.Errorf("ping: %v", err)
	}
	if _, err := r.Take(t.Context(), quota.Order{Account: "a", Charges: []quota.Charge{charge(quota.Day, 1, 1)}}); err == nil || !strings.HasPrefix(err.Error(), "count in Redis: ") {
		t.Errorf("take: %v", err)
	}
}
