package store

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// A road is a lane whose calls return when the test says so.
type road struct {
	*lane

	calls  chan []*operation // that are made
	open   chan struct{}     // one for each that may return
	late   atomic.Int64      // calls whose time was over before
	ended  sync.WaitGroup    // all operations
	served atomic.Int64      // operations that are answered
}

func newRoad(timeout time.Duration) *road {
	r := &road{calls: make(chan []*operation, 100), open: make(chan struct{})}
	r.lane = &lane{timeout: timeout, send: func(ctx context.Context, together []*operation) {
		r.calls <- together
		select {
		case <-r.open:
		case <-ctx.Done():
			r.late.Add(1)
		}
	}}
	return r
}

// come has n orders come at once.
func (r *road) come(ctx context.Context, n int) { r.comes(ctx, n, operation{order: &quota.Order{}}) }

// settle has n settlements come at once.
func (r *road) settle(ctx context.Context, n int) {
	r.comes(ctx, n, operation{settlement: &quota.Settlement{}})
}

func (r *road) comes(ctx context.Context, n int, o operation) {
	for range n {
		r.ended.Go(func() {
			own := o
			r.carryOut(ctx, &own)
			r.served.Add(1)
		})
	}
	synctest.Wait()
}

// wantCall checks that a call is made, of so many operations.
func (r *road) wantCall(t *testing.T, n int) {
	t.Helper()
	r.wantCalls(t, n)
}

// wantCalls checks that calls are made, each of so many operations, the smallest first. Those
// that are made at once may begin in any order.
func (r *road) wantCalls(t *testing.T, want ...int) {
	t.Helper()
	synctest.Wait()
	var have []int
	for len(r.calls) > 0 && len(have) < len(want) {
		have = append(have, len(<-r.calls))
	}
	if slices.Sort(have); !slices.Equal(have, want) {
		t.Errorf("%v go together: want %v", have, want)
	}
}

// wantNone checks that no further call is made.
func (r *road) wantNone(t *testing.T) {
	t.Helper()
	synctest.Wait()
	if n := len(r.calls); n > 0 {
		t.Errorf("%d calls: want none", n)
	}
}

// returns has one call return.
func (r *road) returns() { r.open <- struct{}{} }

// TestLane: who is sent when, and with whom.
func TestLane(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]func(t *testing.T, r *road){
		"one alone waits for nobody": func(t *testing.T, r *road) {
			for range 3 {
				r.come(t.Context(), 1)
				r.wantCall(t, 1)
				r.returns()
				r.ended.Wait()
			}
		},
		"those that come meanwhile go together": func(t *testing.T, r *road) {
			r.come(t.Context(), 1)
			r.wantCall(t, 1)
			r.come(t.Context(), 5)
			r.wantNone(t)
			r.returns()
			r.wantCall(t, 5)
			r.come(t.Context(), 2)
			r.wantNone(t)
			r.returns()
			r.wantCall(t, 2)
			if n := r.served.Load(); n != 6 {
				t.Errorf("%d are answered: want 6", n)
			}
			r.returns()
		},
		"enough for a second call do not wait": func(t *testing.T, r *road) {
			r.come(t.Context(), 1)
			r.wantCall(t, 1)
			r.come(t.Context(), enough-1)
			r.wantNone(t)
			r.come(t.Context(), 1)
			r.wantCall(t, enough)
			r.come(t.Context(), enough+1) // and not a third
			r.wantNone(t)
			r.returns()
			r.wantCall(t, enough+1)
			r.come(t.Context(), enough-1)
			r.returns()
			r.wantNone(t)
			r.returns()
			r.wantCall(t, enough-1)
			r.returns()
		},
		"a full call waits for nobody": func(t *testing.T, r *road) {
			r.come(t.Context(), 1)
			r.wantCall(t, 1)
			r.come(t.Context(), enough+2*mostTogether+1)
			r.wantCalls(t, enough, mostTogether, mostTogether)
			r.wantNone(t)
			for range 4 {
				r.wantNone(t)
				r.returns() // the last of them has the rest sent
			}
			r.wantCall(t, 1)
			r.returns()
		},
		"nobody waits long": func(t *testing.T, r *road) {
			began := time.Now()
			r.come(t.Context(), 1)
			r.wantCall(t, 1)
			r.come(t.Context(), 3)
			time.Sleep(mostWait / 2) // the clock of the test
			r.come(t.Context(), 3)
			r.wantNone(t)
			if together := <-r.calls; len(together) != 6 || time.Since(began) != mostWait {
				t.Errorf("%d go together after %s: want 6 after %s", len(together), time.Since(began), mostWait)
			}
			r.returns()
			r.returns()
		},
		"a caller who goes away ends nothing": func(t *testing.T, r *road) {
			gone, cancel := context.WithCancel(t.Context())
			r.come(gone, 1)
			r.come(gone, 2)
			cancel()
			r.wantCall(t, 1)
			r.returns()
			r.wantCall(t, 2)
			r.returns()
			r.ended.Wait()
			if n := r.late.Load(); n > 0 {
				t.Errorf("%d calls were broken off", n)
			}
		},
		"settlements go with the next call, before the others": func(t *testing.T, r *road) {
			r.settle(t.Context(), 2)
			r.wantNone(t)
			r.come(t.Context(), 1)
			together := <-r.calls
			if len(together) != 3 || together[0].settlement == nil || together[1].settlement == nil || together[2].order == nil {
				t.Errorf("%v go together: want two settlements and an order", together)
			}
			r.settle(t.Context(), 3)
			r.come(t.Context(), 4)
			r.wantNone(t)
			r.returns()
			r.wantCall(t, 7)
			r.returns()
			r.ended.Wait()
			if n := r.served.Load(); n != 10 {
				t.Errorf("%d are answered: want 10", n)
			}
		},
		"settlements do not wait long for company": func(t *testing.T, r *road) {
			for range 2 {
				began := time.Now()
				r.settle(t.Context(), 2)
				time.Sleep(companyWait / 2) // the clock of the test
				r.settle(t.Context(), 3)
				r.wantNone(t)
				if together := <-r.calls; len(together) != 5 || time.Since(began) != companyWait {
					t.Errorf("%d go together after %s: want 5 after %s", len(together), time.Since(began), companyWait)
				}
				r.come(t.Context(), 1) // which waits for that call, as for any
				r.wantNone(t)
				r.returns()
				r.wantCall(t, 1)
				r.returns()
				r.ended.Wait()
			}
		},
		"so many settlements as fill a call wait for nobody": func(t *testing.T, r *road) {
			r.settle(t.Context(), mostTogether+1)
			r.wantCall(t, mostTogether)
			r.wantNone(t)
			r.come(t.Context(), enough-1)
			r.wantNone(t)
			r.returns()
			r.wantCall(t, enough)
			r.returns()
		},
		"settlements that there is no room for go with the next": func(t *testing.T, r *road) {
			r.come(t.Context(), 1)
			r.wantCall(t, 1)
			r.come(t.Context(), enough)
			r.wantCall(t, enough)
			r.settle(t.Context(), 10)
			r.come(t.Context(), mostTogether)
			r.wantCall(t, mostTogether)
			r.come(t.Context(), 1)
			for range 3 {
				r.wantNone(t)
				r.returns()
			}
			r.wantCall(t, 11)
			r.returns()
		},
		"the time of all begins when the first comes": func(t *testing.T, r *road) {
			began := time.Now()
			r.come(t.Context(), 1)
			time.Sleep(mostWait / 4)
			r.come(t.Context(), 1)
			time.Sleep(mostWait / 4)
			r.come(t.Context(), 1)
			r.ended.Wait()
			if n, took := r.late.Load(), time.Since(began); n != 2 || took != r.timeout+mostWait/4 {
				t.Errorf("%d of 2 calls ended by their time, after %s: want 2 after %s", n, took, r.timeout+mostWait/4)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRoad(50 * time.Millisecond)
				test(t, r)
				r.ended.Wait()
				if len(r.underWay) > 0 || r.gathering != nil || len(r.settlements) > 0 {
					t.Errorf("%d calls are under way, and %v and %v wait: want nothing", len(r.underWay), r.gathering, r.settlements)
				}
			})
		})
	}
}

// TestManyShareCalls: each gets its own answer.
func TestManyShareCalls(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"acl", "sentinel", "cluster"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			o := shared.options(t, form)
			var calls, operations atomic.Int64
			o.Sent = func(n int) {
				calls.Add(1)
				operations.Add(int64(n))
			}
			r := openRedis(t, o)
			const callers, rounds = 100, 20
			var group sync.WaitGroup
			for i := range callers {
				group.Go(func() {
					account := "a" + strconv.Itoa(i%50) // two callers each
					for round := range rounds {
						order := of(account, charge(quota.Month, quota.NoMax, int64(i%50+1)))
						request := strconv.Itoa(i) + "-" + strconv.Itoa(round)
						order.Request, order.Secret, order.Keep = request, "s"+request, time.Minute
						taken, err := r.Take(t.Context(), order)
						if err != nil || !taken.Admitted || taken.Secret != order.Secret || taken.Used[0]%int64(i%50+1) != 0 {
							t.Errorf("%s: %+v, %v", account, taken, err)
						}
						outcome, err := r.Settle(t.Context(), quota.Settlement{Account: account, Request: request, Secret: order.Secret})
						if err != nil || outcome != quota.Settled {
							t.Errorf("%s: %s, %v", account, outcome, err)
						}
					}
				})
			}
			group.Wait()
			for i := range 50 {
				wantTaken(t, take(t, r, of("a"+strconv.Itoa(i), charge(quota.Month, 1, 0))), true, 2*rounds*int64(i+1))
			}
			t.Logf("%d operations in %d calls", operations.Load(), calls.Load())
			if n := operations.Load(); n != 2*callers*rounds+50 || calls.Load() > n/4 {
				t.Error("want every operation once, and far fewer calls")
			}
		})
	}
}

// TestSlowNetwork: where each call takes most of its time, none waits for another, and all
// are answered in time.
func TestSlowNetwork(t *testing.T) {
	t.Parallel()
	const late, timeout = 300 * time.Millisecond, 500 * time.Millisecond
	server := startRedis(t)
	proxy := newSlowProxy(t, server.Address)
	o := at(proxy.Listen)
	o.Timeout, o.PoolSize = timeout, 64
	r := openRedis(t, o)
	take(t, r, one("a")) // Redis has the function
	r.warm(t.Context(), 0)
	slow(t, proxy, late)
	var group sync.WaitGroup
	for i := range 200 {
		group.Go(func() {
			for range 3 {
				began := time.Now()
				_, err := r.Take(t.Context(), one("a"+strconv.Itoa(i)))
				if took := time.Since(began); err != nil || took < late || took > timeout {
					t.Errorf("after %s: %v", took, err)
				}
			}
		})
	}
	group.Wait()
}

// TestLaneOutlivesAPanic: where the one who sends panics, the others learn that, and the
// lane serves on.
func TestLaneOutlivesAPanic(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		open := make(chan struct{})
		l := &lane{timeout: time.Second, send: func(_ context.Context, together []*operation) {
			<-open
			if len(together) == 3 {
				panic("three")
			}
		}}
		var panics, failures atomic.Int64
		var ended sync.WaitGroup
		come := func(n int) {
			for range n {
				ended.Go(func() {
					defer func() {
						if recover() != nil {
							panics.Add(1)
						}
					}()
					o := &operation{}
					if l.carryOut(t.Context(), o); outcomeUnknown(o.err) {
						failures.Add(1)
					}
				})
			}
			synctest.Wait()
		}
		come(1)
		come(3)
		close(open)
		ended.Wait()
		come(1)
		ended.Wait()
		if len(l.underWay) > 0 || panics.Load() != 1 || failures.Load() != 2 {
			t.Errorf("%d calls are under way, %d panics, %d failures: want 0, 1, 2", len(l.underWay), panics.Load(), failures.Load())
		}
	})
}

// TestUnderWay is what orders of the same account have no answer to, in whichever lane, whether it is
// sent or gathered. What gives back, is answered ahead or settles takes nothing.
func TestUnderWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan struct{})
		r := &Redis{lanes: map[string]*lane{}}
		hold := func(context.Context, []*operation) { <-answer }
		r.lane, r.lanes["one"], r.lanes["two"] = r.newLane(hold), r.newLane(hold), r.newLane(hold)
		come := func(l *lane, o operation) {
			go l.carryOut(t.Context(), &o)
			synctest.Wait()
		}
		order := func(account string, charges ...quota.Charge) operation {
			o := of(account, charges...)
			return operation{order: &o}
		}
		look := of("a", charge(quota.Day, 10, 1), charge(quota.Month, 10, 1))
		wants := func(what string, day, month int64) {
			t.Helper()
			if n := r.underWay(&look); n[0] != day || n[1] != month {
				t.Errorf("%s: %d, want %d and %d", what, n, day, month)
			}
		}
		wants("nothing has come", 0, 0)
		come(r.lane, order("a", charge(quota.Month, 10, 1), charge(quota.Day, 10, 2)))
		wants("one is sent", 2, 1)
		come(r.lane, order("a", charge(quota.Month, 10, 4)))
		wants("one is gathered", 2, 5)
		for _, l := range r.lanes {
			come(l, order("a", charge(quota.Week, 10, 5), charge(quota.Day, 10, 8)))
		}
		wants("servers of a Cluster have some", 18, 5)
		come(r.lane, order("b", charge(quota.Month, 10, 7)))
		come(r.lane, order("a", charge(quota.Month, 10, -3)))
		come(r.lane, order("a", charge(quota.Month, quota.NoMax, 7)))
		come(r.lane, operation{settlement: &quota.Settlement{Account: "a"}})
		wants("others have come", 18, 5)
		close(answer)
		time.Sleep(companyWait)
		synctest.Wait()
		wants("all are answered", 0, 0)
	})
}
