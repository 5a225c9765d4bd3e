package quota

import (
	"context"
	"fmt"
	"time"
)

// Counts keeps counters. Implementations live in package store.
type Counts interface {
	// Take charges all of an account's charges in one atomic step, or none of
	// them if one does not fit (see Charge.Exceeds).
	Take(ctx context.Context, account string, charges []Charge) (Taken, error)
}

// Taken is what a Counts did.
type Taken struct {
	Now      time.Time // the one clock by which the windows were computed
	Admitted bool      // whether the charges were taken
	Used     []int64   // of each charge's counter, after what was taken
}

// A Limiter decides requests by charging their limits.
type Limiter struct {
	counts Counts
}

// NewLimiter returns a Limiter that counts in counts.
func NewLimiter(counts Counts) *Limiter { return &Limiter{counts: counts} }

// Decide charges the request and says whether it may pass. now only serves to
// end overrides; the windows go by the clock of the counts.
func (l *Limiter) Decide(ctx context.Context, r Request, now time.Time) (Decision, error) {
	return l.take(ctx, r.Account, r.charges(now))
}

// Look returns what Decide would show in the headers and takes nothing.
func (l *Limiter) Look(ctx context.Context, r Request, now time.Time) (Decision, error) {
	return l.take(ctx, r.Account, r.looking(now))
}

func (l *Limiter) take(ctx context.Context, account string, charges []Charge) (Decision, error) {
	taken, err := l.counts.Take(ctx, account, charges)
	if err != nil {
		return Decision{}, fmt.Errorf("charge %s: %w", account, err)
	}
	return decide(charges, taken), nil
}
