package store

import (
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// A debt is what Redis is yet to be given of one counter.
type debt struct {
	used, before int64 // in the current window, and in the one before, where it slides
	weighs       int64 // what that counts
}

// note notes what is to be given of the window before a charge's.
func (d *debt) note(c quota.Charge, before *own, now time.Time) {
	if before != nil {
		d.before = before.mine + before.giving
		d.weighs = c.Limit.Window.Weighed(0, max(d.before, 0), now)
	}
}

// tell adds it to what Redis has said of the ith charge. Both are rounded up by themselves, as they
// were for the decision (see lessen), so that what did not fit does not fit by what is told.
func (d *debt) tell(t *quota.Taken, i int, c *quota.Charge) {
	t.Used[i] = clamp(t.Used[i] + d.used)
	if d.before == 0 {
		return
	}
	count := counts(t, i, c) + d.weighs
	t.Before[i] = clamp(t.Before[i] + d.before)
	t.Used[i] = clamp(t.Used[i] + count - counts(t, i, c))
}

// of returns the tally of a counter in the window from start, which may be the one before its
// current one, or nil.
func (h *holding) of(counter string, start int64) *tally {
	for _, name := range [...]string{counter, beforeCounter(counter)} {
		if t := h.find(name); t != nil && t.start == start {
			return t
		}
	}
	return nil
}

// slides reports whether a tally is that of a window which slides, and so lasts twice as long as
// this one, which does not.
func (t *tally) slides(w quota.Window) bool {
	const longest = int64(31 * quota.Day) // month
	length := t.end - t.start
	return length != int64(w) && (w != quota.Month || length > longest)
}

// before returns what was seen to be used of a counter in the window before the current one,
// which slides, and what this instance has admitted there; nil: nothing.
func (h *holding) before(counter string, w quota.Window, now time.Time) (seen int64, beside *own) {
	if t := h.of(counter, spanOf(w, now).before); t != nil {
		return t.seen, t.own
	}
	return 0, nil
}

// moveOn keeps the tally of a window that slides, if that is the one before the window of g.
func (l *ledger) moveOn(h *holding, t tally, g given) {
	around := spanOf(g.window, time.UnixMilli(g.start))
	name := beforeCounter(g.name)
	before := h.find(name)
	if before != nil && before.start != around.before {
		l.over(before)
		*before = tally{name: name}
	}
	if t.own != nil {
		t.own.window = g.window // it may have been counted as one that does not slide
	}
	switch {
	case t.start != around.before:
		l.over(&t)
	case before == nil:
		h.tallies = append(h.tallies, tally{name, t.start, around.end, t.seen, t.own})
	default:
		*before = tally{name, t.start, around.end, max(t.seen, before.seen), t.own}
	}
}

// seeSliding takes down what Redis has answered of the ith charge of an order, whose window
// slides.
func (l *ledger) seeSliding(h *holding, c *quota.Charge, t *quota.Taken, i int, later bool) {
	w := c.Limit.Window
	around := spanOf(w, t.Now)
	l.see(h, given{c.Counter, w, around.start, around.keep, 0}, t.Used[i], later)
	if name := beforeCounter(c.Counter); t.Before[i] > 0 || h.find(name) != nil {
		l.see(h, given{name, w.Fixed(), around.before, around.end, 0}, t.Before[i], later)
	}
}

// tell tells an order what is used of its ith charge's counter; see used.
func (h *holding) tell(t *quota.Taken, i int, c quota.Charge, how manner) {
	if !c.Limit.Window.Sliding() {
		t.Used[i] = h.used(i, c, how, t.Now)
		return
	}
	used, before := h.usedSliding(i, c, how, t.Now)
	t.Used[i] = used
	noteBefore(t, i, before)
}

// usedSliding is used for a window that slides, with what was used in the one before: this
// instance has its share of the limit, and so much of what was seen in either window counts on it;
// what it has admitted itself counts whole. The rest of the limit is as good as used, see
// quota.Taken.
func (h *holding) usedSliding(i int, c quota.Charge, how manner, now time.Time) (used, before int64) {
	seen, beside := h.seen(i, c, how, now)
	last, own := h.before(c.Counter, c.Limit.Window, now)
	if c.Limit.Max == quota.NoMax || how.mode == quota.Allow {
		return clamp(seen + beside), clamp(last + own.sum())
	}
	n := how.instances
	used = c.Limit.Others(n) + quota.ShareOf(seen, n) + beside
	return clamp(used), clamp(quota.ShareOf(last, n) + own.sum())
}

// lower takes off what was charged too much in the window before the current one.
func (l *ledger) lower(h *holding, c reserved, change int64, now time.Time) {
	if spanOf(c.window, now).before != c.start {
		return
	}
	t := h.of(c.counter, c.start)
	if t == nil {
		return
	}
	if t.own == nil {
		t.own = &own{}
	}
	t.own.window = c.window
	used := t.seen + t.own.sum()
	t.own.mine += clamp(used+change) - used
}
