package store

import "time"

// step is how far a clock must go back, in ms, to be taken for one that was set, or for
// another server's.
const step = 10_000

// A steady is a clock that stands still where the one it is set by is corrected. Else a window
// that has ended would be counted from zero once more, and then the current one.
type steady struct {
	latest int64 // Unix ms
}

// clock returns the time, which does not go back by corrections. The caller holds the lock of
// what is counted.
func (s *steady) clock(now time.Time) time.Time {
	ms := now.UnixMilli()
	if back := s.latest - ms; back > 0 && back < step {
		return time.UnixMilli(s.latest).UTC()
	}
	s.latest = ms
	return now
}
