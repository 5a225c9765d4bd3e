package store

import (
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// TestRefusedKeyLeavesThePoolAlone: a key that has nothing left asks without end, many times at
// once, and nobody is shed for that.
func TestRefusedKeyLeavesThePoolAlone(t *testing.T) {
	eachKind(t, func(t *testing.T, counts quota.Counts) {
		if _, ok := counts.(quota.Recollection); !ok {
			return // it is behind one that is, wherever it counts
		}
		limiter := quota.NewLimiter(counts)
		var requests atomic.Int64
		ask := func(account string, limit int64) quota.Decision {
			r := pooled(account, limit)
			r.Pool = quota.NewPool("chat", []quota.Limit{{Metric: quota.Requests, Window: quota.Month, Max: 21}}, quota.UsualShares())
			r.ID = strconv.FormatInt(requests.Add(1), 10)
			d, err := limiter.Decide(t.Context(), r, time.Now())
			if err != nil {
				t.Error(err)
			}
			return d
		}
		ask("small", 1)
		ask("small", 1)
		stop := make(chan struct{})
		var group sync.WaitGroup
		for range 32 {
			group.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if d := ask("small", 1); d.Admitted || d.RefusedBy.Name() != "requests_per_month" {
						t.Errorf("the key with nothing left: admitted %t, refused by %s", d.Admitted, d.RefusedBy.Name())
						return
					}
				}
			})
		}
		for i := range 20 {
			if d := ask("large", 1000); !d.Admitted {
				t.Errorf("request %d of 20 is refused by %s", i, d.RefusedBy.Name())
			}
		}
		close(stop)
		group.Wait()
	})
}

// TestKeyGetsBackWhatIsShed: where a key has room again in the moment when it is asked, and the
// pool has none, the key is not charged.
func TestKeyGetsBackWhatIsShed(t *testing.T) {
	eachKind(t, func(t *testing.T, counts quota.Counts) {
		limiter := quota.NewLimiter(counts)
		decide := func(r quota.Request) quota.Decision {
			d, err := limiter.Decide(t.Context(), r, time.Now())
			if err != nil {
				t.Error(err)
			}
			return d
		}
		small := pooled("small", 1)
		small.Firm = false
		decide(small)
		decide(small)
		for range 100 {
			decide(pooled("large", 1000))
		}
		unpooled := small
		unpooled.Pool = nil
		credit := unpooled
		credit.Credit = true
		var group sync.WaitGroup
		for i := range 8 {
			group.Go(func() {
				for n := range 100 {
					named := small // what is named is not refused from memory
					named.ID = strconv.Itoa(100*i + n)
					if d := decide(named); d.Admitted {
						t.Error("more than the pool has is admitted")
					}
				}
			})
		}
		for range 20 { // it has room, until the next request
			decide(credit)
			becomes(t, "what was shed is given back to the key", func() bool { return decide(unpooled).Admitted })
		}
		group.Wait()
		if decide(unpooled).Admitted {
			t.Error("the key got back more than it was charged")
		}
	})
}

// TestPoolSettlesInAnOutage: all requests for a resource are of one pool, and what they reserve there is
// settled as long as there is room for the reservations of other accounts.
func TestPoolSettlesInAnOutage(t *testing.T) {
	t.Parallel()
	f := fallbackOn(noRedis(t), nil)
	limiter := quota.NewLimiter(f)
	pool := quota.NewPool("chat", []quota.Limit{{Metric: quota.Tokens, Window: quota.Month, Max: 1_000_000}}, quota.UsualShares())
	for i := range 4 * minReservations {
		r := pooled("key"+strconv.Itoa(i%100), 1000)
		r.Pool, r.ID, r.Cost.Tokens = pool, strconv.Itoa(i), 60
		d, err := limiter.Decide(t.Context(), r, time.Now())
		if err != nil || !d.Admitted {
			t.Fatalf("request %d: %v, refused by %s", i, err, d.RefusedBy.Name())
		}
		s := quota.Settlement{Account: r.Account, Request: d.Reservation, Secret: d.Secret, Pool: pool, Used: quota.Cost{Requests: 1, Tokens: 30}}
		if outcome, err := limiter.Settle(t.Context(), s); outcome != quota.Settled || err != nil {
			t.Fatalf("settlement %d: %s, %v", i, outcome, err)
		}
	}
	if n := f.Totals().Queued; n > 0 {
		t.Errorf("%d settlements of the pool wait for Redis, which will not know them", n)
	}
}

// TestPoolGetsBackWhatIsNotKept: where no more reservations are kept, as in an outage with many
// requests, what a key's limits refuse is given back all the same.
func TestPoolGetsBackWhatIsNotKept(t *testing.T) {
	t.Parallel()
	f := fallbackOn(noRedis(t), nil)
	ledger := f.parts[0].ledger
	ledger.room.rest.left.Store(0) // others hold it
	limiter := quota.NewLimiter(f)
	requests := 0
	ask := func(account string, limit int64) quota.Decision {
		t.Helper()
		r := pooled(account, limit)
		r.Pool = quota.NewPool("chat", []quota.Limit{{Metric: quota.Requests, Window: quota.Month, Max: int64(ledger.room.own + 200)}}, quota.UsualShares())
		requests++
		r.ID = strconv.Itoa(requests)
		d, err := limiter.Decide(t.Context(), r, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for i := range ledger.room.own {
		if d := ask("key"+strconv.Itoa(i%100), 1000); !d.Admitted {
			t.Fatalf("request %d is refused by %s", i, d.RefusedBy.Name())
		}
	}
	for i := range 500 {
		if d := ask("small", 5); d.Admitted != (i < 5) || (!d.Admitted && d.RefusedBy.Name() != "requests_per_month") {
			t.Fatalf("request %d of 5: admitted %t, refused by %s", i, d.Admitted, d.RefusedBy.Name())
		}
	}
	for i := range 200 {
		if d := ask("large", 1000); d.Admitted != (i < 195) {
			t.Fatalf("request %d of the 195 that are left: admitted %t, refused by %s", i, d.Admitted, d.RefusedBy.Name())
		}
	}
}

// TestFullQueueOfPool: where settlements wait for Redis, and there is no more room for those of a
// pool, those of keys wait once.
func TestFullQueueOfPool(t *testing.T) {
	t.Parallel()
	f := fallbackOn(noRedis(t), func(o *FallbackOptions) { o.MaxQueued = 30 })
	limiter := quota.NewLimiter(f)
	pool := quota.NewPool("chat", []quota.Limit{{Metric: quota.Tokens, Window: quota.Month, Max: 100}}, quota.UsualShares())
	for i := range 15 {
		s := quota.Settlement{Account: "key" + strconv.Itoa(i), Request: "r", Secret: "s", Pool: pool}
		if outcome, err := limiter.Settle(t.Context(), s); outcome != quota.Queued || err != nil {
			t.Errorf("of key %d: %s, %v: want it to wait, so that nobody repeats it", i, outcome, err)
		}
	}
	if n := f.Totals().Lost; n == 0 {
		t.Error("none of the pool's was lost: the test fills no queue")
	}
}
