package store

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/usage"
)

// everything adds something of all that is kept of an account.
func (u *usageTest) everything(r *usage.Recorder) {
	u.Helper()
	d := u.decided("k")
	d.Reason = "requests_per_minute"
	how := decision(u.T, 2, quota.Limit{Metric: quota.Requests, Window: quota.Minute, Max: 1})
	how.Now = d.At
	r.Decided(d, how)
	u.settle(r, "k", "chat", 1, 1)
	u.add(r)
}

// TestUsageEndsInTheFile: what has ended is deleted with its block, not before; what
// is left outlives the process.
func TestUsageEndsInTheFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "usage.db")
	f, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	u := &usageTest{T: t, now: noon()}
	u.usageStore = NewFileUsage(f, func() time.Time { return u.now })
	r := u.recorder("a")
	u.everything(r)
	has := func(b block) bool {
		found := false
		err := f.db.View(func(tx *bbolt.Tx) error {
			found = tx.Bucket(b.bucket()).Bucket(blockName(b.number(noon()))) != nil
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	ending := map[time.Time][]block{}
	for _, b := range allBlocks() {
		end := b.ends(b.number(noon()))
		ending[end] = append(ending[end], b)
	}
	for _, end := range slices.SortedFunc(maps.Keys(ending), time.Time.Compare) {
		for _, ended := range []bool{false, true} {
			u.now = end
			if !ended {
				u.now = end.Add(-time.Second)
			}
			u.everything(r)
			for _, b := range ending[end] {
				if has(b) == ended {
					t.Errorf("at %s: %s are there: %t, want %t", u.now, b.name, has(b), !ended)
				}
			}
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	again := fileUsage(t, path)
	again.now = u.now
	if p := again.series("k", usage.Minute, time.Hour); len(p) < 2 || p[0].Requests() != 1 {
		t.Errorf("opened again: %q: want 1", lines(p))
	}
}

// TestUsageEndsInRedis: every key has a TTL, as long as what is in it is kept.
func TestUsageEndsInRedis(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	u := &usageTest{T: t, now: noon()}
	u.usageStore = NewRedisUsage(r, func() time.Time { return u.now })
	u.everything(u.recorder("a"))
	if err := u.Tell(t.Context(), usage.Instance{ID: "a", Seen: u.now}); err != nil {
		t.Fatal(err)
	}
	until := func(b block) time.Duration { return b.ends(b.number(u.now)).Sub(u.now) }
	want := map[string]time.Duration{
		"k}:usage:last": lastUsedKept, "k}:usage:refused": refusalsKept, "k}:usage:batch": batchKept,
		"~resource}:usage:batch": batchKept, "~fleet}:usage:batch": batchKept,
		"~fleet}:usage:instances": 2 * instanceKept,
		"~fleet}:usage:top":       until(topBlock()), "~fleet}:usage:near": until(nearBlock()),
	}
	for _, b := range pointBlocks() {
		want["k}:usage:"+b.name], want["~tier}:usage:"+b.name] = until(b), until(b)
	}
	seen := map[string]bool{}
	for _, key := range r.client.Keys(t.Context(), "*").Val() {
		ttl := r.client.PTTL(t.Context(), key).Val()
		if ttl <= 0 {
			t.Errorf("%s has no TTL", key)
		}
		for name, kept := range want {
			if strings.HasPrefix(key, "test:{"+name) {
				seen[name] = true
				if ttl > kept+time.Second || ttl < kept-time.Minute {
					t.Errorf("TTL of %s: %s, want %s", key, ttl, kept)
				}
			}
		}
	}
	for name := range want {
		if !seen[name] {
			t.Errorf("no key of %s", name)
		}
	}
}

// TestUsageLostAnswer: an answer of Redis that is lost makes Add fail, though Redis
// has counted; the next Add of the batch counts what is missing. Scripts that Redis
// has forgotten are loaded again.
func TestUsageLostAnswer(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	proxy := newLossyProxy(t, server.Options.RedisAddress)
	lossy := NewRedis(RedisOptions{Address: proxy.address, KeyPrefix: "test", Timeout: 5 * time.Second, PoolSize: 1})
	defer lossy.Close()
	u := &usageTest{T: t, now: noon()}
	u.usageStore = NewRedisUsage(lossy, func() time.Time { return u.now })
	r := u.recorder("a")
	u.admit(r, "k", "chat", 1)
	u.add(r)
	for _, account := range manyAccounts(300) {
		u.admit(r, account, "chat", 1)
	}
	u.admit(r, "k", "chat", 1)
	b := r.Flush()
	proxy.losing.Store(true)
	if err := u.Add(t.Context(), b); err == nil {
		t.Fatal("the lost answer arrived")
	}
	if err := redisStore(t, server).client.ScriptFlush(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	if err := u.Add(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	for _, account := range append(manyAccounts(300), "k") {
		want := int64(1)
		if account == "k" {
			want = 2
		}
		if p := u.series(account, usage.Hour, time.Hour); len(p) != 2 || p[0].Admitted != want {
			t.Errorf("%s: %q: want %d", account, lines(p), want)
		}
	}
	if p := u.series(usage.FleetByResource, usage.Hour, time.Hour); len(p) != 2 || p[0].Admitted != 302 {
		t.Errorf("%q: want 302", lines(p))
	}
}

func manyAccounts(n int) []string {
	accounts := make([]string, n)
	for i := range accounts {
		accounts[i] = "account" + string(rune('a'+i%26)) + strings.Repeat("x", i/26)
	}
	return accounts
}

// TestUsagePartsInOrder: a part that comes before the one before it is refused, and
// none is counted when it comes again later than the next.
func TestUsagePartsInOrder(t *testing.T) {
	t.Parallel()
	u := redisUsage(t)
	r := u.recorder("a")
	for i := range 3 * cellsInPart {
		d := u.decided("k")
		d.At = u.now.Add(-time.Duration(i) * time.Minute)
		r.Decided(d, nil)
	}
	store, ok := u.usageStore.(*RedisUsage)
	if !ok {
		t.Fatal("no Redis")
	}
	b := r.Flush()
	b.Accounts = b.Accounts[:1]
	var parts []call
	for part, err := range store.calls(&b, false) {
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, part)
	}
	if b.Accounts[0].ID != "k" || len(parts) != 3+1 { // and its rank
		t.Fatalf("%d calls for %s, want 4 for k", len(parts), b.Accounts[0].ID)
	}
	for _, step := range []struct {
		part int
		fine bool
	}{{1, false}, {0, true}, {2, false}, {1, true}, {0, true}, {2, true}, {1, true}} {
		if err := store.send(t.Context(), parts[step.part:step.part+1], true); (err == nil) != step.fine {
			t.Errorf("part %d: %v, want it fine: %t", step.part, err, step.fine)
		}
	}
	if p := u.series("k", usage.Day, 24*time.Hour); len(p) != 2 || p[0].Admitted != 3*cellsInPart {
		t.Errorf("%q: want %d", lines(p), 3*cellsInPart)
	}
}

// TestUsageOfOneSlotForACall: where each call is to keep to one slot, which is found out,
// accounts are added apart, and what was added together before is not added again.
func TestUsageOfOneSlotForACall(t *testing.T) {
	t.Parallel()
	check := func(u *usageTest, r *Redis) {
		t.Helper()
		recorder := u.recorder("a")
		for _, account := range manyAccounts(300) {
			u.admit(recorder, account, "chat", 1)
		}
		b := recorder.Flush()
		for i := range 2 {
			if err := u.Add(t.Context(), b); err != nil {
				t.Fatal(err)
			}
			r.keepApart.Store(true)
			for _, account := range append(manyAccounts(300), usage.FleetByTier) {
				want := int64(1)
				if account == usage.FleetByTier {
					want = 300
				}
				if p := u.series(account, usage.Day, 24*time.Hour); len(p) != 2 || p[0].Admitted != want {
					t.Fatalf("added %d times: %s: %q: want %d", 1+i, account, lines(p), want)
				}
			}
		}
	}
	r := oneSlotRedis(t)
	check(usageIn(t, r), r)
	free := redisStore(t, redisServer(t))
	check(usageIn(t, free), free)
}

// TestUsageTogether: accounts go together in few calls, none of which is about many.
func TestUsageTogether(t *testing.T) {
	t.Parallel()
	store := NewRedisUsage(NewRedis(RedisOptions{}), noon)
	u := &usageTest{T: t, now: noon()}
	r := u.recorder("a")
	for i, account := range manyAccounts(500) {
		u.admit(r, account, "chat", 1)
		u.settle(r, account, "resource"+strconv.Itoa(i%200), 1, 1)
	}
	for i := range 1000 {
		u.settle(r, "k", "resource"+strconv.Itoa(i), 1, 1)
	}
	b := r.Flush()
	cells := 0
	for i := range b.Accounts {
		cells += len(b.Accounts[i].Cells)
	}
	most, calls, weight := callWeight+cellsInPart, 0, 0
	for c, err := range store.calls(&b, false) {
		if err != nil {
			t.Fatal(err)
		}
		if c.script.Hash() != store.account.Hash() {
			continue
		}
		calls, weight = calls+1, weight+c.weight
		if c.weight >= most {
			t.Errorf("a call of %d: want less than %d", c.weight, most)
		}
	}
	if weight != cells || calls > cells/callWeight+1 {
		t.Errorf("%d calls of %d: want at most %d of %d", calls, weight, cells/callWeight+1, cells)
	}
}

// TestUsageIsBoundedInRedis: neither refusals nor what instances tell pile up.
func TestUsageIsBoundedInRedis(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	u := &usageTest{T: t, now: noon()}
	store := NewRedisUsage(r, func() time.Time { return u.now })
	u.usageStore = store
	recorder := u.recorder("a")
	for range 2 * mostRefusals {
		u.now = u.now.Add(10 * time.Second)
		u.everything(recorder)
		if err := u.Tell(t.Context(), usage.Instance{ID: "a", Seen: u.now}); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.client.ZCard(t.Context(), store.usageKey("k", "refused")).Val(); n != mostRefusals {
		t.Errorf("%d refusals are kept, want %d", n, mostRefusals)
	}
	if n := r.client.ZCard(t.Context(), store.fleetKey("instances")).Val(); n > 4 {
		t.Errorf("one instance is kept %d times", n)
	}
}

// TestRanksAreTrimmed: a rank in Redis holds no more than 2,000 accounts, and forgets
// none of the first.
func TestRanksAreTrimmed(t *testing.T) {
	t.Parallel()
	r := redisStore(t, redisServer(t))
	u := &usageTest{T: t, now: noon()}
	store := NewRedisUsage(r, func() time.Time { return u.now })
	u.usageStore = store
	recorder := u.recorder("a")
	accounts := manyAccounts(5000)
	for round := range 3 {
		for i, account := range accounts {
			if i < 500 || round == i%3 {
				u.admit(recorder, account, "chat", 1+(5000-i)/500)
			}
		}
		u.add(recorder)
	}
	if n := r.client.ZCard(t.Context(), store.topKey(usage.ByRequests, topBlock().number(u.now))).Val(); n < 1000 || n > 2000 {
		t.Errorf("%d accounts are ranked, want 1,000 to 2,000", n)
	}
	top, err := u.Top(t.Context(), usage.ByRequests, 1, 500)
	if err != nil || len(top) != 500 {
		t.Fatal(len(top), err)
	}
	if least := slices.MinFunc(top, func(a, b usage.Ranked) int { return cmp.Compare(a.Count, b.Count) }); least.Count < 30 {
		t.Errorf("%v is among the first 500: each of them has at least 30", least)
	}
}

// TestUsageOfAStalledFile: who adds does not wait for a write that does not end, and
// what was handed over in vain is added once when it has ended.
func TestUsageOfAStalledFile(t *testing.T) {
	t.Parallel()
	u := fileUsage(t, filepath.Join(t.TempDir(), "keys"))
	r := u.recorder("one")
	u.admit(r, "k", "chat", 3)
	batch := r.Flush()
	stuck, writing, release := make(chan error, 1), make(chan struct{}), make(chan struct{})
	go func() {
		stuck <- u.usageStore.(*FileUsage).file.db.Update(func(*bbolt.Tx) error { close(writing); <-release; return nil })
	}()
	<-writing
	u.usageStore.(*FileUsage).timeout = 20 * time.Millisecond
	for range 3 {
		if err := u.Add(t.Context(), batch); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "store.memory.file") {
			t.Errorf("%v: want it to be late", err)
		}
	}
	u.usageStore.(*FileUsage).timeout = diskTimeout
	close(release)
	if err := errors.Join(<-stuck, u.Add(t.Context(), batch)); err != nil {
		t.Fatal(err)
	}
	if p := u.series("k", usage.Hour, 24*time.Hour); len(p) == 0 || p[0].Admitted != 3 {
		t.Errorf("%q: want 3", lines(p))
	}
}
