package store

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// calm is how long all must be well for an outage to be over: one that comes and goes is
// one.
const calm = time.Second

// An outage is the time during which a part of Redis cannot be reached.
type outage struct {
	mu      sync.Mutex
	open    int // parts
	told    bool
	began   time.Duration
	since   time.Time
	err     error         // what it began with
	why     error         // why the last attempt to end it failed
	advised bool          // whether it was told what to do about it
	quiet   time.Duration // when the last part was closed
	from    Totals        // of its beginning
}

// An Outage is what is told of one.
type Outage struct {
	Since    time.Time
	Err      error         // what it began with
	Duration time.Duration // until counts were shared again; 0: not yet
	Totals   Totals        // of its time
}

func (o *outage) begin(f *Fallback, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open++
	if o.told {
		return
	}
	o.told, o.began, o.since, o.err, o.why, o.from = true, f.options.Elapsed(), f.options.Now(), err, err, f.Totals()
	o.advised = hasAdvice(err)
	f.options.Notices.began(Outage{Since: o.since, Err: err})
}

// lasts notes why an outage goes on. It may begin with a connection that ended, of which nobody
// knows why, and the next one tells.
func (o *outage) lasts(f *Fallback, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.why = err
	if o.told && !o.advised && hasAdvice(err) {
		o.advised = true
		f.options.Notices.explained(Outage{Since: o.since, Err: err})
	}
}

func (o *outage) less(f *Fallback) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open--
	o.quiet = f.options.Elapsed()
}

// end tells that an outage is over, if it is.
func (o *outage) end(f *Fallback, calm time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.told || o.open > 0 || f.options.Elapsed()-o.quiet < calm || f.owing() > 0 {
		return
	}
	o.told = false
	f.options.Notices.ended(Outage{Since: o.since, Err: o.err, Duration: o.quiet - o.began, Totals: f.Totals().since(o.from)})
}

// owing returns how many accounts have something to give back.
func (f *Fallback) owing() (accounts int64) {
	for _, p := range f.parts {
		accounts += p.ledger.owing.Load()
	}
	return accounts
}

// A FallbackState is how a Fallback is.
type FallbackState struct {
	Degraded bool
	Since    time.Time // that it is
	Err      error     // why it still is
	Waiting  int       // settlements
}

// State returns how it is now.
func (f *Fallback) State() FallbackState {
	f.outage.mu.Lock()
	defer f.outage.mu.Unlock()
	s := FallbackState{Degraded: f.outage.open > 0, Waiting: f.queue.waiting()}
	if s.Degraded {
		s.Since, s.Err = f.outage.since, f.outage.why
	}
	return s
}

// The calls of Redis that requests wait for.
const (
	CallTake   = "take"
	CallSettle = "settle"
)

// FallbackNotices are told what becomes of a Fallback. Those that are nil are not called.
// They must not block.
type FallbackNotices struct {
	Called    func(call string, took time.Duration, err error) // each CallTake and CallSettle
	Began     func(Outage)                                     // once for each outage
	Explained func(Outage)                                     // once at the most, with what can be done about it, where Began was not told
	Ended     func(Outage)                                     // once, when all is given back

	// Lost is called where Redis has an older state of what was counted than it had, of the time
	// since by its own clock, or where that is zero, nothing; until is when it had more.
	Lost func(since, until time.Time)
}

// lost is told both in Unix ms, since as 0 where nothing is left.
func (n FallbackNotices) lost(since, until int64) {
	if n.Lost == nil {
		return
	}
	var from time.Time
	if since != 0 {
		from = time.UnixMilli(since).UTC()
	}
	n.Lost(from, time.UnixMilli(until).UTC())
}

func (n FallbackNotices) called(call string, took time.Duration, err error) {
	if n.Called != nil {
		n.Called(call, took, err)
	}
}

func (n FallbackNotices) began(o Outage) {
	if n.Began != nil {
		n.Began(o)
	}
}

func (n FallbackNotices) explained(o Outage) {
	if n.Explained != nil {
		n.Explained(o)
	}
}

func (n FallbackNotices) ended(o Outage) {
	if n.Ended != nil {
		n.Ended(o)
	}
}

// Totals are what a Fallback has done without Redis, and since.
type Totals struct {
	Local, Denied, Allowed int64 // orders that cost something, by their OnFailure
	Accounts, Counts       int64 // given back: accounts and their counters
	Ended                  int64 // counters whose windows had ended before that
	LostCounts             int64 // counters that Redis would not take

	Queued                      int64 // settlements that had to wait
	Settled, Duplicate, Unknown int64 // what became of them
	Lost                        int64 // settlements without room to wait, or that Redis would not take
}

func (t Totals) since(o Totals) Totals {
	return Totals{
		Local: t.Local - o.Local, Denied: t.Denied - o.Denied, Allowed: t.Allowed - o.Allowed,
		Accounts: t.Accounts - o.Accounts, Counts: t.Counts - o.Counts, Ended: t.Ended - o.Ended, LostCounts: t.LostCounts - o.LostCounts,
		Queued: t.Queued - o.Queued, Settled: t.Settled - o.Settled, Duplicate: t.Duplicate - o.Duplicate, Unknown: t.Unknown - o.Unknown,
		Lost: t.Lost - o.Lost,
	}
}

// totals are Totals as they grow.
type totals struct {
	orders                              [3]atomic.Int64 // by OnFailure
	accounts, counts, lostCounts        atomic.Int64
	queued, settled, dup, unknown, lost atomic.Int64
}

// decided counts an order that costs something.
func (t *totals) decided(o quota.Order) {
	for i := range o.Charges {
		if o.Charges[i].Cost != 0 {
			t.orders[o.OnFailure].Add(1)
			return
		}
	}
}

// Totals returns what was done since the start.
func (f *Fallback) Totals() Totals {
	t := &f.totals
	sum := Totals{
		Local: t.orders[quota.Local].Load(), Denied: t.orders[quota.Deny].Load(), Allowed: t.orders[quota.Allow].Load(),
		Accounts: t.accounts.Load(), Counts: t.counts.Load(), LostCounts: t.lostCounts.Load(),
		Queued: t.queued.Load(), Settled: t.settled.Load(), Duplicate: t.dup.Load(), Unknown: t.unknown.Load(), Lost: t.lost.Load(),
	}
	for _, p := range f.parts {
		sum.Ended += p.ledger.ended.Load()
	}
	return sum
}

// Remembered returns how many orders were refused since the start without asking Redis,
// since it was known that it would refuse them.
func (f *Fallback) Remembered() int64 { return f.remembered.Load() }
