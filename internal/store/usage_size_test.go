package store

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/usage"
)

// TestUsageOfManyAccounts: while a batch is added Redis turns to its other clients again and again,
// for it has a few accounts at a time; more of a batch that would take long, on a slow network, and
// most of one that has to be done by a time. What that cost is logged.
func TestUsageOfManyAccounts(t *testing.T) {
	t.Parallel()
	const accounts, few = 2000, 8
	for _, c := range []struct {
		name        string
		apart       bool          // as in a Cluster
		cells       int           // of an account
		trip        time.Duration // that each takes, by the clock of the test
		last        bool
		least, most int // how often Redis reads
	}{
		{name: "together", cells: 1, least: accounts/few + 2*accounts/ranksInPart, most: 2 * accounts / few},
		{name: "of many resources", cells: 10, least: accounts, most: 2 * accounts},
		{name: "apart", apart: true, cells: 1, least: accounts/few + 2*accounts/ranksInPart, most: 3 * accounts / few},
		{name: "a slow network", cells: 1, trip: 50 * time.Millisecond, least: 40, most: 140},
		{name: "the last batch", cells: 1, last: true, least: 10, most: 100},
	} {
		server := redisServer(t)
		r := redisStore(t, server)
		r.keepApart.Store(c.apart)
		u := &usageTest{T: t, now: noon()}
		u.usageStore = NewRedisUsage(r, func() time.Time {
			u.now = u.now.Add(c.trip)
			return u.now
		})
		info := func(section, title, item string) int {
			n, err := strconv.Atoi(r.client.InfoMap(t.Context(), section).Item(title, item))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		recorder := u.recorder("a")
		for i := range accounts {
			for resource := range c.cells {
				u.admit(recorder, "key_"+strconv.Itoa(i), "resource"+strconv.Itoa(resource), 10)
				u.settle(recorder, "key_"+strconv.Itoa(i), "resource"+strconv.Itoa(resource), 100, 100)
			}
		}
		b := recorder.Flush()
		ctx := t.Context()
		if c.last {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, time.Minute)
			defer cancel()
		}
		memory, reads, began := info("memory", "Memory", "used_memory"), info("stats", "Stats", "total_reads_processed"), time.Now()
		if err := u.Add(ctx, b); err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		reads = info("stats", "Stats", "total_reads_processed") - reads
		t.Logf("%s: added in %s; read %d times; %s; %d bytes an account", c.name, took, reads,
			r.client.InfoMap(t.Context(), "commandstats").Item("Commandstats", "cmdstat_evalsha"), (info("memory", "Memory", "used_memory")-memory)/accounts)
		if reads < c.least || reads > c.most {
			t.Errorf("%s: Redis has read %d times, want %d to %d", c.name, reads, c.least, c.most)
		}
		if p := u.series(usage.FleetByResource, usage.Hour, 24*time.Hour); len(p) != 1+c.cells || p[0].Admitted != int64(10*accounts*c.cells) {
			t.Errorf("%s: %q: want %d", c.name, lines(p), 10*accounts*c.cells)
		}
	}
}
