package store

import (
	"context"
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
		if c.Limit.Max != quota.NoMax || c.Cost < 0 {
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
	fl := &flight{}
	taken.Pending = fl.tell
	if n := f.flying.Add(1); n > mostAhead || f.leaving.Load() {
		f.fly(ctx, p, o, start, fl)
	} else {
		go f.fly(context.WithoutCancel(ctx), p, o, start, fl)
	}
	return taken, true
}

// fly carries out an order that is answered already. What Redis has not done is given back
// to it, however the key is to be treated without: its request is on its way upstream.
func (f *Fallback) fly(ctx context.Context, p *part, o quota.Order, start []int64, fl *flight) {
	defer f.flying.Add(-1)
	taken, err := f.askAhead(ctx, o)
	if err != nil {
		f.failed(p, err)
		p.ledger.land(o, start, nil)
		_, _ = p.ledger.take(o, manner{quota.Allow, f.Instances(), outcomeUnknown(err)}, f.now()) // which admits all
		fl.land(false)
		return
	}
	f.fine(p)
	repeated := repeats(o, taken)
	if !repeated {
		f.tell(taken.Now)
	}
	p.ledger.land(o, start, &taken)
	fl.land(repeated)
}

// askAhead makes the call of an order that is answered already. A panic is its error: no
// call's handler is there to outlive it.
func (f *Fallback) askAhead(ctx context.Context, o quota.Order) (taken quota.Taken, err error) {
	defer func() {
		if recover() != nil {
			err = errNotSent
			f.options.Notices.called(CallTake, 0, err)
		}
	}()
	return f.ask(ctx, o)
}

// awaitAhead waits until nothing is on its way to a counter by which an order may be refused;
// no longer than what was there when it came takes: others may come without end.
func (f *Fallback) awaitAhead(ctx context.Context, p *part, o quota.Order) {
	landed := func() bool { return f.flying.Load() == 0 || !p.ledger.onItsWay(o) }
	if landed() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, f.redis.options.Timeout)
	defer cancel()
	await(ctx, landed)
}

// Land waits until no order is on its way that is answered already, until ctx is done.
func (f *Fallback) Land(ctx context.Context) {
	await(ctx, func() bool { return f.flying.Load() == 0 })
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

// A flight is an order on its way, as the one who asked for it knows it.
type flight struct {
	mu       sync.Mutex
	landed   bool
	repeated bool
	then     func(repeated bool)
}

// tell implements quota.Taken's Pending.
func (f *flight) tell(then func(repeated bool)) {
	f.mu.Lock()
	landed := f.landed
	f.then = then
	f.mu.Unlock()
	if landed {
		then(f.repeated)
	}
}

func (f *flight) land(repeated bool) {
	f.mu.Lock()
	f.landed, f.repeated = true, repeated
	then := f.then
	f.mu.Unlock()
	if then != nil {
		then(repeated)
	}
}
