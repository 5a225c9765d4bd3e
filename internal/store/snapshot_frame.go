package store

import (
	"encoding/gob"
	"fmt"
	"slices"
	"time"
)

// frameSize is how many accounts, or reservations, a frame holds at the most.
const frameSize = 8192

// A frame is a part of what is counted, in columns: gob writes and reads those quickly,
// and what many counters have in common, their name and window, stands there once. Its
// fields are the format of a snapshot: see snapshotVersion.
type frame struct {
	Accounts     accountColumns
	Reservations reservationColumns
}

// accountColumns are counters.
type accountColumns struct {
	// The counted windows.
	Names        []string
	Starts, Ends []int64 // Unix ms

	IDs      []string
	Counters []uint // how many each account has

	// The counters, account by account.
	Windows []uint // index of the counted window
	Used    []int64
}

// reservationColumns are reservations.
type reservationColumns struct {
	// The charged windows.
	Names   []string
	Metrics []uint
	Lengths []int64 // as in quota.Window
	Max     []int64
	Starts  []int64 // Unix ms

	Accounts, Requests, Secrets []string

	At      []int64 // Unix ns
	Expires []int64 // Unix ms
	Settled []bool
	Charges []uint // how many each reservation has

	// The charges, reservation by reservation.
	Windows     []uint // index of the charged window
	Costs, Used []int64
	Before      []int64 // used in the window before; none where all are 0
}

// A shardCopy is what a shard holds at an instant, without what has ended. It is used
// again for the next shard.
type shardCopy struct {
	accounts     []accountCopy
	counters     []counter // account by account
	reservations []record
	columns      accountColumns // of the latest frame
	names        []string       // of counters, by number
}

type accountCopy struct {
	id       string
	counters int
}

// copyTo copies the shard, which is locked meanwhile: counters and reservations belong to
// the same instant, so that a settlement after a restart corrects what was charged.
func (s *shard) copyTo(c *shardCopy, names *names, clock func() time.Time) {
	s.mu.Lock()
	accounts, reservations := s.accounts.len(), len(s.reservations)
	s.mu.Unlock()
	c.reset(accounts, reservations) // not while nobody else may count
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed = false
	c.names = names.all()
	now := clock().UnixMilli()
	for id, counters := range s.accounts.all {
		before := len(c.counters)
		for i := range counters {
			if counters[i].end > now {
				c.counters = append(c.counters, counters[i])
			}
		}
		if n := len(c.counters) - before; n > 0 {
			c.accounts = append(c.accounts, accountCopy{id, n})
		}
	}
	for _, r := range s.reservations {
		if r.expires > now {
			c.reservations = append(c.reservations, r)
		}
	}
}

// reset empties the copy, and makes room.
func (c *shardCopy) reset(accounts, reservations int) {
	const guess = 4       // counters of an account
	clear(c.reservations) // else they could not be freed
	c.accounts, c.counters = slices.Grow(c.accounts[:0], accounts), slices.Grow(c.counters[:0], guess*accounts)
	c.reservations = slices.Grow(c.reservations[:0], reservations)
}

// changed reports whether anything was counted since the shards were last copied.
func (m *Memory) changed() bool {
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if changed {
			return true
		}
	}
	return false
}

// clear forgets everything.
func (m *Memory) clear() {
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		m.accounts.give(s.accounts.len())
		s.accounts = newAccounts()
		for id := range s.reservations {
			m.forget(s, id)
		}
		s.mu.Unlock()
	}
}

// encode writes the copy as frames.
func (c *shardCopy) encode(to *gob.Encoder) error {
	counters := c.counters
	for accounts := c.accounts; len(accounts) > 0; {
		n := min(len(accounts), frameSize)
		counters = c.columns.fill(accounts[:n], counters, c.names)
		if err := to.Encode(frame{Accounts: c.columns}); err != nil {
			return fmt.Errorf("encode counters: %w", err)
		}
		accounts = accounts[n:]
	}
	for reservations := c.reservations; len(reservations) > 0; {
		n := min(len(reservations), frameSize)
		var r reservationColumns
		r.add(reservations[:n], c.names)
		if err := to.Encode(frame{Reservations: r}); err != nil {
			return fmt.Errorf("encode reservations: %w", err)
		}
		reservations = reservations[n:]
	}
	return nil
}

// fill replaces what the columns have by accounts, whose counters come first of those
// given. It returns the rest of them.
func (a *accountColumns) fill(accounts []accountCopy, counters []counter, names []string) []counter {
	a.Names, a.Starts, a.Ends = a.Names[:0], a.Starts[:0], a.Ends[:0]
	a.IDs, a.Counters, a.Windows, a.Used = a.IDs[:0], a.Counters[:0], a.Windows[:0], a.Used[:0]
	index := map[counter]uint{} // by counted window
	for _, account := range accounts {
		a.IDs, a.Counters = append(a.IDs, account.id), append(a.Counters, uint(account.counters))
		for _, c := range counters[:account.counters] {
			a.Used = append(a.Used, c.used)
			c.used = 0
			k, known := index[c]
			if !known {
				k = uint(len(index))
				index[c] = k
				a.Names, a.Starts, a.Ends = append(a.Names, names[c.name]), append(a.Starts, c.start), append(a.Ends, c.end)
			}
			a.Windows = append(a.Windows, k)
		}
		counters = counters[account.counters:]
	}
	return counters
}

// add adds reservations.
func (r *reservationColumns) add(records []record, names []string) {
	index := map[reserved]uint{} // by charged window
	before, slides := make([]int64, 0, 4*len(records)), false
	for _, one := range records {
		o := one.open()
		r.Accounts, r.Requests, r.Secrets = append(r.Accounts, o.account), append(r.Requests, o.request), append(r.Secrets, o.secret)
		r.At, r.Expires, r.Settled = append(r.At, o.at), append(r.Expires, one.expires), append(r.Settled, one.settled)
		first := len(r.Windows)
		for rest := o.charges; rest != ""; {
			c := rest.charge(names)
			r.Costs, r.Used = append(r.Costs, c.cost), append(r.Used, c.used)
			before, slides = append(before, c.before), slides || c.before != 0
			c.cost, c.used, c.before = 0, 0, 0
			k, known := index[c]
			if !known {
				k = uint(len(index))
				index[c] = k
				r.Names, r.Metrics, r.Lengths = append(r.Names, c.counter), append(r.Metrics, uint(c.metric)), append(r.Lengths, int64(c.window))
				r.Max, r.Starts = append(r.Max, c.max), append(r.Starts, c.start)
			}
			r.Windows = append(r.Windows, k)
		}
		r.Charges = append(r.Charges, uint(len(r.Windows)-first))
	}
	if slides {
		r.Before = before
	}
}
