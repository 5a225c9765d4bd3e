package store

import (
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// neighbour returns another account of the same shard.
func neighbour(l *ledger, account string) string {
	for i := 0; ; i++ {
		if other := "b" + strconv.Itoa(i); l.shard(other) == l.shard(account) {
			return other
		}
	}
}

// TestLongOutage: accounts whose windows have ended leave their room to others, though
// nothing could be given back.
func TestLongOutage(t *testing.T) {
	t.Parallel()
	now := time.Now()
	l := newLedger(1)
	first := of("a", charge(quota.Minute, 10, 1))
	second := of(neighbour(l, "a"), charge(quota.Minute, 10, 1))
	local := manner{quota.Local, 1, false, nil}
	if _, err := l.take(first, local, now); err != nil {
		t.Fatal(err)
	}
	if _, err := l.take(second, local, now); !errors.Is(err, ErrFull) {
		t.Errorf("%v: want ErrFull", err)
	}
	now = now.Add(time.Minute)
	l.sweep(now)
	if _, err := l.take(second, local, now); err != nil || l.owing.Load() != 1 || l.ended.Load() != 1 {
		t.Errorf("%v, %d owed, %d ended: want 1 and 1", err, l.owing.Load(), l.ended.Load())
	}
}

// TestLedgerIsSweptByOneClock: what a sweep has found ended is not begun anew when the clock is
// corrected.
func TestLedgerIsSweptByOneClock(t *testing.T) {
	t.Parallel()
	l, local, o := newLedger(100), manner{quota.Local, 1, false, nil}, of("a", charge(quota.Day, 1, 1))
	admitted := 0
	for _, after := range []time.Duration{-time.Second, -time.Second, 2 * time.Second} {
		taken, err := l.take(o, local, midnight().Add(after))
		if err != nil {
			t.Fatal(err)
		}
		if taken.Admitted {
			admitted++
		}
		l.sweep(midnight().Add(time.Second))
	}
	if admitted != 2 {
		t.Errorf("%d were admitted: want one of each day", admitted)
	}
}

// TestWhatIsOnItsWayIsKept: an account makes no room for another before it is completed. Else a
// request with a limit would not wait for it, and would be admitted as if it was not there.
func TestWhatIsOnItsWayIsKept(t *testing.T) {
	t.Parallel()
	now := time.Now()
	l := newLedger(1)
	o, other := free("a", ""), free(neighbour(l, "a"), "")
	_, start, _ := l.ahead(o, now)
	if _, _, ok := l.ahead(other, now); ok {
		t.Error("another finds room")
	}
	limited := of("a", charge(quota.Month, 1, 1))
	if !l.inFlight(limited) {
		t.Error("a request with a limit does not wait")
	}
	if taken, err := l.take(limited, manner{quota.Local, 1, false, nil}, now); err != nil || taken.Admitted {
		t.Errorf("without Redis the limit is passed: %+v, %v", taken, err)
	}
	l.complete(o, start, quota.Taken{Now: now, Admitted: true, Used: []int64{1}})
	if _, _, ok := l.ahead(other, now); !ok {
		t.Error("it keeps the room when it is completed")
	}
}

// TestAnOldAnswerTellsOfNoLess: Redis' answer to a look is read after those to requests that
// came to Redis later, though they were answered to the client before.
func TestAnOldAnswerTellsOfNoLess(t *testing.T) {
	t.Parallel()
	now := time.Now()
	l := newLedger(1)
	o, look := free("a", ""), of("a", charge(quota.Month, quota.NoMax, 0))
	_, start, _ := l.ahead(o, now)
	l.complete(o, start, quota.Taken{Now: now.Add(5 * time.Millisecond), Admitted: true, Used: []int64{500}})
	old := quota.Taken{Now: now, Admitted: true, Used: []int64{422}}
	l.note(look, &old)
	if old.Used[0] != 500 {
		t.Errorf("used %d after 500", old.Used[0])
	}
}

// TestWindowsMoveOn: what Redis says in a window is not taken for what was used in the one
// before or after.
func TestWindowsMoveOn(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 59, 0, time.UTC)
	l := newLedger(10)
	o := of("a", charge(quota.Minute, 10, 1), charge(quota.Day, 100, 1))
	for _, c := range []struct {
		after     time.Duration
		day, used int64 // of the minute
	}{{0, 9, 9}, {time.Second, 12, 3}, {30 * time.Second, 16, 7}, {61 * time.Second, 17, 1}, {-time.Hour, 18, 1}} { // the last: Redis' clock was put back
		at := now.Add(c.after)
		l.note(o, &quota.Taken{Now: at, Admitted: true, Used: []int64{c.used, c.day}})
		look := of("a", charge(quota.Minute, 10, 0), charge(quota.Day, 100, 0))
		taken, err := l.take(look, manner{quota.Local, 1, false, nil}, at)
		if err != nil || taken.Used[0] != c.used || taken.Used[1] != c.day {
			t.Errorf("after %s: %+v, %v: want %d and %d", c.after, taken.Used, err, c.used, c.day)
		}
	}
}
