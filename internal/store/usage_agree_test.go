package store

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/usage"
)

// TestUsageStoresAgree adds the same random batches of two instances to both stores,
// over two days and the edge of a block, some of them twice, and asks them the same.
// What they say must also agree with a plain count, and its hours with its minutes.
func TestUsageStoresAgree(t *testing.T) {
	t.Parallel()
	redis, file := redisUsage(t), fileUsage(t, "")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	redis.now = time.Unix(dayBlock().start(dayBlock().number(noon()), 0).Unix()-24*3600, 0).UTC()
	recorders := []*usage.Recorder{redis.recorder("a"), redis.recorder("b")}
	counted := map[string]usage.Counts{}
	for range 400 {
		redis.now = redis.now.Add(time.Duration(random.IntN(10)) * time.Minute)
		file.now = redis.now
		r := recorders[random.IntN(2)]
		for range random.IntN(20) {
			randomCall(t, random, r, redis.now, counted)
		}
		b := r.Flush()
		for range 1 + random.IntN(2) {
			for _, u := range []*usageTest{redis, file} {
				if err := u.Add(t.Context(), b); err != nil {
					t.Fatal(err)
				}
			}
		}
		if random.IntN(20) == 0 {
			agreeOnUsage(t, redis, file)
		}
	}
	agreeOnUsage(t, redis, file)
	for account, want := range counted {
		var got usage.Counts
		for _, p := range redis.series(account, usage.Day, 20*24*time.Hour) {
			if p.Resource == "" {
				got.Add(p.Counts)
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", account, got, want)
		}
	}
}

// randomCall tells a recorder of something at a time within the last minutes, and
// counts it.
func randomCall(t *testing.T, random *rand.Rand, r *usage.Recorder, now time.Time, counted map[string]usage.Counts) {
	t.Helper()
	account := "k" + strconv.Itoa(random.IntN(3))
	resource := []string{"chat", "images"}[random.IntN(2)]
	at := now.Add(-time.Duration(random.Int64N(int64(3 * time.Minute))))
	c := counted[account]
	defer func() { counted[account] = c }()
	if random.IntN(3) == 0 {
		in, out := random.Int64N(1000), random.Int64N(1000)
		c.Add(usage.Counts{InputTokens: in, OutputTokens: out})
		r.Settled(usage.Settled{Account: account, Resource: resource, At: at, Input: in, Output: out})
		return
	}
	d := usage.Decided{Account: account, Tier: "pro", Resource: resource, Priority: quota.High, Requests: 1, At: at}
	how := decision(t, 1+random.IntN(12), quota.Limit{Metric: quota.Requests, Window: quota.Minute, Max: 10 + random.Int64N(2)})
	if d.Reason = []string{"", usage.Forbidden, "requests_per_minute", "x"}[random.IntN(4)]; d.Reason == "" {
		c.Add(usage.Counts{Admitted: 1})
	} else {
		c.Add(usage.Counts{Refused: map[string]int64{d.Reason: 1}})
	}
	how.Now = at
	r.Decided(d, how)
}

func agreeOnUsage(t *testing.T, redis, file *usageTest) {
	t.Helper()
	same := func(what string, ask func(u *usageTest) (any, error)) {
		t.Helper()
		one, err := ask(redis)
		if err != nil {
			t.Fatal(err)
		}
		two, err := ask(file)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(one, two) {
			t.Fatalf("%s at %s: Redis\n%v\nfile\n%v", what, redis.now, one, two)
		}
	}
	for _, account := range []string{"k0", "k1", "k2", usage.FleetByResource, usage.FleetByTier, usage.FleetByPriority} {
		for _, step := range usage.Steps() {
			same(step.String()+"s of "+account, func(u *usageTest) (any, error) { return lines(u.series(account, step, 500*24*time.Hour)), nil })
		}
		same("refusals of "+account, func(u *usageTest) (any, error) { return u.Refusals(t.Context(), account) })
		hoursOfMinutes(t, redis, account)
	}
	same("last used", func(u *usageTest) (any, error) { return u.LastUsed(t.Context(), []string{"k0", "k1", "k2"}) })
	same("near", func(u *usageTest) (any, error) { return u.Near(t.Context()) })
	for _, by := range usage.Ranks() {
		same("top by "+string(by), func(u *usageTest) (any, error) { return u.Top(t.Context(), by, 5, 10) })
	}
}

// hoursOfMinutes checks the hours that lie wholly within the minutes that are kept:
// each is the sum of its minutes, and as busy as the busiest.
func hoursOfMinutes(t *testing.T, u *usageTest, account string) {
	t.Helper()
	type key struct {
		start    time.Time
		resource string
	}
	hours := map[key]usage.Point{}
	for _, m := range u.series(account, usage.Minute, 3*time.Hour) {
		k := key{m.Start.Truncate(time.Hour), m.Resource}
		h := hours[k]
		h.Add(m.Counts)
		h.PeakRequests, h.PeakTokens = max(h.PeakRequests, m.PeakRequests), max(h.PeakTokens, m.PeakTokens)
		hours[k] = h
		if m.PeakRequests != m.Admitted || m.PeakTokens != m.InputTokens+m.OutputTokens {
			t.Errorf("a minute is not its own busiest: %q", lines([]usage.Point{m}))
		}
	}
	for _, h := range u.series(account, usage.Hour, 2*time.Hour) {
		want := hours[key{h.Start, h.Resource}]
		want.Start, want.Resource, want.LimitRequests, want.LimitTokens = h.Start, h.Resource, h.LimitRequests, h.LimitTokens
		if one, two := lines([]usage.Point{h}), lines([]usage.Point{want}); !slices.Equal(one, two) {
			t.Errorf("%s: hour\n%s\nits minutes\n%s", account, one, two)
		}
	}
}
