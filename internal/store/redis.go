package store

import (
	"context"
	_ "embed" // for the script
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/quota"
)

//go:embed common.lua
var commonSource string

//go:embed sliding.lua
var slidingSource string

//go:embed batch.lua
var batchSource string

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
	Sent             func(n int)   // told when n orders and settlements are sent together; nil: nobody is
}

// Redis counts in one Redis that any number of instances share. The keys of an account
// are in one slot of a Cluster, so that a call touches one. It is safe for concurrent use.
type Redis struct {
	options   RedisOptions
	access    atomic.Pointer[RedisAccess]
	client    redis.UniversalClient // that requests wait for
	patient   redis.UniversalClient // for all else
	batch     script
	lane      *lane       // where it is no Cluster
	keepApart atomic.Bool // whether a call may not touch the keys of two accounts, though it is no Cluster
	mu        sync.RWMutex
	lanes     map[string]*lane // to the servers of a Cluster, by address
	// Orders are put into operations that are used again, with the channel of one that has
	// waited.
	operations sync.Pool // of *operation
	prefix     string
	checked    []*checkedPart // by part
	// told is told the answer to each order, before its caller is: who decides another without
	// Redis meanwhile finds one that a lane sends either there or underWay, or in both. nil: nobody is.
	told func(*quota.Order, *quota.Taken)
}

// NewRedis returns a store on a Redis. It does not connect yet, so that TierGate
// starts without Redis.
func NewRedis(o RedisOptions) *Redis {
	r := &Redis{
		options: o, prefix: o.KeyPrefix,
		batch:      newFunction(commonSource + slidingSource + batchSource),
		operations: sync.Pool{New: func() any { return new(operation) }},
	}
	r.lane, r.lanes = r.newLane(r.sendTogether), map[string]*lane{}
	r.UseAccess(o.Access)
	r.client, r.patient = r.connect(o.Timeout, o.PoolSize), r.connect(patientTimeout, patientPool)
	parts := 1
	if len(o.Cluster) > 0 {
		parts = clusterParts
	}
	r.checked = newCheckedParts(parts)
	return r
}

// Take implements quota.Counts. Orders and settlements that come while a call is under way
// go together with the next. A caller who goes away does not end it. After an error it may
// be unknown whether the charges were taken.
func (r *Redis) Take(ctx context.Context, o quota.Order) (quota.Taken, error) {
	op := r.operations.Get().(*operation) //nolint:forcetypeassert // see New
	op.own = o
	op.order, op.told = &op.own, r.told
	r.carryOut(ctx, op)
	taken, err := op.taken, op.err
	*op = operation{done: op.done}
	r.operations.Put(op)
	return taken, err
}

// Settle implements quota.Counts, as Take does.
func (r *Redis) Settle(ctx context.Context, s quota.Settlement) (quota.Outcome, error) {
	op := operation{settlement: &s}
	r.carryOut(ctx, &op)
	return op.outcome, op.err
}

// What the keys of an account are, after its name. The braces make the account the part that
// a Cluster chooses the slot by.
const (
	countsKind      = "}:counts"   // its counters
	reservationKind = "}:request:" // what is kept of one request, which follows
)

// countsKey names an account's counters.
func countsKey(prefix, account string) string { return prefix + ":{" + account + countsKind }

// reservationKey names what is kept of one request, in the same slot.
func reservationKey(prefix, account, request string) string {
	return prefix + ":{" + account + reservationKind + request
}

// Close ends the connections.
func (r *Redis) Close() error {
	if err := errors.Join(r.client.Close(), r.patient.Close()); err != nil && !errors.Is(err, redis.ErrClosed) {
		return fmt.Errorf("close the connections to Redis: %w", err)
	}
	return nil
}
