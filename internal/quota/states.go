package quota

import (
	"context"
	"slices"
	"time"
)

// A State is a limit of an account and what is used of it in the current window.
type State struct {
	Limit Limit     // Max is NoMax where it only counts
	Used  int64     // see Window.Weighed
	Reset time.Time // when the window ends
}

// Remaining returns what is left of the limit; it has no meaning where the limit only
// counts.
func (s State) Remaining() int64 { return max(s.Limit.Max-s.Used, 0) }

// stateOf is the state of a charge's limit at a moment.
func stateOf(c Charge, used int64, now time.Time) State {
	_, end := c.Limit.Window.Bounds(now)
	return State{Limit: c.Limit, Used: used, Reset: end}
}

// A Standing is how an account stands with its limits.
type Standing struct {
	States   []State
	Now      time.Time // when that was so
	Degraded bool      // the counts could not be reached; see Taken
}

// States returns every limit that can apply to an account, whatever it asks for, the
// base limits first. It takes nothing. Beside an error, nothing remains of any limit, as in
// Decide.
func (l *Limiter) States(ctx context.Context, r Request, now time.Time) (Standing, error) {
	charges := r.Tier.all(r.Overrides, now)
	taken, err := l.take(ctx, Order{Account: r.Account, Charges: charges, OnFailure: r.Tier.Tier.OnFailure})
	if err != nil {
		taken = Taken{Now: now, Used: make([]int64, len(charges)), Degraded: true}
		for i, c := range charges {
			if c.Limit.Max != NoMax {
				taken.Used[i] = c.Limit.Max
			}
		}
	}
	states, used := make([]State, len(charges)), taken.weighed(charges)
	for i, c := range charges {
		states[i] = stateOf(c, used[i], taken.Now)
	}
	return Standing{states, taken.Now, taken.Degraded}, err
}

// Shown returns how the account stands with the limit that the X-RateLimit headers describe:
// of those on requests per minute that hold for a resource and a priority, the one with the
// least remaining. With ByKeyAndResource each of them names its resource.
func (s Standing) Shown(resource string, priority Priority) (least State, ok bool) {
	for _, state := range s.States {
		if l := state.Limit; l.shown() && applies(l, resource, priority) && (!ok || state.Remaining() < least.Remaining()) {
			least, ok = state, true
		}
	}
	return least, ok
}

// all returns a charge without cost for each counter that a request could be charged
// to. Where counting is by key and resource, each names its resource.
func (p *Plan) all(overrides []Override, now time.Time) []Charge {
	limits := overridden(p.Tier.Limits, overrides, now)
	var charges []Charge
	for _, resource := range p.resources {
		for _, priority := range Priorities() {
			for _, c := range p.applying(limits, resource, priority) {
				if p.countBy == ByKeyAndResource {
					c.Limit.Resource = resource
				}
				if !slices.ContainsFunc(charges, func(o Charge) bool { return o.Counter == c.Counter }) {
					charges = append(charges, c)
				}
			}
		}
	}
	return charges
}
