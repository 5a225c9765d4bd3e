package store

import (
	"context"
	_ "embed" // for the scripts
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/usage"
)

//go:embed usage.lua
var usageSource string

//go:embed fleet.lua
var fleetSource string

const (
	// usageTimeout bounds a call about usage. Nobody's request waits for one.
	usageTimeout = 2 * time.Second
	// Ranks are cut to leastRanked accounts when they have more than mostRanked.
	mostRanked, leastRanked = 2000, 1000
	// mostNearRead is more than mostNear, for accounts that are near several limits.
	mostNearRead = 4 * mostNear
)

// RedisUsage keeps usage in a Redis that any number of instances share. What is of
// one account is in one slot of a Cluster, as its counters are. Every key has a TTL.
// It is safe for concurrent use, if the batches of one instance come one after another.
type RedisUsage struct {
	redis   *Redis
	client  redis.UniversalClient
	account script
	fleet   script
	pulse   script
	prefix  string
	now     func() time.Time
	told    atomic.Pointer[string] // by the one instance that tells
}

// NewRedisUsage returns the usage on a Redis server. now says what has ended.
func NewRedisUsage(r *Redis, now func() time.Time) *RedisUsage {
	return &RedisUsage{
		redis: r, client: r.patient, prefix: r.prefix, now: now,
		account: newScript(usageSource), fleet: newScript(fleetSource), pulse: newScript(commonSource + instancesSource),
	}
}

// usageKey names a key of an account's usage, in the slot of its counters.
func (u *RedisUsage) usageKey(account, what string) string {
	return u.prefix + ":{" + account + "}:usage:" + what
}

// fleetKey names a key of what is nobody's.
func (u *RedisUsage) fleetKey(what string) string { return u.usageKey("~fleet", what) }

func (u *RedisUsage) blockKey(account string, b block, number int64) string {
	return u.usageKey(account, b.name+":"+strconv.FormatInt(number, 10))
}

// Series returns the points of an account, or of a series of the fleet, by start and
// resource: for each step with requests or tokens one of all resources together and
// one of each. The step that runs is one of them, as far as it is known.
func (u *RedisUsage) Series(ctx context.Context, account string, q usage.Query) ([]usage.Point, error) {
	b, err := blockOf(q.Step)
	if err != nil {
		return nil, err
	}
	q = clamped(q, u.now())
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	pipe := u.client.Pipeline()
	numbers := b.numbers(q.From, q.To)
	replies := make([]*redis.MapStringStringCmd, len(numbers))
	for i, n := range numbers {
		replies[i] = pipe.HGetAll(ctx, u.blockKey(account, b, n))
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, fmt.Errorf("read the usage of %s from Redis: %w", account, advised(err))
	}
	s := newSeries(q)
	for i, n := range numbers {
		for name, text := range replies[i].Val() {
			if err := s.add(b, n, name, text); err != nil {
				return nil, fmt.Errorf("usage of %s in Redis: %w", account, err)
			}
		}
	}
	return s.sorted(), nil
}

// Refusals returns the latest refusals of an account, the newest first: at most 50, of
// the last 8 days. Two that are alike in all, to the nanosecond, are one.
func (u *RedisUsage) Refusals(ctx context.Context, account string) ([]usage.Refusal, error) {
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	texts, err := u.client.ZRangeArgs(ctx, redis.ZRangeArgs{
		Key: u.usageKey(account, "refused"), Start: 0, Stop: mostRefusals - 1, Rev: true,
	}).Result()
	if err != nil {
		return nil, fmt.Errorf("read the refusals of %s from Redis: %w", account, advised(err))
	}
	all, err := decodeAll[usage.Refusal](texts)
	if err != nil {
		return nil, fmt.Errorf("refusals of %s in Redis: %w", account, err)
	}
	return latestRefusals(all, u.now()), nil
}

// decodeAll reads JSON texts.
func decodeAll[T any](texts []string) ([]T, error) {
	all := make([]T, len(texts))
	for i, text := range texts {
		if err := json.Unmarshal([]byte(text), &all[i]); err != nil {
			return nil, fmt.Errorf("read %q: %w", text, err)
		}
	}
	return all, nil
}

// LastUsed returns when each account's last request was decided, in whole seconds;
// those without any in the last 400 days are left out. It answers for at most 1,000.
func (u *RedisUsage) LastUsed(ctx context.Context, accounts []string) (map[string]time.Time, error) {
	if err := checkLastUsed(accounts); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	pipe := u.client.Pipeline()
	replies := make([]*redis.StringCmd, len(accounts))
	for i, a := range accounts {
		replies[i] = pipe.Get(ctx, u.usageKey(a, "last"))
	}
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("read from Redis when accounts were last used: %w", advised(err))
	}
	used := map[string]time.Time{}
	for i, a := range accounts {
		seconds, err := replies[i].Int64()
		if errors.Is(err, redis.Nil) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read from Redis when %s was last used: %w", a, err)
		}
		used[a] = time.Unix(seconds, 0).UTC()
	}
	return used, nil
}

// Top returns the accounts with the most of the hour that runs and so many before it,
// 1 to 24. It is exact for accounts that are among the first 1,000 all the time; those
// far below may be forgotten and begin again.
func (u *RedisUsage) Top(ctx context.Context, by usage.Rank, hours, most int) ([]usage.Ranked, error) {
	numbers, err := topRange(by, hours, u.now())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	pipe := u.client.Pipeline()
	replies := make([]*redis.ZSliceCmd, len(numbers))
	for i, n := range numbers {
		replies[i] = pipe.ZRevRangeWithScores(ctx, u.topKey(by, n), 0, leastRanked-1)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, fmt.Errorf("read the ranks of accounts from Redis: %w", advised(err))
	}
	counts := map[string]int64{}
	for _, reply := range replies {
		for _, z := range reply.Val() {
			account, _ := z.Member.(string)
			counts[account] += int64(z.Score)
		}
	}
	return ranked(counts, most), nil
}

func (u *RedisUsage) topKey(by usage.Rank, hour int64) string {
	return u.fleetKey("top:" + string(by) + ":" + strconv.FormatInt(hour, 10))
}

func (u *RedisUsage) nearKey(minute int64) string {
	return u.fleetKey("near:" + strconv.FormatInt(minute, 10))
}

// Near returns the accounts that have used usage.NearShare of a limit or more in the
// last two or three minutes, the nearest first, at most 100.
func (u *RedisUsage) Near(ctx context.Context) ([]usage.Near, error) {
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	pipe := u.client.Pipeline()
	var replies []*redis.ZSliceCmd
	for _, n := range nearRange(u.now()) {
		replies = append(replies, pipe.ZRevRangeWithScores(ctx, u.nearKey(n), 0, mostNearRead-1))
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, fmt.Errorf("read from Redis which accounts are near a limit: %w", advised(err))
	}
	all := []usage.Near{}
	for _, reply := range replies {
		for _, z := range reply.Val() {
			member, _ := z.Member.(string)
			account, limit, _ := strings.Cut(member, " ")
			all = append(all, usage.Near{Account: account, Limit: limit, Share: z.Score})
		}
	}
	return nearest(all), nil
}
