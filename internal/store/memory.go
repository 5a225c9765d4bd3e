package store

import (
	"context"
	"errors"
	"hash/maphash"
	"sync"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// ErrFull says that the store holds as many accounts as it may, all of them
// with open windows.
var ErrFull = errors.New("the memory store is full: raise store.memory.max_keys")

// shardCount spreads accounts so that concurrent requests seldom share a lock.
const shardCount = 64

// sweepInterval is how often ended windows and reservations are removed. It
// bounds memory only: a count is void from the moment its window ends.
const sweepInterval = 5 * time.Second

// minReservations is how many reservations a shard may hold at the least; else
// as many as accounts.
const minReservations = 4096

// Memory counts in the process. It is the plain statement of what a store
// does: batch.lua says the same for Redis. It is safe for concurrent
// use.
type Memory struct {
	now    func() time.Time
	seed   maphash.Seed
	shards [shardCount]shard
}

type shard struct {
	mu           sync.Mutex
	accounts     map[string][]counter
	max          int
	reservations map[uint64]*reservation // by reservationID
	allYoung     time.Time               // until then no reservation is old enough to make room
	changed      bool                    // since it was last copied for a snapshot
}

// A counter is one counted window of an account.
type counter struct {
	name  string
	start int64 // Unix ms; the count is void in any other window
	end   int64 // Unix ms
	used  int64
}

// NewMemory returns an empty store that holds about maxAccounts accounts at the
// most. now is its clock.
func NewMemory(now func() time.Time, maxAccounts int) *Memory {
	m := &Memory{now: now, seed: maphash.MakeSeed()}
	for i := range m.shards {
		m.shards[i].accounts = map[string][]counter{}
		m.shards[i].reservations = map[uint64]*reservation{}
		m.shards[i].max = max(1, (maxAccounts+shardCount-1)/shardCount)
	}
	return m
}

func (m *Memory) shard(account string) *shard {
	return &m.shards[maphash.String(m.seed, account)%shardCount]
}

// Take implements quota.Counts. It fails with ErrFull when an account that is
// not counted yet finds no room.
func (m *Memory) Take(_ context.Context, o quota.Order) (quota.Taken, error) {
	s := m.shard(o.Account)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := m.now() // under the lock, so that one account's requests see one order of time
	counters := s.accounts[o.Account]
	taken := quota.Taken{Now: now, Admitted: true, Used: make([]int64, len(o.Charges))}
	for i, c := range o.Charges {
		taken.Used[i] = usedIn(counters, c.Counter, windowStart(c.Limit.Window, now))
		if c.Exceeds(taken.Used[i]) {
			taken.Admitted = false
		}
	}
	var id uint64
	if o.Kept() {
		id = m.reservationID(o.Account, o.Request)
		if first := s.repeated(id, o, now); first != nil {
			return first.answer(o, taken), nil
		}
	}
	if !taken.Admitted {
		return taken, nil
	}
	for i, c := range o.Charges {
		if c.Cost != 0 {
			if counters == nil && !s.roomForOne(now) {
				return quota.Taken{}, ErrFull
			}
			taken.Used[i] = clamp(taken.Used[i] + c.Cost)
			counters = set(counters, c.Counter, c.Limit.Window, now, taken.Used[i])
			s.changed = true
		}
	}
	if counters != nil {
		s.accounts[o.Account] = counters
	}
	if o.Kept() && s.keep(id, o, taken) {
		taken.Secret = o.Secret
	}
	return taken, nil
}

func clamp(used int64) int64 { return min(max(used, 0), quota.MaxUsed) }

func find(counters []counter, name string) int {
	for i := range counters {
		if counters[i].name == name {
			return i
		}
	}
	return -1
}

// usedIn returns what is used of a counter in the window that began at start.
func usedIn(counters []counter, name string, start int64) int64 {
	if k := find(counters, name); k >= 0 && counters[k].start == start {
		return counters[k].used
	}
	return 0
}

func set(counters []counter, name string, w quota.Window, now time.Time, used int64) []counter {
	start, end := w.Bounds(now)
	i := find(counters, name)
	if i < 0 {
		counters = append(counters, counter{name: name})
		i = len(counters) - 1
	}
	counters[i].start, counters[i].end, counters[i].used = start.UnixMilli(), end.UnixMilli(), used
	return counters
}

// roomForOne reports whether one more account may be counted, and makes room by
// removing ended windows if need be. The caller holds the lock.
func (s *shard) roomForOne(now time.Time) bool {
	if len(s.accounts) >= s.max {
		s.sweep(now.UnixMilli())
	}
	return len(s.accounts) < s.max
}

// Run removes ended windows until ctx is done.
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

// Sweep removes the counters whose windows have ended and the reservations that
// have expired.
func (m *Memory) Sweep() {
	now := m.now().UnixMilli()
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		s.sweep(now)
		s.mu.Unlock()
	}
}

func (s *shard) sweep(now int64) {
	for account, counters := range s.accounts {
		open := counters[:0]
		for _, c := range counters {
			if c.end > now {
				open = append(open, c)
			}
		}
		if len(open) == 0 {
			delete(s.accounts, account)
		} else {
			s.accounts[account] = open
		}
	}
	for id, r := range s.reservations {
		if r.expires <= now {
			delete(s.reservations, id)
		}
	}
}

// Len returns how many accounts are counted.
func (m *Memory) Len() int {
	n := 0
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		n += len(s.accounts)
		s.mu.Unlock()
	}
	return n
}

// Ping implements the readiness check: memory is always there.
func (m *Memory) Ping(context.Context) error { return nil }
