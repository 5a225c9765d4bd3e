package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/quota"
)

// sendTogether sends operations with one script call, where that may touch the keys of more
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

// sendByAccount sends operations where a script touches one slot only: with a call for each
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
	for i, of := range accounts {
		keys, args := batchArguments(r.prefix, of)
		calls[i] = newScriptCall(ctx, "evalsha", r.batch.Hash(), keys, args)
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
		case elsewhere(err):
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

// settlementWord stands where the plan of an order would.
const settlementWord = "s"

// onlyRaise stands where a settlement's share of refunds would.
const onlyRaise = -1

// batchArguments are what batch.lua is called with.
func batchArguments(prefix string, together []*operation) (keys []string, args []any) {
	var plans plans
	numbers := make([]int, len(together))
	for i, o := range together {
		if o.order != nil {
			numbers[i] = plans.number(o.order.Charges)
		}
	}
	keys = make([]string, 0, 2*len(together))
	args = plans.appendTo(make([]any, 0, 1+16*len(plans.plans)+7*len(together)))
	for i, o := range together {
		if o.order == nil {
			keys, args = appendSettlement(keys, args, prefix, o.settlement)
		} else {
			keys, args = appendOrder(keys, args, prefix, o.order, numbers[i])
		}
	}
	return keys, args
}

// plans are the charges of a batch's orders but for the costs: most orders have those of
// another.
type plans struct {
	plans [][]quota.Charge
}

// mostCompared is how many plans an order is compared with.
const mostCompared = 8

// number returns the number of a plan, from 1.
func (p *plans) number(charges []quota.Charge) int {
	for i := max(0, len(p.plans)-mostCompared); i < len(p.plans); i++ {
		if slices.EqualFunc(p.plans[i], charges, samePlan) {
			return i + 1
		}
	}
	p.plans = append(p.plans, charges)
	return len(p.plans)
}

func samePlan(a, b quota.Charge) bool {
	return a.Limit.Window == b.Limit.Window && a.Limit.Max == b.Limit.Max && a.Counter == b.Counter
}

func (p *plans) appendTo(args []any) []any {
	args = append(args, len(p.plans))
	for _, charges := range p.plans {
		args = append(args, len(charges))
		for _, c := range charges {
			args = append(args, c.Counter, int64(c.Limit.Window), c.Limit.Max)
		}
	}
	return args
}

func appendOrder(keys []string, args []any, prefix string, o *quota.Order, plan int) ([]string, []any) {
	keys = append(keys, countsKey(prefix, o.Account))
	args = append(args, plan)
	if o.Kept() {
		keys = append(keys, reservationKey(prefix, o.Account, o.Request))
		args = append(args, o.Secret, o.Keep.Milliseconds())
	} else {
		args = append(args, "")
	}
	for _, c := range o.Charges {
		args = append(args, c.Cost)
	}
	return keys, args
}

func appendSettlement(keys []string, args []any, prefix string, s *quota.Settlement) ([]string, []any) {
	share := s.RefundShare
	if share == 0 && s.OnlyRaise {
		share = onlyRaise
	}
	return append(keys, countsKey(prefix, s.Account), reservationKey(prefix, s.Account, s.Request)),
		append(args, settlementWord, s.Secret, share, s.Used.Tokens, s.Used.InputTokens, s.Used.OutputTokens)
}

// answer hands the answers of batch.lua to the operations.
func answer(together []*operation, reply *redis.Cmd) {
	values, err := reply.Slice()
	if err != nil {
		fail(together, err)
		return
	}
	shared := new(sharedCall)
	a := answers{values: values}
	now := a.number()
	for _, o := range together {
		if text, failed := a.text(); failed {
			o.err = o.failed(failedInScript(text, shared))
			continue
		}
		if o.order != nil {
			o.taken = a.taken(now, o.order)
		} else {
			o.outcome = a.outcome()
		}
	}
	if a.err == nil && len(a.values) > 0 {
		a.err = fmt.Errorf("%d more values in the answer than there should be", len(a.values))
	}
	if a.err != nil {
		fail(together, a.err)
	}
}

// A scriptError is why an order or a settlement failed by itself.
type scriptError string

// Error implements error.
func (e scriptError) Error() string { return string(e) }

// RedisError says that it is Redis' answer, as redis.Error wants it.
func (scriptError) RedisError() {}

// answers are values of an answer that are yet to be read.
type answers struct {
	values []any
	err    error // the first fault
}

// next takes the next value; nil: there is none, or it is none that there should be.
func (a *answers) next() any {
	if len(a.values) == 0 {
		a.fault("too few values in the answer")
		return nil
	}
	v := a.values[0]
	a.values = a.values[1:]
	return v
}

func (a *answers) fault(text string) {
	if a.err == nil {
		a.err = errors.New(text)
	}
}

func (a *answers) number() int64 {
	n, ok := a.next().(int64)
	if !ok {
		a.fault("a value of the answer is no number")
	}
	return n
}

// text takes the next value if it is a text.
func (a *answers) text() (string, bool) {
	if len(a.values) == 0 {
		return "", false
	}
	text, ok := a.values[0].(string)
	if ok {
		a.values = a.values[1:]
	}
	return text, ok
}

// The answers to an order.
const (
	orderRefused int64 = iota
	orderAdmitted
	orderRepeated
)

func (a *answers) taken(now int64, o *quota.Order) quota.Taken {
	t := quota.Taken{Used: make([]int64, len(o.Charges))}
	switch status := a.number(); status {
	case orderRefused:
	case orderAdmitted:
		t.Admitted = true
		if o.Kept() {
			t.Secret = o.Secret
		}
	case orderRepeated:
		t.Admitted = true
		now = a.number()
		secret, ok := a.text()
		if !ok {
			a.fault("the answer to a repeat has no secret")
		}
		t.Secret = secret
	default:
		a.fault("unknown answer " + strconv.FormatInt(status, 10))
	}
	t.Now = time.UnixMilli(now).UTC()
	for i := range t.Used {
		t.Used[i] = a.number()
	}
	return t
}

func (a *answers) outcome() quota.Outcome {
	n := a.number()
	if n < 0 || n > int64(quota.Duplicate) {
		a.fault("unknown answer " + strconv.FormatInt(n, 10))
		return quota.NotFound
	}
	return quota.Outcome(n)
}
