package store

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
	"github.com/tiergate/tiergate/internal/quota"
)

// TestRefusedByRedis: what Redis refuses, because it is a replica, is not done there, and so
// given back.
func TestRefusedByRedis(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	direct := redisStore(t, server)
	f := fallbackOn(hastyStore(t, server.Options.RedisAddress, time.Second), nil)
	wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 1))), true, 1)
	address, err := devstack.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(address)
	if err := direct.client.Do(t.Context(), "replicaof", host, port).Err(); err != nil { // READONLY
		t.Fatal(err)
	}
	for i := range int64(5) {
		wantTaken(t, take(t, f, of("a", charge(quota.Month, 10, 1))), true, i+2)
	}
	if !f.State().Degraded {
		t.Error("not degraded")
	}
	if err := direct.client.Do(t.Context(), "replicaof", "no", "one").Err(); err != nil {
		t.Fatal(err)
	}
	runs(t, f)
	becomes(t, "counts are shared again", func() bool { return allShared(f) })
	wantTaken(t, take(t, direct, of("a", charge(quota.Month, 10, 0))), true, 6)
}

// TestOneBadKeyDegradesNobodyElse: a key whose counts are of a wrong type in Redis fails alone.
func TestOneBadKeyDegradesNobodyElse(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	f := fallbackOn(r, nil)
	if err := r.patient.Set(t.Context(), countsKey(r.prefix, "bad"), "text", 0).Err(); err != nil {
		t.Fatal(err)
	}
	for range 2 * mostFailures {
		if taken := take(t, f, of("bad", charge(quota.Month, 1000, 1))); !taken.Degraded {
			t.Error("it is counted")
		}
	}
	if taken := take(t, f, of("good", charge(quota.Month, 1000, 1))); taken.Degraded || f.State().Degraded {
		t.Errorf("others are degraded too: %+v", f.State())
	}
}

// TestTimeOutsBesideAnswers: calls that take too long open nothing while others are answered.
func TestTimeOutsBesideAnswers(t *testing.T) {
	t.Parallel()
	f := fallbackOn(redisStore(t, redisServer(t)), nil)
	take(t, f, of("a", charge(quota.Month, 1000, 1)))
	for range 2 * mostFailures {
		f.failed(f.part("a"), context.DeadlineExceeded)
	}
	if f.State().Degraded {
		t.Error("Redis is taken for away, though it has just answered")
	}
}
