package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/usage"
)

// A call is one call of a script.
type call struct {
	script script
	keys   []string
	args   []any
}

// Add implements usage.Store. Each account's part of the batch is added in one atomic
// step, and not again.
func (u *RedisUsage) Add(ctx context.Context, b usage.Batch) error {
	calls, err := u.calls(&b)
	if err != nil {
		return err
	}
	for first := 0; first < len(calls); first += partsInPipeline {
		some := calls[first:min(first+partsInPipeline, len(calls))]
		err := u.send(ctx, some, false)
		if redis.HasErrorPrefix(err, "NOSCRIPT") {
			err = u.send(ctx, some, true)
		}
		if err != nil {
			return fmt.Errorf("add usage in Redis: %w", advised(err))
		}
	}
	return nil
}

// send makes calls, and returns the first error among their answers. whole sends the
// scripts with them, so that Redis knows them from then on.
func (u *RedisUsage) send(ctx context.Context, calls []call, whole bool) error {
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	pipe := u.client.Pipeline()
	for _, c := range calls {
		if whole {
			c.script.Eval(ctx, pipe, c.keys, c.args...)
		} else {
			c.script.EvalSha(ctx, pipe, c.keys, c.args...)
		}
	}
	_, err := pipe.Exec(ctx)
	return err
}

// calls are the script calls of a batch, in their order, which is the same each time.
func (u *RedisUsage) calls(b *usage.Batch) ([]call, error) {
	now := u.now()
	calls := make([]call, 0, len(b.Accounts)+len(b.Accounts)/ranksInPart)
	for i := range b.Accounts {
		c, err := u.accountCalls(b, &b.Accounts[i], now)
		if err != nil {
			return nil, err
		}
		calls = append(calls, c...)
	}
	return append(calls, u.fleetCalls(b, now)...), nil
}

// accountCalls returns the calls that add what a batch says of an account: one, but for
// an account of very many cells.
func (u *RedisUsage) accountCalls(b *usage.Batch, a *usage.Account, now time.Time) ([]call, error) {
	refusals := make([]any, 0, 2*len(a.Refusals))
	for _, r := range a.Refusals {
		text, err := json.Marshal(r)
		if err != nil {
			return nil, fmt.Errorf("add a refusal of %s: %w", a.ID, err)
		}
		refusals = append(refusals, r.At.UnixMilli(), text)
	}
	var last int64
	if !a.Last.IsZero() {
		last = a.Last.Unix()
	}
	var calls []call
	for cells := range slices.Chunk(a.Cells, cellsInPart) {
		c := call{script: u.account, keys: []string{
			u.usageKey(a.ID, "batch:"+b.Instance), u.usageKey(a.ID, "last"), u.usageKey(a.ID, "refused"),
		}}
		c.args = append(c.args, b.ID, len(calls)+1, seconds(batchKept), last, seconds(lastUsedKept), a.LimitRequests, a.LimitTokens)
		c.args = append(c.args, seconds(refusalsKept), mostRefusals, len(refusals)/2)
		c.args = append(c.args, refusals...)
		u.addCells(&c, a.ID, cells, now)
		calls = append(calls, c)
		refusals = nil
	}
	return calls, nil
}

// addCells appends the blocks that cells are in, their TTLs, and the cells.
func (u *RedisUsage) addCells(c *call, account string, cells []usage.Cell, now time.Time) {
	places := map[string]int{}
	var ttls, args []any
	for i := range cells {
		cell := &cells[i]
		at := minuteTime(cell.Minute, now)
		for _, b := range pointBlocks() {
			n := b.number(at)
			key := u.blockKey(account, b, n)
			if places[key] == 0 {
				c.keys = append(c.keys, key)
				places[key] = len(c.keys)
				ttls = append(ttls, seconds(b.ends(n).Sub(now)))
			}
			args = append(args, places[key], b.slot(at))
		}
		args = append(args, cell.Label, cell.Admitted, cell.InputTokens, cell.OutputTokens, len(cell.Refused))
		for _, reason := range sortedReasons(cell.Refused) {
			args = append(args, reason, cell.Refused[reason])
		}
	}
	c.args = append(append(c.args, ttls...), args...)
}

// fleetCalls returns the calls that rank the accounts of a batch.
func (u *RedisUsage) fleetCalls(b *usage.Batch, now time.Time) []call {
	var ranks []rank
	for i := range b.Accounts {
		if b.Accounts[i].IsKey() {
			ranks = append(ranks, u.ranks(&b.Accounts[i], b.Made, now)...)
		}
	}
	var calls []call
	for some := range slices.Chunk(ranks, ranksInPart) {
		c := call{script: u.fleet, keys: []string{u.fleetKey("batch:" + b.Instance)}}
		places := map[string]int{}
		var ttls, args []any
		for _, r := range some {
			if places[r.key] == 0 {
				c.keys = append(c.keys, r.key)
				places[r.key] = len(c.keys)
				ttls = append(ttls, seconds(r.ends.Sub(now)))
			}
			args = append(args, places[r.key], r.how, r.member, r.number)
		}
		c.args = append(c.args, b.ID, len(calls)+1, seconds(batchKept), mostRanked, leastRanked)
		c.args = append(append(c.args, ttls...), args...)
		calls = append(calls, c)
	}
	return calls
}

// A rank is a change to one member of a sorted set.
type rank struct {
	key, how, member string
	number           any
	ends             time.Time // the set
}

// ranks returns what ranks one account. Its requests count in the hour of their
// minute.
func (u *RedisUsage) ranks(a *usage.Account, made, now time.Time) []rank {
	var ranks []rank
	for _, h := range byHour(a.Cells) {
		hour := topBlock().number(minuteTime(h.first, now))
		for _, by := range usage.Ranks() {
			if n := rankOf(h.counts, by); n > 0 {
				ranks = append(ranks, rank{u.topKey(by, hour), "+", a.ID, n, topBlock().ends(hour)})
			}
		}
	}
	if a.Near.Limit != "" {
		minute := nearBlock().number(made)
		ranks = append(ranks, rank{u.nearKey(minute), ">", a.ID + " " + a.Near.Limit, a.Near.Share, nearBlock().ends(minute)})
	}
	return ranks
}

// seconds returns a TTL: whole seconds, rounded up, at least one.
func seconds(d time.Duration) int64 {
	return max(int64((d+time.Second-1)/time.Second), 1)
}
