package main

import (
	"math"
	"slices"
	"testing"
)

// TestProcessors: what idles, or waits for a disk, is not busy; guests are not counted twice.
func TestProcessors(t *testing.T) {
	t.Parallel()
	const before = "cpu  1000 0 200 5000 300 10 20 30 400 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n"
	const after = "cpu  1030 5 215 5060 320 12 23 45 900 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n"
	have := make([]processors, 2)
	for i, stat := range []string{before, after} {
		var err error
		if have[i], err = parseProcessors(stat); err != nil {
			t.Fatal(err)
		}
	}
	if p := have[1].since(have[0]); p != (processors{busy: 30 + 5 + 15 + 2 + 3 + 15, all: 150}) || math.Abs(p.share()-70.0/150) > 1e-9 {
		t.Errorf("have %+v, %v", p, p.share())
	}
	for _, stat := range []string{"", "cpu 1 2 3\n", "cpu0 1 2 3 4 5 6 7 8\n", "cpu 1 2 3 4 5 six 7 8\n"} {
		if p, err := parseProcessors(stat); err == nil {
			t.Errorf("%q is read as %+v", stat, p)
		}
	}
}

// TestHalfBusy: the search comes to the rate at which the processors are half busy, where
// each request costs less the more there are; and ends where there is none.
func TestHalfBusy(t *testing.T) {
	t.Parallel()
	search := func(share func(rate float64) float64) float64 {
		rate := 250.0
		for range searches {
			rate = nearer(rate, share(rate), 1000)
		}
		return rate
	}
	concave := func(rate float64) float64 { return 0.02 + 0.98*math.Pow(rate/1000, 0.7) }
	if have := concave(search(concave)); math.Abs(have-half) > 0.02 {
		t.Errorf("the processors are %v busy", have)
	}
	if have := search(func(float64) float64 { return 1 }); have != 100 {
		t.Errorf("on a machine that is busy with something else: have %v a second, want a tenth of the capacity", have)
	}
	if have := search(func(float64) float64 { return 0 }); have != 1000 {
		t.Errorf("on a machine that is never busy: have %v a second, want the capacity", have)
	}
}

// TestNotHalf: a report tells where a level was not reached.
func TestNotHalf(t *testing.T) {
	t.Parallel()
	r := results{
		through("ext_authz", "redis", halfBusy): {{busy: 61}}, through("ratelimit", "redis", halfBusy): {{busy: 45}},
		through("ratelimit", "canned", halfBusy): {{busy: 30}}, through("ratelimit", "redis", halfRate): {{busy: 90}},
	}
	if have := r.notHalf(); !slices.Equal(have, []string{"Envoy, ext_authz, redis, half busy (61 %)"}) {
		t.Errorf("have %q", have)
	}
}
