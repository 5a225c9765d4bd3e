package store

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// mostFailures is how many calls in a row must fail for a part of Redis to be taken for
// one that cannot be reached. A connection that is refused is enough.
const mostFailures = 3

// recent is how long after Redis' return, or the move of a slot, other instances may take to
// give back their reservations.
const recent = 5 * time.Second

// A part is a part of Redis that may be reached or not apart from the others, and what is
// to be brought to it. As long as it is open, no request is sent there.
type part struct {
	number    int
	ledger    *ledger
	exhausted *exhausted
	open      atomic.Bool
	failures  atomic.Int32 // in a row
	heard     atomic.Int64 // when the last call succeeded, by Elapsed; 0: none has
	short     atomic.Bool  // whether calls took too long beside those: connections may be missing

	mu   sync.RWMutex  // held while requests are decided without Redis
	err  error         // why it is open
	back time.Duration // when it was last closed, or a slot of it was last moving

	waiting []waiting // settlements
	queue   sync.Mutex
}

// fine notes that a call succeeded, by a moment of Elapsed.
func (p *part) fine(now time.Duration) {
	p.heard.Store(int64(now))
	if p.failures.Load() != 0 {
		p.failures.Store(0)
	}
}

// failed notes that a call failed, and opens the part where that is one too many: a call is
// one, however many orders and settlements went in it. That a slot is moving says nothing of
// the part's other slots, and nor does a time-out say that Redis is away while it answers
// others: a burst of one client's requests is enough for that.
func (f *Fallback) failed(p *part, err error) {
	if moving(err) {
		p.mu.Lock()
		p.back = f.options.Elapsed()
		p.mu.Unlock()
		return
	}
	if keyAtFault(err) {
		return
	}
	if timedOut(err) && f.answering(p) {
		p.short.Store(true)
		return
	}
	if !firstOf(err, p.number) {
		return
	}
	if p.failures.Add(1) < mostFailures && !errors.Is(err, syscall.ECONNREFUSED) {
		return
	}
	p.mu.Lock()
	opened := p.open.CompareAndSwap(false, true)
	p.err = err
	p.mu.Unlock()
	if opened {
		f.outage.begin(f, err)
	}
}

// keyAtFault reports whether a script failed at what stands in the keys of one account, as
// where they are of a wrong type: others are answered.
func keyAtFault(err error) bool {
	var answer redis.Error
	return errors.As(err, &answer) && strings.Contains(answer.Error(), "script") && aboutRedis(err) == ""
}

// answering reports whether a call has succeeded since one began that has timed out now.
func (f *Fallback) answering(p *part) bool {
	heard := time.Duration(p.heard.Load())
	return heard > 0 && f.options.Elapsed()-heard < f.redis.options.Timeout
}

// timedOut reports whether a call failed because its time was over.
func timedOut(err error) bool {
	var slow net.Error
	return errors.Is(err, redis.ErrPoolTimeout) || errors.Is(err, context.DeadlineExceeded) || (errors.As(err, &slow) && slow.Timeout())
}

// close lets requests through again.
func (f *Fallback) close(p *part) {
	p.mu.Lock()
	p.failures.Store(0)
	p.open.Store(false)
	p.back = f.options.Elapsed()
	p.exhausted.clear(p.back)
	p.mu.Unlock()
	f.outage.less(f)
}

// recent reports whether Redis has only just returned, with all of the part.
func (f *Fallback) recent(p *part) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return f.options.Elapsed()-p.back < recent
}
