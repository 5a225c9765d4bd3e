package store

import (
	"context"
	_ "embed" // for the script
	"encoding/json"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/usage"
)

//go:embed instances.lua
var instancesSource string

// Tell makes known what an instance says of itself, for 30 s. What it said before is
// forgotten.
func (u *RedisUsage) Tell(ctx context.Context, i usage.Instance) error {
	said, err := json.Marshal(i)
	if err != nil {
		return fmt.Errorf("tell of instance %s: %w", i.ID, err)
	}
	before := ""
	if told := u.told.Load(); told != nil {
		before = *told
	}
	text := string(said)
	if _, err := u.ofInstances(ctx, text, before); err != nil {
		return fmt.Errorf("tell Redis of instance %s: %w", i.ID, err)
	}
	u.told.Store(&text)
	return nil
}

// Instances returns what each instance has told last, by ID, if it has in the last 30 s by
// the clock of Redis.
func (u *RedisUsage) Instances(ctx context.Context) ([]usage.Instance, error) {
	reply, err := u.ofInstances(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the instances from Redis: %w", err)
	}
	texts, err := reply.StringSlice()
	if err != nil {
		return nil, fmt.Errorf("instances in Redis: %w", err)
	}
	all, err := decodeAll[usage.Instance](texts)
	if err != nil {
		return nil, fmt.Errorf("instances in Redis: %w", err)
	}
	return latest(all, time.Time{}), nil // those that are old have been left out
}

// ofInstances runs the script on what instances say of themselves.
func (u *RedisUsage) ofInstances(ctx context.Context, said ...any) (*redis.Cmd, error) {
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	args := append([]any{instanceKept.Milliseconds()}, said...)
	return u.redis.run(ctx, u.client, u.pulse, []string{u.fleetKey("instances")}, args)
}
