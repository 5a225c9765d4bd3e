package store

import (
	"context"
	"errors"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// ErrFull says that the store holds as many accounts as it may, all of them
// with open windows.
var ErrFull = errors.New("the memory store is full: raise store.memory.max_keys")

// shardCount spreads accounts so that concurrent requests seldom share a lock. It is the
// least for a Memory.
const shardCount = 64

// sweepInterval is how often accounts that have ended and reservations are removed. It
// bounds memory only: a count is void from the moment its window ends.
const sweepInterval = 5 * time.Second

// minReservations is how many reservations there is room for at the least, for each of
// shardCount shards; else for as many as accounts.
const minReservations = 4096

// shardAccounts is how many accounts a shard of a full Memory has: few, so that nobody
// waits long for one that is swept or copied, and so many that Go's map of them, which
// grows beyond 7/8 of a power of two, is well filled.
const shardAccounts = 3200

// Memory counts in the process. It is the plain statement of what a store
// does: batch.lua says the same for Redis. It is safe for concurrent
// use.
type Memory struct {
	now    func() time.Time
	seed   maphash.Seed
	names  *names
	shards []shard

	accounts     room
	reservations reservationRoom
	refused      *latelyRefused

	sweeping sync.Mutex
	swept    int64 // Unix s of the latest sweep
}

type shard struct {
	steady

	mu           sync.Mutex
	accounts     accounts
	reservations map[uint64]record // by reservationID
	soonest      int64             // Unix ms: no counted window ends before
	allYoung     time.Time         // until then no reservation is old enough to make room
	changed      bool              // since it was last copied for a snapshot
}

// A room says how many more may be held. It is safe for concurrent use.
type room struct{ left atomic.Int64 }

// take takes room for one, if there is any.
func (r *room) take() bool {
	if r.left.Add(-1) >= 0 {
		return true
	}
	r.left.Add(1)
	return false
}

// takeFor takes room for the account of an order. A pool finds it always.
func (r *room) takeFor(o quota.Order) bool {
	if o.Pooled() {
		r.give(-1)
		return true
	}
	return r.take()
}

func (r *room) give(n int) { r.left.Add(int64(n)) }

// A counter is one counted window of an account.
type counter struct {
	start int64 // Unix ms; the count is void in any other window
	end   int64 // Unix ms
	used  int64
	name  uint32 // its number
}

// NewMemory returns an empty store that holds so many accounts at the most. now is its
// clock.
func NewMemory(now func() time.Time, maxAccounts int) *Memory {
	m := &Memory{now: now, seed: maphash.MakeSeed(), names: newNames(), refused: newLatelyRefused(), shards: make([]shard, max(shardCount, maxAccounts/shardAccounts))}
	for i := range m.shards {
		m.shards[i].accounts = newAccounts()
		m.shards[i].reservations = map[uint64]record{}
	}
	m.reservations.divide(maxAccounts, len(m.shards))
	m.accounts.give(maxAccounts)
	return m
}

// hash says where an account is kept.
func (m *Memory) hash(account string) uint64 { return maphash.String(m.seed, account) }

func (m *Memory) shard(hash uint64) *shard { return &m.shards[hash%uint64(len(m.shards))] }

// Take implements quota.Counts. It fails with ErrFull when an account that is
// not counted yet finds no room, unless it is a pool's.
func (m *Memory) Take(_ context.Context, o quota.Order) (quota.Taken, error) {
	taken, err := m.take(o)
	if errors.Is(err, ErrFull) {
		m.sweepForRoom()
		taken, err = m.take(o)
	}
	if err == nil && !taken.Admitted {
		m.refused.note(o.Account, taken.Now.UnixNano())
	}
	return taken, err
}

// RefusedLately implements quota.Recollection.
func (m *Memory) RefusedLately(account string) bool {
	return m.refused.lately(account, m.now().UnixNano())
}

func (m *Memory) take(o quota.Order) (quota.Taken, error) {
	hash := m.hash(o.Account)
	s := m.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock(m.now()) // under the lock, so that one account's requests see one order of time
	before := s.accounts.of(hash, o.Account)
	taken := quota.Taken{Now: now, Admitted: true, Used: make([]int64, len(o.Charges))}
	var few [8]target
	targets := few[:0]
	for i, c := range o.Charges {
		t := m.target(before, c.Counter, c.Limit.Window, now)
		targets = append(targets, t)
		taken.Used[i] = t.used(before)
		if c.Limit.Window.Sliding() {
			_, used := m.before(before, c.Counter, c.Limit.Window, t, now)
			noteBefore(&taken, i, used)
		}
		if c.Exceeds(counts(&taken, i, &c)) {
			taken.Admitted = false
		}
	}
	var id uint64
	if o.Kept() {
		id = m.reservationID(hash, o.Request)
		if first, ok := s.repeated(id, o, now); ok {
			return m.answer(first, o, taken), nil
		}
	}
	if !taken.Admitted {
		return taken, nil
	}
	counters := before
	for i, c := range o.Charges {
		if c.Cost == 0 {
			continue
		}
		if counters == nil {
			if !m.accounts.takeFor(o) {
				return quota.Taken{}, ErrFull
			}
			counters = make([]counter, 0, len(o.Charges))
		}
		taken.Used[i] = clamp(taken.Used[i] + c.Cost)
		counters = m.count(s, counters, c.Counter, c.Limit.Window, targets[i], taken.Used[i], now)
		s.changed = true
	}
	if len(counters) != len(before) {
		s.accounts.put(hash, o.Account, counters)
	}
	if o.Kept() && m.keep(s, id, o, before, targets, taken) {
		taken.Secret = o.Secret
	}
	return taken, nil
}

// put keeps the counters of an account, for which there is room or not.
func (m *Memory) put(s *shard, hash uint64, account string, counters []counter) {
	before := s.accounts.len()
	s.accounts.put(hash, account, counters)
	m.accounts.give(before - s.accounts.len())
}

func clamp(used int64) int64 { return min(max(used, 0), quota.MaxUsed) }

// A target is the current window of a counter.
type target struct {
	index      int   // of the counter in its account; -1: there is none
	start, end int64 // Unix ms
}

// target finds a counter by its name.
func (m *Memory) target(counters []counter, name string, w quota.Window, now time.Time) target {
	start, end := w.Bounds(now)
	if w.Sliding() {
		_, end = w.Bounds(end) // what is used now counts until then
	}
	t := target{-1, start.UnixMilli(), end.UnixMilli()}
	names := m.names.all()
	for i := range counters {
		if names[counters[i].name] == name {
			t.index = i
		}
	}
	return t
}

// used returns what is used.
func (t target) used(counters []counter) int64 {
	if t.index >= 0 && counters[t.index].start == t.start {
		return counters[t.index].used
	}
	return 0
}

// set sets what is used of a counter, of that name if it is new.
func (m *Memory) set(s *shard, counters []counter, name string, t target, used int64) []counter {
	s.soonest = min(s.soonest, t.end)
	if t.index >= 0 {
		c := &counters[t.index]
		c.start, c.end, c.used = t.start, t.end, used
		return counters
	}
	return append(counters, counter{t.start, t.end, used, m.names.number(name)})
}

// Run sweeps until ctx is done.
func (m *Memory) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			m.Sweep()
		}
	}
}

// Sweep removes the accounts whose windows have all ended and the reservations that
// have expired.
func (m *Memory) Sweep() {
	m.sweeping.Lock()
	defer m.sweeping.Unlock()
	m.sweep()
}

// sweepForRoom sweeps where accounts may have ended since that was done last: windows end
// at whole seconds.
func (m *Memory) sweepForRoom() {
	m.sweeping.Lock()
	defer m.sweeping.Unlock()
	if m.now().Unix() != m.swept {
		m.sweep()
	}
}

func (m *Memory) sweep() {
	now := m.now()
	m.swept = now.Unix()
	for i := range m.shards {
		m.sweepShard(&m.shards[i], now)
	}
}

func (m *Memory) sweepShard(s *shard, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock(at).UnixMilli()
	if s.soonest <= now {
		before := s.accounts.len()
		s.soonest = s.accounts.sweep(now)
		m.accounts.give(before - s.accounts.len())
	}
	for id, r := range s.reservations {
		if r.expires <= now {
			m.forget(s, id)
		}
	}
}

// Len returns how many accounts are counted.
func (m *Memory) Len() int {
	n := 0
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		n += s.accounts.len()
		s.mu.Unlock()
	}
	return n
}

// Ping implements the readiness check: memory is always there.
func (m *Memory) Ping(context.Context) error { return nil }
