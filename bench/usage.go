package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// tick is the unit of /proc/PID/stat: USER_HZ, which is 100 on every Linux that Go runs on.
const tick = 10 * time.Millisecond

// cpu is the time that a process has used, in user and kernel mode, to a tick. Of
// process 0 it is 0.
func cpu(pid int) (time.Duration, error) {
	if pid == 0 {
		return 0, nil
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read the CPU of a process: %w", err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("read the CPU of process %d: %d fields after its name: want 13 at least", pid, len(fields))
	}
	ticks := int64(0)
	for _, f := range fields[11:13] { // utime and stime
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the CPU of process %d: %w", pid, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * tick, nil
}

// redisUsage is what a Redis server has done since its start.
type redisUsage struct {
	cpu      time.Duration
	commands int64 // all, also those of scripts
}

func (u redisUsage) since(before redisUsage) redisUsage {
	return redisUsage{u.cpu - before.cpu, u.commands - before.commands}
}

// usageOf asks a Redis server; nil has none.
func usageOf(ctx context.Context, client *redis.Client) (redisUsage, error) {
	var u redisUsage
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
		}
	}
	return u, nil
}

func perRequest(d time.Duration, requests int64) float64 {
	return float64(d.Nanoseconds()) / 1000 / float64(max(requests, 1))
}
