package store

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// mostAhead is how many orders may be on their way to Redis that are answered already. Who
// comes beyond that waits, as others do.
const mostAhead = 4096

// unlimited reports whether no limit can refuse an order, and nothing waits for what it
// takes.
func unlimited(o quota.Order) bool {
	costs := false
	for i := range o.Charges {
		c := &o.Charges[i]
		if c.Limit.Max != quota.NoMax || c.Cost < 0 || c.Limit.Window.Sliding() {
			return false
		}
		costs = costs || c.Cost > 0
	}
	return costs && o.Keep == 0
}

// takeAhead answers an order that no limit can refuse at once, and has it carried out
// meanwhile.
func (f *Fallback) takeAhead(ctx context.Context, p *part, o quota.Order) (taken quota.Taken, ahead bool) {
	if !unlimited(o) {
		return quota.Taken{}, false
	}
	taken, start, ok := p.ledger.ahead(o, f.now())
	if !ok {
		return quota.Taken{}, false
	}
	f.answeredAhead.Add(1)
	pending := &pendingOrder{}
	taken.Pending = pending.tell
	if n := f.inFlight.Add(1); n > mostAhead || f.leaving.Load() {
		f.carryOut(ctx, p, o, start, pending)
	} else {
		go f.carryOut(context.WithoutCancel(ctx), p, o, start, pending)
	}
	return taken, true
}

// carryOut carries out an order that is answered already. What Redis has not done is given back
// to it, however the key is to be treated without: its request is on its way upstream.
func (f *Fallback) carryOut(ctx context.Context, p *part, o quota.Order, start []int64, pending *pendingOrder) {
	defer f.inFlight.Add(-1)
	taken, err := f.askRecovered(ctx, p, o)
	if err != nil {
		p.ledger.failed(o, start, manner{quota.Allow, f.Instances(), outcomeUnknown(err), nil}, f.now())
		pending.complete(false)
		return
	}
	p.ledger.complete(o, start, taken)
	pending.complete(taken.Repeated)
}

// askRecovered asks as ask does, where no call's handler is there to outlive a panic: that is
// its error.
func (f *Fallback) askRecovered(ctx context.Context, p *part, o quota.Order) (taken quota.Taken, err error) {
	defer func() {
		if recover() != nil {
			err = errNotSent
			f.options.Notices.called(CallTake, 0, err)
			f.failed(p, err)
		}
	}()
	return f.ask(ctx, p, o)
}

// awaitAhead waits until nothing is on its way to a counter by which an order may be refused.
// It waits for half a call's time at the most: others may come without end, and the order's
// own call is to come. late fires when the time for both is over; nil: it did not wait.
func (f *Fallback) awaitAhead(ctx context.Context, p *part, o quota.Order) (late *time.Timer) {
	completed := func() bool { return f.inFlight.Load() == 0 || !p.ledger.inFlight(o) }
	if completed() {
		return nil
	}
	late = time.NewTimer(f.redis.options.Timeout)
	ctx, cancel := context.WithTimeout(ctx, f.redis.options.Timeout/2)
	defer cancel()
	await(ctx, completed)
	return late
}

// errLate is what an order gets that has waited for others, where its time is over before
// its call's. What that will have done is not known.
var errLate = fmt.Errorf("count in Redis, behind what was on its way: %w", context.DeadlineExceeded)

// askUntil asks as ask does, and waits until late fires at the most. Without one the call has
// all its time.
func (f *Fallback) askUntil(ctx context.Context, p *part, o quota.Order, late *time.Timer) (quota.Taken, error) {
	if late == nil {
		return f.ask(ctx, p, o)
	}
	defer late.Stop()
	type answer struct {
		taken quota.Taken
		err   error
	}
	answers := make(chan answer, 1)
	f.inFlight.Add(1) // Drain waits for it
	go func() {
		defer f.inFlight.Add(-1)
		taken, err := f.askRecovered(ctx, p, o)
		answers <- answer{taken, err}
	}()
	select {
	case a := <-answers:
		return a.taken, a.err
	case <-late.C:
		return quota.Taken{}, errLate
	}
}

// Drain waits until no order is on its way that is answered already, until ctx is done.
func (f *Fallback) Drain(ctx context.Context) {
	await(ctx, func() bool { return f.inFlight.Load() == 0 })
}

// await waits until something is so, or ctx is done.
func await(ctx context.Context, so func() bool) {
	for !so() {
		if !waits(ctx, time.Millisecond) {
			return
		}
	}
}

// AnsweredAhead returns how many orders were answered since the start before Redis had
// counted them.
func (f *Fallback) AnsweredAhead() int64 { return f.answeredAhead.Load() }

// A pendingOrder is an order on its way, as the one who asked for it knows it.
type pendingOrder struct {
	mu       sync.Mutex
	done     bool
	repeated bool
	then     func(repeated bool)
}

// tell implements quota.Taken's Pending.
func (p *pendingOrder) tell(then func(repeated bool)) {
	p.mu.Lock()
	done := p.done
	p.then = then
	p.mu.Unlock()
	if done {
		then(p.repeated)
	}
}

func (p *pendingOrder) complete(repeated bool) {
	p.mu.Lock()
	p.done, p.repeated = true, repeated
	then := p.then
	p.mu.Unlock()
	if then != nil {
		then(repeated)
	}
}
