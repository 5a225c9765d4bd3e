package store

import (
	"context"
	_ "embed" // for the script
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/quota"
)

//go:embed common.lua
var commonSource string

//go:embed take.lua
var takeSource string

//go:embed settle.lua
var settleSource string

// RedisOptions say how to reach Redis: at Address, or by Sentinels, or as a Cluster.
type RedisOptions struct {
	Address          string   // host:port
	Sentinels        []string // host:port of each; none: there are none
	SentinelMaster   string   // what they call the primary
	SentinelUsername string   // empty: the default user
	Cluster          []string // host:port of some of its servers; none: it is no Cluster
	TLS              bool     // else in clear
	Access           RedisAccess
	Username         string // empty: the default user
	Database         int
	KeyPrefix        string        // of every key, such as "tiergate"
	Timeout          time.Duration // of one count, from asking for a connection to the answer
	PoolSize         int           // connections that count, at the most, to each server
}

// Redis counts in one Redis that any number of instances share. Each account
// has one hash, so that a script touches one slot of a Cluster. It is safe for
// concurrent use.
type Redis struct {
	options RedisOptions
	access  atomic.Pointer[RedisAccess]
	client  redis.UniversalClient // that requests wait for
	patient redis.UniversalClient // for all else
	take    script
	settle  script
	prefix  string
	checked []*checkedPart // by part
}

// NewRedis returns a store on a Redis. It does not connect yet, so that TierGate
// starts without Redis.
func NewRedis(o RedisOptions) *Redis {
	r := &Redis{
		options: o, prefix: o.KeyPrefix,
		take: newScript(commonSource + takeSource), settle: newScript(commonSource + settleSource),
	}
	r.UseAccess(o.Access)
	r.client, r.patient = r.connect(o.Timeout, o.PoolSize), r.connect(patientTimeout, patientPool)
	parts := 1
	if len(o.Cluster) > 0 {
		parts = clusterParts
	}
	r.checked = newCheckedParts(parts)
	return r
}

// Take implements quota.Counts with one script call: EVALSHA, and EVAL where
// Redis does not know the script yet. A caller who goes away does not end it. After
// an error it may be unknown whether the charges were taken.
func (r *Redis) Take(ctx context.Context, o quota.Order) (quota.Taken, error) {
	keys, args := takeArguments(r.prefix, o)
	answer, err := r.runSoon(ctx, r.take, keys, args)
	if err != nil {
		return quota.Taken{}, fmt.Errorf("count in Redis: %w", err)
	}
	reply, err := answer.Slice()
	if err != nil {
		return quota.Taken{}, fmt.Errorf("count in Redis: %w", err)
	}
	return taken(reply, len(o.Charges))
}

// takeArguments are what take.lua is called with.
func takeArguments(prefix string, o quota.Order) (keys []string, args []any) {
	keys = []string{countsKey(prefix, o.Account)}
	if o.Kept() {
		keys = append(keys, reservationKey(prefix, o.Account, o.Request))
	}
	args = make([]any, 0, 2+4*len(o.Charges))
	args = append(args, o.Secret, o.Keep.Milliseconds())
	for _, c := range o.Charges {
		args = append(args, c.Counter, int64(c.Limit.Window), c.Limit.Max, c.Cost)
	}
	return keys, args
}

// taken reads the answer of take.lua.
func taken(reply []any, charges int) (quota.Taken, error) {
	if len(reply) != 3+charges {
		return quota.Taken{}, fmt.Errorf("count in Redis: %d values in the answer, want %d", len(reply), 3+charges)
	}
	t := quota.Taken{Used: make([]int64, charges)}
	numbers := make([]int64, len(reply))
	for i, v := range reply {
		n, ok := v.(int64)
		if !ok && i != 2 {
			return quota.Taken{}, fmt.Errorf("count in Redis: value %d of the answer is no number", i)
		}
		numbers[i] = n
	}
	t.Now, t.Admitted = time.UnixMilli(numbers[0]).UTC(), numbers[1] == 1
	t.Secret, _ = reply[2].(string)
	copy(t.Used, numbers[3:])
	return t, nil
}

// Settle implements quota.Counts with one script call.
func (r *Redis) Settle(ctx context.Context, s quota.Settlement) (quota.Outcome, error) {
	keys, args := settleArguments(r.prefix, s)
	answer, err := r.runSoon(ctx, r.settle, keys, args)
	if err != nil {
		return 0, fmt.Errorf("settle in Redis: %w", err)
	}
	n, err := answer.Int()
	if err != nil {
		return 0, fmt.Errorf("settle in Redis: %w", err)
	}
	if n < 0 || n > int(quota.Duplicate) {
		return 0, fmt.Errorf("settle in Redis: unknown answer %d", n)
	}
	return quota.Outcome(n), nil
}

// settleArguments are what settle.lua is called with.
func settleArguments(prefix string, s quota.Settlement) (keys []string, args []any) {
	keys = []string{countsKey(prefix, s.Account), reservationKey(prefix, s.Account, s.Request)}
	onlyRaise := 0
	if s.OnlyRaise {
		onlyRaise = 1
	}
	args = []any{s.Secret, onlyRaise, s.RefundShare}
	for _, m := range quota.Metrics() {
		args = append(args, m.String(), usedOf(s.Used, m))
	}
	return keys, args
}

// countsKey names an account's counters. The braces make the account the part
// that a Cluster chooses the slot by.
func countsKey(prefix, account string) string { return prefix + ":{" + account + "}:counts" }

// reservationKey names what is kept of one request, in the same slot.
func reservationKey(prefix, account, request string) string {
	return prefix + ":{" + account + "}:request:" + request
}

// Close ends the connections.
func (r *Redis) Close() error {
	if err := errors.Join(r.client.Close(), r.patient.Close()); err != nil && !errors.Is(err, redis.ErrClosed) {
		return fmt.Errorf("close the connections to Redis: %w", err)
	}
	return nil
}
