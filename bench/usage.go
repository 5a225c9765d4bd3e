package main

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/tiergate/tiergate/internal/devstack"
)

// redisUsage is what a Redis server has done since its start.
type redisUsage struct {
	cpu      time.Duration
	commands int64            // all, also those of scripts
	calls    map[string]int64 // of each command
}

func (u redisUsage) since(before redisUsage) redisUsage {
	calls := maps.Clone(u.calls)
	for command, n := range before.calls {
		calls[command] -= n
	}
	return redisUsage{u.cpu - before.cpu, u.commands - before.commands, calls}
}

func (u redisUsage) and(other redisUsage) redisUsage {
	calls := maps.Clone(other.calls)
	for command, n := range u.calls {
		calls[command] += n
	}
	return redisUsage{u.cpu + other.cpu, u.commands + other.commands, calls}
}

// usageOf asks a Redis server; nil has none.
func usageOf(ctx context.Context, client *redis.Client) (redisUsage, error) {
	u := redisUsage{calls: map[string]int64{}}
	if client == nil {
		return u, nil
	}
	info, err := client.Info(ctx, "cpu", "commandstats").Result()
	if err != nil {
		return u, fmt.Errorf("ask Redis what it has done: %w", err)
	}
	numbers, err := devstack.ParseInfo(info)
	if err != nil {
		return u, err
	}
	for name, n := range numbers {
		if command, ok := strings.CutPrefix(name, "cmdstat_"); ok {
			u.calls[command] = int64(n)
			u.commands += int64(n)
		}
	}
	for _, name := range []string{"used_cpu_user", "used_cpu_sys"} {
		seconds, ok := numbers[name]
		if !ok {
			return u, fmt.Errorf("ask Redis what it has done: it does not say its %s", name)
		}
		u.cpu += time.Duration(seconds * float64(time.Second))
	}
	return u, nil
}

func perRequest(d time.Duration, requests int64) float64 {
	return float64(d.Nanoseconds()) / 1000 / float64(max(requests, 1))
}
