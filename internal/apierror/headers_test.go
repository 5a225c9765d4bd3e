package apierror

import (
	"testing"

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
		{quota.NoMax, 1003, "1000", "1000", "0"},
		{quota.NoMax, 3, "", "", ""},
	} {
		limit, remaining := LimitHeaders(quota.State{Limit: quota.Limit{Max: c.most}, Used: c.used}, c.unlimited)
		if limit != c.limit || remaining != c.remaining {
			t.Errorf("%+v: %q and %q", c, limit, remaining)
		}
	}
}
