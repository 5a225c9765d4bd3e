package store

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// repeated returns the promise of the order that this one repeats, or nil.
func (h *holding) repeated(o quota.Order, now time.Time) *promise {
	if h == nil || !o.Kept() {
		return nil
	}
	p := h.promises[o.Request]
	if p == nil || now.Sub(p.at) >= quota.RepeatWindow || now.UnixMilli() >= p.expires {
		return nil
	}
	return p
}

// keep keeps what an order took, as Memory does. Where there is no room, nothing is kept.
func (l *ledger) keep(s *ledgerShard, h *holding, o quota.Order, t quota.Taken, doubt bool) bool {
	if h.promises[o.Request] == nil {
		if !l.room.take(s.kept) {
			return false
		}
		s.kept++
		l.kept.Add(1)
	}
	if h.promises == nil {
		h.promises = map[string]*promise{}
	}
	p := &promise{}
	p.fill(o, t)
	if doubt {
		p.leave()
	}
	h.promises[o.Request] = p
	return true
}

// forget drops a promise.
func (l *ledger) forget(s *ledgerShard, h *holding, request string) {
	l.room.give(s.kept)
	delete(h.promises, request)
	s.kept--
	l.kept.Add(-1)
}

// leave leaves a promise to Redis; here it answers repeats.
func (p *promise) leave() {
	p.place, p.expires = inRedis, min(p.expires, p.at.Add(quota.RepeatWindow).UnixMilli())
}

// settle settles what the ledger has; else it says who does, and changes nothing.
func (l *ledger) settle(st quota.Settlement, instances int64, at time.Time) (quota.Outcome, place) {
	s := l.shard(st.Account)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock(at)
	h := s.accounts[st.Account]
	if h == nil {
		return 0, inRedis
	}
	p := h.promises[st.Request]
	if p == nil || p.place == inRedis {
		return 0, inRedis
	}
	switch {
	case !shows(st.Secret, p.secret):
		return quota.NotFound, here
	case p.settled && now.UnixMilli() < p.expires: // Redis will know it as that too
		return quota.Duplicate, here
	case p.place == onItsWay:
		return 0, onItsWay
	case now.UnixMilli() >= p.expires:
		return quota.NotFound, here
	}
	for _, c := range p.charges {
		l.correct(h, c, st, instances, now)
	}
	p.settled, p.expires = true, now.Add(settledKept).UnixMilli()
	if st.Void {
		l.forget(s, h, st.Request)
	}
	l.owe(s, st.Account, h)
	return quota.Settled, here
}

// correct corrects one counter, as reserved.settle does; of what may be refunded, this
// instance has its share.
func (l *ledger) correct(h *holding, c reserved, st quota.Settlement, instances int64, now time.Time) {
	start := windowStart(c.window, now)
	var refunds string
	var refunded int64
	if st.RefundShare > 0 {
		refunds = refundCounter(c.counter)
		if t := h.find(refunds); t != nil && t.start == start {
			refunded = t.seen + t.own.sum()
		}
	}
	change, back := c.correction(st, share(c.max, st.RefundShare)/instances-refunded)
	if back > 0 && start == c.start {
		l.charge(h, refunds, c.window.Fixed(), back, false, now)
	}
	switch {
	case change > 0, change < 0 && start == c.start:
		l.charge(h, c.counter, c.window, change, false, now)
	case change < 0 && c.window.Sliding() && st.RefundShare <= 0:
		l.lower(h, c, change, now)
	}
}

// record is the reservation as batch.lua writes it.
func (r *reservation) record() string {
	var b, used, before strings.Builder
	settled := '0'
	if r.settled {
		settled = '1'
	}
	fmt.Fprintf(&b, "%d %s %c ", r.at.UnixMilli(), cmp.Or(r.secret, noSecret), settled)
	for i, c := range r.charges {
		fmt.Fprintf(&b, "%s,%d,%d,%d;", c.counter, int64(c.window), c.max, c.cost)
		if i > 0 {
			used.WriteByte(',')
		}
		used.WriteString(strconv.FormatInt(c.used, 10))
		if c.window.Sliding() {
			before.WriteByte(',')
			before.WriteString(strconv.FormatInt(c.before, 10))
		}
	}
	return b.String() + "|" + used.String() + before.String()
}

// before says what an order meets in the ledger of a part that can be reached: what is yet
// to be given back of each charge's counter, nil where that is nothing, and the answer to
// an order that it repeats and that Redis does not know yet.
func (l *ledger) before(o quota.Order, clock func() time.Time) (owed []debt, first *quota.Taken) {
	if l.owing.Load() == 0 {
		return nil, nil
	}
	s := l.shard(o.Account)
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.accounts[o.Account]
	if h == nil || !s.owing[o.Account] {
		return nil, nil
	}
	now := s.clock(clock())
	owed = make([]debt, len(o.Charges))
	known := quota.Taken{Now: now, Used: make([]int64, len(o.Charges))}
	for i, c := range o.Charges {
		if t := h.find(c.Counter); t != nil && t.start == windowStart(c.Limit.Window, now) && t.own != nil {
			owed[i].used = t.own.mine + t.own.giving
			known.Used[i] = clamp(t.seen + t.own.sum())
		}
		if c.Limit.Window.Sliding() {
			seen, own := h.before(c.Counter, c.Limit.Window, now)
			noteBefore(&known, i, clamp(seen+own.sum()))
			owed[i].note(c, own, now)
		}
	}
	if p := h.repeated(o, now); p != nil && p.place != inRedis {
		answer := p.answer(o, known)
		answer.Degraded = true
		return nil, &answer
	}
	return owed, nil
}
