package quota

import (
	"math"
	"time"
)

// The names of the ways to count over a window.
const (
	fixed   = "fixed"
	sliding = "sliding"
)

// slidingMonth is a month that slides: other windows that do have the length of the fixed one
// below zero, where Month is.
const slidingMonth = -2

// ParseAlgorithm reads how a limit counts over a window, fixed or sliding, and returns the
// window that does; empty is fixed.
func (w Window) ParseAlgorithm(s string) (Window, error) {
	switch s {
	case "", fixed:
		return w.Fixed(), nil
	case sliding:
		return w.Slide(), nil
	default:
		return w, unknown("algorithm", s, fixed+" or "+sliding)
	}
}

// Algorithm returns the name of the way to count; empty is fixed.
func (w Window) Algorithm() string {
	if w.Sliding() {
		return sliding
	}
	return ""
}

// Sliding reports whether what was used in the window before counts too: see Weighed.
func (w Window) Sliding() bool { return w < Month }

// Fixed returns the window of the same bounds that does not slide.
func (w Window) Fixed() Window {
	switch {
	case w == slidingMonth:
		return Month
	case w < Month:
		return -w
	default:
		return w
	}
}

// Slide returns the window of the same bounds that slides.
func (w Window) Slide() Window {
	switch {
	case w.Sliding():
		return w
	case w == Month:
		return slidingMonth
	default:
		return -w
	}
}

// Weighed returns what counts at a moment: what is used in the current window, and, where it
// slides, of what was used in the one before it as much as is left of the current one, rounded
// up. The function in Redis does the same operations; the contract suite ties the two.
func (w Window) Weighed(used, before int64, now time.Time) int64 {
	if !w.Sliding() || before == 0 {
		return used
	}
	start, end := w.Bounds(now)
	return used + weighs(before, end.UnixMilli()-now.UnixMilli(), end.Sub(start).Milliseconds())
}

// weighs returns what a window's count weighs when so many ms are left of the next one.
func weighs(before, left, length int64) int64 {
	return int64(math.Ceil(float64(before) * (float64(left) / float64(length))))
}

// UsedBefore returns what was used in the window before of the ith charge; 0 where that does not
// slide.
func (t *Taken) UsedBefore(i int) int64 {
	if t.Before == nil {
		return 0
	}
	return t.Before[i]
}

// weighed returns what counts of each charge's limit.
func (t *Taken) weighed(charges []Charge) []int64 {
	if t.Before == nil {
		return t.Used
	}
	all := make([]int64, len(charges))
	for i, c := range charges {
		all[i] = c.Limit.Window.Weighed(t.Used[i], t.Before[i], t.Now)
		if t.Instances > 1 && c.Limit.Window.Sliding() {
			all[i] = min(all[i], c.Limit.Max) // shares are rounded up
		}
	}
	return all
}

// fits returns when a charge, which is the ith and does not fit, will.
func (t *Taken) fits(i int, c Charge) time.Time {
	used := t.Used[i]
	if t.Instances > 1 && c.Limit.Window.Sliding() {
		others := c.Limit.Others(t.Instances)
		used, c.Limit.Max = used-others, c.Limit.Max-others
	}
	return c.fits(used, t.UsedBefore(i), t.Now)
}

// ShareOf returns the share that one of so many instances has, rounded up.
func ShareOf(n, instances int64) int64 { return (n + instances - 1) / instances }

// Others returns what of a limit is kept for the others of so many instances.
func (l Limit) Others(instances int64) int64 { return l.Max - ShareOf(l.Max, instances) }

// fits returns when a charge that does not fit will, if nothing else comes. With a fixed
// window that is its end. With a sliding one it is the moment at which what was used before
// weighs so little: in this window, in the next, where what is used now is what was used
// before, or when that has ended too.
func (c Charge) fits(used, before int64, now time.Time) time.Time {
	w := c.Limit.Window
	start, end := w.Bounds(now)
	room := c.Limit.Max - c.Cost
	if !w.Sliding() || room < 0 { // less than 0: it never will
		return end
	}
	if at, ok := lightens(before, room-used, now, start, end); ok {
		return at
	}
	_, next := w.Bounds(end)
	if at, ok := lightens(used, room, end, end, next); ok {
		return at
	}
	return next
}

// lightens returns the first moment of a window, not before from, at which what was used in
// the window before it weighs no more than room; ok is false where it does to the end.
func lightens(before, room int64, from, start, end time.Time) (at time.Time, ok bool) {
	left, length := end.UnixMilli()-from.UnixMilli(), end.Sub(start).Milliseconds()
	passed, heavy := left, int64(-1) // it is light then, or the window over; up to heavy it is too heavy
	for passed-heavy > 1 {
		middle := heavy + (passed-heavy)/2
		if weighs(before, left-middle, length) <= room {
			passed = middle
		} else {
			heavy = middle
		}
	}
	return time.UnixMilli(from.UnixMilli() + passed).UTC(), passed < left
}
