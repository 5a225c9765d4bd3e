package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// probeInterval is how often a part that cannot be reached is tried, give or take a fifth.
	probeInterval = 250 * time.Millisecond
	// beatInterval is how often an instance says that it lives, and silent how long it may
	// not do so.
	beatInterval = time.Second
	silent       = 5 * time.Second
	// leaveTime is how long a stop may take to bring to Redis what it is owed.
	leaveTime = 2 * time.Second
)

// Run brings back to Redis what it could not be told of, says that this instance lives and
// forgets what has ended, until ctx is done. Then it tries once more. The error says what
// is lost.
func (f *Fallback) Run(ctx context.Context) error {
	var group sync.WaitGroup
	for _, p := range f.parts {
		group.Go(func() {
			for waits(ctx, probeInterval*4/5+rand.N(probeInterval*2/5)) { //nolint:gosec // so that instances do not try all at once
				f.mend(ctx, p)
			}
		})
	}
	group.Go(func() {
		for ctx.Err() == nil {
			f.beat(ctx, false)
			f.outage.end(f, calm)
			waits(ctx, beatInterval)
		}
	})
	group.Go(func() {
		for waits(ctx, sweepInterval) {
			for _, p := range f.parts {
				p.ledger.sweep(f.now())
				p.exhausted.sweep(f.now().UnixMilli())
			}
		}
	})
	group.Wait()
	return f.leave(context.WithoutCancel(ctx))
}

// mend finds out whether a part can be reached, and brings to it what it is owed.
func (f *Fallback) mend(ctx context.Context, p *part) {
	if p.open.Load() {
		if err := f.redis.Check(ctx, p.number); err != nil {
			f.outage.lasts(f, err)
			return
		}
		if !f.together(ctx, p) || !f.giveBack(ctx, p) {
			return
		}
		f.warm(ctx, p)
		f.close(p)
	} else if p.short.Swap(false) {
		f.warm(ctx, p)
	}
	// Some of what was decided before that is charged only now.
	if f.giveBack(ctx, p) {
		f.settleWaiting(ctx, p)
	}
}

// warm makes connections ready for requests, if there will be any.
func (f *Fallback) warm(ctx context.Context, p *part) {
	if !f.leaving.Load() {
		f.redis.warm(ctx, p.number)
	}
}

// leave takes this instance out of the fleet.
func (f *Fallback) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	f.leaving.Store(true)
	f.Drain(ctx)
	var group sync.WaitGroup
	for _, p := range f.parts {
		if p.open.Load() || p.ledger.owing.Load() > 0 || p.len() > 0 {
			group.Go(func() { f.mend(ctx, p) })
		}
	}
	group.Wait()
	f.beat(ctx, true)
	f.outage.end(f, 0)
	if accounts, waiting := f.owing(), f.queue.waiting(); accounts > 0 || waiting > 0 {
		return fmt.Errorf("what was admitted without Redis is not given back for %d keys, and %d settlements are lost: %w", accounts, waiting, f.lastError())
	}
	return nil
}

func (f *Fallback) lastError() error {
	if err := f.State().Err; err != nil {
		return err
	}
	return errors.New("there was no time for it")
}

// A fleet is what is known of the instances on the same Redis.
type fleet struct {
	assumed int64
	live    atomic.Int64 // 0: not known yet
	fewer   int          // how often in a row there were fewer
	heard   int64        // when one was last heard of, in ms, as Redis said last
}

// fewerBeats is how often there must be fewer instances in a row to be so: after an outage
// the first that is heard again is alone for a while.
const fewerBeats = int(silent/beatInterval) + 1

// Instances returns how many instances share the limits, as was last known.
func (f *Fallback) Instances() int64 {
	if n := f.fleet.live.Load(); n > 0 {
		return n
	}
	return f.fleet.assumed
}

// counted notes how many instances there are.
func (fl *fleet) counted(n int64) {
	fl.fewer++
	if n >= fl.live.Load() || fl.fewer >= fewerBeats {
		fl.live.Store(max(n, 1))
		fl.fewer = 0
	}
}

// fleetAccount is the account of nobody's that the fleet is noted under.
const fleetAccount = "~fleet"

// heardKept is how long Redis remembers when an instance was last heard of: longer than it is away
// while one runs.
const heardKept = 40 * 24 * time.Hour

// beat says that this instance lives, or leaves. It finds out whether Redis has lost what it knew.
func (f *Fallback) beat(ctx context.Context, leaves bool) {
	p := f.part(fleetAccount)
	if p.open.Load() {
		f.fleet.fewer = 0
		return
	}
	last := 0
	if leaves {
		last = 1
	}
	name := f.redis.prefix + ":{" + fleetAccount + "}:"
	answer, err := f.redis.runForNumbers(ctx, f.beats, 4, []string{name + "live", name + "heard"},
		f.options.Instance, silent.Milliseconds(), last, heardKept.Milliseconds())
	if err != nil {
		f.fleet.fewer = 0
		f.failed(p, fmt.Errorf("count the instances in Redis: %w", err))
		return
	}
	p.fine(f.options.Elapsed())
	f.tell(time.UnixMilli(answer[0]))
	f.fleet.counted(answer[1])
	if heard := answer[2]; heard < f.fleet.heard {
		f.options.Notices.lost(heard, f.fleet.heard)
	}
	f.fleet.heard = answer[3]
}

// batchName names a batch, once and for all instances.
func (f *Fallback) batchName() string {
	return f.options.Instance + "-" + strconv.FormatInt(f.batches.Add(1), 36)
}
