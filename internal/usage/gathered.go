package usage

import (
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// gathered is what is known of one account since the last batch. The lock of its
// shard guards it.
type gathered struct {
	one      gatheredCell   // most have no more between two batches
	more     []gatheredCell // the latest last, but for settlements of other minutes
	last     int64          // when the last was made, Unix ns
	standing standing
	overflow bool      // it is Other
	refusals []refusal // a ring, once it is full
	refused  int       // how often it was written to
}

// cellKey is what is told apart.
type cellKey struct {
	minute         int64
	resource, tier string
	priority       quota.Priority
}

type gatheredCell struct {
	cellKey
	admitted, input, output int64
	refused                 map[string]int64 // nil: none yet
}

// A standing is how an account stands by one decision or more.
type standing struct {
	requests, tokens int64       // the limits per minute, as seen last; 0: none
	near             quota.Limit // of which most was used, at its highest
	share            float64     // of its maximum
}

// refusal is a Refusal whose limit is not in words yet.
type refusal struct {
	at       time.Time
	resource string
	limit    quota.Limit
	used     int64
	asked    int64
	wait     time.Duration
	tooLarge bool
}

// find returns the cell of a key, or nil.
func (a *gathered) find(k *cellKey) *gatheredCell {
	if a.one.cellKey == *k {
		return &a.one
	}
	for i := len(a.more) - 1; i >= 0; i-- {
		if a.more[i].cellKey == *k {
			return &a.more[i]
		}
	}
	return nil
}

// add makes the cell of a key.
func (s *recorderShard) add(account string, k *cellKey) (*gathered, *gatheredCell) {
	a := s.accounts[account]
	if a == nil {
		a = &gathered{one: gatheredCell{cellKey: *k}}
		s.accounts[account] = a
		return a, &a.one
	}
	a.more = append(a.more, gatheredCell{cellKey: *k})
	return a, &a.more[len(a.more)-1]
}

// cells yields every cell.
func (a *gathered) cells(yield func(c *gatheredCell) bool) {
	if !yield(&a.one) {
		return
	}
	for i := range a.more {
		if !yield(&a.more[i]) {
			return
		}
	}
}

func (c *gatheredCell) refuse(reason string, requests int64) {
	if c.refused == nil {
		c.refused = map[string]int64{}
	}
	if _, known := c.refused[reason]; !known && len(c.refused) >= mostReasons {
		reason = OtherReasons
	}
	c.refused[reason] += requests
}

// counts returns what the cell counted.
func (c *gatheredCell) counts() Counts {
	return Counts{Admitted: c.admitted, Refused: c.refused, InputTokens: c.input, OutputTokens: c.output}
}

// decided notes a decision.
func (a *gathered) decided(d *Decided, how *quota.Decision) {
	if at := d.At.UnixNano(); at > a.last {
		a.last = at
	}
	if how == nil {
		return
	}
	a.standing.follow(how)
	if d.byLimit() && how.RefusedBy.Metric != 0 {
		a.refuse(d, how)
	}
}

// refuse remembers a refusal, and forgets the oldest where there are too many.
func (a *gathered) refuse(d *Decided, how *quota.Decision) {
	n := refusal{
		at: how.Now, resource: d.Resource, limit: how.RefusedBy, used: how.RefusedUsed, asked: how.Asked, wait: how.Wait, tooLarge: how.TooLarge,
	}
	if n.limit.Pooled {
		// How large a pool is, and what others use of it, is not for the key's holder; what was
		// asked is cut to the share of the priority, and would tell.
		n.limit.Max, n.used, n.asked = 0, 0, 0
	}
	if n.tooLarge {
		n.asked = how.Declared
	}
	if how.Never() {
		n.wait = 0
	}
	if len(a.refusals) < mostRefusals {
		a.refusals = append(a.refusals, n)
	} else {
		a.refusals[a.refused%mostRefusals] = n
	}
	a.refused++
}

// follow reads the limits of a decision.
func (s *standing) follow(d *quota.Decision) {
	for l, used := range d.Counted {
		if l.Max == quota.NoMax || l.Max <= 0 {
			continue
		}
		if share := float64(used) / float64(l.Max); share > s.share {
			s.near, s.share = *l, share
		}
		if l.Window.Fixed() == quota.Minute && l.Resource == "" && l.Priority == 0 {
			switch l.Metric {
			case quota.Requests:
				s.requests = l.Max
			case quota.Tokens:
				s.tokens = l.Max
			case quota.InputTokens, quota.OutputTokens:
			}
		}
	}
}
