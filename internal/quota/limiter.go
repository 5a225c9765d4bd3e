package quota

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Counts keeps counters and reservations. Implementations live in package store.
type Counts interface {
	// Take takes all charges of an order in one atomic step, or none of them if
	// one does not fit (see Charge.Exceeds). An order that repeats an admitted one
	// within RepeatWindow gets the answer of the first and takes nothing. It may keep the
	// charges, which the caller does not change any more.
	Take(ctx context.Context, o Order) (Taken, error)
	// Settle corrects what one order took to what was really used, at most once.
	// It may be repeated when its outcome is unknown.
	Settle(ctx context.Context, s Settlement) (Outcome, error)
}

// RepeatWindow is how long an admitted order's answer is kept for repeats.
const RepeatWindow = 10 * time.Second

// An Order asks a Counts for charges.
type Order struct {
	Account string
	Charges []Charge
	// Request identifies the order within the account; empty: nothing is kept of it, for
	// repeats or for a settlement. Secret is what a Settlement must show, where one may come.
	// Both are of letters, digits, - and _.
	Request, Secret string
	// Keep is how long a Settlement may take; 0: none comes, and the order is kept for repeats
	// only and has no Secret, unless it is Undoable.
	Keep      time.Duration
	Undoable  bool // a Settlement may undo it at once: see Settlement.Void
	OnFailure OnFailure
	// Firm: nothing gives back what an order like this takes of requests.
	Firm bool
}

// Kept reports whether what the order takes is to be kept.
func (o Order) Kept() bool { return o.Request != "" }

// Repeatable reports whether there may be other orders of the same Request. One that goes
// by its secret is the only one.
func (o Order) Repeatable() bool { return o.Kept() && o.Request != o.Secret }

// Pooled reports whether it is a pool that is charged, of which there are as many as the
// configuration has.
func (o Order) Pooled() bool { return len(o.Charges) > 0 && o.Charges[0].Limit.Pooled }

// Taken is what a Counts did.
type Taken struct {
	Now      time.Time // the one clock by which the windows were computed
	Admitted bool      // whether the charges were taken
	Repeated bool      // the answer is that to an order that this one repeats, and nothing was taken
	Used     []int64   // of each charge's counter in the current window, after what was taken
	// Before is what was used in the window before the current one, for charges whose windows
	// slide; 0 for others, and nil where there are only others.
	Before []int64
	Secret string // of the order, or the one it repeats, that is kept; empty: no settlement finds one
	// Degraded: the counts cannot be reached, and an Order's OnFailure decided. Used, with
	// Before, then is so that what remains is what this instance would still admit.
	Degraded bool
	// Instances is how many share every limit where that is so, each with its ShareOf. Of limits
	// that slide, what is left to the others is part of Used, and will be in the windows to come;
	// 0: nothing is shared.
	Instances int64
	// Pending is nil where the order has been carried out. Else it was answered before that,
	// by what was known, and Pending has a function called once it has been: by whether it
	// turned out to repeat an order of before, and so took nothing.
	Pending func(then func(repeated bool))
}

// A Limiter decides requests by charging their limits.
type Limiter struct {
	counts Counts
}

// NewLimiter returns a Limiter that counts in counts.
func NewLimiter(counts Counts) *Limiter { return &Limiter{counts: counts} }

// Decide charges the request and says whether it may pass. now only serves to
// end overrides; the windows go by the clock of the counts. With an error comes what
// can be said without them: see unanswered.
func (l *Limiter) Decide(ctx context.Context, r Request, now time.Time) (Decision, error) {
	charges := r.charges(now)
	if c, found := tooLargeOf(charges); found {
		return l.tooLarge(ctx, r, now, c)
	}
	o := r.order(charges)
	if r.Pool != nil {
		return l.decidePooled(ctx, r, o, now)
	}
	return l.charge(ctx, o, now)
}

// order asks for charges.
func (r Request) order(charges []Charge) Order {
	o := Order{Account: r.Account, Charges: charges, Request: r.ID, OnFailure: r.Tier.Tier.OnFailure, Firm: r.Firm, Undoable: r.Pool != nil}
	if r.Reserved || r.Pool.settles() || slices.ContainsFunc(charges, func(c Charge) bool { return c.Limit.Metric != Requests }) {
		o.Keep = r.Keep
	}
	switch {
	case r.Secret == nil:
		o.Request = ""
	case o.Keep > 0 || o.Undoable:
		o.Secret = r.Secret()
	}
	if r.ID == "" && o.Keep > 0 {
		o.Request = o.Secret // as good a name as any for what nobody repeats
	}
	return o
}

// charge carries out an order and decides by its answer.
func (l *Limiter) charge(ctx context.Context, o Order, now time.Time) (Decision, error) {
	taken, err := l.take(ctx, o)
	if err != nil {
		return unanswered(o.Charges, now), err
	}
	return o.decided(taken), nil
}

// decided is the decision on an order that has been carried out.
func (o Order) decided(taken Taken) Decision {
	d := decide(o.Charges, taken)
	d.Repeated = taken.Repeated
	if o.Keep > 0 && d.Secret != "" {
		d.Reservation = o.Request
	}
	return d
}

// tooLarge refuses a request that does not fit into the whole of a limit, with
// the counters as they are.
func (l *Limiter) tooLarge(ctx context.Context, r Request, now time.Time, c Charge) (Decision, error) {
	r.Cost, r.Estimate, r.Pool = Cost{}, Cost{}, nil
	d, err := l.Look(ctx, r, now)
	if err != nil {
		return d, err
	}
	d.Admitted, d.TooLarge, d.RefusedBy, d.Declared = false, true, c.Limit, c.Declared
	return d, nil
}

// Look says what Decide would, with an error too, and takes nothing.
func (l *Limiter) Look(ctx context.Context, r Request, now time.Time) (Decision, error) {
	asked := r.all(now)
	taken, err := l.look(ctx, r, asked)
	if err != nil {
		return unanswered(asked, now), err
	}
	return decideAll(asked, taken), nil
}

// look says what taking the charges of a request would, and what is used before that.
func (l *Limiter) look(ctx context.Context, r Request, asked []Charge) (Taken, error) {
	if r.Pool != nil {
		return l.lookPooled(ctx, r, asked)
	}
	looking := slices.Clone(asked)
	for i := range looking {
		looking[i].Cost = 0
	}
	taken, err := l.take(ctx, Order{Account: r.Account, Charges: looking, OnFailure: r.Tier.Tier.OnFailure})
	if err != nil {
		return Taken{}, err
	}
	if taken.Degraded && r.Tier.Tier.OnFailure == Allow {
		return taken, nil // whatever is used
	}
	used := taken.weighed(asked)
	for i, c := range asked {
		taken.Admitted = taken.Admitted && !c.Exceeds(used[i])
	}
	return taken, nil
}

func (l *Limiter) take(ctx context.Context, o Order) (Taken, error) {
	taken, err := l.counts.Take(ctx, o)
	if err != nil {
		return Taken{}, fmt.Errorf("charge %s: %w", o.Account, err)
	}
	return taken, nil
}

// Settle corrects the charges of a request that has been answered. After an error it may be
// repeated: what has been settled is not settled again.
func (l *Limiter) Settle(ctx context.Context, s Settlement) (Outcome, error) {
	outcome, err := l.counts.Settle(ctx, s)
	if err == nil && s.Pool.settles() && outcome != NotFound {
		if err = l.settlePooled(ctx, s); outcome == Queued {
			err = nil // if it were repeated, it would wait twice
		}
	}
	if err != nil {
		return 0, fmt.Errorf("settle a reservation of %s: %w", s.Account, err)
	}
	return outcome, nil
}
