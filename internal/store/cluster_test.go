package store

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/devstack"
	"github.com/tiergate/tiergate/internal/quota"
)

// startCluster starts a Cluster of three primaries that is stopped with the test.
func startCluster(t *testing.T, replicas int) *devstack.RedisCluster {
	t.Helper()
	c, err := devstack.StartRedisCluster(t.Context(), devstack.ClusterOptions{Dir: t.TempDir(), Replicas: replicas})
	if err != nil {
		t.Fatal(err)
	}
	stopLater(t, c.Stop)
	return c
}

func ownerOf(t *testing.T, c *devstack.RedisCluster, key string) *devstack.RedisServer {
	t.Helper()
	owner, err := c.Owner(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return owner
}

// moveSlot moves the slot of a key to the next server, as RedisCluster.MoveSlot does.
func moveSlot(t *testing.T, c *devstack.RedisCluster, key string, between func()) {
	t.Helper()
	i := slices.Index(c.Servers, ownerOf(t, c, key))
	if err := c.MoveSlot(t.Context(), key, c.Servers[(i+1)%len(c.Servers)], between); err != nil {
		t.Fatal(err)
	}
}

// inCluster returns options of a store in a Cluster.
func inCluster(addresses []string) RedisOptions {
	return RedisOptions{Cluster: addresses, KeyPrefix: "test", Timeout: 5 * time.Second, PoolSize: 8}
}

// memberOf returns options of a store in a Cluster, of which it is told one server, as the
// documented user. What it may use begins with tiergate.
func memberOf(t *testing.T, c *devstack.RedisCluster) RedisOptions {
	t.Helper()
	o, err := clusterUser(inCluster(c.Addresses()[:1]), c)
	if err != nil {
		t.Fatal(err)
	}
	o.KeyPrefix = "tiergate"
	return o
}

// TestNoSecondChargeInACluster: a call whose answer is lost is not sent again, neither to
// the same server nor to another, where the client of a Cluster repeats all else.
func TestNoSecondChargeInACluster(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 0)
	var proxies []*lossyProxy
	var addresses []string
	for _, server := range c.Servers {
		proxy := newLossyProxy(t, server.Address)
		_, port, _ := strings.Cut(proxy.address, ":")
		do(t, server, "CONFIG", "SET", "cluster-announce-port", port)
		proxies, addresses = append(proxies, proxy), append(addresses, proxy.address)
	}
	for _, server := range c.Servers {
		soon(t, func() error { // until all have heard of it
			slots := do(t, server, "CLUSTER", "SLOTS")
			for _, p := range proxies {
				if _, port, _ := strings.Cut(p.address, ":"); !strings.Contains(slots, port) {
					return fmt.Errorf("%s does not name %s", server.Address, p.address)
				}
			}
			return nil
		})
	}
	r := openRedis(t, inCluster(addresses))
	wantTaken(t, take(t, r, one("a")), true, 1)
	if evals := evalsOf(t, c); evals != 2 { // one in vain, for the function was not there
		t.Fatalf("%d calls", evals)
	}
	sent, lost := 0, 0
	for range 10 {
		wantTaken(t, take(t, r, one("b")), true, 1) // there are connections
		r.client.Del(t.Context(), countsKey("test", "b"))
		before := evalsOf(t, c)
		for _, p := range proxies {
			p.losing.Store(true) // whichever has the account, and whichever else is asked
		}
		_, err := r.Take(t.Context(), one("a"))
		for _, p := range proxies {
			p.losing.Store(false)
		}
		n := evalsOf(t, c) - before
		if n > 1 || (n == 1 && err != nil && !outcomeUnknown(err)) {
			t.Errorf("the call was sent %d times: %v", n, err)
		}
		if n == 1 && err != nil { // else it was the answer to another command that got lost
			lost++
		}
		sent += n
	}
	if lost == 0 {
		t.Error("no answer to a call was lost: the test proves nothing")
	}
	wantTaken(t, take(t, r, one("a")), true, int64(sent)+2)
}

// evalsOf returns how many calls of functions and scripts the servers have had.
func evalsOf(t *testing.T, c *devstack.RedisCluster) int {
	t.Helper()
	total := 0
	for _, server := range c.Servers {
		calls, err := devstack.ParseInfo(do(t, server, "INFO", "commandstats"))
		if err != nil {
			t.Fatal(err)
		}
		total += int(calls["cmdstat_fcall"] + calls["cmdstat_evalsha"] + calls["cmdstat_eval"])
	}
	return total
}

// TestSlotMovesWhileCounting: the counts are exact, with reservations and without.
func TestSlotMovesWhileCounting(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 0)
	r := openRedis(t, memberOf(t, c))
	var plain, kept, waiting atomic.Int64
	count := func(reserved bool, n int64) {
		o, admitted := one("a"), &plain
		if reserved {
			o.Request, o.Secret, o.Keep = "r"+strconv.FormatInt(n, 10), "s", time.Minute
			admitted = &kept
		}
		_, err := r.Take(t.Context(), o)
		switch {
		case err == nil:
			admitted.Add(1)
		case reserved && !outcomeUnknown(err) && redis.IsTryAgainError(err): // nothing was done
			waiting.Add(1)
		default:
			t.Errorf("reserved %t: %v", reserved, err)
		}
		waits(t.Context(), time.Millisecond)
	}
	stop := make(chan struct{})
	var counting sync.WaitGroup
	var requests atomic.Int64
	for i := range 4 {
		counting.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					count(i%2 == 0, requests.Add(1))
				}
			}
		})
	}
	for range 6 {
		had := requests.Load()
		soon(t, func() error {
			if requests.Load() < had+50 {
				return errors.New("no requests")
			}
			return nil
		})
		moveSlot(t, c, countsKey(r.prefix, "a"), nil)
	}
	close(stop)
	counting.Wait()
	t.Logf("%d counted with a reservation, %d without, %d refused", kept.Load(), plain.Load(), waiting.Load())
	wantTaken(t, take(t, r, of("a", charge(quota.Month, 1_000_000, 0))), true, plain.Load()+kept.Load())
	if kept.Load() < 50 || plain.Load() < 50 {
		t.Error("too few to prove anything")
	}
}

// freePort is for what Clusters talk by among themselves.
func freePort(t *testing.T) string {
	t.Helper()
	address, err := devstack.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(address, ":")
	return port
}

// TestParts: the parts of accounts are those of their slots, and each is checked in itself.
func TestParts(t *testing.T) {
	t.Parallel()
	r := formStore(t, "cluster")
	server := startRedis(t, "--cluster-enabled", "yes", "--cluster-port", freePort(t))
	seen := map[int]bool{}
	for i := range 200 {
		account := "key_" + strconv.Itoa(i)
		slot, err := strconv.Atoi(do(t, server, "CLUSTER", "KEYSLOT", countsKey("p", account)))
		if err != nil || slotOf(account) != slot {
			t.Fatalf("%s: slot %d: want %d: %v", account, slotOf(account), slot, err)
		}
		part := r.part(account)
		if part != slot*16/16384 {
			t.Errorf("%s: part %d of slot %d", account, part, slot)
		}
		seen[part] = true
	}
	if len(seen) != 16 || r.parts() != 16 {
		t.Errorf("parts %v of %d", seen, r.parts())
	}
	for part, p := range r.checked {
		if got := r.part(p.account); got != part {
			t.Errorf("%s is of part %d: want %d", p.account, got, part)
		}
		if err := r.Check(t.Context(), part); err != nil {
			t.Error(err)
		}
	}
}

// TestClusterFailsOver: a primary is killed. What the others have goes on; what it had is
// back with its replica, by itself; so is the directory of keys.
func TestClusterFailsOver(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	o := inCluster(c.Addresses()[:3])
	o.Timeout = 500 * time.Millisecond
	r := openRedis(t, o)
	k := NewRedisKeys(r, KeyNotices{})
	w := watch(t, k)
	w.await(t, write(t, k, newRecord("before"))[0])

	lost := ownerOf(t, c, "test:{keys}:records")
	var there, elsewhere string // accounts
	for i := 0; there == "" || elsewhere == ""; i++ {
		account := "a" + strconv.Itoa(i)
		if ownerOf(t, c, countsKey("test", account)) == lost {
			there = account
		} else {
			elsewhere = account
		}
	}
	take(t, r, one(there))
	take(t, r, one(elsewhere))
	do(t, lost, "WAIT", "1", "1000")
	if err := lost.Kill(); err != nil {
		t.Fatal(err)
	}
	failures := 0
	began := time.Now()
	soon(t, func() error {
		take(t, r, one(elsewhere))
		_, err := r.Take(t.Context(), one(there))
		if err != nil {
			failures++
		}
		return err
	})
	t.Logf("back after %s and %d failures", time.Since(began).Round(time.Millisecond), failures)
	if failures == 0 {
		t.Error("the primary was not lost: the test proves nothing")
	}
	wantTaken(t, take(t, r, one(there)), true, 3)
	soon(t, func() error { return r.Ping(t.Context()) })
	w.await(t, writeSoon(t, k, newRecord("after")))
}

// writeSoon writes a record of a key as soon as it can be written.
func writeSoon(t *testing.T, k keyStore, record apikey.Record) apikey.Record {
	t.Helper()
	var written []apikey.Record
	soon(t, func() error {
		var err error
		written, err = k.Write(t.Context(), []apikey.Change{{Record: record}})
		return err
	})
	return written[0]
}

// TestSlotOfKeysMoves: watchers of the directory follow it to another server.
func TestSlotOfKeysMoves(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 0)
	k := NewRedisKeys(openRedis(t, memberOf(t, c)), KeyNotices{})
	w := watch(t, k)
	w.await(t, write(t, k, newRecord("before"))[0])
	moveSlot(t, c, k.records, nil)
	w.await(t, write(t, k, newRecord("after"))[0])
}

// TestSentinelFailsOver: the primary is killed, and its replica is used, by itself.
func TestSentinelFailsOver(t *testing.T) {
	t.Parallel()
	set, err := devstack.StartSentinels(t.Context(), devstack.SentinelOptions{Dir: t.TempDir(), Replicas: 1})
	if err != nil {
		t.Fatal(err)
	}
	stopLater(t, set.Stop)
	o, err := sentinelUser(set)
	if err != nil {
		t.Fatal(err)
	}
	o.Sentinels = append([]string{"127.0.0.1:1"}, o.Sentinels...) // one of them is away
	o.KeyPrefix, o.Timeout, o.PoolSize = "tiergate", 500*time.Millisecond, 8
	r := openRedis(t, o)
	k := NewRedisKeys(r, KeyNotices{})
	w := watch(t, k)
	w.await(t, writeSoon(t, k, newRecord("before")))
	soon(t, func() error { return r.Check(t.Context(), 0) })
	take(t, r, one("a"))
	do(t, set.Servers[0], "WAIT", "1", "1000")
	if err := set.Servers[0].Kill(); err != nil {
		t.Fatal(err)
	}
	failures := 0
	began := time.Now()
	soon(t, func() error {
		_, err := r.Take(t.Context(), one("a"))
		if err != nil {
			failures++
		}
		return err
	})
	t.Logf("back after %s and %d failures", time.Since(began).Round(time.Millisecond), failures)
	if failures == 0 {
		t.Error("the primary was not lost: the test proves nothing")
	}
	wantTaken(t, take(t, r, one("a")), true, 3)
	w.await(t, writeSoon(t, k, newRecord("after")))
}
