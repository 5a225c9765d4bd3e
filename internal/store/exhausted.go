package store

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

const (
	// refusalKept is how long a refusal holds whose counter may be given back.
	refusalKept = 100 * time.Millisecond
	// firmKept is how long one holds whose counter is never given back: Redis may have lost it
	// unseen, in a restart or a fail-over between two calls.
	firmKept = time.Minute
	// shownKept is how old what is shown of a counter may be that did not refuse, where
	// other requests may change it.
	shownKept = time.Second
	// drift is the part of a time by which two clocks may run apart, as one in so many: more
	// than a clock is made to by being set right.
	drift = 1000
	// mostKinds is how many kinds of orders are remembered of an account.
	mostKinds = 8
)

// exhausted remembers orders that Redis has refused, to refuse more of their kind without
// asking it, for as long as that is certain. It is safe for concurrent use.
//
// A counter of requests that nothing gives back stays full to the end of its window; where
// that slides, to the moment at which the window before weighs less. That is reckoned from the
// time that Redis said, by a clock that nobody sets, and asked for anew after firmKept. What may
// be given back is believed for refusalKept. Each order is judged by its own maximum and cost: a
// limit that has been changed is asked for again.
type exhausted struct {
	seed   maphash.Seed
	most   int // refusals in a shard
	kept   atomic.Int64
	shards [shardCount]exhaustedShard
}

type exhaustedShard struct {
	mu       sync.Mutex
	accounts map[string][]*exhaustion
	kept     int
	// What was asked for before these moments of Elapsed may be out of date.
	forgot  time.Duration // in all
	settled time.Duration // in what settlements change
}

// An exhaustion is Redis' answer to an order of some kind: one that is charged to the same
// counters.
type exhaustion struct {
	at           int64         // by Redis' clock, Unix ms
	asked, heard time.Duration // by Elapsed
	counters     []exhaustedCounter
}

type exhaustedCounter struct {
	name  string
	end   int64 // of its window, Unix ms
	max   int64
	used  int64
	last  int64         // used in the window before, where it slides
	since time.Duration // when all of that was heard first, by Elapsed
	cost  int64         // that it refused; quota.NoMax: none
	firm  bool          // never given back
}

func newExhausted(most int) *exhausted {
	x := &exhausted{seed: maphash.MakeSeed(), most: max(1, (most+shardCount-1)/shardCount)}
	for i := range x.shards {
		x.shards[i].accounts = map[string][]*exhaustion{}
	}
	return x
}

func (x *exhausted) shard(account string) *exhaustedShard {
	return &x.shards[maphash.String(x.seed, account)%shardCount]
}

// refuse returns what Redis would answer to an order that it is certain to refuse, at a
// moment of Elapsed. known is false where that is not certain.
func (x *exhausted) refuse(o quota.Order, now time.Duration) (t quota.Taken, known bool) {
	if x.kept.Load() == 0 {
		return quota.Taken{}, false
	}
	s := x.shard(o.Account)
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.find(o)
	if r == nil || !r.certain(o, now) {
		return quota.Taken{}, false
	}
	t = quota.Taken{Now: time.UnixMilli(r.at + (now - r.heard).Milliseconds()).UTC(), Used: make([]int64, len(r.counters))}
	for i := range r.counters {
		t.Used[i] = r.counters[i].used
		if o.Charges[i].Limit.Window.Sliding() {
			noteBefore(&t, i, r.counters[i].last)
		}
	}
	return t, true
}

// find returns the refusal of an order of the same kind, or nil. The caller holds the lock.
func (s *exhaustedShard) find(o quota.Order) *exhaustion {
	for _, r := range s.accounts[o.Account] {
		if r.of(o) {
			return r
		}
	}
	return nil
}

// of reports whether an order is charged to these counters.
func (r *exhaustion) of(o quota.Order) bool {
	if len(o.Charges) != len(r.counters) {
		return false
	}
	for i := range o.Charges {
		if o.Charges[i].Counter != r.counters[i].name {
			return false
		}
	}
	return true
}

// certain reports whether Redis would refuse an order now, and show of every counter what
// it said then, or lately.
func (r *exhaustion) certain(o quota.Order, now time.Duration) bool {
	age := now - r.asked
	latest := r.at + (age + age/drift + 2*time.Millisecond).Milliseconds() // Redis' time, no later than that
	refused := false
	for i := range o.Charges {
		c, k := &o.Charges[i], &r.counters[i]
		exceeds := c.Exceeds(k.counts(c, latest))
		firm := k.firm && o.Firm
		switch {
		case latest >= k.end, exceeds && c.Limit.Max != k.max:
			return false
		case exceeds && firm && age >= firmKept:
			return false
		case exceeds && firm:
			refused = refused || !o.Repeatable() || now-k.since >= quota.RepeatWindow+quota.RepeatWindow/drift
		case exceeds && age >= refusalKept:
			return false
		case exceeds:
			refused = refused || (!o.Repeatable() && c.Cost >= k.cost)
		}
		if age >= shownKept && (!firm || !r.stands(o, c, latest)) {
			return false
		}
	}
	return refused
}

// counts returns what counts of a charge's limit at a time of Redis' in its window, Unix ms:
// the later that is, the less.
func (k *exhaustedCounter) counts(c *quota.Charge, at int64) int64 {
	if !c.Limit.Window.Sliding() {
		return k.used
	}
	return c.Limit.Window.Weighed(k.used, k.last, time.UnixMilli(at))
}

// stands reports whether nothing more can be charged to a counter that is never given back:
// whatever is, would be charged to one that is full as well.
func (r *exhaustion) stands(o quota.Order, c *quota.Charge, latest int64) bool {
	for i := range o.Charges {
		l, k := &o.Charges[i].Limit, &r.counters[i]
		if k.firm && k.counts(&o.Charges[i], latest) >= l.Max && (l.Resource == "" || l.Resource == c.Limit.Resource) && (l.Priority == 0 || l.Priority == c.Limit.Priority) {
			return true
		}
	}
	return false
}

// remember takes down what Redis has answered to an order, which was asked for and heard
// at moments of Elapsed. What helps nobody is not kept.
func (x *exhausted) remember(o quota.Order, t quota.Taken, asked, heard time.Duration) {
	if t.Admitted {
		return
	}
	s := x.shard(o.Account)
	s.mu.Lock()
	defer s.mu.Unlock()
	if asked <= s.forgot {
		return
	}
	known := s.find(o)
	if at := t.Now.UnixMilli(); known != nil && at < known.at && at > known.at-step {
		return // another answer was faster
	}
	r := &exhaustion{at: t.Now.UnixMilli(), asked: asked, heard: heard, counters: make([]exhaustedCounter, len(o.Charges))}
	helps := false
	for i, c := range o.Charges {
		_, end := c.Limit.Window.Bounds(t.Now)
		k := exhaustedCounter{
			name: c.Counter, end: end.UnixMilli(), max: c.Limit.Max, used: t.Used[i], since: heard, cost: quota.NoMax,
			firm: o.Firm && c.Limit.Metric == quota.Requests, last: t.UsedBefore(i),
		}
		if c.Exceeds(counts(&t, i, &c)) && (k.firm || asked > s.settled) {
			k.cost = c.Cost
			helps = helps || k.firm || !o.Repeatable()
		}
		if known != nil && known.counters[i].same(&k) {
			k.since = known.counters[i].since
		}
		r.counters[i] = k
	}
	switch {
	case known != nil:
		*known = *r
	case helps:
		x.add(s, o.Account, r)
	}
}

// same reports whether the same is known of a counter.
func (k *exhaustedCounter) same(other *exhaustedCounter) bool {
	return k.end == other.end && k.used == other.used && k.last == other.last && k.max == other.max && k.firm == other.firm
}

// add adds a refusal. The oldest of the account, or those of some other, make room. The
// caller holds the lock.
func (x *exhausted) add(s *exhaustedShard, account string, r *exhaustion) {
	all := s.accounts[account]
	if len(all) == mostKinds {
		oldest := 0
		for i := range all {
			if all[i].asked < all[oldest].asked {
				oldest = i
			}
		}
		all[oldest] = r
		return
	}
	for other := range s.accounts { // in random order
		if s.kept < x.most {
			break
		}
		if other != account {
			x.drop(s, other)
		}
	}
	s.accounts[account] = append(all, r)
	s.kept++
	x.kept.Add(1)
}

// drop forgets an account. The caller holds the lock.
func (x *exhausted) drop(s *exhaustedShard, account string) {
	n := len(s.accounts[account])
	delete(s.accounts, account)
	s.kept -= n
	x.kept.Add(-int64(n))
}

// forget forgets an account, which has been given something back, by a moment of Elapsed.
func (x *exhausted) forget(account string, now time.Duration) {
	s := x.shard(account)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgot = now
	x.drop(s, account)
}

// settle forgets of an account what settlements change, by a moment of Elapsed.
func (x *exhausted) settle(account string, now time.Duration) {
	s := x.shard(account)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settled = now
	for _, r := range s.accounts[account] {
		for i := range r.counters {
			if k := &r.counters[i]; !k.firm {
				k.cost = quota.NoMax
			}
		}
	}
}

// clear forgets everything: Redis was away, and may have lost counts.
func (x *exhausted) clear(now time.Duration) {
	for i := range x.shards {
		s := &x.shards[i]
		s.mu.Lock()
		s.forgot = now
		for account := range s.accounts {
			x.drop(s, account)
		}
		s.mu.Unlock()
	}
}

// sweep removes what has ended, by Redis' time in Unix ms.
func (x *exhausted) sweep(now int64) {
	for i := range x.shards {
		s := &x.shards[i]
		s.mu.Lock()
		for account, all := range s.accounts {
			if ended(all, now) {
				x.drop(s, account)
			}
		}
		s.mu.Unlock()
	}
}

func ended(all []*exhaustion, now int64) bool {
	for _, r := range all {
		for i := range r.counters {
			if r.counters[i].end > now {
				return false
			}
		}
	}
	return true
}
