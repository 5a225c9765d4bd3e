package main

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/redis/go-redis/v9"
	"github.com/tiergate/tiergate/internal/devstack"
)

// startRedis starts a Redis for the test.
func startRedis(t *testing.T) *redis.Client {
	t.Helper()
	server, err := devstack.StartRedisServer(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(&redis.Options{Addr: server.Address})
	t.Cleanup(func() {
		if err := errors.Join(client.Close(), server.Stop()); err != nil {
			t.Error(err)
		}
	})
	return client
}

// TestScriptFloor: Redis gets as many requests a second as of TierGate, in batches as large
// and in those of 32, while the canned answer takes a load.
func TestScriptFloor(t *testing.T) {
	t.Parallel()
	client := startRedis(t)
	var answered atomic.Int64
	var s scripted
	s.check = func(context.Context) (*authv3.CheckResponse, error) { answered.Add(1); return s.allowed, nil }
	address, _ := s.start(t)
	b := &bed{
		targets: map[string]target{"ratelimit": {redis: client}},
	}
	canned, err := newGenerator(t.Context(), address, load{protocol: check, keys: []string{"a", "b", "c"}, inFlight: 2, connections: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer canned.close()
	floors, err := b.newFloors(t.Context(), canned)
	if err != nil {
		t.Fatal(err)
	}
	of, f := &outcome{requests: 2000, settlements: 1120, elapsed: time.Second}, figures{}
	for _, floor := range floors {
		if err := errors.Join(floor.warm(t.Context(), of, 7.8, 80*time.Millisecond), floor.measure(t.Context(), of, 300*time.Millisecond), floor.add(f)); err != nil {
			t.Fatal(err)
		}
	}
	u, err := usageOf(t.Context(), client)
	if err != nil {
		t.Fatal(err)
	}
	// 3,120 requests and settlements a second, for 80 ms to warm and for 300 ms: 31 and 117 calls with 8, 7 and
	// 29 with 32.
	if have := []int64{u.calls["evalsha"], u.calls["hmget"]}; !slices.Equal(have, []int64{31 + 117 + 7 + 29, 8*(31+117) + 32*(7+29)}) {
		t.Errorf("the script was called %d times for %d requests", have[0], have[1])
	}
	if f[floorHere] <= 0 || f[floorIn32] <= 0 || f[floorKept] <= 0 || f[floorKept] > 1 {
		t.Errorf("have %v: want a floor of both kinds and what was kept of its rate", f)
	}
	if answered.Load() < 50 {
		t.Errorf("the canned answer had %d requests meanwhile", answered.Load())
	}
	for i, want := range []int64{32 * (29 + 29), 8 * (117 + 117)} { // of two turns
		floor := floors[i]
		if err := floor.measure(t.Context(), of, 300*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		if floor.requests != want || floor.due < 0.9*float64(want) {
			t.Errorf("%s: %d requests of %.0f that were due: want %d of about as many", floor.figure, floor.requests, floor.due, want)
		}
	}
}

// TestNoFloor: a turn too short for a call of the script is an error, and no floor.
func TestNoFloor(t *testing.T) {
	t.Parallel()
	f := figures{}
	if err := (&floor{figure: floorHere}).add(f); err == nil || len(f) > 0 {
		t.Errorf("have %v and %v: want an error alone", err, f)
	}
}

// TestSlowFloor: a report tells where the floor did not keep its rate.
func TestSlowFloor(t *testing.T) {
	t.Parallel()
	r := results{
		"requests, redis, Check": {{floorKept: 0.8}, {floorKept: 0.9}, {floorKept: 0.7}},
		"requests, redis, RLS":   {{floorKept: 0.9}},
	}
	if have := r.slow(); !slices.Equal(have, []string{"requests, redis, Check (80 %)"}) {
		t.Errorf("have %q", have)
	}
}
