package usage

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

const (
	// shardCount spreads accounts so that concurrent requests seldom share a lock.
	shardCount = 64
	// mostReasons bounds what a cell tells apart. The rest is OtherReasons.
	mostReasons = 16
	// mostRefusals is how many refusals of an account an interval tells of.
	mostRefusals = 20
)

// RecorderOptions say how a Recorder works.
type RecorderOptions struct {
	Instance string           // names this process, and no other
	Now      func() time.Time // says when a batch was made and when it is too old
	Interval time.Duration    // between batches; 0: 10 s
	MaxCells int              // see Recorder; 0: 100,000
	LastWait time.Duration    // how long the last Add may take, when the process ends; 0: 2 s
	// OnError is told when batches begin not to be added, and with nil when they are
	// again. It is called by Run alone, and may be nil.
	OnError func(error)
}

// A Recorder gathers what becomes of requests, and hands it to a store in batches. It
// is safe for concurrent use. What it has not handed over is lost when the process is
// killed.
//
// It is bounded: so many accounts, resources, tiers, priorities and minutes are told
// apart between two batches that are added, MaxCells in all, while the store is away
// too. What comes beyond is counted as the account Other, and for the fleet as ever.
type Recorder struct {
	options RecorderOptions
	seed    maphash.Seed
	shards  [shardCount]recorderShard

	cells      atomic.Int64 // of all shards
	overflowed atomic.Int64
	dropped    atomic.Int64
}

type recorderShard struct {
	mu       sync.Mutex
	accounts map[string]*gathered
	_        [48]byte // shards share no cache line
}

// NewRecorder returns an empty Recorder.
func NewRecorder(o RecorderOptions) *Recorder {
	if o.Interval <= 0 {
		o.Interval = 10 * time.Second
	}
	if o.MaxCells <= 0 {
		o.MaxCells = 100_000
	}
	if o.LastWait <= 0 {
		o.LastWait = 2 * time.Second
	}
	if o.OnError == nil {
		o.OnError = func(error) {}
	}
	r := &Recorder{options: o, seed: maphash.MakeSeed()}
	for i := range r.shards {
		r.shards[i].accounts = map[string]*gathered{}
	}
	return r
}

// A Decided is what became of a request of a key that is known. Requests that only
// look, or give back, are none.
type Decided struct {
	Account        string // the key ID; not empty
	Tier, Resource string
	Priority       quota.Priority
	At             time.Time
	Requests       int64  // how many it counts as
	Reason         string // empty: admitted; else see Counts.Refused
}

// Decided counts a decision. How it was counted is nil where it was not; it is not kept,
// and no part of d, so that it need not be on the heap.
func (r *Recorder) Decided(d Decided, how *quota.Decision) {
	s, a, c := r.open(d.Account, &cellKey{minuteOf(d.At), d.Resource, d.Tier, d.Priority})
	defer s.mu.Unlock()
	if d.Reason == "" {
		c.admitted += d.Requests
	} else {
		c.refuse(d.Reason, d.Requests)
	}
	if !a.overflow {
		a.decided(&d, how)
	}
}

// byLimit reports whether the request was refused by a limit.
func (d *Decided) byLimit() bool {
	return d.Reason != "" && d.Reason != Forbidden && d.Reason != Failed
}

// A Settled says how many tokens the answer to a request has used, as they were
// counted against its limits.
type Settled struct {
	Account        string // the key ID; not empty
	Tier, Resource string // empty tier: it is not known any more
	Priority       quota.Priority
	At             time.Time
	Input, Output  int64 // at most quota.MaxCost; below 0: 0
}

// Settled counts the tokens of an answer.
func (r *Recorder) Settled(d Settled) {
	s, _, c := r.open(d.Account, &cellKey{minuteOf(d.At), d.Resource, d.Tier, d.Priority})
	defer s.mu.Unlock()
	c.input += min(max(d.Input, 0), quota.MaxCost)
	c.output += min(max(d.Output, 0), quota.MaxCost)
}

// open returns the cell of an account, or of Other where there is no room, and its
// shard, which the caller unlocks.
func (r *Recorder) open(account string, k *cellKey) (*recorderShard, *gathered, *gatheredCell) {
	s := r.lock(account)
	if a := s.accounts[account]; a != nil {
		if c := a.find(k); c != nil {
			return s, a, c
		}
	}
	if r.cells.Add(1) <= int64(r.options.MaxCells) {
		a, c := s.add(account, k)
		return s, a, c
	}
	r.cells.Add(-1)
	s.mu.Unlock()
	return r.openOther(k)
}

func (r *Recorder) openOther(k *cellKey) (*recorderShard, *gathered, *gatheredCell) {
	r.overflowed.Add(1)
	s := r.lock(Other)
	if a := s.accounts[Other]; a != nil {
		if c := a.find(k); c != nil {
			return s, a, c
		}
	}
	r.cells.Add(1)
	a, c := s.add(Other, k)
	a.overflow = true
	return s, a, c
}

func (r *Recorder) lock(account string) *recorderShard {
	s := &r.shards[maphash.String(r.seed, account)%shardCount]
	s.mu.Lock()
	return s
}

// minuteOf returns the minute of an instant, since the Unix epoch.
func minuteOf(at time.Time) int64 { return at.Unix() / 60 }

// Overflowed returns how many decisions and settlements were counted as those of
// Other.
func (r *Recorder) Overflowed() int64 { return r.overflowed.Load() }

// Dropped returns how many requests are missing in the store, because their batch
// could not be added for BatchKept or at the end.
func (r *Recorder) Dropped() int64 { return r.dropped.Load() }
