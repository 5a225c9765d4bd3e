package main

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
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
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch {
		case name == "used_cpu_user" || name == "used_cpu_sys":
			seconds, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return u, fmt.Errorf("read %q of Redis: %w", line, err)
			}
			u.cpu += time.Duration(seconds * float64(time.Second))
		case strings.HasPrefix(name, "cmdstat_"):
			text, _, _ := strings.Cut(strings.TrimPrefix(value, "calls="), ",")
			calls, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return u, fmt.Errorf("read %q of Redis: %w", line, err)
			}
			u.commands += calls
			u.calls[strings.TrimPrefix(name, "cmdstat_")] = calls
		}
	}
	return u, nil
}

func perRequest(d time.Duration, requests int64) float64 {
	return float64(d.Nanoseconds()) / 1000 / float64(max(requests, 1))
}
