package quota

import (
	"context"
	"slices"
	"time"
)

// A Preview is what Decide would answer to a request, and why.
type Preview struct {
	Decision Decision
	Demands  []Demand // one for each limit that applies
}

// A Demand is what a request asks of one limit.
type Demand struct {
	State // before the request

	Asks       int64 // what the limit is charged if the request is admitted
	Cut        bool  // whether that is less than what is estimated, which is more than the limit
	Refuses    bool  // whether the request does not fit
	Overridden bool  // whether the limit is the key's own, instead of its tier's or beside them
}

// Preview says what Decide would answer to a request that repeats no other, and takes
// nothing.
func (l *Limiter) Preview(ctx context.Context, r Request, now time.Time) (Preview, error) {
	charges := r.all(now)
	if _, found := tooLargeOf(charges); found { // it does not get as far as its pool
		r.Pool, charges = nil, r.charges(now)
	}
	d, before, err := l.preview(ctx, r, charges, now)
	if err != nil {
		return Preview{Decision: d}, err
	}
	p := Preview{d, make([]Demand, len(charges))}
	for i, c := range charges {
		refuses := c.tooLarge()
		if !d.TooLarge {
			refuses = !d.Admitted && c.Exceeds(before[i])
		}
		p.Demands[i] = Demand{
			State: stateOf(c, before[i], d.Now), Asks: c.Cost, Refuses: refuses, Overridden: r.overrides(c.Limit, now),
			Cut: !c.tooLarge() && c.Cost < r.Cost.of(c.Limit.Metric)+r.Estimate.of(c.Limit.Metric),
		}
	}
	return p, nil
}

// preview decides, and returns what was used of each charge's counter before that.
func (l *Limiter) preview(ctx context.Context, r Request, charges []Charge, now time.Time) (d Decision, before []int64, err error) {
	if c, found := tooLargeOf(charges); found {
		d, err = l.tooLarge(ctx, r, now, c)
		return d, d.used, err // of the same counters: a request that costs something is charged to all
	}
	taken, err := l.look(ctx, r, charges)
	if err != nil {
		return unanswered(charges, now), nil, err
	}
	before = slices.Clone(taken.weighed(charges))
	for i, c := range charges {
		if taken.Admitted {
			taken.Used[i] = min(max(taken.Used[i]+c.Cost, 0), MaxUsed)
		}
	}
	return decideAll(charges, taken), before, nil
}

// overrides reports whether a limit is one of the request's overrides.
func (r Request) overrides(l Limit, now time.Time) bool {
	return slices.ContainsFunc(r.Overrides, func(o Override) bool { return !o.over(now) && o.Limit.sameCounter(l) })
}
