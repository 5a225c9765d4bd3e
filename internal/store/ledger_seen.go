package store

import (
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// note takes down what Redis has answered, and adds to that what is known besides. Where there
// is no room for another account nothing is.
func (l *ledger) note(o quota.Order, t *quota.Taken) {
	s := l.shard(o.Account)
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.accounts[o.Account]
	if h == nil {
		if len(s.accounts) >= s.most {
			return
		}
		h = &holding{tallies: make([]tally, 0, len(o.Charges))}
		s.accounts[o.Account] = h
	}
	l.seeAll(h, o, *t)
	h.catchUp(o, t)
}

// seeAll takes down what Redis has answered for an account. The caller holds the lock.
func (l *ledger) seeAll(h *holding, o quota.Order, t quota.Taken) {
	at := t.Now.UnixMilli()
	later := at > h.at || at < h.at-step
	if at < h.at && !later {
		return // another answer was faster
	}
	for i := range o.Charges {
		c := &o.Charges[i]
		if c.Limit.Window.Sliding() {
			l.seeSliding(h, c, &t, i, later)
			continue
		}
		g := given{name: c.Counter, window: c.Limit.Window}
		if k := h.find(c.Counter); k != nil && k.start <= at && at < k.end && !k.slides(c.Limit.Window) {
			g.start, g.end = k.start, k.end // as a rule: to work it out costs more
		} else {
			start, end := c.Limit.Window.Bounds(t.Now)
			g.start, g.end = start.UnixMilli(), end.UnixMilli()
		}
		l.see(h, g, t.Used[i], later)
	}
	h.at = at
}

// see takes down what is used of a counter; later is whether that is newer than what is
// known. What was in doubt until then is in it, or never will be. What is on its way may be
// in it: as long as anything is, what both make together does not fall.
func (l *ledger) see(h *holding, g given, used int64, later bool) {
	t := h.find(g.name)
	if t != nil && g.start < t.start && !later {
		return
	}
	t = l.current(h, t, g)
	switch {
	case t.own != nil && t.own.inFlight > 0:
		t.seen = max(t.seen, used-t.own.inFlight)
	case later || used > t.seen:
		t.seen = used
	}
	if later && t.own != nil {
		t.own.doubt = 0
	}
}

// sweep removes what has ended: counters, reservations, and accounts that have nothing
// else.
func (l *ledger) sweep(at time.Time) {
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		now := s.clock(at).UnixMilli()
		for account, h := range s.accounts {
			for request, p := range h.promises {
				if p.expires <= now && p.place != onItsWay {
					l.forget(s, h, request)
				}
			}
			if len(h.promises) == 0 && h.giving == nil && h.over(now) {
				l.ended.Add(h.mine())
				l.quit(s, account)
				delete(s.accounts, account)
			}
		}
		s.mu.Unlock()
	}
}

// mine returns how many counters have something that is not on its way to Redis.
func (h *holding) mine() (n int64) {
	for i := range h.tallies {
		if o := h.tallies[i].own; o != nil && o.mine != 0 {
			n++
		}
	}
	return n
}

func (h *holding) over(now int64) bool {
	for i := range h.tallies {
		if h.tallies[i].end > now {
			return false
		}
	}
	return true
}
