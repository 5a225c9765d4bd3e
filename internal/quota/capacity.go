package quota

import (
	"context"
	"slices"
	"time"
)

// A Pool is what the backend can take of one resource in a window, from all keys together.
// Requests of a priority may use it up to their share: so the low are shed first, and for the
// critical there is room last.
type Pool struct {
	account  string
	charges  map[Priority][]Charge // without costs
	onTokens bool                  // whether a limit is on tokens, so that a settlement changes what is used
}

// Whole is a share of all there is, in thousandths.
const Whole = 1000

// Shares say how much of a pool the requests of each priority may use, in thousandths of it.
type Shares map[Priority]int64

// UsualShares are those of a pool for which nothing else is said.
func UsualShares() Shares {
	return Shares{Low: Whole / 2, Normal: 3 * Whole / 4, High: 9 * Whole / 10, Critical: Whole}
}

// NewPool returns the pool of a resource. Its limits count that resource's requests, whatever
// their key and priority.
func NewPool(resource string, limits []Limit, shares Shares) *Pool {
	// No key has such an ID.
	p := &Pool{account: "capacity:" + resource, charges: map[Priority][]Charge{}}
	for _, l := range limits {
		p.onTokens = p.onTokens || l.Metric != Requests
		counter := l.Metric.String() + "/" + l.Window.String()
		for _, priority := range Priorities() {
			share := Limit{Metric: l.Metric, Window: l.Window, Max: Share(l.Max, shares[priority]), Resource: resource, Priority: priority, Pooled: true}
			p.charges[priority] = append(p.charges[priority], Charge{Limit: share, Counter: counter})
		}
	}
	return p
}

// Limits returns the limits of each priority.
func (p *Pool) Limits() []Limit {
	var limits []Limit
	for _, priority := range Priorities() {
		for _, c := range p.charges[priority] {
			limits = append(limits, c.Limit)
		}
	}
	return limits
}

// Share returns so many thousandths of a maximum, rounded down.
func Share(most, thousandths int64) int64 {
	return most/Whole*thousandths + most%Whole*thousandths/Whole
}

// settles reports whether a settlement changes what is used of the pool; of none it does not.
func (p *Pool) settles() bool { return p != nil && p.onTokens }

// price returns what a request takes of the pool. One that asks for more than there is for its
// priority takes all of that: it passes where nobody else uses the pool. Nor does one give back
// more.
func (p *Pool) price(r Request) []Charge {
	charges := slices.Clone(p.charges[r.Priority])
	for i := range charges {
		c := &charges[i]
		c.price(r)
		c.Declared = 0
		if c.Cost = max(c.Cost, -c.Limit.Max); c.Limit.Max > 0 {
			c.Cost = min(c.Cost, c.Limit.Max)
		}
	}
	return charges
}

// order asks for what a request takes of the pool, under a name that follows from that of the
// key's own order.
func (p *Pool) order(r Request, own Order) Order {
	return Order{
		Account: p.account, Charges: p.price(r), Request: pooled(own.Account, own.Request, own.Secret), Secret: own.Secret,
		Keep: own.Keep, Undoable: true, OnFailure: own.OnFailure,
	}
}

// pooled names in a pool the order of a request of an account.
func pooled(account, request, secret string) string {
	if request == "" || request == secret {
		return secret // nobody repeats it
	}
	return account + "/" + request
}

// A Foresight is a Counts that may know, without asking anybody, that it would refuse.
type Foresight interface {
	// Refuses returns what Take is certain to answer to an order that it refuses; known is
	// false where it may admit it.
	Refuses(o Order) (t Taken, known bool)
}

// A Recollection is a Counts that knows of whom it has refused an order, or could not carry one out,
// in the last seconds. It may take others for such.
type Recollection interface {
	RefusedLately(account string) bool
}

// decidePooled charges a request to the pool of its resource, and then to its key. What the key
// refuses the pool gets back. So neither ever has more than fits, and who is shed pays nothing.
// For a moment a pool can have what is given back then, which others would be shed for: so a key
// that was refused lately is looked at before.
func (l *Limiter) decidePooled(ctx context.Context, r Request, own Order, now time.Time) (Decision, error) {
	share := r.Pool.order(r, own)
	if f, ok := l.counts.(Foresight); ok && !r.Credit {
		if taken, known := f.Refuses(own); known {
			if pool, full := f.Refuses(share); full {
				return decideBoth(own.Charges, share.Charges, taken, pool), nil
			}
			return decide(own.Charges, taken), nil
		}
	}
	if c, ok := l.counts.(Recollection); ok && !r.Credit && c.RefusedLately(r.Account) {
		looked, err := l.lookAtKey(ctx, r, own.Charges)
		if err != nil {
			return unanswered(own.Charges, now), err
		}
		if !looked.Admitted {
			return l.decideKeyFirst(ctx, r, own, share, now)
		}
	}
	taken, err := l.take(ctx, share)
	switch {
	case err != nil:
		return unanswered(own.Charges, now), err
	case !taken.Admitted:
		return l.shed(ctx, r, own.Charges, share.Charges, taken, now)
	}
	d, err := l.charge(ctx, own, now)
	if d.Admitted {
		d.pooled, d.usedPooled = share.Charges, taken.Used
	} else {
		l.undo(ctx, share, taken)
	}
	d.Degraded = d.Degraded || taken.Degraded
	return d, err
}

// decideKeyFirst is the rest of decidePooled where the key has no room, as it seems. If it has,
// after all, because something was given back to it meanwhile or the request repeats one that was
// admitted, the pool is charged then, which knows repeats too.
func (l *Limiter) decideKeyFirst(ctx context.Context, r Request, own, share Order, now time.Time) (Decision, error) {
	key, err := l.take(ctx, own)
	if err != nil {
		return unanswered(own.Charges, now), err
	}
	d := own.decided(key)
	if !d.Admitted {
		// The wait of the pool may be longer. Refused it is, whether that is known or not.
		if pool, err := l.lookAtPool(ctx, r, share.Charges); err == nil && !pool.Admitted {
			return decideBoth(own.Charges, share.Charges, key, pool), nil
		}
		return d, nil
	}
	taken, err := l.take(ctx, share)
	switch {
	case err != nil:
		l.undo(ctx, own, key)
		return unanswered(own.Charges, now), err
	case !taken.Admitted:
		l.undo(ctx, own, key)
		return l.shed(ctx, r, own.Charges, share.Charges, taken, now)
	}
	d.pooled, d.usedPooled = share.Charges, taken.Used
	d.Degraded = d.Degraded || taken.Degraded
	return d, nil
}

// lookAtKey is look without the pool.
func (l *Limiter) lookAtKey(ctx context.Context, r Request, own []Charge) (Taken, error) {
	r.Pool = nil
	return l.look(ctx, r, own)
}

// lookAtPool is look for the charges of the pool alone.
func (l *Limiter) lookAtPool(ctx context.Context, r Request, shared []Charge) (Taken, error) {
	r.Pool, r.Account = nil, r.Pool.account
	return l.look(ctx, r, shared)
}

// undo gives back what an order took. Where that fails there is less until the windows end.
func (l *Limiter) undo(ctx context.Context, o Order, taken Taken) {
	ctx = context.WithoutCancel(ctx)
	switch {
	case taken.Repeated: // what the other one took stays
	case taken.Secret == "": // there was no room to keep it: what was taken in a window that ends now comes back in the next
		o.Charges, o.Request, o.Secret = slices.Clone(o.Charges), "", ""
		for i := range o.Charges {
			o.Charges[i].Cost = -o.Charges[i].Cost
		}
		_, _ = l.counts.Take(ctx, o)
	default:
		_, _ = l.counts.Settle(ctx, Settlement{Account: o.Account, Request: o.Request, Secret: o.Secret, Void: true})
	}
}

// shed refuses a request for which its pool has no room. What is said of the key's limits is how
// they are.
func (l *Limiter) shed(ctx context.Context, r Request, own, shared []Charge, pool Taken, now time.Time) (Decision, error) {
	taken, err := l.lookAtKey(ctx, r, own)
	if err != nil {
		return unanswered(own, now), err
	}
	return decideBoth(own, shared, taken, pool), nil
}

// decideBoth decides by what is known of a key's charges and of those of a pool, which refuses.
func decideBoth(own, shared []Charge, key, pool Taken) Decision {
	key.join(pool)
	return decideAll(append(slices.Clip(own), shared...), key)
}

// decideAll is decide where the last charges may be those of a pool. These can refuse, but are
// none of the key's limits.
func decideAll(charges []Charge, taken Taken) Decision {
	d := decide(charges, taken)
	if n := slices.IndexFunc(charges, func(c Charge) bool { return c.Limit.Pooled }); n >= 0 {
		d.charges, d.used, d.pooled, d.usedPooled = charges[:n], d.used[:n], charges[n:], taken.Used[n:]
	}
	return d
}

// lookPooled is look for charges of which the last are those of the request's pool.
func (l *Limiter) lookPooled(ctx context.Context, r Request, asked []Charge) (Taken, error) {
	n := len(asked) - len(r.Pool.charges[r.Priority])
	taken, err := l.lookAtKey(ctx, r, asked[:n])
	if err != nil {
		return Taken{}, err
	}
	pool, err := l.lookAtPool(ctx, r, asked[n:])
	if err != nil {
		return Taken{}, err
	}
	taken.join(pool)
	return taken, nil
}

// join adds to what is known of a key's charges what is known of a pool's, whose windows do not
// slide.
func (t *Taken) join(pool Taken) {
	t.Used = append(t.Used, pool.Used...)
	if t.Before != nil {
		t.Before = append(t.Before, make([]int64, len(pool.Used))...)
	}
	t.Admitted, t.Degraded = t.Admitted && pool.Admitted, t.Degraded || pool.Degraded
}

// settlePooled corrects what a request took of the pool of its resource, as its key's limits
// were. Nothing is given back of an answer that failed: the backend had the work.
func (l *Limiter) settlePooled(ctx context.Context, s Settlement) error {
	s.Account, s.Request = s.Pool.account, pooled(s.Account, s.Request, s.Secret)
	s.Pool, s.RefundShare, s.Then = nil, 0, nil
	_, err := l.counts.Settle(ctx, s)
	return err //nolint:wrapcheck // by the caller
}
