package store

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// TestGivesBackToEveryForm: what was admitted while all of Redis was away is given back, with
// its reservations, by the rights that are documented.
func TestGivesBackToEveryForm(t *testing.T) {
	t.Parallel()
	for _, form := range forms() {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			r := formStore(t, form)
			f := fallbackOn(r, nil)
			for _, p := range f.parts {
				f.failed(p, syscall.ECONNREFUSED)
			}
			account := func(i int) string { return fmt.Sprintf("account-%d", i) }
			for i := range 40 {
				o := quota.Order{
					Account: account(i), Charges: []quota.Charge{charge(quota.Day, 1000, 100)}, Request: "r", Secret: "s", Keep: time.Hour,
				}
				if taken := take(t, f, o); !taken.Admitted || !taken.Degraded {
					t.Fatalf("%+v", taken)
				}
			}
			stop := runs(t, f)
			becomes(t, "all is given back", func() bool { return !f.State().Degraded && f.owing() == 0 })
			if n := f.Instances(); n != 1 {
				t.Errorf("%d instances", n)
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
			for i := range 40 {
				used := quota.NoUsage().Cost(quota.Weights{})
				used.Tokens = 30
				outcome, err := r.Settle(t.Context(), quota.Settlement{Account: account(i), Request: "r", Secret: "s", Used: used})
				if err != nil || outcome != quota.Settled {
					t.Fatalf("%v, %v", outcome, err)
				}
				look := take(t, r, quota.Order{Account: account(i), Charges: []quota.Charge{charge(quota.Day, 1000, 0)}})
				if look.Used[0] != 100 { // of requests, which a settlement leaves alone
					t.Fatalf("%d used, want 100", look.Used[0])
				}
			}
		})
	}
}

// TestMovingSlotKeepsTheRest: while a slot moves, its keys that are reserved for are counted
// by this instance, and given back; the other slots of the server are counted there all the time.
func TestMovingSlotKeepsTheRest(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 0)
	o := inCluster(c.Addresses()[:1])
	o.Timeout = 250 * time.Millisecond
	f := fallbackOn(openRedis(t, o), nil)
	runs(t, f)
	becomes(t, "the instance is counted", func() bool { return f.fleet.live.Load() == 1 })
	other := ""
	for i := range 100_000 { // of the same part
		if other = fmt.Sprintf("b%d", i); f.part(other) == f.part("a") {
			break
		}
	}
	admitted := int64(0)
	reserve := func() quota.Taken {
		o := of("a", charge(quota.Month, 1_000_000, 1))
		o.Request, o.Secret, o.Keep = fmt.Sprintf("r%d", admitted), "s", time.Minute
		admitted++
		return take(t, f, o)
	}
	reserve()
	to := c.Servers[0]
	if to == ownerOf(t, c, "test:{a}:counts") {
		to = c.Servers[1]
	}
	moved := false
	err := c.MoveSlot(t.Context(), "test:{a}:counts", to, func() {
		if moved {
			return
		}
		moved = true
		for range mostFailures + 1 {
			if !reserve().Degraded {
				t.Error("it is counted by half of its keys")
			}
		}
		for range 2 {
			if taken := take(t, f, of(other, charge(quota.Month, 1_000_000, 1))); taken.Degraded {
				t.Error("another slot is taken for one that is away")
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	becomes(t, "counts are shared", func() bool { return allShared(f) })
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 1_000_000, 0))), true, admitted)
}
