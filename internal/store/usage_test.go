package store

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/usage"
)

// usageStore is what both stores of usage do.
type usageStore interface {
	usage.Store
	Series(ctx context.Context, account string, q usage.Query) ([]usage.Point, error)
	Refusals(ctx context.Context, account string) ([]usage.Refusal, error)
	LastUsed(ctx context.Context, accounts []string) (map[string]time.Time, error)
	Top(ctx context.Context, by usage.Rank, hours, most int) ([]usage.Ranked, error)
	Near(ctx context.Context) ([]usage.Near, error)
	Tell(ctx context.Context, i usage.Instance) error
	Instances(ctx context.Context) ([]usage.Instance, error)
}

// A usageTest is a store of usage whose time the test sets.
type usageTest struct {
	*testing.T
	usageStore
	now time.Time
}

// noon is in the middle of a day and of a block of days.
func noon() time.Time { return time.Date(2026, 3, 10, 12, 0, 30, 0, time.UTC) }

func redisUsage(t *testing.T) *usageTest {
	t.Helper()
	return usageIn(t, redisStore(t, redisServer(t)))
}

func usageIn(t *testing.T, r *Redis) *usageTest {
	t.Helper()
	u := &usageTest{T: t, now: noon()}
	u.usageStore = NewRedisUsage(r, func() time.Time { return u.now })
	return u
}

func fileUsage(t *testing.T, path string) *usageTest {
	t.Helper()
	f, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	u := &usageTest{T: t, now: noon()}
	u.usageStore = NewFileUsage(f, func() time.Time { return u.now })
	return u
}

// eachUsage runs a test against every store.
func eachUsage(t *testing.T, test func(u *usageTest)) {
	t.Helper()
	t.Parallel()
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		test(redisUsage(t))
	})
	for _, form := range []string{"acl", "sentinel", "cluster"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			test(usageIn(t, formStore(t, form)))
		})
	}
	t.Run("file", func(t *testing.T) {
		t.Parallel()
		test(fileUsage(t, ""))
	})
}

// recorder returns one of an instance.
func (u *usageTest) recorder(instance string) *usage.Recorder {
	return usage.NewRecorder(usage.RecorderOptions{Instance: instance, Now: func() time.Time { return u.now }})
}

// add hands over what the recorders have gathered.
func (u *usageTest) add(recorders ...*usage.Recorder) {
	u.Helper()
	for _, r := range recorders {
		if err := u.Add(u.Context(), r.Flush()); err != nil {
			u.Fatal(err)
		}
	}
}

// decided is an admitted request for chat at the present time.
func (u *usageTest) decided(account string) usage.Decided {
	return usage.Decided{Account: account, Tier: "pro", Resource: "chat", Priority: quota.High, Requests: 1, At: u.now}
}

func (u *usageTest) admit(r *usage.Recorder, account, resource string, times int) {
	d := u.decided(account)
	d.Resource = resource
	for range times {
		r.Decided(d, nil)
	}
}

func (u *usageTest) refuse(r *usage.Recorder, account, reason string, times int) {
	d := u.decided(account)
	d.Reason = reason
	for range times {
		r.Decided(d, nil)
	}
}

func (u *usageTest) settle(r *usage.Recorder, account, resource string, input, output int64) {
	r.Settled(usage.Settled{Account: account, Tier: "pro", Resource: resource, Priority: quota.High, At: u.now, Input: input, Output: output})
}

// series are the points of the step in the last so long.
func (u *usageTest) series(account string, step usage.Step, last time.Duration) []usage.Point {
	u.Helper()
	points, err := u.Series(u.Context(), account, usage.Query{Step: step, From: u.now.Add(-last), To: u.now.Add(time.Second)})
	if err != nil {
		u.Fatal(err)
	}
	return points
}

// lines are points in words, so that a difference can be read.
func lines(points []usage.Point) []string {
	var all []string
	for _, p := range points {
		all = append(all, fmt.Sprintf("%s %q %d %v %d+%d peak %d %d limit %d %d", p.Start.Format("02T15:04"), p.Resource,
			p.Admitted, p.Refused, p.InputTokens, p.OutputTokens, p.PeakRequests, p.PeakTokens, p.LimitRequests, p.LimitTokens))
	}
	return all
}

func (u *usageTest) wantLines(points []usage.Point, want ...string) {
	u.Helper()
	if got := lines(points); !slices.Equal(got, want) {
		u.Errorf("points\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestUsageOfInstances: what two instances tell of the same minutes is one, and the
// busiest minute is that of both; it may lie on either side of an hour's edge.
func TestUsageOfInstances(t *testing.T) {
	eachUsage(t, func(u *usageTest) {
		u.now = time.Date(2026, 3, 10, 11, 59, 10, 0, time.UTC)
		a, b := u.recorder("a"), u.recorder("b")
		u.admit(a, "k", "chat", 3)
		u.admit(b, "k", "images", 2)
		u.settle(b, "k", "chat", 100, 20)
		u.add(a, b)
		u.admit(b, "k", "chat", 1)
		u.refuse(a, "k", "requests_per_minute", 2)
		u.now = u.now.Add(time.Minute)
		u.admit(a, "k", "chat", 4)
		u.refuse(b, "k", usage.Forbidden, 1)
		u.settle(a, "k", "chat", 5, 5)
		u.add(b, a)
		u.wantLines(u.series("k", usage.Minute, time.Hour),
			`10T11:59 "" 6 map[requests_per_minute:2] 100+20 peak 6 120 limit 0 0`,
			`10T11:59 "chat" 4 map[requests_per_minute:2] 100+20 peak 4 120 limit 0 0`,
			`10T11:59 "images" 2 map[] 0+0 peak 2 0 limit 0 0`,
			`10T12:00 "" 4 map[forbidden:1] 5+5 peak 4 10 limit 0 0`,
			`10T12:00 "chat" 4 map[forbidden:1] 5+5 peak 4 10 limit 0 0`)
		u.wantLines(u.series("k", usage.Hour, 2*time.Hour),
			`10T11:00 "" 6 map[requests_per_minute:2] 100+20 peak 6 120 limit 0 0`,
			`10T11:00 "chat" 4 map[requests_per_minute:2] 100+20 peak 4 120 limit 0 0`,
			`10T11:00 "images" 2 map[] 0+0 peak 2 0 limit 0 0`,
			`10T12:00 "" 4 map[forbidden:1] 5+5 peak 4 10 limit 0 0`,
			`10T12:00 "chat" 4 map[forbidden:1] 5+5 peak 4 10 limit 0 0`)
		u.wantLines(u.series("k", usage.Day, 24*time.Hour),
			`10T00:00 "" 10 map[forbidden:1 requests_per_minute:2] 105+25 peak 6 120 limit 0 0`,
			`10T00:00 "chat" 8 map[forbidden:1 requests_per_minute:2] 105+25 peak 4 120 limit 0 0`,
			`10T00:00 "images" 2 map[] 0+0 peak 2 0 limit 0 0`)
		u.wantLines(u.series(usage.FleetByTier, usage.Day, 24*time.Hour),
			`10T00:00 "" 10 map[forbidden:1 requests_per_minute:2] 105+25 peak 6 120 limit 0 0`,
			`10T00:00 "pro" 10 map[forbidden:1 requests_per_minute:2] 105+25 peak 6 120 limit 0 0`)
		if points := u.series(usage.FleetByPriority, usage.Hour, time.Hour); len(points) != 2 || points[1].Resource != "3" {
			u.Errorf("by priority: %q", lines(points))
		}
		if points := u.series("nobody", usage.Day, 24*time.Hour); len(points) != 0 {
			u.Errorf("of nobody: %q", lines(points))
		}
	})
}

// TestUsageQueries: a query gets the steps that begin in it and no others, nor more
// than is kept: the step in which that begins, and the one that runs, as a whole.
func TestUsageQueries(t *testing.T) {
	eachUsage(t, func(u *usageTest) {
		r := u.recorder("a")
		begin := u.now
		for range 9 * 24 { // an hour each
			u.admit(r, "k", "chat", 1)
			u.add(r)
			u.now = u.now.Add(time.Hour)
		}
		u.now = u.now.Add(-time.Hour)
		count := func(what string, q usage.Query, want int) {
			u.Helper()
			points, err := u.Series(u.Context(), "k", q)
			if err != nil {
				u.Fatal(err)
			}
			if len(points) != 2*want { // all together, and chat
				u.Errorf("%s: %d points, want %d", what, len(points), 2*want)
			}
		}
		hour := u.now.Truncate(time.Hour)
		count("all hours", usage.Query{Step: usage.Hour, To: u.now}, 8*24+1)
		count("all days", usage.Query{Step: usage.Day, To: u.now.Add(1e6 * time.Hour)}, 10)
		count("all minutes", usage.Query{Step: usage.Minute, From: begin, To: u.now}, 4)
		count("its end is not in it", usage.Query{Step: usage.Hour, From: hour.Add(-time.Hour), To: hour}, 1)
		count("its beginning is", usage.Query{Step: usage.Hour, From: hour, To: hour.Add(time.Nanosecond)}, 1)
		count("backwards", usage.Query{Step: usage.Hour, From: hour, To: hour.Add(-time.Hour)}, 0)
		if _, err := u.Series(u.Context(), "k", usage.Query{To: u.now}); err == nil {
			u.Error("a query without a step is answered")
		}
	})
}

// TestUsageLimits: the limits of a minute come from its decisions, and stay where a
// later batch knows none.
func TestUsageLimits(t *testing.T) {
	eachUsage(t, func(u *usageTest) {
		r := u.recorder("a")
		d := u.decided("k")
		how := decision(u.T, 8, quota.Limit{Metric: quota.Requests, Window: quota.Minute, Max: 10},
			quota.Limit{Metric: quota.Tokens, Window: quota.Minute, Max: 1000},
			quota.Limit{Metric: quota.Requests, Window: quota.Minute, Max: 5000, Resource: "default"})
		r.Decided(d, how)
		u.add(r)
		u.settle(r, "k", "chat", 1, 1)
		u.add(r)
		for _, step := range usage.Steps() {
			if p := u.series("k", step, 24*time.Hour); len(p) != 2 || p[0].LimitRequests != 10 || p[0].LimitTokens != 1000 {
				u.Errorf("%s: %q", step, lines(p))
			}
		}
		near, err := u.Near(u.Context())
		if want := []usage.Near{{Account: "k", Limit: "requests_per_minute", Share: 0.8}}; err != nil || !slices.Equal(near, want) {
			u.Errorf("near: %v, %v: want %v", near, err, want)
		}
	})
}

// decision takes so many requests of limits, and returns the last decision.
func decision(t *testing.T, requests int, limits ...quota.Limit) *quota.Decision {
	t.Helper()
	tier := quota.NewPlan(quota.Tier{Name: "pro", Limits: limits}, quota.ByKey, nil)
	limiter := quota.NewLimiter(NewMemory(noon, 10))
	var d quota.Decision
	for range requests {
		var err error
		d, err = limiter.Decide(t.Context(), quota.Request{
			Account: "k", Tier: tier, Resource: quota.DefaultResource, Priority: quota.High, Cost: quota.Cost{Requests: 1, Tokens: 1},
		}, noon())
		if err != nil {
			t.Fatal(err)
		}
	}
	return &d
}

// TestUsageAddedOnce: a batch that comes again, as after an unknown outcome, counts
// once, also one of many parts; so does each of two instances'.
func TestUsageAddedOnce(t *testing.T) {
	eachUsage(t, func(u *usageTest) {
		batch := func(instance string) usage.Batch {
			r := u.recorder(instance)
			for i := range 250 {
				d := u.decided("k")
				d.At = u.now.Add(-time.Duration(i) * time.Minute)
				r.Decided(d, nil)
				r.Decided(u.decided("k"+strconv.Itoa(i)), nil)
			}
			return r.Flush()
		}
		a, b := batch("a"), batch("b")
		for _, batch := range []usage.Batch{a, b, a, b, b} {
			if err := u.Add(u.Context(), batch); err != nil {
				u.Fatal(err)
			}
			u.now = u.now.Add(10 * time.Minute)
		}
		u.now = noon()
		if p := u.series("k", usage.Day, 24*time.Hour); len(p) != 2 || p[0].Admitted != 500 || p[0].PeakRequests != 2 {
			u.Errorf("%q: want 500", lines(p))
		}
		if p := u.series("k249", usage.Day, 24*time.Hour); len(p) != 2 || p[0].Admitted != 2 {
			u.Errorf("%q: want 2", lines(p))
		}
		if p := u.series(usage.FleetByResource, usage.Day, 24*time.Hour); len(p) != 2 || p[0].Admitted != 1000 {
			u.Errorf("%q: want 1000", lines(p))
		}
		top, err := u.Top(u.Context(), usage.ByRequests, 24, 1)
		if want := []usage.Ranked{{Account: "k", Count: 500}}; err != nil || !slices.Equal(top, want) {
			u.Errorf("top: %v, %v: want %v", top, err, want)
		}
	})
}

// TestOldestStep: the step in which what is kept begins is there as a whole, and none
// before it.
func TestOldestStep(t *testing.T) {
	eachUsage(t, func(u *usageTest) {
		r := u.recorder("a")
		for _, ago := range []time.Duration{usage.Minute.Keep(), usage.Minute.Keep() + time.Minute} {
			d := u.decided("k")
			d.At = u.now.Add(-ago)
			r.Decided(d, nil)
		}
		u.add(r)
		if p := u.series("k", usage.Minute, usage.Minute.Keep()+time.Hour); len(p) != 2 || p[0].Start != u.now.Add(-usage.Minute.Keep()).Truncate(time.Minute) {
			u.Errorf("%q: want the minute of 09:00 alone", lines(p))
		}
	})
}

// TestUsageClocks: a minute that cannot be is taken for the nearest that can.
func TestUsageClocks(t *testing.T) {
	eachUsage(t, func(u *usageTest) {
		r := u.recorder("a")
		for _, at := range []time.Time{{}, u.now.Add(1000 * time.Hour)} {
			d := u.decided("k")
			d.At = at
			r.Decided(d, nil)
		}
		u.add(r)
		if p := u.series("k", usage.Day, 10*24*time.Hour); len(p) != 4 || p[0].Start.Day() != 2 || p[2].Start.Day() != 10 {
			u.Errorf("%q: want one eight days ago and one today", lines(p))
		}
	})
}

// TestRefusalsOfAccounts: the latest, the newest first, of all instances, bounded in
// number and in time.
func TestRefusalsOfAccounts(t *testing.T) {
	eachUsage(t, func(u *usageTest) {
		a, b := u.recorder("a"), u.recorder("b")
		d := u.decided("k")
		d.Reason = "requests_per_minute"
		how := decision(u.T, 2, quota.Limit{Metric: quota.Requests, Window: quota.Minute, Max: 1})
		begin := u.now
		for i := range 80 {
			d.At = begin.Add(time.Duration(i) * time.Second)
			how.Now = d.At
			[]*usage.Recorder{a, b}[i%2].Decided(d, how)
			if i%20 == 19 {
				u.add(b, a)
			}
		}
		refusals, err := u.Refusals(u.Context(), "k")
		if err != nil || len(refusals) != 50 {
			u.Fatalf("%d refusals, %v: want 50", len(refusals), err)
		}
		want := usage.Refusal{
			Resource: "chat", Limit: "requests_per_minute", Used: 1, Max: 1, Asked: 1, Wait: 30 * time.Second,
		}
		for i, r := range refusals {
			want.At = begin.Add(time.Duration(79-i) * time.Second)
			if r != want {
				u.Errorf("refusal %d: %+v, want %+v", i, r, want)
			}
		}
		u.now = u.now.Add(8*24*time.Hour + 60*time.Second)
		if refusals, err := u.Refusals(u.Context(), "k"); err != nil || len(refusals) != 19 {
			u.Errorf("8 days later: %d, %v: want 19", len(refusals), err)
		}
		u.now = u.now.Add(time.Hour)
		if refusals, err := u.Refusals(u.Context(), "k"); err != nil || len(refusals) != 0 {
			u.Errorf("an hour later: %d, %v: want none", len(refusals), err)
		}
	})
}

// TestTopAccounts: by each rank, over the hours that were asked for, without what is
// no key.
func TestTopAccounts(t *testing.T) {
	eachUsage(t, func(u *usageTest) {
		r := u.recorder("a")
		u.admit(r, "busy", "chat", 9)
		u.now = u.now.Add(2 * time.Hour)
		u.admit(r, "one", "chat", 1)
		u.admit(r, "two", "chat", 2)
		u.refuse(r, "one", "requests_per_minute", 3)
		u.settle(r, "two", "images", 10, 10)
		u.settle(r, "one", "chat", 10, 0)
		u.admit(r, usage.Other, "chat", 100)
		u.add(r)
		check := func(by usage.Rank, hours, most int, want ...usage.Ranked) {
			u.Helper()
			if top, err := u.Top(u.Context(), by, hours, most); err != nil || !slices.Equal(top, want) {
				u.Errorf("by %s over %d hours: %v, %v: want %v", by, hours, top, err, want)
			}
		}
		check(usage.ByRequests, 24, 10, usage.Ranked{Account: "busy", Count: 9}, usage.Ranked{Account: "one", Count: 4}, usage.Ranked{Account: "two", Count: 2})
		check(usage.ByRequests, 1, 10, usage.Ranked{Account: "one", Count: 4}, usage.Ranked{Account: "two", Count: 2})
		check(usage.ByRequests, 2, 1, usage.Ranked{Account: "busy", Count: 9})
		check(usage.ByTokens, 1, 10, usage.Ranked{Account: "two", Count: 20}, usage.Ranked{Account: "one", Count: 10})
		check(usage.ByRefusals, 1, 10, usage.Ranked{Account: "one", Count: 3})
		for _, hours := range []int{0, 25} {
			if _, err := u.Top(u.Context(), usage.ByTokens, hours, 1); err == nil {
				u.Errorf("%d hours are ranked", hours)
			}
		}
		if _, err := u.Top(u.Context(), "beauty", 1, 1); err == nil {
			u.Error("ranked by beauty")
		}
	})
}

// TestNearAccounts: by the highest share, each account once, and not for long.
func TestNearAccounts(t *testing.T) {
	eachUsage(t, func(u *usageTest) {
		a, b := u.recorder("a"), u.recorder("b")
		note := func(r *usage.Recorder, account string, used int, limits ...quota.Limit) {
			d := u.decided(account)
			r.Decided(d, decision(u.T, used, limits...))
		}
		perMinute := quota.Limit{Metric: quota.Requests, Window: quota.Minute, Max: 10}
		perDay := quota.Limit{Metric: quota.Requests, Window: quota.Day, Max: 10}
		note(a, "calm", 7, perMinute)
		note(a, "near", 8, perMinute)
		note(a, "full", 10, perMinute)
		note(b, "near", 9, quota.Limit{Metric: quota.Requests, Window: quota.Minute, Max: quota.NoMax}, perDay)
		u.add(a, b)
		note(b, "near", 8, perDay)
		u.add(b)
		want := []usage.Near{{Account: "full", Limit: "requests_per_minute", Share: 1}, {Account: "near", Limit: "requests_per_day", Share: 0.9}}
		u.now = u.now.Add(2 * time.Minute)
		if near, err := u.Near(u.Context()); err != nil || !slices.Equal(near, want) {
			u.Errorf("near: %v, %v: want %v", near, err, want)
		}
		u.now = u.now.Add(time.Minute)
		if near, err := u.Near(u.Context()); err != nil || len(near) != 0 {
			u.Errorf("later: %v, %v: want none", near, err)
		}
	})
}

// TestLastUse: of admitted and refused requests, whichever instance tells first.
func TestLastUse(t *testing.T) {
	eachUsage(t, func(u *usageTest) {
		a, b := u.recorder("a"), u.recorder("b")
		first := u.now
		u.admit(a, "old", "chat", 1)
		u.now = u.now.Add(100 * 24 * time.Hour)
		u.admit(a, "k", "chat", 1)
		u.now = u.now.Add(time.Minute)
		u.refuse(b, "k", "requests_per_minute", 1)
		u.settle(b, "unused", "chat", 1, 1)
		u.add(b, a)
		used, err := u.LastUsed(u.Context(), []string{"k", "old", "unused", "never"})
		if err != nil || len(used) != 2 || !used["k"].Equal(u.now) || !used["old"].Equal(first) {
			u.Errorf("%v, %v: want k at %s and old at %s", used, err, u.now, first)
		}
		if _, err := u.LastUsed(u.Context(), make([]string, 1001)); err == nil {
			u.Error("it answers for 1,001")
		}
	})
}

// TestInstances: each tells of itself, and is gone 30 s after.
func TestInstances(t *testing.T) {
	t.Parallel()
	u := fileUsage(t, "")
	one := u.tell("one", 1)
	u.now = u.now.Add(20 * time.Second)
	u.tell("two", 2)
	two := u.tell("two", 3)
	u.wantInstances(one, two)
	u.now = u.now.Add(11 * time.Second)
	u.wantInstances(two)
	three := u.tell("three", 4)
	u.now = u.now.Add(20 * time.Second)
	u.wantInstances(three)
}

// TestInstancesInRedis: they are gone 30 s after by the clock of Redis. One of which the clock
// is wrong neither takes the others for gone, nor is it taken for gone, nor does it stay.
func TestInstancesInRedis(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"acl", "sentinel", "cluster"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			r := formStore(t, form)
			right, ahead, behind := usageIn(t, r), usageIn(t, r), usageIn(t, r)
			ahead.now, behind.now = right.now.Add(time.Hour), right.now.Add(-time.Hour)
			one, two := right.tell("one", 1), ahead.tell("two", 2)
			behind.tell("three", 3)
			three := behind.tell("three", 4)
			for _, u := range []*usageTest{right, ahead, behind} {
				u.wantInstances(one, three, two)
			}
			key := r.prefix + ":{~fleet}:usage:instances"
			for _, told := range r.client.ZRange(t.Context(), key, 0, -1).Val() {
				if strings.Contains(told, `"two"`) {
					r.client.ZIncrBy(t.Context(), key, float64(-instanceKept.Milliseconds()), told)
				}
			}
			right.wantInstances(one, three)
			right.tell("one", 1)
			if n := r.client.ZCard(t.Context(), key).Val(); n != 2 {
				t.Errorf("%d are kept: want 2", n)
			}
		})
	}
}

func (u *usageTest) tell(id string, keys int) usage.Instance {
	u.Helper()
	i := usage.Instance{
		ID: id, Version: "1", Started: noon(), Seen: u.now, Rates: map[string]int64{"allowed": 3},
		Interval: time.Second, P99: time.Millisecond, Keys: keys,
	}
	if err := u.Tell(u.Context(), i); err != nil {
		u.Fatal(err)
	}
	return i
}

func (u *usageTest) wantInstances(want ...usage.Instance) {
	u.Helper()
	if got, err := u.Instances(u.Context()); err != nil || !reflect.DeepEqual(got, want) {
		u.Errorf("%+v, %v: want %+v", got, err, want)
	}
}
