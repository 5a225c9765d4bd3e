package quota

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestAlgorithm: a window that slides has the name and the bounds of the fixed one.
func TestAlgorithm(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"second", "minute", "week", "month", "90s", "8784h"} {
		w, err := ParseWindow(name)
		if err != nil {
			t.Fatal(err)
		}
		s, err := w.ParseAlgorithm("sliding")
		if err != nil || !s.Sliding() || s == w || s.Algorithm() != "sliding" || s.Fixed() != w || s.Slide() != s || s.String() != w.String() {
			t.Errorf("%s: %d, %v", name, s, err)
		}
		now := moment("2026-03-01T12:34:56Z")
		start, end := w.Bounds(now)
		if begin, over := s.Bounds(now); !begin.Equal(start) || !over.Equal(end) {
			t.Errorf("%s: %s to %s", name, begin, over)
		}
		for _, algorithm := range []string{"", "fixed"} {
			if f, err := s.ParseAlgorithm(algorithm); err != nil || f != w || f.Sliding() || f.Algorithm() != "" {
				t.Errorf("%s, %q: %d, %v", name, algorithm, f, err)
			}
		}
	}
	if _, err := Minute.ParseAlgorithm("Sliding"); err == nil || err.Error() != `unknown algorithm "Sliding": want fixed or sliding` {
		t.Error(err)
	}
}

func TestWeighed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		window       Window
		now          string
		used, before int64
		want         int64
	}{
		{Minute, "2026-03-01T12:00:30Z", 3, 10, 3},         // fixed
		{Minute.Slide(), "2026-03-01T12:00:00Z", 0, 7, 7},  // all of it is left
		{Minute.Slide(), "2026-03-01T12:00:30Z", 3, 10, 8}, // half
		{Minute.Slide(), "2026-03-01T12:00:30Z", 3, 11, 9}, // rounded up
		{Minute.Slide(), "2026-03-01T12:00:59.999Z", 0, 1, 1},
		{Minute.Slide(), "2026-03-01T12:00:59.999999Z", 0, 60_000, 1}, // of a whole ms
		{Minute.Slide(), "2026-03-01T12:00:30Z", 4, 0, 4},
		{Second.Slide(), "2026-03-01T12:00:00.250Z", 1, 4, 4},
		{Week.Slide(), "2026-11-26T12:00:00Z", 0, 70, 35},  // Thursday noon
		{Month.Slide(), "2026-02-15T00:00:00Z", 1, 28, 15}, // half of 28 days, whatever January had
		{Month.Slide(), "2026-03-31T00:00:00Z", 0, 31, 1},
		{Minute.Slide(), "2026-03-01T12:00:00Z", MaxUsed, MaxUsed, 2 * MaxUsed},
		{Minute.Slide(), "2026-03-01T12:00:20Z", 0, MaxUsed, 2_666_666_666_666_667},
	} {
		if n := c.window.Weighed(c.used, c.before, moment(c.now)); n != c.want {
			t.Errorf("%s (%s) at %s, %d and %d: %d, want %d", c.window, c.window.Algorithm(), c.now, c.used, c.before, n, c.want)
		}
	}
}

func TestWhenARefusedChargeFits(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		window       Window
		max, cost    int64
		used, before int64
		now, want    string
	}{
		"fixed":                            {Minute, 10, 1, 10, 0, "2026-03-01T12:00:30.5Z", "2026-03-01T12:01:00Z"},
		"a tenth of it less":               {Minute.Slide(), 10, 1, 0, 10, "2026-03-01T12:00:00Z", "2026-03-01T12:00:06Z"},
		"half of it less":                  {Minute.Slide(), 10, 5, 0, 10, "2026-03-01T12:00:29.999Z", "2026-03-01T12:00:30Z"},
		"the first ms of what is left":     {Minute.Slide(), 10, 1, 4, 7, "2026-03-01T12:00:00Z", "2026-03-01T12:00:17.143Z"}, // 7 × 42857/60000 is 4.99998
		"in the next window":               {Minute.Slide(), 10, 1, 10, 3, "2026-03-01T12:00:30Z", "2026-03-01T12:01:06Z"},
		"at the beginning of the next":     {Minute.Slide(), 10, 1, 9, 10, "2026-03-01T12:00:10Z", "2026-03-01T12:01:00Z"},
		"late in the next window":          {Minute.Slide(), 10, 9, 10, 0, "2026-03-01T12:00:30Z", "2026-03-01T12:01:54Z"},
		"in the one after that":            {Minute.Slide(), 10, 10, 10, 0, "2026-03-01T12:00:30Z", "2026-03-01T12:02:00Z"},
		"of a maximum that was lowered":    {Minute.Slide(), 10, 1, 90, 90, "2026-03-01T12:00:30Z", "2026-03-01T12:01:54Z"},
		"the next month is longer":         {Month.Slide(), 31, 1, 31, 0, "2026-02-10T00:00:00Z", "2026-03-02T00:00:00Z"},
		"a limit of 0":                     {Minute.Slide(), 0, 1, 0, 0, "2026-03-01T12:00:30Z", "2026-03-01T12:01:00Z"},
		"the last ms, and a bit, is over":  {Minute.Slide(), 1, 1, 0, 1, "2026-03-01T12:00:30Z", "2026-03-01T12:01:00Z"},
		"more than numbers of a ms can be": {Minute.Slide(), MaxMax, 1, 0, MaxMax, "2026-03-01T12:00:00Z", "2026-03-01T12:00:00.001Z"},
	} {
		charge := Charge{Limit: Limit{Metric: Tokens, Window: c.window, Max: c.max}, Cost: c.cost}
		d := decide([]Charge{charge}, Taken{Now: moment(c.now), Used: []int64{c.used}, Before: []int64{c.before}})
		if d.Admitted || d.RefusedBy != charge.Limit || !d.Reset.Equal(moment(c.want)) || d.Wait != d.Reset.Sub(d.Now) {
			t.Errorf("%s: %s, after %s, refused by %+v: want %s", name, d.Reset, d.Wait, d.RefusedBy, c.want)
		}
	}
}

// TestItFitsThenAndNotBefore: of any counts, a charge that is refused is refused until the
// moment that it is told, and not at that.
func TestItFitsThenAndNotBefore(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2)) // to be the same each time
	begin := moment("2026-02-27T23:59:00Z")
	refused := 0
	for range 20_000 {
		w := []Window{Second, Minute, 7 * Second, Day, Month}[random.IntN(5)].Slide()
		c := Charge{Limit: Limit{Window: w, Max: 1 + random.Int64N(50)}}
		c.Cost = 1 + random.Int64N(c.Limit.Max)
		used, before := random.Int64N(60), random.Int64N(60)
		now := begin.Add(time.Duration(random.Int64N(int64(50 * time.Hour))))
		if !c.Exceeds(w.Weighed(used, before, now)) {
			continue
		}
		refused++
		exceeds := func(at time.Time) bool {
			_, end := w.Bounds(now)
			_, next := w.Bounds(end)
			switch {
			case at.Before(end):
				return c.Exceeds(w.Weighed(used, before, at))
			case at.Before(next):
				return c.Exceeds(w.Weighed(0, used, at))
			default:
				return c.Exceeds(0)
			}
		}
		at := c.fits(used, before, now)
		if exceeds(at) || !exceeds(at.Add(-time.Millisecond)) || !at.After(now) {
			t.Fatalf("%+v, %d and %d used at %s: told %s, at which it fits: %t, and 1 ms before: %t", c, used, before, now, at, !exceeds(at), !exceeds(at.Add(-time.Millisecond)))
		}
	}
	if refused < 5000 {
		t.Errorf("%d refused", refused)
	}
}

// TestSlidingDecision: what counts is what is shown, and of refusals the longest.
func TestSlidingDecision(t *testing.T) {
	t.Parallel()
	rpm := Limit{Metric: Requests, Window: Minute.Slide(), Max: 10}
	day := Limit{Metric: Requests, Window: Day, Max: 500}
	charges := []Charge{{Limit: rpm, Cost: 1}, {Limit: day, Cost: 1}}
	now := moment("2026-03-01T12:00:30Z")
	d := decide(charges, Taken{Now: now, Admitted: true, Used: []int64{3, 70}, Before: []int64{9, 0}})
	if d.Shown != rpm || d.Used != 8 || d.Remaining != 2 || !d.Reset.Equal(now.Add(30*time.Second)) || d.Unlimited() {
		t.Errorf("%+v", d)
	}
	d = decide(charges, Taken{Now: now, Used: []int64{6, 70}, Before: []int64{9, 0}})
	if d.RefusedBy != rpm || d.RefusedUsed != 11 || d.Remaining != 0 || d.Wait != 10*time.Second { // 9 × 20/60 is 3
		t.Errorf("%+v", d)
	}
	for s := range d.Limits {
		if s.Limit == rpm && (s.Used != 11 || s.Remaining() != 0 || !s.Reset.Equal(now.Add(30*time.Second))) {
			t.Errorf("%+v", s)
		}
	}
	d = decide(charges, Taken{Now: now, Used: []int64{6, 500}, Before: []int64{9, 0}})
	if d.RefusedBy != day || d.Wait != 11*time.Hour+59*time.Minute+30*time.Second {
		t.Errorf("%+v", d)
	}
}

// TestSlidingShare: what counts of a share that is rounded up is never more than the limit, and
// no more than is used.
func TestSlidingShare(t *testing.T) {
	t.Parallel()
	charges := []Charge{{Limit: Limit{Metric: Requests, Window: Minute.Slide(), Max: 10}, Cost: 1}}
	for used, want := range map[int64]int64{3: 3, 10: 10, 12: 10} {
		d := decide(charges, Taken{Now: moment("2026-03-01T12:00:30Z"), Admitted: true, Used: []int64{used}, Before: []int64{0}, Instances: 2})
		if d.Used != want || d.Remaining != 10-want {
			t.Errorf("%d used: %d are shown, and %d remain", used, d.Used, d.Remaining)
		}
	}
}

// TestOneCounterForBothAlgorithms: limits that differ in that alone are two of one counter,
// and an override replaces the other; without a word of its own it goes on as that.
func TestOneCounterForBothAlgorithms(t *testing.T) {
	t.Parallel()
	fixed, slides := Limit{Metric: Requests, Window: Minute, Max: 10}, Limit{Metric: Requests, Window: Minute.Slide(), Max: 10}
	faults := Tier{Limits: []Limit{fixed, slides}}.Validate()
	if len(faults) != 1 || faults[0].Index != 1 || faults[0].Err.Error() != "a second limit requests_per_minute: remove one of them" {
		t.Errorf("%+v", faults)
	}
	if faults := (Tier{Limits: []Limit{slides}}).Validate(); len(faults) != 0 {
		t.Errorf("%+v", faults)
	}
	own := Limit{Metric: Requests, Window: Minute, Max: 5}
	for _, c := range []struct {
		inherits bool
		want     Window
	}{{false, Minute}, {true, Minute.Slide()}} {
		r := Request{
			Tier: NewPlan(Tier{Limits: []Limit{slides}}, ByKey, nil), Resource: DefaultResource, Priority: Normal, Cost: Cost{Requests: 1},
			Overrides: []Override{{Limit: own, Inherits: c.inherits}},
		}
		charges := r.charges(moment("2026-03-01T12:00:30Z"))
		if len(charges) != 1 || charges[0].Limit != (Limit{Metric: Requests, Window: c.want, Max: 5}) || charges[0].Counter != "requests/minute" {
			t.Errorf("inherits %t: %+v", c.inherits, charges)
		}
	}
}
