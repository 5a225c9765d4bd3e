package store

import (
	"context"
	"crypto/tls"
	_ "embed" // for the script
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/tiergate/tiergate/internal/quota"
)

//go:embed take.lua
var takeSource string

// RedisOptions say how to reach Redis.
type RedisOptions struct {
	Address   string // host:port
	Username  string // empty: the default user
	Password  string // empty: no authentication
	Database  int
	KeyPrefix string        // of every key, such as "tiergate"
	Timeout   time.Duration // of one call, from asking for a connection to the answer
	PoolSize  int           // connections at the most
	TLS       *tls.Config   // nil: in clear
}

// Redis counts in one Redis that any number of instances share. Each account
// has one hash, so that a script touches one slot of a Cluster. It is safe for
// concurrent use.
type Redis struct {
	client  *redis.Client
	take    *redis.Script
	prefix  string
	timeout time.Duration
}

// NewRedis returns a store on a Redis server. It does not connect yet, so that
// TierGate starts without Redis.
func NewRedis(o RedisOptions) *Redis {
	client := redis.NewClient(&redis.Options{
		Addr:                  o.Address,
		Username:              o.Username,
		Password:              o.Password,
		DB:                    o.Database,
		TLSConfig:             o.TLS,
		PoolSize:              o.PoolSize,
		DialTimeout:           o.Timeout,
		ReadTimeout:           o.Timeout,
		WriteTimeout:          o.Timeout,
		PoolTimeout:           o.Timeout,
		ContextTimeoutEnabled: true,
		// A script whose outcome is unknown must not run twice.
		MaxRetries:               -1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	return &Redis{client: client, take: redis.NewScript(takeSource), prefix: o.KeyPrefix, timeout: o.Timeout}
}

// Take implements quota.Counts with one script call: EVALSHA, and EVAL where
// Redis does not know the script yet. After an error it is unknown whether the
// charges were taken.
func (r *Redis) Take(ctx context.Context, account string, charges []quota.Charge) (quota.Taken, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	args := make([]any, 0, 4*len(charges))
	for _, c := range charges {
		args = append(args, c.Counter, int64(c.Limit.Window), c.Limit.Max, c.Cost)
	}
	reply, err := r.take.Run(ctx, r.client, []string{r.key(account)}, args...).Int64Slice()
	if err != nil {
		return quota.Taken{}, fmt.Errorf("count in Redis: %w", err)
	}
	if len(reply) != 2+len(charges) {
		return quota.Taken{}, fmt.Errorf("count in Redis: %d numbers in the answer, want %d", len(reply), 2+len(charges))
	}
	return quota.Taken{Now: time.UnixMilli(reply[0]).UTC(), Admitted: reply[1] == 1, Used: reply[2:]}, nil
}

// key names an account's hash. The braces make the account the part that a
// Cluster chooses the slot by.
func (r *Redis) key(account string) string { return r.prefix + ":{" + account + "}:counts" }

// Ping reports whether Redis answers.
func (r *Redis) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	if err := r.client.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("ping Redis: %w", err)
	}
	return nil
}

// Close ends the connections.
func (r *Redis) Close() error {
	if err := r.client.Close(); err != nil && !errors.Is(err, redis.ErrClosed) {
		return fmt.Errorf("close the connections to Redis: %w", err)
	}
	return nil
}
