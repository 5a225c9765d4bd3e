package store

import (
	"context"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/quota"
)

// TestShares: instances that cannot reach Redis share what remained, rounded up, and a
// window that nobody has seen.
func TestShares(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	var fleet []*Fallback
	for i := range 3 {
		f := fallbackOn(hastyStore(t, server.Options.RedisAddress, time.Second), func(o *FallbackOptions) {
			o.Instance, o.AssumedInstances = strconv.Itoa(i), 7
		})
		if f.Instances() != 7 {
			t.Errorf("%d instances assumed: want 7", f.Instances())
		}
		runs(t, f)
		fleet = append(fleet, f)
	}
	for _, f := range fleet {
		becomes(t, "all three are known", func() bool { return f.Instances() == 3 })
	}
	for i := range int64(3) {
		wantTaken(t, take(t, fleet[0], of("a", charge(quota.Month, 10, 1))), true, i+1)
	}
	for _, f := range fleet[1:] {
		wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 0))), true, 3)
	}
	kill(t, server)
	for _, f := range fleet {
		for i := range int64(3) { // 7 remained: 3 for each, and the limit stays
			taken := take(t, f, of("a", charge(quota.Month, 10, 1)))
			wantTaken(t, taken, true, 8+i)
			if !taken.Degraded {
				t.Error("degraded is not said")
			}
		}
		wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 1))), false, 10)
		wantTaken(t, take(t, f, of("new", charge(quota.Month, 10, 4))), true, 10)
		wantTaken(t, take(t, f, of("new", charge(quota.Month, quota.NoMax, 4))), true, 8)
		if f.Instances() != 3 {
			t.Errorf("%d instances: want those last known", f.Instances())
		}
	}
	start(t, server)
	for _, f := range fleet {
		becomes(t, "counts are shared again", func() bool { return allShared(f) })
	}
	wantTaken(t, take(t, fleet[0], of("a", charge(quota.Month, 10, 0))), true, 9) // Redis forgot the 3 from before
	wantTaken(t, take(t, fleet[1], of("new", charge(quota.Month, 10, 0))), true, 24)
	if f := fleet[2]; f.Instances() != 3 {
		t.Errorf("%d instances after the outage: want 3", f.Instances())
	}
}

// TestInstancesComeAndGo: one that stops is no longer counted soon, nor one that is killed.
func TestInstancesComeAndGo(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	one := fallbackOn(r, nil)
	two := fallbackOn(r, func(o *FallbackOptions) { o.Instance = "two" })
	ctx := t.Context()
	one.beat(ctx, false)
	two.beat(ctx, false)
	one.beat(ctx, false)
	if one.Instances() != 2 || two.Instances() != 2 {
		t.Errorf("%d and %d instances: want 2", one.Instances(), two.Instances())
	}
	two.beat(ctx, true)
	for i := range fewerBeats {
		if one.Instances() != 2 {
			t.Errorf("one fewer after %d beats: want %d", i, fewerBeats)
		}
		one.beat(ctx, false)
	}
	if one.Instances() != 1 {
		t.Errorf("%d instances: want 1", one.Instances())
	}
	r.client.ZAdd(ctx, "test:{~fleet}:live", zAt(float64(time.Now().Add(-silent).UnixMilli()), "killed"))
	one.beat(ctx, false)
	if one.Instances() != 1 {
		t.Errorf("%d instances with one that is silent: want 1", one.Instances())
	}
	if ttl := r.client.PTTL(ctx, "test:{~fleet}:live").Val(); ttl <= 0 {
		t.Error("the fleet has no TTL")
	}
}

// TestRedisThatLosesCounts: who was heard by it tells of what it does not know any more, once.
func TestRedisThatLosesCounts(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	var lost []time.Duration // what Redis knew of; -1: nothing is left
	f := fallbackOn(r, func(o *FallbackOptions) {
		o.Notices.Lost = func(since, until time.Time) {
			if since.IsZero() {
				lost = append(lost, -1)
			} else {
				lost = append(lost, until.Sub(since))
			}
		}
	})
	beats := func(want ...time.Duration) {
		t.Helper()
		for range 2 {
			f.beat(t.Context(), false)
		}
		if !slices.Equal(lost, want) {
			t.Errorf("lost %v: want %v", lost, want)
		}
	}
	beats()
	const heard = "test:{~fleet}:heard"
	at, err := r.client.Get(t.Context(), heard).Int64()
	if err != nil || r.client.PTTL(t.Context(), heard).Val() <= 0 {
		t.Fatalf("heard at %d, or without a TTL: %v", at, err)
	}
	r.client.Set(t.Context(), heard, at-3_600_000, time.Hour)
	beats(time.Hour)
	r.client.FlushAll(t.Context())
	beats(time.Hour, -1)
}

// TestStopWhileDegraded: what could not be given back is said; what can be is.
func TestStopWhileDegraded(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	f := fallbackOn(hastyStore(t, server.Options.RedisAddress, time.Second), nil)
	stop := runs(t, f)
	kill(t, server)
	take(t, f, of("a", charge(quota.Month, 10, 3)))
	if err := stop(); err == nil {
		t.Error("nothing is said of what is lost")
	} else {
		t.Log(err)
	}
	again := fallbackOn(hastyStore(t, server.Options.RedisAddress, time.Second), nil)
	take(t, again, of("a", charge(quota.Month, 10, 3)))
	start(t, server)
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if err := again.Run(done); err != nil {
		t.Error(err)
	}
	wantTaken(t, take(t, redisStore(t, server), of("a", charge(quota.Month, 10, 0))), true, 3)
}

func zAt(score float64, member string) redis.Z { return redis.Z{Score: score, Member: member} }
