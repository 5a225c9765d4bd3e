package store

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/usage"
)

const (
	// cellsInPart and ranksInPart bound what one script call does, so that Redis is
	// not kept from others: to a millisecond or two.
	cellsInPart = 32
	ranksInPart = 100
	// callWeight is how many cells and refusals of several accounts make a call, three ranks
	// counting as one. More are hardly cheaper, and a decision would wait for them.
	callWeight = 8
	// mostWeight is how many are sent at once at the most.
	mostWeight = 200
	// gentleFor is how long a batch may take that is sent a few at a time. What would take
	// longer, on a slow network or of many accounts, goes more at a time.
	gentleFor = 2 * time.Second
)

// A call is one call of a script.
type call struct {
	script script
	keys   []string
	args   []any
	weight int
}

// Add implements usage.Store. Each account's part of the batch is added in one atomic
// step, and not again. Those of several accounts go in one call, where that may touch the
// keys of more than one.
func (u *RedisUsage) Add(ctx context.Context, b usage.Batch) error {
	apart := len(u.redis.options.Cluster) > 0 || u.redis.keepApart.Load()
	err := u.add(ctx, &b, apart)
	if !apart && redis.HasErrorPrefix(err, "CROSSSLOT") {
		u.redis.keepApart.Store(true)
		err = u.add(ctx, &b, true) // what was added is not again
	}
	if err != nil {
		return fmt.Errorf("add usage in Redis: %w", advised(err))
	}
	return nil
}

// add makes the calls of a batch, so few at once as there is time for: Redis carries out what
// one client has sent before it turns to the next, who may be waiting for a decision. Where the
// context has a deadline there is no time: it is the batch of a process that ends.
func (u *RedisUsage) add(ctx context.Context, b *usage.Batch, apart bool) error {
	begun, gentle := u.now(), gentleFor
	if _, last := ctx.Deadline(); last {
		gentle = 0
	}
	var some []call
	weight, left, before := 0, weightOf(b), begun
	most := nextWeight(left, 0, gentle)
	for c, err := range u.calls(b, apart) {
		if err != nil {
			return err
		}
		some, weight = append(some, c), weight+c.weight
		if weight < most {
			continue
		}
		if err := u.make(ctx, some); err != nil {
			return err
		}
		now := u.now()
		left -= weight
		most = nextWeight(left, now.Sub(before), gentle-now.Sub(begun))
		some, weight, before = some[:0], 0, now
	}
	return u.make(ctx, some)
}

// weightOf returns about how much there is of a batch. It knows nothing of the ranks, which are less.
func weightOf(b *usage.Batch) int {
	weight := 0
	for i := range b.Accounts {
		weight += len(b.Accounts[i].Cells) + len(b.Accounts[i].Refusals)
	}
	return weight
}

// nextWeight returns how much is to be sent at once for what is left to be sent in the time that
// remains, where each trip to Redis takes so long.
func nextWeight(left int, trip, remains time.Duration) int {
	if remains <= 0 {
		return mostWeight
	}
	return min(max(int(float64(left)*trip.Seconds()/remains.Seconds()), callWeight), mostWeight)
}

// make makes calls, with the scripts where Redis does not know them.
func (u *RedisUsage) make(ctx context.Context, calls []call) error {
	if len(calls) == 0 {
		return nil
	}
	err := u.send(ctx, calls, false)
	if redis.HasErrorPrefix(err, "NOSCRIPT") {
		return u.send(ctx, calls, true)
	}
	return err
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

// calls yields the script calls of a batch: for accounts together, or for each apart, and
// for the fleet.
func (u *RedisUsage) calls(b *usage.Batch, apart bool) iter.Seq2[call, error] {
	now := u.now()
	return func(yield func(call, error) bool) {
		together := accountsCall{usage: u, batch: b, now: now, known: map[string]*plan{}}
		for i := range b.Accounts {
			part := 0
			for cells := range slices.Chunk(b.Accounts[i].Cells, cellsInPart) {
				part++
				if err := together.add(&b.Accounts[i], part, cells); err != nil {
					yield(call{}, err)
					return
				}
				if (apart || together.weight >= callWeight) && !yield(together.take(), nil) {
					return
				}
			}
		}
		if together.weight > 0 && !yield(together.take(), nil) {
			return
		}
		u.fleetCalls(b, now, yield)
	}
}

// An accountsCall is a call of usage.lua that is being put together.
type accountsCall struct {
	usage *RedisUsage
	batch *usage.Batch
	now   time.Time

	known  map[string]*plan // by what they are for
	plans  []*plan          // of this call
	keys   []string
	args   []any // of the accounts
	weight int
}

// add appends a part of an account, from 1.
func (c *accountsCall) add(a *usage.Account, part int, cells []usage.Cell) error {
	p := c.plan(cells)
	prefix := c.usage.usageKey(a.ID, "")
	c.keys = append(c.keys, prefix+"batch:"+c.batch.Instance, prefix+"last", prefix+"refused")
	for i := range p.blocks {
		c.keys = append(c.keys, prefix+p.blocks[i].name)
	}
	var last int64
	if !a.Last.IsZero() {
		last = a.Last.Unix()
	}
	var refusals []usage.Refusal
	if part == 1 {
		refusals = a.Refusals
	}
	c.args = append(c.args, p.number, 0, part, last, a.LimitRequests, a.LimitTokens, len(refusals))
	length := len(c.args) - 6
	for i := range refusals {
		text, err := json.Marshal(refusals[i])
		if err != nil {
			return fmt.Errorf("add a refusal of %s: %w", a.ID, err)
		}
		c.args = append(c.args, refusals[i].At.UnixMilli(), text)
	}
	for i := range cells {
		cell := &cells[i]
		c.args = append(c.args, cell.Admitted, cell.InputTokens, cell.OutputTokens, len(cell.Refused))
		if len(cell.Refused) > 0 {
			for _, reason := range sortedReasons(cell.Refused) {
				c.args = append(c.args, reason, cell.Refused[reason])
			}
		}
	}
	c.args[length] = len(c.args) - 1 - length
	c.weight += len(cells) + len(refusals)
	return nil
}

// take returns the call, and begins another.
func (c *accountsCall) take() call {
	args := []any{
		c.batch.ID, seconds(batchKept), seconds(lastUsedKept), seconds(refusalsKept), mostRefusals, len(c.plans),
	}
	for _, p := range c.plans {
		args = append(args, p.args...)
		p.number = 0
	}
	done := call{script: c.usage.account, keys: c.keys, args: append(args, c.args...), weight: c.weight}
	*c = accountsCall{usage: c.usage, batch: c.batch, now: c.now, known: c.known}
	return done
}

// seconds returns a TTL: whole seconds, rounded up, at least one.
func seconds(d time.Duration) int64 {
	return max(int64((d+time.Second-1)/time.Second), 1)
}
