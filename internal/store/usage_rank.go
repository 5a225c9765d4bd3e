package store

import (
	"time"

	"github.com/tiergate/tiergate/internal/usage"
)

// A rankedSet is a sorted set of accounts: of an hour by a rank, or, without one, of the
// minute in which they were near a limit.
type rankedSet struct {
	by     usage.Rank
	number int64
}

// A rank is a change to one member of a set: what is added to it, or what it is raised to.
type rank struct {
	set    rankedSet
	how    string // "+" or ">"
	member string
	number any
}

// A fleetCall is a call of fleet.lua that is being put together.
type fleetCall struct {
	usage *RedisUsage
	batch *usage.Batch
	now   time.Time

	part       int // from 1
	places     map[rankedSet]int
	keys       []string
	ttls, args []any
	ranks      int
}

// add appends a rank.
func (c *fleetCall) add(r rank) {
	place := c.places[r.set]
	if place == 0 {
		key, ends := c.usage.nearKey(r.set.number), nearBlock().ends(r.set.number)
		if r.set.by != "" {
			key, ends = c.usage.topKey(r.set.by, r.set.number), topBlock().ends(r.set.number)
		}
		place = len(c.keys) + 2 // after that of the batch
		if c.places == nil {
			c.places = map[rankedSet]int{}
		}
		c.places[r.set] = place
		c.keys = append(c.keys, key)
		c.ttls = append(c.ttls, seconds(ends.Sub(c.now)))
	}
	c.args = append(c.args, place, r.how, r.member, r.number)
	c.ranks++
}

// take returns the call, and begins the next.
func (c *fleetCall) take() call {
	done := call{script: c.usage.fleet, weight: c.ranks / 3}
	done.keys = append([]string{c.usage.fleetKey("batch:" + c.batch.Instance)}, c.keys...)
	done.args = append([]any{c.batch.ID, c.part, seconds(batchKept), mostRanked, leastRanked}, c.ttls...)
	done.args = append(done.args, c.args...)
	*c = fleetCall{usage: c.usage, batch: c.batch, now: c.now, part: c.part + 1}
	return done
}

// fleetCalls yields the calls that rank the accounts of a batch. It returns false when no
// more are wanted.
func (u *RedisUsage) fleetCalls(b *usage.Batch, now time.Time, yield func(call, error) bool) bool {
	c := fleetCall{usage: u, batch: b, now: now, part: 1}
	for i := range b.Accounts {
		if !b.Accounts[i].IsKey() {
			continue
		}
		for r := range ranks(&b.Accounts[i], b.Made, now) {
			c.add(r)
			if c.ranks == ranksInPart && !yield(c.take(), nil) {
				return false
			}
		}
	}
	return c.ranks == 0 || yield(c.take(), nil)
}

// ranks yields what ranks one account. Its requests count in the hour of their minute.
func ranks(a *usage.Account, made, now time.Time) func(yield func(rank) bool) {
	return func(yield func(rank) bool) {
		for _, h := range byHour(a.Cells) {
			hour := topBlock().number(minuteTime(h.first, now))
			for _, by := range usage.Ranks() {
				if n := rankOf(h.counts, by); n > 0 && !yield(rank{rankedSet{by, hour}, "+", a.ID, n}) {
					return
				}
			}
		}
		if a.Near.Limit != "" {
			yield(rank{rankedSet{number: nearBlock().number(made)}, ">", a.ID + " " + a.Near.Limit, a.Near.Share})
		}
	}
}
