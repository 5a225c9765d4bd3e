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
