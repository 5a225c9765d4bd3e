package apierror

import (
	"strconv"

	"github.com/tiergate/tiergate/internal/quota"
)

// LimitHeaders returns the texts of X-RateLimit-Limit and X-RateLimit-Remaining for a
// limit and what is used of it. Where the limit only counts, they say what the
// configuration puts in the place of one: a word says itself twice, of a number what is
// used is taken off, and nothing leaves both headers out.
func LimitHeaders(s quota.State, unlimited string) (limit, remaining string) {
	if s.Limit.Max != quota.NoMax {
		return strconv.FormatInt(s.Limit.Max, 10), strconv.FormatInt(s.Remaining(), 10)
	}
	if unlimited == "" || unlimited[0] > '9' { // a word: an error of ParseInt would allocate
		return unlimited, unlimited
	}
	if n, err := strconv.ParseInt(unlimited, 10, 64); err == nil {
		return unlimited, strconv.FormatInt(max(n-s.Used, 0), 10)
	}
	return unlimited, unlimited
}
