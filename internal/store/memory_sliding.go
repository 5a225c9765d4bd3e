package store

import (
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// before returns what was used in the window before that of a target, which slides, and where
// that stands: in a counter of its own, if anything has been counted since, and else in the
// target's.
func (m *Memory) before(counters []counter, name string, w quota.Window, t target, now time.Time) (own target, used int64) {
	around := spanOf(w, now)
	own = m.target(counters, beforeCounter(name), w.Fixed(), now)
	own.start, own.end = around.before, around.end
	switch {
	case own.moved(counters):
		return own, counters[own.index].used
	case t.index >= 0 && counters[t.index].start == own.start:
		return own, counters[t.index].used
	}
	return own, 0
}

// moved reports whether a counter is of the window that its target says.
func (t target) moved(counters []counter) bool {
	return t.index >= 0 && counters[t.index].start == t.start
}

// count sets what is used of a counter. Who counts first in a window that slides moves away
// what was used in the one before.
func (m *Memory) count(s *shard, counters []counter, name string, w quota.Window, t target, used int64, now time.Time) []counter {
	if w.Sliding() {
		if own, before := m.before(counters, name, w, t, now); !own.moved(counters) && (before > 0 || own.index >= 0) {
			counters = m.set(s, counters, beforeCounter(name), own, before)
		}
	}
	return m.set(s, counters, name, t, used)
}

// lower takes off what was charged too much in the window before the current one.
func (m *Memory) lower(s *shard, counters []counter, c reserved, t target, change int64, now time.Time) []counter {
	own, before := m.before(counters, c.counter, c.window, t, now)
	if own.start != c.start || before == 0 {
		return counters
	}
	return m.set(s, counters, beforeCounter(c.counter), own, clamp(before+change))
}
