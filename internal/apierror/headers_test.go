package apierror

import (
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// TestLimitHeaders says what a limit is, or what the configuration puts in its place.
func TestLimitHeaders(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		most, used                  int64
		unlimited, limit, remaining string
	}{
		{50, 3, "unlimited", "50", "47"},
		{50, 50, "1000", "50", "0"},
		{50, 60, "unlimited", "50", "0"}, // the maximum was lowered
		{0, 0, "", "0", "0"},
		{quota.NoMax, 3, "unlimited", "unlimited", "unlimited"},
		{quota.NoMax, 3, "1000", "1000", "997"},
		{quota.NoMax, 3, "900", "900", "897"},
		{quota.NoMax, 1003, "1000", "1000", "0"},
		{quota.NoMax, 3, "", "", ""},
	} {
		limit, remaining := LimitHeaders(quota.State{Limit: quota.Limit{Max: c.most}, Used: c.used}, c.unlimited)
		if limit != c.limit || remaining != c.remaining {
			t.Errorf("%+v: %q and %q", c, limit, remaining)
		}
	}
}

// TestUp says a wait that is long enough, and no longer.
func TestUp(t *testing.T) {
	t.Parallel()
	for wait, want := range map[time.Duration]int64{
		-time.Minute: 1, 0: 1, 1: 1, time.Second - 1: 1, time.Second: 1, time.Second + 1: 2, 12 * time.Second: 12, 11*time.Second + time.Millisecond: 12,
	} {
		if n := Up(wait, time.Second); n != want {
			t.Errorf("%s is %d s, want %d", wait, n, want)
		}
	}
	if n := Up(1500*time.Microsecond, time.Millisecond); n != 2 {
		t.Errorf("1.5 ms is %d ms, want 2", n)
	}
	for ns, want := range map[int64]int64{0: 100, 1: 101, 999_999_999: 101} {
		if n := UpUnix(time.Unix(100, ns)); n != want {
			t.Errorf("100 s and %d ns is %d s, want %d", ns, n, want)
		}
	}
}
