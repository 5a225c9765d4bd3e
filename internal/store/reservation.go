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
func (m *Memory) reservationID(account uint64, request string) uint64 {
	return bits.RotateLeft64(account, 1) ^ maphash.String(m.seed, request)
}

// A reservation is what an order took, kept for its repeats and its settlement. A Memory
// keeps it as a record. Only settled and expires ever change.
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
	before  int64 // used in the window before; 0 where it does not slide
}

// repeated returns the reservation of the order that this one repeats, if there is one.
func (s *shard) repeated(id uint64, o quota.Order, now time.Time) (opened, bool) {
	r := s.reservations[id]
	first := r.open()
	return first, first.of(o.Account, o.Request) && now.UnixNano()-first.at < int64(quota.RepeatWindow) && now.UnixMilli() < r.expires
}

// answer returns what the first order was told. Counters that it did not charge
// are as they are now.
func (r *reservation) answer(o quota.Order, now quota.Taken) quota.Taken {
	first := quota.Taken{Now: r.at, Admitted: true, Repeated: true, Used: now.Used, Before: now.Before, Secret: r.secret}
	for _, c := range r.charges {
		c.tell(o, &first)
	}
	return first
}

// answer does the same as that of a reservation.
func (m *Memory) answer(r opened, o quota.Order, now quota.Taken) quota.Taken {
	first := quota.Taken{Now: r.time(), Admitted: true, Repeated: true, Used: now.Used, Before: now.Before, Secret: r.secret}
	for rest := r.charges; rest != ""; {
		rest.charge(m.names.all()).tell(o, &first)
	}
	return first
}

// tell puts what was used of the counter after the charge where an order asks for it.
func (c reserved) tell(o quota.Order, t *quota.Taken) {
	for i := range o.Charges {
		if o.Charges[i].Counter != c.counter {
			continue
		}
		t.Used[i] = c.used
		if c.window.Sliding() && o.Charges[i].Limit.Window.Sliding() {
			t.Before[i] = c.before
		}
	}
}

// keep keeps what an order took. Where there is no room, nothing is kept: the
// charge stands as it is.
func (m *Memory) keep(s *shard, id uint64, o quota.Order, counters []counter, targets []target, t quota.Taken) bool {
	if !m.roomForReservation(s, id, t.Now) {
		return false
	}
	var few [256]byte // most are shorter
	p := pack(few[:0], t.Now.UnixNano(), o.Account, o.Request, o.Secret)
	for i, c := range o.Charges {
		var name uint32
		if k := targets[i].index; k >= 0 {
			name = counters[k].name
		} else {
			name = m.names.number(c.Counter)
		}
		p = packCharge(p, name, took(c, targets[i].start, t, i))
	}
	s.reservations[id], s.changed = record{packed: packed(p), expires: keptUntil(o, t.Now)}, true
	return true
}

// fill notes what an order took.
func (r *reservation) fill(o quota.Order, t quota.Taken) {
	r.account, r.request, r.secret = o.Account, o.Request, o.Secret
	r.at, r.expires = t.Now, keptUntil(o, t.Now)
	r.charges = r.few[:0]
	for i, c := range o.Charges {
		r.charges = append(r.charges, took(c, windowStart(c.Limit.Window, t.Now), t, i))
	}
}

// took is what the ith charge of an order took, with what is used after that.
func took(c quota.Charge, start int64, t quota.Taken, i int) reserved {
	return reserved{c.Counter, c.Limit.Metric, c.Limit.Window, c.Limit.Max, start, c.Cost, t.Used[i], t.UsedBefore(i)}
}

// keptUntil returns when an order's reservation ends, in Unix ms.
func keptUntil(o quota.Order, now time.Time) int64 {
	return now.Add(max(o.Keep, quota.RepeatWindow)).UnixMilli()
}

// A reservationRoom is room for reservations. Each shard has half of its even share for itself,
// and all have the rest together.
type reservationRoom struct {
	own  int // of a shard
	rest room
}

// divide gives the room that there is beside so many accounts to so many shards.
func (r *reservationRoom) divide(maxAccounts, shards int) {
	all := max(maxAccounts, shardCount*minReservations)
	r.own = all / 2 / shards
	r.rest.give(all - r.own*shards)
}

// take takes room for one more in a shard that has so many, if there is any.
func (r *reservationRoom) take(has int) bool { return has < r.own || r.rest.take() }

// force takes room for one more in a shard that has so many, if there is any or not.
func (r *reservationRoom) force(has int) {
	if has >= r.own {
		r.rest.give(-1)
	}
}

// give gives back the room of one in a shard that has so many with it.
func (r *reservationRoom) give(has int) {
	if has > r.own {
		r.rest.give(1)
	}
}

// roomForReservation takes room for a reservation. Where there is none it makes some by dropping
// a reservation that is older than its repeats can be, or of a clock that was ahead and has been set
// back: of some taken by chance a settled one, else the oldest. A charge whose reservation is
// dropped stands as it is.
func (m *Memory) roomForReservation(s *shard, id uint64, now time.Time) bool {
	const sample = 64
	if _, known := s.reservations[id]; known || m.reservations.take(len(s.reservations)) {
		return true
	}
	const again = time.Second / 10
	if wait := s.allYoung.Sub(now); wait > 0 && wait <= again {
		return false
	}
	var victim uint64
	var oldest record
	seen, found, old := 0, false, now.Add(-quota.RepeatWindow).UnixNano()
	ahead := now.Add(step * time.Millisecond).UnixNano()
	for id, r := range s.reservations { // in random order
		if at := r.packed.at(); (at <= old || at >= ahead) && (!found || r.settled || at < oldest.packed.at()) {
			victim, oldest, found = id, r, true
		}
		if seen++; seen == sample || (found && oldest.settled) {
			break
		}
	}
	if !found {
		s.allYoung = now.Add(again)
		return false
	}
	delete(s.reservations, victim) // its room is that of the new one
	return true
}

// putReservation keeps a reservation, for which there is room or not.
func (m *Memory) putReservation(account, request string, r record) {
	hash := m.hash(account)
	s, id := m.shard(hash), m.reservationID(hash, request)
	if _, known := s.reservations[id]; !known {
		m.reservations.force(len(s.reservations))
	}
	s.reservations[id] = r
}

// forget drops a reservation.
func (m *Memory) forget(s *shard, id uint64) {
	m.reservations.give(len(s.reservations))
	delete(s.reservations, id)
}

// shows reports whether a settlement shows the secret of a reservation, which has none where it is
// kept for repeats only.
func shows(shown, secret string) bool {
	return secret != "" && subtle.ConstantTimeCompare([]byte(secret), []byte(shown)) == 1
}

// Settle implements quota.Counts.
func (m *Memory) Settle(_ context.Context, st quota.Settlement) (quota.Outcome, error) {
	hash := m.hash(st.Account)
	s := m.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock(m.now())
	id := m.reservationID(hash, st.Request)
	r := s.reservations[id]
	first := r.open()
	if !first.of(st.Account, st.Request) || now.UnixMilli() >= r.expires || !shows(st.Secret, first.secret) {
		return quota.NotFound, nil
	}
	if r.settled {
		return quota.Duplicate, nil
	}
	before := s.accounts.of(hash, st.Account)
	counters := before
	for rest := first.charges; rest != ""; {
		counters = m.settle(s, counters, rest.charge(m.names.all()), st, now)
	}
	if len(counters) != len(before) {
		m.put(s, hash, st.Account, counters)
	}
	s.changed = true
	if st.Void {
		m.forget(s, id)
		return quota.Settled, nil
	}
	r.settled, r.expires = true, now.Add(settledKept).UnixMilli()
	s.reservations[id] = r
	return quota.Settled, nil
}

// settle corrects one counter. In a window that has ended meanwhile there is
// nothing to give back, unless it is the one before a window that slides; what was used
// beyond the charge goes to the current one.
func (m *Memory) settle(s *shard, counters []counter, c reserved, st quota.Settlement, now time.Time) []counter {
	counted := m.target(counters, c.counter, c.window, now)
	current := counted.start == c.start
	var name string
	var refunds target
	var refunded int64
	if st.RefundShare > 0 {
		name = refundCounter(c.counter)
		refunds = m.target(counters, name, c.window.Fixed(), now)
		refunded = refunds.used(counters)
	}
	change, back := c.correction(st, share(c.max, st.RefundShare)-refunded)
	if back > 0 && current {
		counters = m.set(s, counters, name, refunds, clamp(refunded+back))
	}
	switch {
	case change > 0, change < 0 && current:
		counters = m.count(s, counters, c.counter, c.window, counted, clamp(counted.used(counters)+change), now)
	case change < 0 && c.window.Sliding() && st.RefundShare <= 0:
		counters = m.lower(s, counters, c, counted, change, now)
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
	case st.Void:
		actual = 0
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
	return quota.Share(most, thousandths)
}
