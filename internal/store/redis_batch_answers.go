package store

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/quota"
)

// answer hands the answers of batch.lua to the operations, and tells those to orders.
func answer(together []*operation, reply *redis.Cmd) {
	values, err := reply.Slice()
	if err != nil {
		fail(together, failed(err, true))
		return
	}
	shared := new(sharedCall)
	a := answers{values: values}
	now := a.number()
	for _, o := range together {
		now = a.later(now)
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
		fail(together, failed(a.err, true)) // one call, in doubt
		return
	}
	for _, o := range together {
		if o.told != nil && o.err == nil {
			o.told(o.order, &o.taken)
		}
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

// later takes the times that come next, which hold from there on, and returns the last.
func (a *answers) later(now int64) int64 {
	for len(a.values) > 0 {
		ms, ok := a.values[0].(int64)
		if !ok || ms <= now {
			break
		}
		now, a.values = ms, a.values[1:]
	}
	return now
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
		t.Admitted, t.Repeated = true, true
		now = a.number()
		secret, ok := a.text()
		if !ok {
			a.fault("the answer to a repeat has no secret")
		}
		if secret != noSecret {
			t.Secret = secret
		}
	default:
		a.fault("unknown answer " + strconv.FormatInt(status, 10))
	}
	t.Now = time.UnixMilli(now).UTC()
	for i := range t.Used {
		t.Used[i] = a.number()
	}
	for i := range o.Charges {
		if o.Charges[i].Limit.Window.Sliding() {
			noteBefore(&t, i, a.number())
		}
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
