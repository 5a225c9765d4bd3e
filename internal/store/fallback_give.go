package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"
)

const (
	// givenKept is how long Redis remembers a batch. One that is not known to have arrived
	// is not sent again for longer than giveTime, and counts as made then.
	givenKept = time.Hour
	giveTime  = givenKept - 5*time.Minute
	// pipelined is how many batches go together, and pipelines how many such at a time.
	pipelined = 50
	pipelines = 4
	// addTimeout is how long that may take at the least. No request waits for it.
	addTimeout = time.Second
	// mostAnswers is how often Redis may find a batch or a settlement wrong while it counts
	// otherwise. Then it is lost.
	mostAnswers = 5
)

// giveBack gives back once to each account what is owed to it. It returns false where the
// part cannot be reached.
func (f *Fallback) giveBack(ctx context.Context, p *part) bool {
	if p.ledger.owing.Load() == 0 {
		return true
	}
	group, giving := errgroup.WithContext(ctx)
	group.SetLimit(pipelines)
	for accounts := range slices.Chunk(p.ledger.owed(), pipelined) {
		group.Go(func() error { return f.giveSome(giving, p, accounts) })
	}
	err := group.Wait()
	if err != nil && ctx.Err() == nil {
		f.redis.lookAgain(ctx) // the client of these calls may know another server for the slots than that of Check
		f.failed(p, err)
	}
	return err == nil
}

// giveSome gives back to some accounts.
func (f *Fallback) giveSome(ctx context.Context, p *part, accounts []string) error {
	for len(accounts) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		var batches []*batch
		for _, account := range accounts {
			if b := p.ledger.batch(account, f.now(), f.batchName); b != nil {
				batches = append(batches, b)
			}
		}
		accounts = nil
		var errs []error
		for i, reply := range f.send(ctx, batches) {
			b := batches[i]
			switch err := f.given(p, b, reply); {
			case moving(err): // it goes with the next
			case err != nil:
				errs = append(errs, err)
			case len(b.promises) == maxPromises:
				accounts = append(accounts, b.account)
			default:
				f.totals.accounts.Add(1)
			}
		}
		if len(errs) > 0 {
			return errs[0]
		}
	}
	return nil
}

// given notes what became of a batch. An error says that it may not have arrived.
func (f *Fallback) given(p *part, b *batch, reply *redis.Cmd) error {
	at, used, err := addReply(reply, len(b.counts))
	var answer redis.Error
	switch {
	case err == nil:
		for _, n := range used {
			if n >= 0 || n == addedBefore {
				f.totals.counts.Add(1)
			}
		}
		p.ledger.arrived(b, at, used)
		return nil
	case errors.As(err, &answer) && aboutRedis(err) == "":
		if b.answers++; b.answers < mostAnswers {
			return err
		}
		f.totals.lostCounts.Add(int64(len(b.counts)))
	case f.options.Elapsed()-b.first < giveTime:
		return err
	}
	p.ledger.arrived(b, 0, nil)
	return nil
}

// send sends batches and returns what Redis answers to each. It does no harm if it sends
// some twice.
func (f *Fallback) send(ctx context.Context, batches []*batch) []*redis.Cmd {
	ctx, cancel := within(ctx, max(addTimeout, f.redis.options.Timeout))
	defer cancel()
	pipe := f.redis.patient.Pipeline()
	replies := make([]*redis.Cmd, len(batches))
	for i, b := range batches {
		if b.first == 0 {
			b.first = max(f.options.Elapsed(), 1)
		}
		keys, args := f.addArguments(b)
		replies[i] = f.add.EvalSha(ctx, pipe, keys, args...)
	}
	_, err := pipe.Exec(ctx)
	for i, b := range batches {
		if err != nil && replies[i].Err() == nil && replies[i].Val() == nil { // there was no connection
			replies[i].SetErr(err)
		}
		if redis.HasErrorPrefix(replies[i].Err(), "NOSCRIPT") {
			keys, args := f.addArguments(b)
			replies[i] = f.add.Eval(ctx, f.redis.patient, keys, args...)
		}
	}
	return replies
}

// addArguments are what add.lua is called with.
func (f *Fallback) addArguments(b *batch) (keys []string, args []any) {
	prefix, now := f.redis.prefix, f.now().UnixMilli()
	keys = []string{countsKey(prefix, b.account), givenKey(prefix, b.account, b.id)}
	args = []any{givenKept.Milliseconds(), len(b.counts)}
	for _, c := range b.counts {
		args = append(args, c.name, int64(c.window), c.start, c.end, c.amount)
	}
	for _, p := range b.promises {
		keys = append(keys, reservationKey(prefix, b.account, p.request))
		args = append(args, p.record(), max(p.expires-now, 1))
	}
	return keys, args
}

// addedBefore stands in the answer of add.lua where the window was the one before the current
// one, which slides, and it was added to that.
const addedBefore = -2

// addReply reads the answer of add.lua.
func addReply(reply *redis.Cmd, counts int) (at int64, used []int64, err error) {
	texts, err := reply.StringSlice()
	if err != nil {
		return 0, nil, fmt.Errorf("give back to Redis: %w", advised(err))
	}
	if len(texts) != 1+counts {
		return 0, nil, fmt.Errorf("give back to Redis: %d numbers in the answer, want %d", len(texts), 1+counts)
	}
	numbers := make([]int64, len(texts))
	for i, text := range texts {
		if numbers[i], err = strconv.ParseInt(text, 10, 64); err != nil {
			return 0, nil, fmt.Errorf("give back to Redis: %w", err)
		}
	}
	return numbers[0], numbers[1:], nil
}

// givenKey names a batch, in the slot of its account.
func givenKey(prefix, account, id string) string { return prefix + ":{" + account + "}:given:" + id }
