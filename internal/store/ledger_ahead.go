package store

import (
	"slices"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// ahead answers an order that no limit can refuse, by what is known of its counters and
// what is on its way to them, and notes that it is on its way too. start returns when the
// windows began that it was answered in, Unix ms. ok is false where another account finds
// no room.
func (l *ledger) ahead(o quota.Order, at time.Time) (t quota.Taken, start []int64, ok bool) {
	s := l.shard(o.Account)
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.accounts[o.Account]
	if h == nil {
		if h = s.makeRoom(o); h == nil {
			return quota.Taken{}, nil, false
		}
	}
	now := s.clock(at)
	if late := h.at - now.UnixMilli(); late > 0 && late < step { // servers of a Cluster differ
		now = time.UnixMilli(h.at).UTC()
	}
	t = quota.Taken{Now: now, Admitted: true, Used: make([]int64, len(o.Charges))}
	if o.Kept() {
		t.Secret = o.Secret
	}
	start = make([]int64, len(o.Charges))
	for i, c := range o.Charges {
		g := givenNow(c.Counter, c.Limit.Window, now)
		start[i] = g.start
		k := l.current(h, h.find(c.Counter), g)
		if k.own == nil {
			k.own = &own{window: c.Limit.Window}
		}
		k.own.inFlight += c.Cost
		t.Used[i] = clamp(k.seen + k.own.sum())
	}
	return t, start, true
}

// complete notes what Redis has answered to an order that was answered ahead.
func (l *ledger) complete(o quota.Order, start []int64, taken quota.Taken) {
	s := l.shard(o.Account)
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.accounts[o.Account]
	h.land(o, start, !taken.Repeated)
	switch {
	case h == nil:
	case !taken.Repeated:
		l.seeAll(h, o, taken)
	default: // at least that is used
		for i, c := range o.Charges {
			l.see(h, givenNow(c.Counter, c.Limit.Window, taken.Now), taken.Used[i], false)
		}
	}
}

// failed takes in the same step what an order that was answered ahead has taken, and that Redis
// has not done, or may not have.
func (l *ledger) failed(o quota.Order, start []int64, how manner, at time.Time) {
	s := l.shard(o.Account)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accounts[o.Account].land(o, start, false)
	_, _ = l.takeOf(s, o, how, at) // it is to be allowed, which never fails
}

// land notes that an order is not on its way any more, and whether that is seen to be used.
func (h *holding) land(o quota.Order, start []int64, counted bool) {
	for i, c := range o.Charges {
		if k := h.find(c.Counter); k != nil && k.start == start[i] && k.own != nil {
			n := min(c.Cost, k.own.inFlight)
			k.own.inFlight -= n
			if counted {
				k.seen += n
			}
		}
	}
}

// catchUp adds to what Redis has said is used of counters what is on its way to them, and what
// a faster answer of Redis has said that was newer, so that nobody is told of less than before.
// Of the same millisecond either may be the newer.
func (h *holding) catchUp(o quota.Order, t *quota.Taken) {
	newer := h.at >= t.Now.UnixMilli()
	for i, c := range o.Charges {
		if k := h.find(c.Counter); k != nil && k.own != nil && (k.own.inFlight > 0 || newer) && k.start == windowStart(c.Limit.Window, t.Now) {
			t.Used[i] = max(t.Used[i], clamp(k.seen+k.own.inFlight))
		}
	}
}

// inFlight reports whether something is in flight to a counter by which an order may be
// refused: that of a key whose limits are new.
func (l *ledger) inFlight(o quota.Order) bool {
	s := l.shard(o.Account)
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.accounts[o.Account]
	for _, c := range o.Charges {
		if k := h.find(c.Counter); c.Limit.Max != quota.NoMax && k != nil && k.own != nil && k.own.inFlight > 0 {
			return true
		}
	}
	return false
}

// inFlight reports whether an order is in flight that is answered already.
func (h *holding) inFlight() bool {
	return slices.ContainsFunc(h.tallies, func(t tally) bool { return t.own != nil && t.own.inFlight > 0 })
}
