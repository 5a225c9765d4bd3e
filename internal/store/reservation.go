package store

import (
	"context"
	"crypto/subtle"
	"hash/maphash"
	"math/bits"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// reservationID is where a shard keeps what it knows of one request: a number of 64
// bits, so that the garbage collector need not look at the map's keys. If two requests
// ever shared one, the older would lose its reservation, and nothing else.
func (m *Memory) reservationID(account, request string) uint64 {
	return bits.RotateLeft64(maphash.String(m.seed, account), 1) ^ maphash.String(m.seed, request)
}

// A reservation is what an order took, kept for its repeats and its settlement. Only
// settled and expires ever change: a snapshot reads the rest without the lock.
type reservation struct {
	account string
	request string
	at      time.Time
	expires int64 // Unix ms
	secret  string
	settled bool
	charges []reserved
	few     [4]reserved // where charges are, if there is room: one piece of memory less
}

// reserved is what one charge took.
type reserved struct {
	counter string
	metric  quota.Metric
	window  quota.Window
	max     int64
	start   int64 // Unix ms of the window that was charged
	cost    int64
	used    int64 // after that
}

// repeated returns the reservation of the order that this one repeats, or nil.
func (s *shard) repeated(id uint64, o quota.Order, now time.Time) *reservation {
	r := s.reservations[id]
	if !r.of(o.Account, o.Request) || now.Sub(r.at) >= quota.RepeatWindow || now.UnixMilli() >= r.expires {
		return nil
	}
	return r
}

// of reports whether there is a reservation, of this request.
func (r *reservation) of(account, request string) bool {
	return r != nil && r.request == request && r.account == account
}

// answer returns what the first order was told. Counters that it did not charge
// are as they are now.
func (r *reservation) answer(o quota.Order, now quota.Taken) quota.Taken {
	first := quota.Taken{Now: r.at, Admitted: true, Used: now.Used, Secret: r.secret}
	for _, c := range r.charges {
		for i := range o.Charges {
			if o.Charges[i].Counter == c.counter {
				first.Used[i] = c.used
			}
		}
	}
	return first
}

// keep keeps what an order took. Where there is no room, nothing is kept: the
// charge stands as it is.
func (s *shard) keep(id uint64, o quota.Order, t quota.Taken) bool {
	if !s.roomForReservation(t.Now) {
		return false
	}
	r := &reservation{}
	r.fill(o, t)
	s.reservations[id], s.changed = r, true
	return true
}

// fill notes what an order took.
func (r *reservation) fill(o quota.Order, t quota.Taken) {
	r.account, r.request, r.secret = o.Account, o.Request, o.Secret
	r.at, r.expires = t.Now, t.Now.Add(max(o.Keep, quota.RepeatWindow)).UnixMilli()
	r.charges = r.few[:0]
	for i, c := range o.Charges {
		r.charges = append(r.charges, reserved{c.Counter, c.Limit.Metric, c.Limit.Window, c.Limit.Max, windowStart(c.Limit.Window, t.Now), c.Cost, t.Used[i]})
	}
}

// roomForReservation makes room where there is none by dropping one that is older
// than its repeats can be: of some taken by chance a settled one, else the oldest. A charge whose reservation is dropped stands as it is.
func (s *shard) roomForReservation(now time.Time) bool {
	const sample = 64
	if len(s.reservations) < max(s.max, minReservations) {
		return true
	}
	if now.Before(s.allYoung) {
		return false
	}
	var victim uint64
	var oldest *reservation
	seen := 0
	for id, r := range s.reservations { // in random order
		if now.Sub(r.at) >= quota.RepeatWindow && (oldest == nil || r.settled || r.at.Before(oldest.at)) {
			victim, oldest = id, r
		}
		if seen++; seen == sample || (oldest != nil && oldest.settled) {
			break
		}
	}
	if oldest == nil {
		s.allYoung = now.Add(time.Second / 10)
		return false
	}
	delete(s.reservations, victim)
	return true
}

// Settle implements quota.Counts.
func (m *Memory) Settle(_ context.Context, st quota.Settlement) (quota.Outcome, error) {
	s := m.shard(st.Account)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := m.now()
	r := s.reservations[m.reservationID(st.Account, st.Request)]
	if !r.of(st.Account, st.Request) || now.UnixMilli() >= r.expires || subtle.ConstantTimeCompare([]byte(r.secret), []byte(st.Secret)) != 1 {
		return quota.NotFound, nil
	}
	if r.settled {
		return quota.Duplicate, nil
	}
	counters := s.accounts[st.Account]
	for _, c := range r.charges {
		counters = c.settle(counters, st, now)
	}
	if counters != nil {
		s.accounts[st.Account] = counters
	}
	r.settled, r.expires, s.changed = true, now.Add(settledKept).UnixMilli(), true
	return quota.Settled, nil
}

// settle corrects one counter. In a window that has ended meanwhile there is
// nothing to give back; what was used beyond the charge goes to the current one.
func (c reserved) settle(counters []counter, st quota.Settlement, now time.Time) []counter {
	start := windowStart(c.window, now)
	var refunds string
	var refunded int64
	if st.RefundShare > 0 {
		refunds = refundCounter(c.counter)
		refunded = usedIn(counters, refunds, start)
	}
	change, back := c.correction(st, share(c.max, st.RefundShare)-refunded)
	if back > 0 && start == c.start {
		counters = set(counters, refunds, c.window, now, clamp(refunded+back))
	}
	if change > 0 || (change < 0 && start == c.start) {
		counters = set(counters, c.counter, c.window, now, clamp(usedIn(counters, c.counter, start)+change))
	}
	return counters
}

// correction returns by how much a settlement changes what was taken, and how much of
// that is a refund, of which there may be so much.
func (c reserved) correction(st quota.Settlement, refundable int64) (change, refund int64) {
	actual := usedOf(st.Used, c.metric)
	if actual == quota.Unknown {
		actual = c.cost
	}
	switch {
	case st.RefundShare > 0:
		refund = max(min(c.cost, refundable), 0)
		actual = c.cost - refund
	case st.OnlyRaise:
		actual = max(actual, c.cost)
	}
	return actual - c.cost, refund
}

// share returns so many thousandths of a maximum, rounded down, as a script
// computes it.
func share(most, thousandths int64) int64 {
	if most == quota.NoMax {
		return quota.MaxUsed
	}
	return most/1000*thousandths + most%1000*thousandths/1000
}
