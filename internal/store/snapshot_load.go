package store

import (
	"errors"
	"slices"

	"github.com/tiergate/tiergate/internal/quota"
)

// A loader takes up frames, without what has ended. It believes nothing of them.
type loader struct {
	memory *Memory
	now    int64 // Unix ms
}

// The faults of a frame.
var (
	errColumns = errors.New("columns of different lengths")
	errIndex   = errors.New("an index beyond its column")
	errValue   = errors.New("a value out of range")
)

func (l *loader) load(f *frame) error {
	if err := l.loadAccounts(&f.Accounts); err != nil {
		return err
	}
	return l.loadReservations(&f.Reservations)
}

// sameLength reports whether all lengths are that of the first.
func sameLength(first int, others ...int) bool {
	return !slices.ContainsFunc(others, func(n int) bool { return n != first })
}

// addsUpTo reports whether the sum of numbers is n.
func addsUpTo(n int, numbers []uint) bool {
	rest := uint(n)
	for _, k := range numbers {
		if k > rest {
			return false
		}
		rest -= k
	}
	return rest == 0
}

// indexes reports whether all numbers are indexes of a column of n.
func indexes(n int, numbers []uint) bool {
	return !slices.ContainsFunc(numbers, func(k uint) bool { return k >= uint(n) })
}

// inRange reports whether all numbers are counts.
func inRange(numbers []int64) bool {
	return !slices.ContainsFunc(numbers, func(n int64) bool { return n < 0 || n > quota.MaxUsed })
}

func (a *accountColumns) check() error {
	switch {
	case !sameLength(len(a.Names), len(a.Starts), len(a.Ends)), !sameLength(len(a.IDs), len(a.Counters)),
		!sameLength(len(a.Windows), len(a.Used)), !addsUpTo(len(a.Windows), a.Counters):
		return errColumns
	case !indexes(len(a.Names), a.Windows):
		return errIndex
	case !inRange(a.Used):
		return errValue
	}
	return nil
}

func (l *loader) loadAccounts(a *accountColumns) error {
	if err := a.check(); err != nil {
		return err
	}
	numbers := l.numbers(a.Names)
	next := 0
	for i, id := range a.IDs {
		windows := a.Windows[next:][:a.Counters[i]]
		used := a.Used[next:][:a.Counters[i]]
		next += len(windows)
		var counters []counter
		for j, k := range windows {
			if a.Ends[k] <= l.now {
				continue
			}
			if counters == nil {
				counters = make([]counter, 0, len(windows)-j)
			}
			counters = append(counters, counter{a.Starts[k], a.Ends[k], used[j], numbers[k]})
		}
		if counters != nil {
			hash := l.memory.hash(id)
			l.memory.put(l.memory.shard(hash), hash, id, counters)
		}
	}
	return nil
}

// numbers returns the numbers of names.
func (l *loader) numbers(names []string) []uint32 {
	numbers := make([]uint32, len(names))
	for i, name := range names {
		numbers[i] = l.memory.names.number(name)
	}
	return numbers
}

func (r *reservationColumns) check() error {
	switch {
	case !sameLength(len(r.Names), len(r.Metrics), len(r.Lengths), len(r.Max), len(r.Starts)),
		!sameLength(len(r.Accounts), len(r.Requests), len(r.Secrets), len(r.At), len(r.Expires), len(r.Settled), len(r.Charges)),
		!sameLength(len(r.Windows), len(r.Costs), len(r.Used)), !addsUpTo(len(r.Windows), r.Charges),
		len(r.Before) > 0 && len(r.Before) != len(r.Windows):
		return errColumns
	case !indexes(len(r.Names), r.Windows):
		return errIndex
	case !inRange(r.Used), !inRange(r.Before), slices.ContainsFunc(r.Costs, func(n int64) bool { return n < -quota.MaxUsed || n > quota.MaxUsed }),
		slices.ContainsFunc(r.Max, func(n int64) bool { return n < 0 }), !isWindows(r.Lengths), !isMetrics(r.Metrics):
		return errValue
	}
	return nil
}

func isWindows(lengths []int64) bool {
	const longest = 366 * quota.Day
	return !slices.ContainsFunc(lengths, func(n int64) bool {
		w := quota.Window(n).Fixed()
		return w != quota.Month && (w < quota.Second || w > longest)
	})
}

func isMetrics(numbers []uint) bool {
	return !slices.ContainsFunc(numbers, func(n uint) bool { return n > 255 || !slices.Contains(quota.Metrics(), quota.Metric(n)) })
}

func (l *loader) loadReservations(c *reservationColumns) error {
	if err := c.check(); err != nil {
		return err
	}
	numbers := l.numbers(c.Names)
	next := 0
	for i, account := range c.Accounts {
		windows := c.Windows[next:][:c.Charges[i]]
		first := next
		next += len(windows)
		if c.Expires[i] <= l.now {
			continue
		}
		p := pack(nil, c.At[i], account, c.Requests[i], c.Secrets[i])
		for j, k := range windows {
			metric := quota.Metric(c.Metrics[k]) //nolint:gosec // one of quota.Metrics
			charge := reserved{c.Names[k], metric, quota.Window(c.Lengths[k]), c.Max[k], c.Starts[k], c.Costs[first+j], c.Used[first+j], 0}
			if len(c.Before) > 0 {
				charge.before = c.Before[first+j]
			}
			p = packCharge(p, numbers[k], charge)
		}
		l.memory.putReservation(account, c.Requests[i], record{packed(p), c.Expires[i], c.Settled[i]})
	}
	return nil
}
