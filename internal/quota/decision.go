package quota

import (
	"time"
)

// A Decision is the answer to a Request.
type Decision struct {
	Admitted bool

	// Used and Remaining describe Shown: the limit on requests per minute that
	// has the least remaining. Used + Remaining = Shown.Max, unless Used lies
	// above a maximum that was lowered. Shown.Max is NoMax where unlimited;
	// Remaining then has no meaning.
	Shown     Limit
	Used      int64
	Remaining int64

	// RefusedBy is the limit that keeps the request waiting longest, one of 0 before
	// all others, and RefusedUsed what is used of it; set only where the request is
	// refused.
	RefusedBy   Limit
	RefusedUsed int64
	Asked       int64 // what did not fit on top of that

	// TooLarge: what the request declares, Declared, is more than the whole of
	// RefusedBy, so it can never pass.
	TooLarge bool
	Declared int64

	Now   time.Time     // the clock that counted
	Reset time.Time     // end of the minute; refused: when the request can pass, a whole ms
	Wait  time.Duration // refused: from Now to Reset

	// Degraded: the counts could not be reached; see Taken and unanswered.
	Degraded bool

	// Repeated: this is the answer to an order that was admitted before; nothing more
	// was taken.
	Repeated bool

	Pending func(then func(repeated bool)) // see Taken

	Reservation string // the Order's name for a Settlement; empty: nothing waits for one
	Secret      string // that it must show

	charges []Charge
	used    []int64

	pooled     []Charge // of the resource's pool, likewise; see Pooled
	usedPooled []int64
}

// Limits yields each limit that applies to the request, and what is used of it.
func (d Decision) Limits(yield func(s State) bool) {
	for i, c := range d.charges {
		if !yield(stateOf(c, d.used[i], d.Now)) {
			return
		}
	}
}

// Counted yields the same without working out windows, for whoever reads every
// decision. The limit is not to be changed.
func (d *Decision) Counted(yield func(l *Limit, used int64) bool) {
	for i := range d.charges {
		if !yield(&d.charges[i].Limit, d.used[i]) {
			return
		}
	}
}

// Pooled yields each limit of the resource's pool, for the request's priority, and what all
// keys together use of it; nothing where there is no pool, or where what the request took of it
// was given back.
func (d *Decision) Pooled(yield func(s State) bool) {
	for i, c := range d.pooled {
		if !yield(stateOf(c, d.usedPooled[i], d.Now)) {
			return
		}
	}
}

// Unlimited reports whether no limit on requests per minute applies.
func (d Decision) Unlimited() bool { return d.Shown.Max == NoMax }

// decide turns the counters of the charges into a decision. taken.Used has one
// number for each charge.
func decide(charges []Charge, taken Taken) Decision {
	d := Decision{
		Admitted: taken.Admitted, Now: taken.Now, Remaining: -1, Secret: taken.Secret, Degraded: taken.Degraded, Pending: taken.Pending,
		charges: charges, used: taken.weighed(charges),
	}
	for i, c := range charges {
		used := d.used[i]
		if c.Limit.shown() {
			d.show(c.Limit, used)
		}
		if !taken.Admitted && c.Exceeds(used) {
			d.refuse(c, used, taken.fits(i, c))
		}
	}
	d.Remaining = max(d.Remaining, 0)
	if !d.Admitted {
		d.Wait = d.Reset.Sub(d.Now)
	}
	return d
}

// Never reports whether no wait helps, since RefusedBy is 0 or TooLarge holds. Reset and Wait
// are as for any other refusal: a changed tier may have another limit by then.
func (d *Decision) Never() bool {
	return d.TooLarge || (d.RefusedBy != (Limit{}) && d.RefusedBy.Max == 0)
}

// unanswered is the decision on charges where nobody can be asked what is used. Nothing
// is admitted, so nothing remains of the limit, and Used is what makes that so, as in
// Taken. Where there is no limit, nothing is known to be used.
func unanswered(charges []Charge, now time.Time) Decision {
	d := Decision{Now: now, Remaining: -1, Degraded: true}
	for _, c := range charges {
		if c.Limit.shown() {
			d.show(c.Limit, 0)
		}
	}
	if !d.Unlimited() {
		d.Used, d.Remaining = d.Shown.Max, 0
	}
	return d
}

// show takes the limit as the one the headers describe if it has the least
// remaining so far.
func (d *Decision) show(l Limit, used int64) {
	remaining := max(l.Max-used, 0)
	if d.Remaining >= 0 && remaining >= d.Remaining {
		return
	}
	d.Shown, d.Used, d.Remaining = l, used, remaining
	if d.RefusedBy == (Limit{}) {
		_, d.Reset = l.Window.Bounds(d.Now)
	}
}

// refuse takes the limit as the one that refuses if it does so for longest: one of 0 does for
// ever. Reset is the latest end of all refusals.
func (d *Decision) refuse(c Charge, used int64, end time.Time) {
	first, never, before := d.RefusedBy == (Limit{}), c.Limit.Max == 0, d.Never()
	if first || (never && !before) || (never == before && end.After(d.Reset)) {
		d.RefusedBy, d.RefusedUsed, d.Asked = c.Limit, used, c.Cost
	}
	if first || end.After(d.Reset) {
		d.Reset = end
	}
}
