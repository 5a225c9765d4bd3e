package store

import (
	"cmp"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
)

// TestAccounts keep what a map of slices keeps, though many accounts have the same hash, and
// hold no more memory for those that are gone than for those that are left.
func TestAccounts(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	a, want := newAccounts(), map[string][]counter{}
	hash := func(account string) uint64 { return uint64(len(account) + int(account[0])%3) }
	now := int64(0)
	for range 20_000 {
		account := strconv.Itoa(random.IntN(300))
		if random.IntN(10) == 0 {
			account = string(make([]byte, 200)) + account // a length of two bytes
		}
		counters := a.of(hash(account), account)
		if !slices.Equal(counters, want[account]) {
			t.Fatalf("%q: have %v, want %v", account, counters, want[account])
		}
		c := counter{start: now, end: now + 1 + random.Int64N(50), used: random.Int64(), name: random.Uint32()}
		if len(counters) > 0 && random.IntN(2) == 0 {
			counters[random.IntN(len(counters))] = c
		} else {
			counters = append(counters, c)
		}
		a.put(hash(account), account, counters)
		want[account] = slices.Clone(counters)
		if random.IntN(20) == 0 {
			now += random.Int64N(20)
			sweepBoth(t, &a, want, now)
		}
	}
	if len(a.colliding) == 0 {
		t.Error("no two accounts had the same hash")
	}
	sweepBoth(t, &a, want, now+100)
	if len(want) != 0 || cap(a.counters) > 0 || cap(a.texts) > 0 {
		t.Errorf("all has ended: %d left, and memory for %d counters and %d bytes of texts", len(want), cap(a.counters), cap(a.texts))
	}
}

// sweepBoth removes the accounts that have ended, and compares.
func sweepBoth(t *testing.T, a *accounts, want map[string][]counter, now int64) {
	t.Helper()
	soonest, first := a.sweep(now), int64(math.MaxInt64)
	for account, counters := range want {
		if open := slices.DeleteFunc(slices.Clone(counters), func(c counter) bool { return c.end <= now }); len(open) == 0 {
			delete(want, account)
		} else {
			first = min(first, slices.MinFunc(open, func(c, d counter) int { return cmp.Compare(c.end, d.end) }).end)
		}
	}
	if soonest != first {
		t.Fatalf("the first open counter ends at %d: %d is called the soonest", first, soonest)
	}
	have := maps.Collect(a.all)
	if !maps.EqualFunc(have, want, slices.Equal) || a.len() != len(want) {
		t.Fatalf("after a sweep: have %v\nwant %v", have, want)
	}
	used, texts := a.unused, a.unusedTexts
	for _, p := range slices.Concat(slices.Collect(maps.Values(a.locations)), slices.Collect(maps.Values(a.colliding))) {
		from, to := a.span(p)
		text := to - from
		used, texts = used+int(p.room), texts+text+1+text>>7
	}
	if used != len(a.counters) || texts != len(a.texts) || 4*a.unused > len(a.counters) {
		t.Fatalf("%d counters, %d bytes of texts, of which %d and %d are said to be unused: want %d, %d", len(a.counters), len(a.texts), a.unused, a.unusedTexts, used, texts)
	}
}
