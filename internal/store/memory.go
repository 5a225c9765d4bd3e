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

// sweepInterval is how often ended windows are removed. It bounds memory only:
// a count is void from the moment its window ends.
const sweepInterval = time.Minute

// Memory counts in the process. It is the plain statement of what a store
// does: take.lua says the same for Redis. It is safe for concurrent use.
type Memory struct {
	now    func() time.Time
	seed   maphash.Seed
	shards [shardCount]shard
}

type shard struct {
	mu       sync.Mutex
	accounts map[string][]counter
	max      int
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
		m.shards[i].max = max(1, (maxAccounts+shardCount-1)/shardCount)
	}
	return m
}

// Take implements quota.Counts. It fails with ErrFull when an account that is
// not counted yet finds no room.
func (m *Memory) Take(_ context.Context, account string, charges []quota.Charge) (quota.Taken, error) {
	s := &m.shards[maphash.String(m.seed, account)%shardCount]
	s.mu.Lock()
	defer s.mu.Unlock()
	now := m.now() // under the lock, so that one account's requests see one order of time
	counters := s.accounts[account]
	taken := quota.Taken{Now: now, Admitted: true, Used: make([]int64, len(charges))}
	for i, c := range charges {
		if k := find(counters, c.Counter); k >= 0 && counters[k].start == windowStart(c.Limit.Window, now) {
			taken.Used[i] = counters[k].used
		}
		if c.Exceeds(taken.Used[i]) {
			taken.Admitted = false
		}
	}
	if !taken.Admitted {
		return taken, nil
	}
	for i, c := range charges {
		if c.Cost > 0 {
			if counters == nil && !s.roomForOne(now) {
				return quota.Taken{}, ErrFull
			}
			taken.Used[i] = min(taken.Used[i]+c.Cost, maxUsed)
			counters = set(counters, c, now, taken.Used[i])
		}
	}
	if counters != nil {
		s.accounts[account] = counters
	}
	return taken, nil
}

func find(counters []counter, name string) int {
	for i := range counters {
		if counters[i].name == name {
			return i
		}
	}
	return -1
}

func set(counters []counter, c quota.Charge, now time.Time, used int64) []counter {
	start, end := c.Limit.Window.Bounds(now)
	i := find(counters, c.Counter)
	if i < 0 {
		counters = append(counters, counter{name: c.Counter})
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

// Sweep removes the counters whose windows have ended.
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
