package store

import (
	"fmt"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

func midnight() time.Time { return time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC) }

// TestClockIsCorrected: a clock that goes back by a correction, as it is set right, gives
// nobody the window before once more, nor the current one; one that is set begins anew.
func TestClockIsCorrected(t *testing.T) {
	eachTimedStore(t, func(t *testing.T, counts quota.Counts, now *time.Time) {
		c := []quota.Charge{charge(quota.Minute, 2, 1), charge(quota.Day, 2, 1)}
		look := []quota.Charge{charge(quota.Minute, 2, 0), charge(quota.Day, 2, 0)}
		for _, one := range []struct {
			at       time.Duration // after midnight
			charges  []quota.Charge
			admitted bool
			used     int64
			day      int // in which that is
		}{
			{-time.Second, c, true, 1, 28},
			{-time.Second, c, true, 2, 28},
			{-time.Second, c, false, 2, 28},
			{time.Second, c, true, 1, 1},
			{-time.Second, look, true, 1, 1},
			{-time.Second, c, true, 2, 1},
			{-2 * time.Second, c, false, 2, 1},
			{3 * time.Second, c, false, 2, 1},
			{-time.Hour, c, true, 1, 28},
		} {
			*now = midnight().Add(one.at)
			taken := take(t, counts, of("a", one.charges...))
			wantTaken(t, taken, one.admitted, one.used, one.used)
			if taken.Now.Day() != one.day {
				t.Errorf("at %s: counted at %s", one.at, taken.Now)
			}
		}
	})
}

// TestClockThatWasNeverSet: a machine without a battery begins in 1970, where windows begin before the
// epoch. They are counted like others.
func TestClockThatWasNeverSet(t *testing.T) {
	eachTimedStore(t, func(t *testing.T, counts quota.Counts, now *time.Time) {
		*now = time.Unix(1, 0).UTC()
		for i := range int64(3) {
			used := min(i+1, 2)
			wantTaken(t, take(t, counts, of("a", charge(quota.Week, 2, 1), sliding(quota.Month, 2, 1))), i < 2, used, used)
		}
	})
}

// TestClockIsCorrectedWhileSliding: what the window before has counted stays its own.
func TestClockIsCorrectedWhileSliding(t *testing.T) {
	eachTimedStore(t, func(t *testing.T, counts quota.Counts, now *time.Time) {
		c := sliding(quota.Minute, 10, 1)
		*now = midnight().Add(-time.Second)
		for range 3 {
			take(t, counts, of("a", c))
		}
		*now = midnight()
		wantBoth(t, take(t, counts, of("a", c)), true, 1, 3)
		*now = midnight().Add(-time.Second)
		wantBoth(t, take(t, counts, of("a", c)), true, 2, 3)
		*now = midnight().Add(time.Second)
		wantBoth(t, take(t, counts, of("a", c)), true, 3, 3)
	})
}

// TestSettledLateWhenTheClockIsCorrected: of an order of two windows before the one that has begun
// nothing counts any more, and its settlement leaves what counts.
func TestSettledLateWhenTheClockIsCorrected(t *testing.T) {
	eachTimedStore(t, func(t *testing.T, counts quota.Counts, now *time.Time) {
		order := func(request string, cost int64) quota.Order {
			return keptOrder("a", request, tokens(quota.Tokens, quota.Minute.Slide(), 1000, cost))
		}
		for i, r := range []string{"late", "before", "current"} {
			*now = midnight().Add(time.Duration(i) * time.Minute)
			take(t, counts, order(r, 100))
		}
		*now = now.Add(-time.Millisecond)
		wantOutcome(t, settle(t, counts, settlement("late", 30)), quota.Settled)
		*now = now.Add(time.Millisecond)
		wantBoth(t, take(t, counts, order("", 0)), true, 100, 100)
	})
}

// TestSettledWhenTheClockIsCorrected: a settlement counts in the window that has begun, and
// leaves what that has.
func TestSettledWhenTheClockIsCorrected(t *testing.T) {
	t.Parallel()
	for name, slide := range map[string]bool{"fixed": false, "sliding": true} {
		t.Run(name, func(t *testing.T) {
			eachTimedStore(t, func(t *testing.T, counts quota.Counts, now *time.Time) {
				c := charge(quota.Minute, 100, 10)
				c.Limit.Metric = quota.Tokens
				c.Counter = "tokens/minute"
				if slide {
					c.Limit.Window = c.Limit.Window.Slide()
				}
				order := func(request string) quota.Order {
					return quota.Order{Account: "a", Request: request, Secret: "s", Keep: time.Hour, Charges: []quota.Charge{c}}
				}
				used := func(tokens int64, request string, refund int64) {
					t.Helper()
					outcome := settle(t, counts, quota.Settlement{
						Account: "a", Request: request, Secret: "s", RefundShare: refund,
						Used: quota.Cost{Requests: 1, Tokens: tokens, InputTokens: -1, OutputTokens: -1},
					})
					if outcome != quota.Settled {
						t.Errorf("settling: %s", outcome)
					}
				}
				*now = midnight().Add(time.Second)
				take(t, counts, order("one"))
				take(t, counts, order("two"))
				take(t, counts, order("three"))
				*now = midnight().Add(-time.Second)
				used(4, "one", 0)
				*now = midnight().Add(2 * time.Second)
				look := c
				look.Cost = 0
				wantTaken(t, take(t, counts, of("a", look)), true, 24)
				*now = midnight().Add(-time.Second)
				used(13, "two", 0)
				used(-1, "three", 1000)
				*now = midnight().Add(2 * time.Second)
				wantTaken(t, take(t, counts, of("a", look)), true, 17)
			})
		})
	}
}

// TestTogetherWhenTheClockIsCorrected: of what goes in one call, each is carried out once, and says
// when: what comes before the others may be of the window before.
func TestTogetherWhenTheClockIsCorrected(t *testing.T) {
	t.Parallel()
	r := newScriptedRedis(t, redisServer(t))
	r.now = midnight()
	take(t, r, of("b", charge(quota.Minute, 10, 1)))
	before := midnight().Add(-time.Millisecond)
	r.now = before
	orders := []quota.Order{
		of("a", charge(quota.Minute, 10, 1)), of("b", charge(quota.Minute, 10, 2)),
		{Account: "a", Request: "r", Secret: "s", Charges: []quota.Charge{charge(quota.Day, 10, 3)}},
		of("b", charge(quota.Minute, 10, 4)),
	}
	together := operations(len(orders), func(i int) *operation { return &operation{order: &orders[i]} })
	r.carryOut(t.Context(), together...)
	for i, want := range []struct {
		used int64
		at   time.Time
	}{{1, before}, {3, midnight()}, {3, midnight()}, {7, midnight()}} {
		if op := together[i]; op.err != nil || !op.taken.Admitted || op.taken.Used[0] != want.used || !op.taken.Now.Equal(want.at) {
			t.Errorf("%d: %+v, %v: want %+v", i, op.taken, op.err, want)
		}
	}
}

// TestKeptWhenTheClockIsCorrected: what is counted first while the clock stands still is kept until its
// window ends by the clock.
func TestKeptWhenTheClockIsCorrected(t *testing.T) {
	t.Parallel()
	r := newScriptedRedis(t, redisServer(t))
	r.now = midnight()
	take(t, r, of("old", charge(quota.Minute, 10, 1)))
	r.now = midnight().Add(-9 * time.Second)
	take(t, r, of("old", charge(quota.Minute, 10, 1), charge(quota.Day, 10, 1)))
	ttl, err := r.client.PTTL(t.Context(), countsKey("scripted", "old")).Result()
	if want := 24*time.Hour + 5*time.Second; err != nil || ttl < want {
		t.Errorf("kept for %s, %v: want more than %s", ttl, err, want)
	}
}

// TestGivenBackWhenTheClockIsCorrected: what is given back to a window that has begun before Redis' clock
// was corrected is added to it.
func TestGivenBackWhenTheClockIsCorrected(t *testing.T) {
	t.Parallel()
	f := fallbackOn(redisStore(t, redisServer(t)), nil)
	client := f.redis.client
	for account, window := range map[string]quota.Window{"fixed": 8 * quota.Second, "sliding": (8 * quota.Second).Slide()} {
		now, err := client.Time(t.Context()).Result()
		if err != nil {
			t.Fatal(err)
		}
		_, next := window.Bounds(now)
		start, end := next.UnixMilli(), next.UnixMilli()+8000
		if err := client.HSet(t.Context(), countsKey("test", account), "requests/8s", fmt.Sprintf("%d 3", start)).Err(); err != nil {
			t.Fatal(err)
		}
		b := &batch{account: account, id: "one", counts: []given{{"requests/8s", window, start, end, 2}}}
		at, used, err := addReply(f.send(t.Context(), []*batch{b})[0], 1)
		if err != nil || used[0] != 5 || at < start {
			t.Errorf("%s: at %d, %d used, %v: want 5 at %d", account, at, used, err, start)
		}
	}
}

// TestGivenBackWhenTheClockWasSet: where a counter was counted far ahead, and its window before is not as
// far, both are of no window that counts, and what is given back is added.
func TestGivenBackWhenTheClockWasSet(t *testing.T) {
	t.Parallel()
	f := fallbackOn(redisStore(t, redisServer(t)), nil)
	client, window := f.redis.client, (8 * quota.Second).Slide()
	now, err := client.Time(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	start, end := window.Bounds(now)
	if err := client.HSet(t.Context(), countsKey("test", "a"),
		"requests/8s", fmt.Sprintf("%d 3", end.Add(8*time.Second).UnixMilli()), "requests/8s!before", fmt.Sprintf("%d 2", end.UnixMilli())).Err(); err != nil {
		t.Fatal(err)
	}
	b := &batch{account: "a", id: "one", counts: []given{
		{"tokens/8s", window, start.UnixMilli(), end.UnixMilli(), 2}, {"requests/8s", window, start.UnixMilli(), end.UnixMilli(), 2},
	}}
	if _, used, err := addReply(f.send(t.Context(), []*batch{b})[0], 2); err != nil || used[0] != used[1] {
		t.Errorf("%d used, %v: want as much of both", used, err)
	}
}
