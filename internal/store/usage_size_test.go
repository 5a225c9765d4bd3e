package store

import (
	"strconv"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/usage"
)

// TestUsageOfManyAccounts adds a batch of 10,000 accounts while others use Redis. None
// of its commands may keep Redis for long. What it cost is logged.
func TestUsageOfManyAccounts(t *testing.T) {
	t.Parallel()
	const accounts = 10_000
	const long = 250 * time.Millisecond // all in one would take longer, one alone takes 1 ms; but machines pause
	server := redisServer(t)
	r := redisStore(t, server)
	u := &usageTest{T: t, now: noon()}
	u.usageStore = NewRedisUsage(r, func() time.Time { return u.now })
	memory := func() int64 {
		n, err := strconv.ParseInt(r.client.InfoMap(t.Context(), "memory").Item("Memory", "used_memory"), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if err := r.client.ConfigSet(t.Context(), "slowlog-log-slower-than", strconv.Itoa(int(long.Microseconds()))).Err(); err != nil {
		t.Fatal(err)
	}
	recorder := u.recorder("a")
	before := memory()
	for i := range accounts {
		u.admit(recorder, "key_"+strconv.Itoa(i), "chat", 10)
		u.settle(recorder, "key_"+strconv.Itoa(i), "chat", 100, 100)
	}
	b := recorder.Flush()
	began := time.Now()
	if err := u.Add(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	stats := r.client.InfoMap(t.Context(), "commandstats").Item("Commandstats", "cmdstat_evalsha")
	t.Logf("added in %s; %s; %d bytes an account", took, stats, (memory()-before)/accounts)
	for _, slow := range r.client.SlowLogGet(t.Context(), 10).Val() {
		t.Errorf("%s took %s", slow.Args[0], slow.Duration)
	}
	if p := u.series(usage.FleetByResource, usage.Minute, time.Hour); len(p) != 2 || p[0].Admitted != 10*accounts {
		t.Errorf("%q: want %d", lines(p), 10*accounts)
	}
}
