package store

import (
	"context"
	_ "embed" // for the scripts
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

//go:embed add.lua
var addSource string

//go:embed beat.lua
var beatSource string

//go:embed back.lua
var backSource string

// ErrAway says that Redis cannot be reached, and that the order is to be denied then.
var ErrAway = errors.New("the counts in Redis cannot be reached")

// ErrQueueFull says that a settlement is lost: Redis cannot be reached, and as many wait
// for it as may, or as many of one key.
var ErrQueueFull = errors.New("too many settlements wait for Redis, in all or of one key: raise store.redis.max_queued_settlements")

// FallbackOptions say how a Fallback goes on without Redis. All are needed.
type FallbackOptions struct {
	Instance         string // names this process among those on the same Redis
	MaxAccounts      int    // whose counts are known at once, about
	MaxQueued        int    // settlements that wait for Redis
	AssumedInstances int    // that share the limits, until Redis has told how many there are

	Now     func() time.Time     // until Redis has told its time, and for people
	Elapsed func() time.Duration // since any moment, by a clock that nobody sets

	Notices FallbackNotices
}

// Fallback counts in Redis, and while that cannot be reached as each Order's OnFailure
// says: by what it last saw there and this instance's share of the rest, or not at all.
// What it has admitted meanwhile it gives back to Redis, once. Run must be called for
// that. It is safe for concurrent use.
//
// An order that Redis is certain to refuse is refused without asking it; see exhausted. One
// that no limit can refuse is answered before it is carried out.
//
// Redis is reached or not by parts: one, or 16 of a Cluster's slots. While one cannot be
// reached, no request waits for it.
type Fallback struct {
	redis   *Redis
	options FallbackOptions
	add     script
	beats   script
	backs   script
	parts   []*part
	outage  outage
	totals  totals
	queue   *queueQuota  // of the settlements that wait
	batches atomic.Int64 // named so far
	leaving atomic.Bool  // nothing waits any more
	fleet   fleet
	refused *latelyRefused

	remembered    atomic.Int64 // see Remembered
	answeredAhead atomic.Int64 // see AnsweredAhead
	inFlight      atomic.Int64 // of these, and who waited for them, still on their way

	// Redis' time is this many ms ahead of Elapsed, as of its last answer.
	ahead atomic.Int64
}

// NewFallback returns a store on a Redis, which stays the caller's to close.
func NewFallback(r *Redis, o FallbackOptions) *Fallback {
	f := &Fallback{
		redis: r, options: o, add: newScript(commonSource + slidingSource + addSource), beats: newScript(commonSource + beatSource),
		backs: newScript(commonSource + backSource), queue: newQueueQuota(o.MaxQueued), refused: newLatelyRefused(),
	}
	for range r.parts() {
		most := max(1, o.MaxAccounts/r.parts())
		f.parts = append(f.parts, &part{number: len(f.parts), ledger: newLedger(most), exhausted: newExhausted(most), back: -recent})
	}
	r.told = f.told
	f.fleet.assumed = int64(max(o.AssumedInstances, 1))
	f.ahead.Store(o.Now().UnixMilli() - o.Elapsed().Milliseconds())
	return f
}

func (f *Fallback) part(account string) *part { return f.parts[f.redis.part(account)] }

// now returns the time that Redis has, whether it can be reached or not: the wall clock of
// this machine may be set meanwhile.
func (f *Fallback) now() time.Time {
	return time.UnixMilli(f.ahead.Load() + f.options.Elapsed().Milliseconds()).UTC()
}

// tell notes Redis' time.
func (f *Fallback) tell(now time.Time) {
	f.ahead.Store(now.UnixMilli() - f.options.Elapsed().Milliseconds())
}

// Take implements quota.Counts. It fails with ErrAway where the order is to be denied, and
// with ErrFull where an account that is not known yet finds no room.
func (f *Fallback) Take(ctx context.Context, o quota.Order) (quota.Taken, error) {
	taken, err := f.take(ctx, o)
	if err != nil || !taken.Admitted {
		f.refused.note(o.Account, int64(f.options.Elapsed()))
	}
	return taken, err
}

// RefusedLately implements quota.Recollection.
func (f *Fallback) RefusedLately(account string) bool {
	return f.refused.lately(account, int64(f.options.Elapsed()))
}

func (f *Fallback) take(ctx context.Context, o quota.Order) (quota.Taken, error) {
	p := f.part(o.Account)
	if taken, open, err := f.takeOpen(p, o); open {
		return taken, err
	}
	owed, first := p.ledger.before(o, f.now)
	if first != nil {
		return *first, nil
	}
	if taken, ahead := f.takeAhead(ctx, p, o); ahead {
		return taken, nil
	}
	late := f.awaitAhead(ctx, p, o)
	asked := f.options.Elapsed()
	if owed == nil {
		if taken, known := f.refuse(p, o, asked); known {
			return taken, nil
		}
	}
	taken, err := f.askUntil(ctx, p, lessen(o, owed), late)
	f.remember(p, o, owed, taken, err, asked)
	if err != nil {
		return f.decide(p, o, outcomeUnknown(err), err)
	}
	if !taken.Repeated {
		for i := range owed {
			owed[i].tell(&taken, i, &o.Charges[i])
		}
	}
	return taken, nil
}

// told notes what Redis has answered to an order. One that was answered ahead is noted when it
// is complete.
func (f *Fallback) told(o *quota.Order, taken *quota.Taken) {
	if taken.Repeated {
		return
	}
	f.tell(taken.Now)
	if !unlimited(*o) {
		f.part(o.Account).ledger.note(*o, taken)
	}
}

// Refuses implements quota.Foresight.
func (f *Fallback) Refuses(o quota.Order) (t quota.Taken, known bool) {
	p := f.part(o.Account)
	if p.open.Load() {
		return quota.Taken{}, false
	}
	if owed, first := p.ledger.before(o, f.now); owed != nil || first != nil {
		return quota.Taken{}, false
	}
	return f.refuse(p, o, f.options.Elapsed())
}

// refuse refuses what Redis is certain to, at a moment of Elapsed.
func (f *Fallback) refuse(p *part, o quota.Order, now time.Duration) (t quota.Taken, known bool) {
	if t, known = p.exhausted.refuse(o, now); known {
		f.remembered.Add(1)
	}
	return t, known
}

// remember notes what Redis refuses, and what it is given back.
func (f *Fallback) remember(p *part, o quota.Order, owed []debt, taken quota.Taken, err error, asked time.Duration) {
	switch {
	case slices.ContainsFunc(o.Charges, func(c quota.Charge) bool { return c.Cost < 0 }):
		p.exhausted.forget(o.Account, f.options.Elapsed())
	case err == nil && owed == nil && !taken.Admitted:
		p.exhausted.remember(o, taken, asked, f.options.Elapsed())
	}
}

// ask makes the call of a Take, and notes whether that succeeds.
func (f *Fallback) ask(ctx context.Context, p *part, o quota.Order) (quota.Taken, error) {
	began := f.options.Elapsed()
	taken, err := f.redis.Take(ctx, o)
	now := f.options.Elapsed()
	f.options.Notices.called(CallTake, now-began, err)
	if err != nil {
		f.failed(p, err)
	} else {
		p.fine(now)
	}
	return taken, err
}

// takeOpen decides where the part cannot be reached. The part does not become reachable
// meanwhile, so that all that is charged beside Redis is known before Redis is asked.
func (f *Fallback) takeOpen(p *part, o quota.Order) (taken quota.Taken, open bool, err error) {
	if !p.open.Load() {
		return quota.Taken{}, false, nil
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	if !p.open.Load() {
		return quota.Taken{}, false, nil
	}
	taken, err = f.decide(p, o, false, p.err)
	return taken, true, err
}

// decide decides without Redis, because of a cause.
func (f *Fallback) decide(p *part, o quota.Order, doubt bool, cause error) (quota.Taken, error) {
	f.totals.decided(o)
	if o.OnFailure == quota.Deny {
		return quota.Taken{}, fmt.Errorf("%w: %w", ErrAway, cause)
	}
	underWay := f.redis.underWay(&o)
	if errors.Is(cause, errLate) { // it is still among them itself
		for i, c := range o.Charges {
			underWay[i] = max(underWay[i]-max(c.Cost, 0), 0)
		}
	}
	taken, err := p.ledger.take(o, manner{o.OnFailure, f.Instances(), doubt, underWay}, f.now())
	if err != nil {
		return quota.Taken{}, fmt.Errorf("count without Redis (%w): %w", cause, err)
	}
	return taken, nil
}

// lessen returns an order that fits only where what Redis is yet to be given fits too.
func lessen(o quota.Order, owed []debt) quota.Order {
	if owed == nil {
		return o
	}
	charges := append([]quota.Charge(nil), o.Charges...)
	for i, d := range owed {
		if l := &charges[i].Limit; l.Max != quota.NoMax {
			l.Max = max(l.Max-d.used-d.weighs, 0)
		}
	}
	o.Charges = charges
	return o
}

// Settle implements quota.Counts. Where Redis cannot be reached, or does not know the
// reservation yet, the settlement waits for it: quota.Queued. It fails with ErrQueueFull.
func (f *Fallback) Settle(ctx context.Context, s quota.Settlement) (quota.Outcome, error) {
	p := f.part(s.Account)
	place := inRedis
	if p.ledger.kept.Load() > 0 {
		var outcome quota.Outcome
		if outcome, place = p.ledger.settle(s, f.Instances(), f.now()); place == here {
			return outcome, nil
		}
	}
	if place == inRedis && !p.open.Load() {
		outcome, err := f.settle(ctx, p, s)
		if err == nil && (outcome != quota.NotFound || !f.recent(p)) {
			return outcome, nil
		}
	}
	return f.enqueue(p, s)
}

// settle makes the call of a Settle.
func (f *Fallback) settle(ctx context.Context, p *part, s quota.Settlement) (quota.Outcome, error) {
	began := f.options.Elapsed()
	outcome, err := f.redis.Settle(ctx, s)
	now := f.options.Elapsed()
	f.options.Notices.called(CallSettle, now-began, err)
	if s.RefundShare > 0 || s.Void {
		p.exhausted.forget(s.Account, now)
	} else {
		p.exhausted.settle(s.Account, now)
	}
	if err != nil {
		f.failed(p, err)
		return 0, err
	}
	p.fine(now)
	return outcome, nil
}

// Ping says why not all counts can be reached, or nil. It asks Redis only where that is
// not known to be away.
func (f *Fallback) Ping(ctx context.Context) error {
	if s := f.State(); s.Degraded {
		return fmt.Errorf("Redis is not reached since %s: %w", s.Since.UTC().Format(time.RFC3339), s.Err)
	}
	return f.redis.Ping(ctx)
}
