package store

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/tiergate/tiergate/internal/quota"
)

// atOnce is how many settlements that waited are brought to Redis at the same time: each time they
// may wait for company, and those of a whole fleet are not to hold up requests.
const atOnce = 32

// A waiting settlement is brought to Redis when that can be reached.
type waiting struct {
	settlement quota.Settlement
	next       time.Duration // not before
	answers    int           // of Redis that were errors
}

// patience is how long a settlement waits that Redis does not know yet.
const patience = time.Second

func (p *part) len() int {
	p.queue.Lock()
	defer p.queue.Unlock()
	return len(p.waiting)
}

// enqueue lets a settlement wait.
func (f *Fallback) enqueue(p *part, s quota.Settlement) (quota.Outcome, error) {
	if !f.queue.enter(s) {
		f.totals.lost.Add(1)
		return 0, ErrQueueFull
	}
	f.totals.queued.Add(1)
	p.queue.Lock()
	p.waiting = append(p.waiting, waiting{settlement: s})
	p.queue.Unlock()
	return quota.Queued, nil
}

// settleWaiting brings those settlements to Redis that wait now, in the order in which they
// came, some at a time.
func (f *Fallback) settleWaiting(ctx context.Context, p *part) {
	p.queue.Lock()
	all := p.waiting
	p.waiting = nil
	p.queue.Unlock()
	for len(all) > 0 {
		some := all[:min(len(all), atOnce)]
		again := make([]bool, len(some))
		var group errgroup.Group
		for i := range some {
			group.Go(func() error {
				var err error
				again[i], err = f.settleOne(ctx, p, &some[i])
				return err
			})
		}
		failed := group.Wait() != nil
		var kept []waiting
		for i, w := range some {
			if again[i] {
				kept = append(kept, w)
			} else {
				f.queue.leave(w.settlement)
			}
		}
		all = all[len(some):]
		p.queue.Lock()
		if failed {
			kept = append(kept, all...)
			all = nil
			p.waiting = append(kept, p.waiting...)
		} else {
			p.waiting = append(p.waiting, kept...)
		}
		p.queue.Unlock()
	}
}

// settleOne brings one to Redis, and reports whether it is to be tried again. An error says
// that the part cannot be reached.
func (f *Fallback) settleOne(ctx context.Context, p *part, w *waiting) (again bool, err error) {
	if ctx.Err() != nil || p.open.Load() || (f.options.Elapsed() < w.next && !f.leaving.Load()) {
		return true, ctx.Err()
	}
	outcome, err := f.settle(ctx, p, w.settlement)
	var answer redis.Error
	switch {
	case err != nil && errors.As(err, &answer) && w.answers >= mostAnswers:
		f.totals.lost.Add(1)
		return false, nil
	case err != nil && errors.As(err, &answer):
		if aboutRedis(err) == "" {
			w.answers++
		}
		w.next = f.options.Elapsed() + patience
		return true, nil
	case err != nil:
		return true, err
	case outcome == quota.NotFound && f.recent(p):
		w.next = f.options.Elapsed() + patience
		return true, nil
	}
	switch outcome {
	case quota.Settled:
		f.totals.settled.Add(1)
	case quota.Duplicate:
		f.totals.dup.Add(1)
	case quota.NotFound, quota.Queued:
		f.totals.unknown.Add(1)
	}
	if then := w.settlement.Then; then != nil {
		then(outcome)
	}
	return false, nil
}
