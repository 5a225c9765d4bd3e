package e2e

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/devstack"
)

// sentinelFailOver: the primary of three servers is killed, and Sentinels promote a
// replica: one, since what is counted in a primary until another takes its place is lost.
func sentinelFailOver(t *testing.T) row {
	set, err := devstack.StartSentinels(t.Context(), devstack.SentinelOptions{Dir: t.TempDir(), Replicas: 2})
	if err != nil {
		t.Fatal(err)
	}
	stopAfterwards(t, set.Stop)
	defer tellEvents(t, set)
	f := newTrial(t, devstack.Options{RedisRunning: true, RedisAddress: set.Servers[0].Address, Sets: []string{
		"store.redis.sentinel.addresses=[" + strings.Join(set.Addresses(), ", ") + "]", "store.redis.sentinel.master=" + devstack.SentinelMaster,
	}}, 2)
	received := map[*devstack.RedisServer]map[counted]int64{}
	var promoted *devstack.RedisServer
	r := f.run("Sentinel fail-over", 0, func() {
		killServer(t, set.Servers[0])
		for _, replica := range set.Servers[1:] {
			received[replica] = minuteCounts(t, replica.Address)
		}
	}, func() {
		eventuallyWithin(t, 30*time.Second, "a replica is promoted", func() bool {
			primary, err := set.Primary(t.Context())
			if err != nil || primary == set.Servers[0] {
				return false
			}
			promoted = primary
			role, err := primary.Do(t.Context(), "ROLE")
			return err == nil && strings.HasPrefix(role, "master")
		})
	})
	return f.checkFailOver(r, received[promoted])
}

// tellEvents sees to it that no more than one server was promoted, and tells of a trial
// that failed what the Sentinels and the servers noted.
func tellEvents(t *testing.T, set *devstack.SentinelSet) {
	t.Helper()
	events, err := set.Events()
	if err != nil {
		t.Fatal(err)
	}
	promotions, lines := 0, strings.Builder{}
	for _, e := range events {
		if e.Promoted() {
			promotions++
		}
		fmt.Fprintln(&lines, e)
	}
	if promotions > 1 {
		t.Errorf("%d servers were promoted, one after the other, and what was counted in one until the next took its place is lost: want one", promotions)
	}
	if t.Failed() {
		t.Logf("noted of the fail-over:\n%s", &lines)
	}
}

// clusterFailOver: one of three primaries is killed, and its replica takes over.
func clusterFailOver(t *testing.T) row {
	f, c := newClusterTrial(t)
	name := "tiergate:{" + keyID(countedKey(0)) + "}:counts"
	owner, err := c.Owner(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	received := map[counted]int64{}
	r := f.run("Cluster fail-over", 0, func() {
		killServer(t, owner)
		for i, server := range c.Servers {
			if server == owner {
				received = minuteCounts(t, c.Servers[i+3].Address)
			}
		}
	}, func() {
		eventuallyWithin(t, 30*time.Second, "the replica is promoted", func() bool {
			now, err := c.Owner(t.Context(), name)
			return err == nil && now != owner
		})
	})
	return f.checkFailOver(r, received)
}

// newClusterTrial starts two instances on a Cluster of three primaries, each with a
// replica: the servers 3, 4 and 5.
func newClusterTrial(t *testing.T) (*trial, *devstack.RedisCluster) {
	t.Helper()
	c, err := devstack.StartRedisCluster(t.Context(), devstack.ClusterOptions{Dir: t.TempDir(), Replicas: 1})
	if err != nil {
		t.Fatal(err)
	}
	stopAfterwards(t, c.Stop)
	return newTrial(t, devstack.Options{RedisRunning: true, RedisAddress: c.Servers[0].Address, Sets: []string{
		"store.redis.cluster.addresses=[" + strings.Join(c.Addresses(), ", ") + "]",
	}}, 2), c
}

// checkFailOver checks the row of a fail-over to a replica that had received these counts:
// what it had not may be missing, and admitted again.
func (f *trial) checkFailOver(r row, received map[counted]int64) row {
	f.t.Helper()
	missing := f.missing(received)
	f.t.Logf("the promoted replica had not received %d requests that clients had seen admitted", missing)
	return f.check(r, promise{over: f.stale() + missing, lost: missing + f.inDoubt(), doubt: f.inDoubt(), tokens: f.unsettled() + 100*missing})
}

// missing sums up what clients had seen counted in Redis before the fault and a server has
// not received. Counts of another minute are left out, and those of keys that the server
// does not have.
func (f *trial) missing(received map[counted]int64) int {
	seen, window := map[string]int64{}, int64(0)
	for _, o := range f.outcomes {
		if o.status != http.StatusOK || o.degraded || o.due+o.took > f.struck || o.window < window {
			continue
		}
		if o.window > window {
			window = o.window
			clear(seen)
		}
		seen[o.key] = max(seen[o.key], o.used)
	}
	sum := int64(0)
	for i := range countedKeys {
		key := countedKey(i)
		if n, ok := received[counted{keyID(key), window}]; ok {
			sum += max(0, seen[key]-n)
		}
	}
	return int(sum)
}

// A counted is a key and when a minute ends, Unix seconds.
type counted struct {
	id  string
	end int64
}

// minuteCounts returns what a server, which may be a replica, has counted of each counted
// key's requests in its last minute, by the key's ID and the end of that minute.
func minuteCounts(t *testing.T, address string) map[counted]int64 {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: address, MaxRetries: -1})
	defer c.Close()
	counts := map[counted]int64{}
	values := make([]*redis.StringCmd, countedKeys)
	// Errors are of single keys: a replica has no counts of the others.
	_, _ = c.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		p.ReadOnly(t.Context()) // what replicas of a Cluster want to hear; others refuse it
		for i := range values {
			values[i] = p.HGet(t.Context(), "tiergate:{"+keyID(countedKey(i))+"}:counts", "requests/minute")
		}
		return nil
	})
	for i, value := range values {
		start, used, _ := strings.Cut(value.Val(), " ")
		began, errBegan := strconv.ParseInt(start, 10, 64)
		n, errUsed := strconv.ParseInt(used, 10, 64)
		if errBegan == nil && errUsed == nil {
			counts[counted{keyID(countedKey(i)), began/1000 + 60}] = n
		}
	}
	return counts
}

// clusterResharding: the slot of a key moves from one primary to another and back, again
// and again, while it is counted in. Nothing is lost.
func clusterResharding(t *testing.T) row {
	f, c := newClusterTrial(t)
	name := "tiergate:{" + keyID(countedKey(0)) + "}:counts"
	home, err := c.Owner(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	other := c.Servers[0]
	if other == home {
		other = c.Servers[1]
	}
	moves := 0
	r := f.run("Cluster resharding", 0, func() {
		for began := time.Now(); time.Since(began) < pick(10*time.Second, 2*time.Second); moves++ {
			if err := c.MoveSlot(t.Context(), name, []*devstack.RedisServer{other, home}[moves%2], nil); err != nil {
				t.Fatal(err)
			}
		}
	}, func() {})
	t.Logf("the slot was moved %d times", moves)
	return f.check(r, promise{doubt: f.inDoubt(), lost: f.inDoubt(), tokens: f.unsettled()})
}

func killServer(t *testing.T, r *devstack.RedisServer) {
	t.Helper()
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
}

// stopAfterwards ends something with the test.
func stopAfterwards(t *testing.T, stop func() error) {
	t.Helper()
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}
