package store

import (
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// sliding is a charge of requests in a window that slides.
func sliding(window quota.Window, limit, cost int64) quota.Charge {
	return charge(window.Slide(), limit, cost)
}

// wantBoth is wantTaken, with what was used in the window before by the first charge.
func wantBoth(t *testing.T, taken quota.Taken, admitted bool, used, before int64) {
	t.Helper()
	if taken.Admitted != admitted || taken.Used[0] != used || len(taken.Before) != len(taken.Used) || taken.Before[0] != before {
		t.Errorf("admitted %t, used %d, before %v: want %t, %d, %d", taken.Admitted, taken.Used, taken.Before, admitted, used, before)
	}
}

// TestThePreviousWindowCounts as much as is left of the current one, and no longer than
// until that ends.
func TestThePreviousWindowCounts(t *testing.T) {
	eachTimedStore(t, func(t *testing.T, counts quota.Counts, now *time.Time) { // at 12:00:50
		one := func(cost int64) quota.Order {
			return of("a", sliding(quota.Minute, 10, cost), charge(quota.Day, 100, cost))
		}
		wantBoth(t, take(t, counts, one(9)), true, 9, 0)
		wantBoth(t, take(t, counts, one(2)), false, 9, 0)
		*now = now.Add(10 * time.Second) // all of a minute is left
		wantBoth(t, take(t, counts, one(0)), true, 0, 9)
		wantBoth(t, take(t, counts, one(1)), true, 1, 9)
		wantBoth(t, take(t, counts, one(1)), false, 1, 9)
		*now = now.Add(20*time.Second - time.Millisecond)
		wantBoth(t, take(t, counts, one(3)), false, 1, 9)
		*now = now.Add(time.Millisecond) // 9 × 40/60 is 6
		wantBoth(t, take(t, counts, one(3)), true, 4, 9)
		*now = now.Add(40*time.Second - time.Millisecond)
		wantBoth(t, take(t, counts, one(6)), false, 4, 9)
		wantBoth(t, take(t, counts, one(5)), true, 9, 9)
		*now = now.Add(time.Millisecond)
		wantBoth(t, take(t, counts, one(2)), false, 0, 9)
		*now = now.Add(time.Minute) // nothing was counted in the one before
		wantBoth(t, take(t, counts, one(10)), true, 10, 0)
		*now = now.Add(30 * time.Second)
		taken := take(t, counts, of("a", charge(quota.Minute, 10, 1)))
		wantTaken(t, taken, false, 10)
		if taken.Before != nil {
			t.Errorf("of a fixed limit: %d", taken.Before)
		}
	})
}

// TestSlidingInEveryForm: a limit that slides is kept, repeated and settled wherever counts are.
func TestSlidingInEveryForm(t *testing.T) {
	eachStore(t, func(t *testing.T, counts quota.Counts) {
		order := func(request string) quota.Order {
			return keptOrder("a", request, tokens(quota.Tokens, quota.Month.Slide(), 1000, 300), charge(quota.Week, 9, 1))
		}
		for i, r := range []string{"one", "two", "three"} {
			wantBoth(t, take(t, counts, order(r)), true, 300*int64(i+1), 0)
		}
		wantBoth(t, take(t, counts, order("four")), false, 900, 0)
		again := order("two")
		again.Secret = "another"
		wantBoth(t, take(t, counts, again), true, 600, 0)
		wantOutcome(t, settle(t, counts, settlement("one", 100)), quota.Settled)
		wantBoth(t, take(t, counts, order("four")), true, 1000, 0)
	})
}

// TestAlgorithmIsChanged: what is counted in the current window goes on, and what was in the
// one before is known where that was counted as sliding, or nothing has been since.
func TestAlgorithmIsChanged(t *testing.T) {
	eachTimedStore(t, func(t *testing.T, counts quota.Counts, now *time.Time) {
		minute := quota.Minute
		wantTaken(t, take(t, counts, of("a", charge(minute, 10, 6), charge(quota.Day, 100, 1))), true, 6, 1)
		wantBoth(t, take(t, counts, of("a", sliding(minute, 10, 1))), true, 7, 0)
		*now = now.Add(40 * time.Second)
		wantBoth(t, take(t, counts, of("a", sliding(minute, 10, 2))), true, 2, 7)
		wantTaken(t, take(t, counts, of("a", charge(minute, 10, 8))), true, 10)
		wantBoth(t, take(t, counts, of("a", sliding(minute, 10, 1))), false, 10, 7)
	})
}

// TestNoDoubleBurst: whatever a client does, in no span of a time d are more admitted than
// max × (1 + d / window), in whatever windows that lies; and it does get so many.
func TestNoDoubleBurst(t *testing.T) {
	t.Parallel()
	const most, step = 20, 250 * time.Millisecond
	for name, asks := range map[string]func(after time.Duration) bool{
		"at the end of a window, and on": func(after time.Duration) bool { return after >= 9500*time.Millisecond }, // 500 ms before the minute's end
		"all the time":                   func(time.Duration) bool { return true },
		"around each edge":               func(after time.Duration) bool { return (after+10*time.Second)%time.Minute < 20*time.Second },
	} {
		t.Run(name, func(t *testing.T) {
			eachTimedStore(t, func(t *testing.T, counts quota.Counts, now *time.Time) {
				begin := *now
				admitted := make([]int, 4*time.Minute/step)
				for i := range admitted {
					*now = begin.Add(time.Duration(i) * step)
					for asks(now.Sub(begin)) && take(t, counts, of("a", sliding(quota.Minute, most, 1))).Admitted {
						admitted[i]++
					}
				}
				longest := 0
				for i := range admitted {
					sum := 0
					for j := i; j < len(admitted) && j-i <= int(time.Minute/step); j++ {
						sum += admitted[j]
						if d := time.Duration(j-i) * step; float64(sum) > most*(1+float64(d)/float64(time.Minute)) {
							t.Fatalf("%d in %s from %s on", sum, d, time.Duration(i)*step)
						}
					}
					longest = max(longest, sum)
				}
				if longest < most {
					t.Errorf("%d in a minute at the most", longest)
				}
			})
		})
	}
}

// TestWhoAsksAllTheTime has one less in each window than the limit, since what the one before
// leaves is rounded up; of a limit of 1 that is every other window.
func TestWhoAsksAllTheTime(t *testing.T) {
	t.Parallel()
	for most, want := range map[int64][4]int{50: {50, 49, 49, 49}, 1: {1, 0, 1, 0}} {
		now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
		m := NewMemory(func() time.Time { return now }, 1000)
		var admitted [4]int
		for i := range admitted {
			for range 600 {
				if take(t, m, of("a", sliding(quota.Minute, most, 1))).Admitted {
					admitted[i]++
				}
				now = now.Add(100 * time.Millisecond)
			}
		}
		if admitted != want {
			t.Errorf("%d in a minute: %d are admitted, want %d", most, admitted, want)
		}
	}
}

// TestSettledInTheWindowBefore: what was charged too much is taken off there, where nothing
// has been counted since too; what was too little is added to the current window.
func TestSettledInTheWindowBefore(t *testing.T) {
	eachTimedStore(t, func(t *testing.T, counts quota.Counts, now *time.Time) {
		order := func(request string, cost int64) quota.Order {
			o := keptOrder("a", request, tokens(quota.Tokens, quota.Minute.Slide(), 1000, cost), charge(quota.Day, 100, 0))
			o.Charges[1].Cost = min(cost, 1)
			return o
		}
		look := func(used, before int64) {
			t.Helper()
			wantBoth(t, take(t, counts, order("", 0)), true, used, before)
		}
		for _, r := range []string{"less", "more", "less again", "in time", "refunded", "late"} {
			take(t, counts, order(r, 100))
		}
		settle(t, counts, settlement("in time", 90))
		look(590, 0)
		*now = now.Add(20 * time.Second)
		settle(t, counts, settlement("less", 40))
		look(0, 530)
		settle(t, counts, settlement("more", 150)) // the first that counts in this window
		look(50, 530)
		wantBoth(t, take(t, counts, order("next", 10)), true, 60, 530)
		settle(t, counts, settlement("less again", 0))
		look(60, 430)
		refund := settlement("refunded", 0)
		refund.RefundShare = 1000
		settle(t, counts, refund)
		look(60, 430)
		again := order("next", 10)
		again.Secret = "another"
		wantBoth(t, take(t, counts, again), true, 60, 530) // as it was told
		*now = now.Add(time.Minute)
		settle(t, counts, settlement("late", 0))
		look(0, 60)
		*now = now.Add(time.Minute)
		look(0, 0)
	})
}

// TestRedisKeepsTheWindowBefore: until the window after it has ended, in which it counts.
func TestRedisKeepsTheWindowBefore(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	kept := func() (time.Duration, map[string]string) {
		return r.client.PTTL(t.Context(), "test:{a}:counts").Val(), r.client.HGetAll(t.Context(), "test:{a}:counts").Val()
	}
	const day = quota.Day
	taken := take(t, r, of("a", charge(day, 10, 1)))
	start, end := day.Bounds(taken.Now)
	if ttl, fields := kept(); ttl > end.Sub(taken.Now) || len(fields) != 1 {
		t.Errorf("fixed: %s, %v", ttl, fields)
	}
	taken = take(t, r, of("a", sliding(day, 10, 1)))
	ttl, fields := kept()
	left := end.Add(24 * time.Hour).Sub(taken.Now)
	if ttl > left || ttl < left-time.Minute {
		t.Errorf("TTL %s: want %s", ttl, left)
	}
	before := strconv.FormatInt(start.Add(-24*time.Hour).UnixMilli(), 10)
	if fields["requests/day"] != strconv.FormatInt(start.UnixMilli(), 10)+" 2" || fields["requests/day!before"] != before+" 0" || len(fields) != 2 {
		t.Errorf("%v", fields)
	}
}

// TestMemoryKeepsTheWindowBefore through sweeps and restarts, and no longer than it counts.
func TestMemoryKeepsTheWindowBefore(t *testing.T) {
	t.Parallel()
	now := snapshotTime // 12:30:30
	clock := func() time.Time { return now }
	path := filepath.Join(t.TempDir(), "tiergate.db")
	n := startNode(t, path, clock)
	again := func(after time.Duration) {
		t.Helper()
		n.stop(t)
		now = now.Add(after)
		n = startNode(t, path, clock)
		n.Sweep()
		if len(n.setAside) > 0 {
			t.Fatal(n.setAside)
		}
	}
	wantBoth(t, take(t, n, keptOrder("a", "r", sliding(quota.Minute, 10, 8))), true, 8, 0)
	again(40 * time.Second)
	wantBoth(t, take(t, n, of("a", sliding(quota.Minute, 10, 0))), true, 0, 8)
	next := keptOrder("a", "next", sliding(quota.Minute, 10, 2), charge(quota.Hour, 9, 1))
	wantBoth(t, take(t, n, next), true, 2, 8)
	take(t, n, of("a", charge(quota.Hour, 9, 1)))
	again(5 * time.Second)
	wantBoth(t, take(t, n, of("a", sliding(quota.Minute, 10, 0))), true, 2, 8)
	wantBoth(t, take(t, n, next), true, 2, 8) // a repeat
	again(50 * time.Second)
	wantBoth(t, take(t, n, of("a", sliding(quota.Minute, 10, 0))), true, 0, 2)
	again(time.Minute)
	wantBoth(t, take(t, n, of("a", sliding(quota.Minute, 10, 0))), true, 0, 0)
	again(time.Hour)
	if n.Len() != 0 {
		t.Errorf("%d accounts are kept", n.Len())
	}
	n.stop(t)
}

// TestSlidingRefusalsAreRemembered as long as Redis is certain to refuse, by what the window
// before weighs at the latest that its clock can say.
func TestSlidingRefusalsAreRemembered(t *testing.T) {
	t.Parallel()
	x := newExhausted(1000)
	at := time.Date(2026, 3, 1, 12, 0, 20, 0, time.UTC) // 9 × 40/60 is 6
	o := firm("", sliding(quota.Minute, 10, 1), charge(quota.Day, 100, 1))
	x.remember(o, quota.Taken{Now: at, Used: []int64{4, 50}, Before: []int64{9, 0}}, 1, 1)
	for _, c := range []struct {
		after   time.Duration
		refuses bool
	}{{0, true}, {500 * time.Millisecond, true}, {6 * time.Second, true}, {6660 * time.Millisecond, false}, {6700 * time.Millisecond, false}, {39 * time.Second, false}} {
		taken, known := x.refuse(o, c.after+1)
		if known != c.refuses {
			t.Errorf("after %s: refused %t, want %t", c.after, known, c.refuses) // from 6.667 s on 9 × 33333/60000 is 5
		}
		if known && (taken.Used[0] != 4 || taken.Before[0] != 9 || taken.Before[1] != 0 || !taken.Now.Equal(at.Add(c.after.Truncate(time.Millisecond)))) {
			t.Errorf("after %s: %+v", c.after, taken)
		}
	}
	// Of one that may repeat another it is certain when that cannot be any more, if nothing is
	// counted meanwhile.
	full := firm("r", sliding(quota.Minute, 10, 1))
	x = newExhausted(1000)
	for i, before := range []int64{0, 1, 1} {
		after := time.Duration(i) * 11 * time.Second
		x.remember(full, quota.Taken{Now: at.Add(after), Used: []int64{10}, Before: []int64{before}}, after+1, after+1)
		if _, known := x.refuse(full, after+1); known != (i == 2) {
			t.Errorf("the %d. time: refused %t", i+1, known)
		}
	}
	// What settlements change is believed no longer than that of fixed limits.
	x = newExhausted(1000)
	spent := of("a", tokens(quota.Tokens, quota.Minute.Slide(), 100, 50))
	x.remember(spent, quota.Taken{Now: at, Used: []int64{10}, Before: []int64{90}}, 1, 1)
	for after, refuses := range map[time.Duration]bool{50 * time.Millisecond: true, refusalKept: false} {
		if _, known := x.refuse(spent, after+1); known != refuses {
			t.Errorf("tokens, after %s: refused %t", after, known)
		}
	}
}

// TestSlidingRefusalsOfRedis: none that is remembered is one that Redis would admit.
func TestSlidingRefusalsOfRedis(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	f := fallbackOn(r, nil)
	o := firm("", sliding(quota.Second, 20, 1))
	var windows []int64
	admitted, end := 0, time.Now().Add(15*time.Second) // should the clock stand still
	for len(windows) < 4 && time.Now().Before(end) {
		taken := take(t, f, o)
		if taken.Admitted {
			admitted++
			continue
		}
		if start := windowStart(quota.Second, taken.Now); !slices.Contains(windows, start) {
			windows = append(windows, start)
		}
		if counts(&taken, 0, &o.Charges[0]) < 20 {
			t.Fatalf("refused by memory with %+v", taken)
		}
	}
	// In each window as much comes free as the one before it leaves, less what rounding takes.
	if admitted < 20+2*15 || f.Remembered() == 0 {
		t.Errorf("%d admitted in %d windows of 20, %d refused by memory", admitted, len(windows), f.Remembered())
	}
}
