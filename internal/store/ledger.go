package store

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// A ledger is what one instance knows of the counts in a part of Redis, and what it has
// admitted beside them while that could not be reached, until it is given back. It is
// safe for concurrent use.
type ledger struct {
	seed   maphash.Seed
	shards [shardCount]ledgerShard
	owing  atomic.Int64 // accounts that have something to give back
	kept   atomic.Int64 // reservations
	room   reservationRoom
	ended  atomic.Int64 // counts whose windows ended before they were given back
}

type ledgerShard struct {
	steady

	mu       sync.Mutex
	accounts map[string]*holding
	owing    map[string]bool
	kept     int // reservations
	most     int // accounts
}

// A holding is what is known of one account.
type holding struct {
	tallies  []tally
	at       int64               // Redis' time of what was seen, Unix ms
	promises map[string]*promise // by request
	giving   *batch              // nil: nothing is on its way
	more     bool                // whether there is something that the latest batch has not
}

// A tally is one counted window of an account. Where that slides, the window before it has
// one too, by beforeCounter.
type tally struct {
	name  string
	start int64 // Unix ms
	end   int64 // Unix ms: until then it counts
	seen  int64 // used, as Redis has said last
	own   *own  // nil: nothing
}

// own is what this instance has admitted beside what was seen.
type own struct {
	window   quota.Window
	mine     int64 // to be given back
	giving   int64 // on its way
	doubt    int64 // taken by calls of unknown outcome: Redis may have it
	inFlight int64 // of orders that are answered already
}

func (o *own) sum() int64 {
	if o == nil {
		return 0
	}
	return o.mine + o.giving + o.doubt + o.inFlight
}

// A promise is a reservation that was made while Redis could not be reached.
type promise struct {
	reservation

	place place
}

// place is who settles a promise.
type place uint8

const (
	here     place = iota // the ledger
	onItsWay              // nobody until it is known whether Redis has it
	inRedis               // Redis has it, or may have it
)

// A manner is how an order is decided without Redis.
type manner struct {
	mode      quota.OnFailure // Local or Allow
	instances int64           // that share what remains
	doubt     bool            // whether Redis may have carried it out too
	underWay  []int64         // what orders of which Redis is yet to answer take of the counter of each charge; nil: nothing
}

func newLedger(maxAccounts int) *ledger {
	l := &ledger{seed: maphash.MakeSeed()}
	l.room.divide(maxAccounts, shardCount)
	for i := range l.shards {
		l.shards[i].accounts, l.shards[i].owing = map[string]*holding{}, map[string]bool{}
		l.shards[i].most = max(1, (maxAccounts+shardCount-1)/shardCount)
	}
	return l
}

func (l *ledger) shard(account string) *ledgerShard {
	return &l.shards[maphash.String(l.seed, account)%shardCount]
}

// current returns the tally of a counter's current window: that of an ended one, t, begins
// anew.
func (l *ledger) current(h *holding, t *tally, g given) *tally {
	switch {
	case t == nil:
		h.tallies = append(h.tallies, tally{name: g.name, start: g.start, end: g.end})
		return &h.tallies[len(h.tallies)-1]
	case t.start != g.start && g.window.Sliding():
		l.moveOn(h, *t, g)
		t = h.find(g.name) // where it is now
		*t = tally{name: g.name, start: g.start, end: g.end}
	case t.start != g.start:
		l.over(t)
		*t = tally{name: t.name, start: g.start, end: g.end}
	default:
		t.end = g.end // another, if it has begun to slide, or does no more
	}
	return t
}

// over notes that a tally has ended.
func (l *ledger) over(t *tally) {
	if t.own != nil && t.own.mine != 0 {
		l.ended.Add(1)
	}
}

func (h *holding) find(counter string) *tally {
	if h == nil {
		return nil
	}
	for i := range h.tallies {
		if h.tallies[i].name == counter {
			return &h.tallies[i]
		}
	}
	return nil
}

// used returns what is used of a charge's counter: so much that what remains is what this
// instance still admits, its share of what remained when Redis was last heard, and what is under
// way had been taken.
func (h *holding) used(i int, c quota.Charge, how manner, now time.Time) int64 {
	seen, beside := h.seen(i, c, how, now)
	left := c.Limit.Max - seen
	if c.Limit.Max == quota.NoMax || how.mode == quota.Allow || left <= 0 {
		return clamp(seen + beside)
	}
	return clamp(c.Limit.Max - quota.ShareOf(left, how.instances) + beside)
}

// now returns what was seen to be used of a charge's counter in the current window, and what this
// instance has admitted beside that.
func (h *holding) now(c quota.Charge, now time.Time) (seen, beside int64) {
	if t := h.find(c.Counter); t != nil && t.start == windowStart(c.Limit.Window, now) {
		return t.seen, t.own.sum()
	}
	return 0, 0
}

// seen is now, with what is under way as if it were seen.
func (h *holding) seen(i int, c quota.Charge, how manner, now time.Time) (seen, beside int64) {
	seen, beside = h.now(c, now)
	if how.underWay != nil {
		seen = clamp(seen + how.underWay[i])
	}
	return seen, beside
}

// take does what Memory.Take does, by this instance's share. It fails with ErrFull when an
// account that is not known yet finds no room.
func (l *ledger) take(o quota.Order, how manner, at time.Time) (quota.Taken, error) {
	s := l.shard(o.Account)
	s.mu.Lock()
	defer s.mu.Unlock()
	return l.takeOf(s, o, how, at)
}

// takeOf is take where the caller holds the lock of the account's shard.
func (l *ledger) takeOf(s *ledgerShard, o quota.Order, how manner, at time.Time) (quota.Taken, error) {
	now := s.clock(at)
	h := s.accounts[o.Account]
	t := quota.Taken{Now: now, Admitted: true, Used: make([]int64, len(o.Charges)), Degraded: true}
	if how.mode == quota.Local {
		t.Instances = how.instances
	}
	costs := o.Kept()
	for i, c := range o.Charges {
		h.tell(&t, i, c, how)
		t.Admitted = t.Admitted && (how.mode == quota.Allow || !c.Exceeds(counts(&t, i, &c)))
		costs = costs || c.Cost != 0
	}
	if first := h.repeated(o, now); first != nil {
		t = first.answer(o, t)
		t.Degraded = true
		return t, nil
	}
	if !t.Admitted || !costs {
		return t, nil
	}
	if h == nil {
		if h = s.makeRoom(o); h == nil && how.mode == quota.Allow {
			return t, nil
		} else if h == nil {
			return quota.Taken{}, ErrFull
		}
	}
	for i, c := range o.Charges {
		if c.Cost != 0 {
			l.charge(h, c.Counter, c.Limit.Window, c.Cost, how.doubt, now)
			h.tell(&t, i, c, how)
		}
	}
	if o.Kept() && (l.keep(s, h, o, t, how.doubt) || how.doubt) {
		t.Secret = o.Secret
	}
	if !how.doubt {
		l.owe(s, o.Account, h)
	}
	return t, nil
}

// makeRoom returns the holding of an account that has none. Those of some taken by chance
// make room that have nothing to give back and nothing on its way; nil: there is none. A pool
// always finds it.
func (s *ledgerShard) makeRoom(o quota.Order) *holding {
	const sample = 64
	tried := 0
	for other, h := range s.accounts { // in random order
		if len(s.accounts) < s.most || tried == sample {
			break
		}
		tried++
		if !s.owing[other] && len(h.promises) == 0 && !h.inFlight() {
			delete(s.accounts, other)
		}
	}
	if len(s.accounts) >= s.most && !o.Pooled() {
		return nil
	}
	h := &holding{}
	s.accounts[o.Account] = h
	return h
}

// charge adds to what this instance has taken of a counter; what is used stays from 0 to
// quota.MaxUsed.
func (l *ledger) charge(h *holding, counter string, w quota.Window, change int64, doubt bool, now time.Time) {
	t := l.current(h, h.find(counter), givenNow(counter, w, now))
	if t.own == nil {
		t.own = &own{}
	}
	t.own.window = w
	used := t.seen + t.own.sum()
	change = clamp(used+change) - used
	if doubt {
		t.own.doubt += change
	} else {
		t.own.mine += change
	}
}

// owe notes that an account has something to give back. The caller holds the lock.
func (l *ledger) owe(s *ledgerShard, account string, h *holding) {
	h.more = true
	if !s.owing[account] {
		s.owing[account] = true
		l.owing.Add(1)
	}
}
