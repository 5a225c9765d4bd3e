package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/redis/go-redis/v9"
)

// sendTogether sends operations with one call, where that may touch the keys of more
// than one account. In a Cluster they must be of one. They are answered when it returns, or
// are to be sent alone: an operation alone is always answered.
func (r *Redis) sendTogether(ctx context.Context, together []*operation) {
	if r.keepApart.Load() && len(together) > 1 {
		r.sendByAccount(ctx, r.client, together)
		return
	}
	patience := r.options.Timeout / 2
	if len(together) > 1 {
		patience = 0
	}
	keys, args := batchArguments(r.prefix, together)
	reply, err := r.runPatiently(ctx, r.client, r.batch, keys, args, patience)
	switch {
	case err == nil:
		answer(together, reply)
	case len(together) > 1 && moving(err): // some of the keys, and nothing was done
		apart(ctx, together)
	case len(together) > 1 && redis.HasErrorPrefix(err, "CROSSSLOT"): // and nothing was done
		r.keepApart.Store(true)
		r.sendByAccount(ctx, r.client, together)
	default:
		fail(together, err)
	}
}

// apart has operations that were not carried out together sent again, each by its own caller.
func apart(ctx context.Context, together []*operation) {
	for _, o := range together {
		o.alone = true
		o.until, _ = ctx.Deadline()
	}
}

// sendToServer sends operations to the server of a Cluster that has them all.
func (r *Redis) sendToServer(ctx context.Context, together []*operation) {
	r.sendByAccount(ctx, together[len(together)-1].server, together)
}

// sendByAccount sends operations where a call touches one slot only: with a call for each
// account, all in one pipeline. The client is that of one server: that of a Cluster would
// repeat a pipeline whose outcome is unknown.
func (r *Redis) sendByAccount(ctx context.Context, server redis.UniversalClient, together []*operation) {
	accounts := byAccount(together)
	if len(accounts) == 1 { // by the client of a Cluster, which goes where the account is
		r.sendTogether(ctx, together)
		return
	}
	pipe := server.Pipeline()
	calls := make([]*scriptCall, len(accounts))
	command, text := r.batch.command()
	for i, of := range accounts {
		keys, args := batchArguments(r.prefix, of)
		calls[i] = newScriptCall(ctx, command, text, keys, args)
		_ = pipe.Process(ctx, calls[i]) // it goes with Exec
	}
	_, failure := pipe.Exec(ctx)
	shared, failures := new(sharedCall), false
	for i, of := range accounts {
		call := calls[i]
		if call.Err() == nil && call.Val() == nil { // there was no connection
			call.SetErr(failure)
		}
		switch err := call.Err(); {
		case err == nil:
			answer(of, call.Cmd)
		case elsewhere(err) || command == "fcall" && r.batch.function.missing(err):
			apart(ctx, of)
		default:
			fail(of, failedAmongOthers(err, call.sent, shared))
			failures = true
		}
	}
	if failures {
		r.lookAgain(ctx)
	}
}

// byAccount returns operations by account.
func byAccount(together []*operation) [][]*operation {
	var accounts [][]*operation
	places := make(map[string]int, len(together))
	for _, o := range together {
		place, known := places[o.account()]
		if !known {
			place = len(accounts)
			places[o.account()] = place
			accounts = append(accounts, nil)
		}
		accounts[place] = append(accounts[place], o)
	}
	return accounts
}

// elsewhere reports whether a server has done nothing, and a call that goes by the client of
// the Cluster will be answered: by another server, later, or with the text of the script.
func elsewhere(err error) bool {
	return slices.ContainsFunc([]string{"MOVED ", "ASK ", "TRYAGAIN ", "NOSCRIPT "}, func(code string) bool { return redis.HasErrorPrefix(err, code) }) ||
		errors.Is(err, redis.ErrClosed)
}

// fail has all operations of a call fail.
func fail(together []*operation, err error) {
	for _, o := range together {
		o.err = o.failed(err)
	}
}

// failed says what was tried.
func (o *operation) failed(err error) error {
	if o.order != nil {
		return fmt.Errorf("count in Redis: %w", err)
	}
	return fmt.Errorf("settle in Redis: %w", err)
}
