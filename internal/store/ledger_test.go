package store

import (
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

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
