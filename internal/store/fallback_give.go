package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/tiergate/tiergate/internal/quota"
)

const (
	// givenKept is how long Redis remembers a batch. One that is not known to have arrived
	// is not sent again for longer than giveTime, and counts as made then.
	givenKept = time.Hour
	giveTime  = givenKept - 5*time.Minute
	// atOnce is how many calls bring to Redis what it is owed at the same time.
	atOnce = 8
	// mostAnswers is how often Redis may refuse a batch or a settlement while it counts
	// otherwise. Then it is lost.
	mostAnswers = 5
)

// giveBack gives back once to each account what is owed to it. It returns false where the
// part cannot be reached.
func (f *Fallback) giveBack(ctx context.Context, p *part) bool {
	if p.ledger.owing.Load() == 0 {
		return true
	}
	group, giving := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, account := range p.ledger.owed() {
		group.Go(func() error { return f.giveAccount(giving, p, account) })
	}
	err := group.Wait()
	if err != nil && ctx.Err() == nil {
		f.failed(p, err)
	}
	return err == nil
}

// giveAccount gives back to one account.
func (f *Fallback) giveAccount(ctx context.Context, p *part, account string) error {
	for batches, more := 0, true; more; batches++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := p.ledger.batch(account, f.now(), f.batchName)
		if b == nil {
			return nil
		}
		more = len(b.promises) == maxPromises
		if err := f.give(ctx, p, b); err != nil {
			return err
		}
		if batches == 0 {
			f.totals.accounts.Add(1)
		}
	}
	return nil
}

// give gives one batch.
func (f *Fallback) give(ctx context.Context, p *part, b *batch) error {
	elapsed := f.options.Elapsed()
	if b.first == 0 {
		b.first = max(elapsed, 1)
	}
	if elapsed-b.first > giveTime {
		p.ledger.arrived(b, 0, nil)
		return nil
	}
	at, used, err := f.send(ctx, b)
	var answer redis.Error
	switch {
	case err == nil:
		for _, n := range used {
			if n >= 0 {
				f.totals.counts.Add(1)
			}
		}
		p.ledger.arrived(b, at, used)
		return nil
	case errors.As(err, &answer) && b.answers >= mostAnswers:
		f.totals.lostCounts.Add(int64(len(b.counts)))
		p.ledger.arrived(b, 0, nil)
		return nil
	case errors.As(err, &answer):
		b.answers++
	}
	return err
}

// send makes the call for a batch.
func (f *Fallback) send(ctx context.Context, b *batch) (at int64, used []int64, err error) {
	prefix, now := f.redis.prefix, f.now().UnixMilli()
	keys := []string{countsKey(prefix, b.account), givenKey(prefix, b.account, b.id)}
	args := []any{givenKept.Milliseconds(), len(b.counts)}
	for _, c := range b.counts {
		args = append(args, c.name, c.start, c.end, c.amount)
	}
	for _, p := range b.promises {
		keys = append(keys, reservationKey(prefix, b.account, p.request))
		args = append(args, p.record(), max(p.expires-now, 1))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.redis.options.Timeout)
	defer cancel()
	reply, err := f.redis.run(ctx, f.redis.client, f.add, keys, args)
	if err != nil {
		return 0, nil, fmt.Errorf("give back to Redis: %w", err)
	}
	numbers, err := words(reply)
	if err != nil || len(numbers) != 1+len(b.counts) {
		return 0, nil, fmt.Errorf("give back to Redis: an answer of %d numbers, want %d: %w", len(numbers), 1+len(b.counts), err)
	}
	return numbers[0], numbers[1:], nil
}

// words reads an answer that is numbers in words.
func words(reply *redis.Cmd) ([]int64, error) {
	texts, err := reply.StringSlice()
	if err != nil {
		return nil, err
	}
	numbers := make([]int64, len(texts))
	for i, text := range texts {
		if numbers[i], err = strconv.ParseInt(text, 10, 64); err != nil {
			return nil, err
		}
	}
	return numbers, nil
}

// givenKey names a batch, in the slot of its account.
func givenKey(prefix, account, id string) string { return prefix + ":{" + account + "}:given:" + id }

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
	if f.queued.Add(1) > int64(f.options.MaxQueued) {
		f.queued.Add(-1)
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
				f.queued.Add(-1)
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
	if ctx.Err() != nil || p.open.Load() || f.options.Elapsed() < w.next {
		return true, ctx.Err()
	}
	outcome, err := f.settle(ctx, p, w.settlement)
	var answer redis.Error
	switch {
	case err != nil && errors.As(err, &answer) && w.answers >= mostAnswers:
		f.totals.lost.Add(1)
		return false, nil
	case err != nil && errors.As(err, &answer):
		w.answers++
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
	return false, nil
}
