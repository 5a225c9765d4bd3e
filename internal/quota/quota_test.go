package quota

import (
	"strings"
	"testing"
	"time"
)

func moment(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		panic(err)
	}
	return t
}

func TestWindowBounds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		window          string
		now, start, end string
	}{
		{"second", "2026-03-01T12:34:56.789Z", "2026-03-01T12:34:56Z", "2026-03-01T12:34:57Z"},
		{"minute", "2026-03-01T12:34:00Z", "2026-03-01T12:34:00Z", "2026-03-01T12:35:00Z"},
		{"minute", "2026-03-01T12:34:59.999Z", "2026-03-01T12:34:00Z", "2026-03-01T12:35:00Z"},
		{"hour", "2026-03-01T12:34:56Z", "2026-03-01T12:00:00Z", "2026-03-01T13:00:00Z"},
		{"day", "2026-12-31T23:59:59Z", "2026-12-31T00:00:00Z", "2027-01-01T00:00:00Z"},
		{"day", "2026-03-01T01:00:00+02:00", "2026-02-28T00:00:00Z", "2026-03-01T00:00:00Z"},
		{"week", "2026-11-24T10:00:00Z", "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z"}, // Monday to Monday
		{"week", "2026-11-23T00:00:00Z", "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z"},
		{"month", "2024-02-29T23:59:59Z", "2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z"},
		{"month", "2026-12-31T23:59:59Z", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"},
		{"90s", "1970-01-01T00:02:00Z", "1970-01-01T00:01:30Z", "1970-01-01T00:03:00Z"},
		{"minute", "1969-12-31T23:59:30Z", "1969-12-31T23:59:00Z", "1970-01-01T00:00:00Z"},
	} {
		w, err := ParseWindow(c.window)
		if err != nil {
			t.Fatal(err)
		}
		start, end := w.Bounds(moment(c.now))
		if !start.Equal(moment(c.start)) || !end.Equal(moment(c.end)) {
			t.Errorf("%s at %s: %s to %s, want %s to %s", c.window, c.now, start, end, c.start, c.end)
		}
	}
}

func TestParseWindow(t *testing.T) {
	t.Parallel()
	for text, name := range map[string]string{
		"1s": "second", "minute": "minute", "60s": "minute", "1m": "minute", "24h": "day", "168h": "week", "month": "month",
		"15m": "15m", "90s": "1m30s", "12h": "12h", "8784h": "8784h",
	} {
		w, err := ParseWindow(text)
		if err != nil || w.String() != name {
			t.Errorf("%q: %s, %v: want %s", text, w, err, name)
		}
		if again, err := ParseWindow(w.String()); err != nil || again != w {
			t.Errorf("%q: its name %q reads as %d, %v", text, w, again, err)
		}
	}
	for _, text := range []string{"", "fortnight", "0s", "-1m", "500ms", "1.5s", "8785h", "1e3s", "9223372036854775807h"} {
		if w, err := ParseWindow(text); err == nil {
			t.Errorf("%q reads as %s: want an error", text, w)
		}
	}
}

func TestEffectivePriority(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		granted Priority
		asked   string
		want    Priority
	}{
		{High, "", High},
		{High, "1", Low},
		{High, " normal ", Normal},
		{High, "LOW", Low},
		{High, "3", High},
		{High, "4", High},
		{High, "critical", High},
		{Low, "critical", Low},
		{High, "0", High},
		{High, "-1", High},
		{High, "5", High},
		{High, "2,1", High},
		{High, "low\x00", High},
		{High, strings.Repeat("1", 1000), High},
	} {
		if p := Effective(c.granted, c.asked); p != c.want {
			t.Errorf("granted %s, asked %.20q: %s, want %s", c.granted, c.asked, p, c.want)
		}
	}
}

// decided is the decision on charges at a moment when so much is used of each
// counter.
func decided(charges []Charge, now time.Time, used map[string]int64) Decision {
	taken := Taken{Now: now, Admitted: true}
	for _, c := range charges {
		taken.Admitted = taken.Admitted && !c.Exceeds(used[c.Counter])
	}
	for _, c := range charges {
		after := used[c.Counter]
		if taken.Admitted {
			after += c.Cost
		}
		taken.Used = append(taken.Used, after)
	}
	return decide(charges, taken)
}

func limits() []Limit {
	return []Limit{
		{Metric: Requests, Window: Minute, Max: 10},
		{Metric: Tokens, Window: Minute, Max: 1000},
		{Metric: Requests, Window: Day, Max: 500},
	}
}

func TestDecisions(t *testing.T) {
	t.Parallel()
	images := Limit{Metric: Requests, Window: Minute, Max: 5, Resource: "images"}
	lowDay := Limit{Metric: Requests, Window: Day, Max: 3, Priority: Low}
	now := moment("2026-03-01T12:34:56.5Z")
	for name, c := range map[string]struct {
		tier     Tier
		resource string
		priority Priority
		tokens   int64
		override []Override
		used     map[string]int64

		admitted         bool
		max, u, remained int64
		by               string
		reset            string
		never            bool
	}{
		"first": {
			tier: Tier{Limits: limits()}, admitted: true, max: 10, u: 1, remained: 9, reset: "2026-03-01T12:35:00Z",
		},
		"last": {
			tier: Tier{Limits: limits()}, used: map[string]int64{"requests/minute": 9},
			admitted: true, max: 10, u: 10, remained: 0, reset: "2026-03-01T12:35:00Z",
		},
		"minute is full": {
			tier: Tier{Limits: limits()}, used: map[string]int64{"requests/minute": 10},
			max: 10, u: 10, by: "requests_per_minute", reset: "2026-03-01T12:35:00Z",
		},
		"day is full": {
			tier: Tier{Limits: limits()}, used: map[string]int64{"requests/minute": 3, "requests/day": 500},
			max: 10, u: 3, remained: 7, by: "requests_per_day", reset: "2026-03-02T00:00:00Z",
		},
		"both are full: the longer wait": {
			tier: Tier{Limits: limits()}, used: map[string]int64{"requests/minute": 10, "requests/day": 500},
			max: 10, u: 10, by: "requests_per_day", reset: "2026-03-02T00:00:00Z",
		},
		"both are full, the longer wait first": {
			tier: Tier{Limits: []Limit{limits()[2], limits()[0]}}, used: map[string]int64{"requests/minute": 10, "requests/day": 500},
			max: 10, u: 10, by: "requests_per_day", reset: "2026-03-02T00:00:00Z",
		},
		"tokens are full": {
			tier: Tier{Limits: limits()}, tokens: 200, used: map[string]int64{"tokens/minute": 801},
			max: 10, u: 0, remained: 10, by: "tokens_per_minute", reset: "2026-03-01T12:35:00Z",
		},
		"lowered below what is used": {
			tier: Tier{Limits: limits()}, used: map[string]int64{"requests/minute": 25},
			max: 10, u: 25, by: "requests_per_minute", reset: "2026-03-01T12:35:00Z",
		},
		"a resource's own limit has less left": {
			tier: Tier{Limits: append(limits(), images)}, resource: "images", used: map[string]int64{"requests/minute": 2},
			admitted: true, max: 5, u: 1, remained: 4, reset: "2026-03-01T12:35:00Z",
		},
		"a resource's own limit has more left": {
			tier: Tier{Limits: append(limits(), images)}, resource: "images", used: map[string]int64{"requests/minute": 7},
			admitted: true, max: 10, u: 8, remained: 2, reset: "2026-03-01T12:35:00Z",
		},
		"a resource's own limit is full": {
			tier: Tier{Limits: append(limits(), images)}, resource: "images", used: map[string]int64{"requests/minute@images": 5},
			max: 5, u: 5, by: "images_requests_per_minute", reset: "2026-03-01T12:35:00Z",
		},
		"another resource's limit": {
			tier: Tier{Limits: append(limits(), images)}, resource: "chat", used: map[string]int64{"requests/minute@images": 5},
			admitted: true, max: 10, u: 1, remained: 9, reset: "2026-03-01T12:35:00Z",
		},
		"a priority's own limit": {
			tier: Tier{Limits: append(limits(), lowDay)}, priority: Low, used: map[string]int64{"requests/day#1": 3},
			max: 10, u: 0, remained: 10, by: "low_requests_per_day", reset: "2026-03-02T00:00:00Z",
		},
		"another priority's limit": {
			tier: Tier{Limits: append(limits(), lowDay)}, priority: High, used: map[string]int64{"requests/day#1": 3},
			admitted: true, max: 10, u: 1, remained: 9, reset: "2026-03-01T12:35:00Z",
		},
		"a limit of 0 refuses": {
			tier: Tier{Limits: []Limit{{Metric: Requests, Window: Minute}}},
			max:  0, u: 0, by: "requests_per_minute", reset: "2026-03-01T12:35:00Z", never: true,
		},
		"a limit of 0 goes before one with a longer wait, which is told": {
			tier: Tier{Limits: []Limit{{Metric: Requests, Window: Day, Max: 1}, {Metric: Requests, Window: Minute}, {Metric: Requests, Window: Hour, Max: 1}}},
			used: map[string]int64{"requests/day": 1, "requests/hour": 1},
			max:  0, u: 0, by: "requests_per_minute", reset: "2026-03-02T00:00:00Z", never: true,
		},
		"a limit of 0 is told of before one with a longer wait that comes after it": {
			tier: Tier{Limits: []Limit{{Metric: Requests, Window: Minute}, {Metric: Requests, Window: Day, Max: 1}}},
			used: map[string]int64{"requests/day": 1},
			max:  0, u: 0, by: "requests_per_minute", reset: "2026-03-02T00:00:00Z", never: true,
		},
		"of two limits of 0 the longer wait": {
			tier: Tier{Limits: []Limit{{Metric: Requests, Window: Day}, {Metric: Requests, Window: Minute}}},
			max:  0, u: 0, by: "requests_per_day", reset: "2026-03-02T00:00:00Z", never: true,
		},
		"a token limit of 0 refuses whatever the cost": {
			tier: Tier{Limits: append(limits()[:1], Limit{Metric: Tokens, Window: Day})},
			max:  10, u: 0, remained: 10, by: "tokens_per_day", reset: "2026-03-02T00:00:00Z", never: true,
		},
		"unlimited counts": {
			tier: Tier{Unlimited: true}, used: map[string]int64{"requests/minute": 1_000_000},
			admitted: true, max: NoMax, u: 1_000_001, remained: NoMax - 1_000_001, reset: "2026-03-01T12:35:00Z",
		},
		"unlimited but for one resource": {
			tier: Tier{Unlimited: true, Limits: []Limit{images}}, resource: "images",
			admitted: true, max: 5, u: 1, remained: 4, reset: "2026-03-01T12:35:00Z",
		},
		"an override replaces": {
			tier: Tier{Limits: limits()}, used: map[string]int64{"requests/minute": 10},
			override: []Override{{Limit: Limit{Metric: Requests, Window: Minute, Max: 20}}},
			admitted: true, max: 20, u: 11, remained: 9, reset: "2026-03-01T12:35:00Z",
		},
		"an override that has ended": {
			tier: Tier{Limits: limits()}, used: map[string]int64{"requests/minute": 10},
			override: []Override{{Limit: Limit{Metric: Requests, Window: Minute, Max: 20}, Until: now}},
			max:      10, u: 10, by: "requests_per_minute", reset: "2026-03-01T12:35:00Z",
		},
		"an override adds": {
			tier: Tier{Unlimited: true}, used: map[string]int64{"requests/hour": 7},
			override: []Override{{Limit: Limit{Metric: Requests, Window: Hour, Max: 7}, Until: now.Add(1)}},
			max:      NoMax, u: 0, remained: NoMax, by: "requests_per_hour", reset: "2026-03-01T13:00:00Z",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.resource == "" {
				c.resource = DefaultResource
			}
			if c.priority == 0 {
				c.priority = Normal
			}
			plan := NewPlan(c.tier, ByKey, []Resource{{Name: "images"}, {Name: "chat"}})
			request := Request{
				Account: "a", Tier: plan, Overrides: c.override, Resource: c.resource, Priority: c.priority,
				Cost: Cost{Requests: 1, Tokens: c.tokens},
			}
			d := decided(request.charges(now), now, c.used)
			if d.Admitted != c.admitted || d.Shown.Max != c.max || d.Used != c.u || d.Remaining != c.remained {
				t.Errorf("%+v", d)
			}
			if !d.Reset.Equal(moment(c.reset)) {
				t.Errorf("Reset %s, want %s", d.Reset, c.reset)
			}
			if c.admitted {
				return
			}
			if d.Never() != c.never {
				t.Errorf("never: %t, want %t", d.Never(), c.never)
			}
			if d.RefusedBy.Name() != c.by || d.Wait != d.Reset.Sub(now) {
				t.Errorf("refused by %s for %s: want %s for %s", d.RefusedBy.Name(), d.Wait, c.by, d.Reset.Sub(now))
			}
		})
	}
}

// TestCountByKeyAndResource: base limits count each resource by itself, and a
// limit that names the resource replaces the base limit with its counter.
func TestCountByKeyAndResource(t *testing.T) {
	t.Parallel()
	tier := Tier{Limits: append(limits(), Limit{Metric: Requests, Window: Minute, Max: 20, Resource: "images"})}
	plan := NewPlan(tier, ByKeyAndResource, []Resource{{Name: "images"}, {Name: "chat"}})
	now := moment("2026-03-01T12:34:56Z")
	for resource, most := range map[string]int64{"chat": 10, "images": 20} {
		charges := Request{Tier: plan, Resource: resource, Priority: Low, Cost: Cost{Requests: 1}}.charges(now)
		shown := 0
		for _, c := range charges {
			if !strings.HasSuffix(c.Counter, "@"+resource) {
				t.Errorf("%s is charged to %s", resource, c.Counter)
			}
			if c.Limit.shown() {
				shown++
				if c.Limit.Max != most {
					t.Errorf("%s: %d requests per minute, want %d", resource, c.Limit.Max, most)
				}
			}
		}
		if shown != 1 {
			t.Errorf("%s: %d limits on requests per minute: %+v", resource, shown, charges)
		}
	}
}

func TestCostsAreBounded(t *testing.T) {
	t.Parallel()
	for have, want := range map[int64]int64{-5: 0, 0: 0, 7: 7, MaxCost: MaxCost, MaxCost + 1: MaxCost, NoMax: MaxCost} {
		for _, m := range Metrics() {
			if n := (Cost{have, have, have, have}).of(m); n != want {
				t.Errorf("a cost of %d %s is %d, want %d", have, m, n, want)
			}
		}
	}
}

func TestTierFaults(t *testing.T) {
	t.Parallel()
	rpm := Limit{Metric: Requests, Window: Minute, Max: 10}
	images := Limit{Metric: Requests, Window: Minute, Max: 5, Resource: "images"}
	low := Limit{Metric: Requests, Window: Minute, Max: 5, Priority: Low}
	for name, c := range map[string]struct {
		tier  Tier
		index int
		want  string
	}{
		"no requests per minute":  {Tier{Limits: limits()[1:]}, -1, "no limit of requests per minute"},
		"only for one resource":   {Tier{Limits: []Limit{images}}, -1, "no limit of requests per minute"},
		"only for one priority":   {Tier{Limits: []Limit{low}}, -1, "no limit of requests per minute"},
		"twice":                   {Tier{Limits: []Limit{rpm, images, {Metric: Requests, Window: Minute, Max: 11}}}, 2, "a second limit requests_per_minute"},
		"unlimited and a limit":   {Tier{Unlimited: true, Limits: []Limit{rpm}}, 0, "unlimited: true"},
		"negative":                {Tier{Limits: []Limit{{Metric: Requests, Window: Minute, Max: -1}}}, 0, "out of range"},
		"more than can be exact":  {Tier{Limits: []Limit{{Metric: Requests, Window: Minute, Max: MaxMax + 1}}}, 0, "out of range"},
		"a minute by its seconds": {Tier{Limits: []Limit{rpm, {Metric: Requests, Window: 60 * Second, Max: 11}}}, 1, "a second limit"},
	} {
		faults := c.tier.Validate()
		if len(faults) != 1 || faults[0].Index != c.index || !strings.Contains(faults[0].Err.Error(), c.want) {
			t.Errorf("%s: %v: want one fault at %d: %s", name, faults, c.index, c.want)
		}
	}
	none, most := Limit{Metric: Requests, Window: Minute}, Limit{Metric: Requests, Window: Minute, Max: MaxMax}
	for _, tier := range []Tier{
		{Limits: limits()},
		{Unlimited: true},
		{Unlimited: true, Limits: []Limit{images, low}},
		{Limits: []Limit{rpm, images, low}},
		{Limits: []Limit{none}},
		{Limits: []Limit{most}},
	} {
		if faults := tier.Validate(); len(faults) > 0 {
			t.Errorf("%+v: %v", tier, faults)
		}
	}
}
