package main

import (
	"flag"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// near fails unless a figure is within a share of what theory says.
func near(t *testing.T, name string, have, want, within float64) {
	t.Helper()
	if math.Abs(have-want) > within*math.Abs(want) {
		t.Errorf("%s is %.4g, want %.4g within %.0f %%", name, have, want, 100*within)
	}
}

// alone is a server of which each call has one entry that costs 10 µs.
func alone(rate float64) Server {
	return Server{
		Rate: rate, Instances: 3, RoundTrip: 200 * time.Microsecond, Costs: Costs{Order: 10 * time.Microsecond},
		Batch: 1, Gather: time.Hour, Seed: 1, Warm: 10_000, Requests: 200_000,
	}
}

// TestQueueWithoutBatches: requests that come at random and cost the same each are the
// queue M/D/1, of which the mean wait is known.
func TestQueueWithoutBatches(t *testing.T) {
	t.Parallel()
	for _, busy := range []float64{0.2, 0.5, 0.8, 0.9} {
		s := alone(busy * 1e5)
		r := Simulate(s)
		cost := s.Costs.Order.Seconds()
		wait := busy * cost / (2 * (1 - busy))
		near(t, "busy", r.Busy, busy, 0.01)
		near(t, "mean wait", r.Queue.Seconds(), wait, 0.05)
		near(t, "mean", r.Mean.Seconds(), wait+cost+s.RoundTrip.Seconds(), 0.02)
		if r.Batch != 1 {
			t.Errorf("%.2f entries in a call, want 1", r.Batch)
		}
	}
}

// TestQueueWithUsage: long pipelines between short calls are the queue M/G/1 (Pollaczek
// and Khinchine): the wait goes by the mean square of what is served.
func TestQueueWithUsage(t *testing.T) {
	t.Parallel()
	s := alone(30_000)
	s.Costs.Usage, s.Writers, s.Written = 10*time.Microsecond, 1000, 20
	r := Simulate(s)
	short, long := s.Costs.Order.Seconds(), 20*s.Costs.Usage.Seconds()
	busy := s.Rate*short + s.Writers*long
	near(t, "busy", r.Busy, busy, 0.02)
	near(t, "usage", r.Usage, s.Writers*long, 0.03)
	near(t, "mean wait", r.Queue.Seconds(), (s.Rate*short*short+s.Writers*long*long)/(2*(1-busy)), 0.05)
}

// TestLittle: what is in flight is what comes times how long it stays, whatever gathers.
func TestLittle(t *testing.T) {
	t.Parallel()
	for _, s := range []Server{gathering(1000), gathering(50_000), gathering(100_000)} {
		for _, settle := range []time.Duration{0, 3 * time.Microsecond} {
			s.Costs.Settle = settle
			r := Simulate(s)
			near(t, "in flight", r.InFlight, r.Entries*r.Stay.Seconds(), 0.01)
			want := s.Rate
			if settle > 0 {
				want *= 2
			}
			near(t, "entries answered in a second", r.Entries, want, 0.02)
			near(t, "busy", r.Busy, r.Calls*s.Costs.Wire.Seconds()+s.Rate*(s.Costs.Order+s.Costs.Settle).Seconds(), 0.02)
		}
	}
}

// gathering is a server of four instances.
func gathering(rate float64) Server {
	return Server{
		Rate: rate, Instances: 4, RoundTrip: 200 * time.Microsecond, Costs: Costs{Wire: 12 * time.Microsecond, Order: 4 * time.Microsecond},
		Batch: 128, Enough: 128, Gather: 2 * time.Millisecond, Seed: 1, Warm: 10_000, Requests: 60_000,
	}
}

// TestOneAloneWaitsForNobody: a request that finds nothing under way takes the round trip
// and its own cost.
func TestOneAloneWaitsForNobody(t *testing.T) {
	t.Parallel()
	s := gathering(10)
	s.Requests = 5000
	if r := Simulate(s); r.P50 != s.RoundTrip+s.Costs.Wire+s.Costs.Order || r.Batch > 1.01 {
		t.Errorf("p50 %s with %.3f in a call", r.P50, r.Batch)
	}
}

// TestBatches: what comes during a round trip goes together, so that batches grow with the
// rate, shrink with the number of instances, and have a bound.
func TestBatches(t *testing.T) {
	t.Parallel()
	s := gathering(40_000)
	s.Costs = Costs{Order: time.Nanosecond}
	// While one is under way, rate/instances × round trip come; the first after a call that
	// left nobody behind goes alone.
	comes := s.Rate / float64(s.Instances) * s.RoundTrip.Seconds()
	near(t, "batch", Simulate(s).Batch, comes+math.Exp(-comes), 0.02)

	s.Instances = 400
	near(t, "batch of very many instances", Simulate(s).Batch, 1, 0.03)

	s.Instances, s.Rate, s.Gather = 1, 1e6, time.Hour
	s.RoundTrip = 10 * time.Millisecond
	if r := Simulate(s); r.Batch > 128 || r.Batch < 127 {
		t.Errorf("%.1f in a call, want 128", r.Batch)
	}
}

// TestSlowNetwork: a request waits for a call that is under way no longer than it may
// gather.
func TestSlowNetwork(t *testing.T) {
	t.Parallel()
	s := gathering(5000)
	s.RoundTrip = 30 * time.Millisecond
	r := Simulate(s)
	if r.P99 > s.RoundTrip+s.Gather+time.Millisecond || r.P50 < s.RoundTrip {
		t.Errorf("p50 %s, p99 %s with a round trip of %s", r.P50, r.P99, s.RoundTrip)
	}
	if r.Late > 0 || r.UnderWay < 10 {
		t.Errorf("%.3f too late, %d under way", r.Late, r.UnderWay)
	}
}

// TestCallOfEachKey: in a Cluster a batch costs a call for each of its keys.
func TestCallOfEachKey(t *testing.T) {
	t.Parallel()
	s := gathering(100_000)
	s.Costs.Call, s.ByKey = 2*time.Microsecond, true
	s.Keys = Busiest(1, 1, 0, 1)
	one := Simulate(s)
	near(t, "busy with one key", one.Busy, one.Calls*(s.Costs.Wire+s.Costs.Call).Seconds()+s.Rate*s.Costs.Order.Seconds(), 0.02)
	s.Keys = Busiest(1_000_000, 1, 0, 1)
	many := Simulate(s)
	near(t, "busy with many keys", many.Busy, many.Calls*s.Costs.Wire.Seconds()+s.Rate*(s.Costs.Call+s.Costs.Order).Seconds(), 0.02)
}

// TestOverload: a server that is sent more than it can do is always busy, and requests are
// late.
func TestOverload(t *testing.T) {
	t.Parallel()
	s := gathering(400_000)
	s.Requests = 60_000
	if r := Simulate(s); r.Busy < 0.99 || r.Late < 0.1 {
		t.Errorf("busy %.3f, %.3f too late", r.Busy, r.Late)
	}
}

// TestSameSeed: a simulation can be repeated.
func TestSameSeed(t *testing.T) {
	t.Parallel()
	s := gathering(50_000)
	first := Simulate(s)
	if again := Simulate(s); !reflect.DeepEqual(first, again) {
		t.Errorf("%+v, then %+v", first, again)
	}
	s.Seed++
	if Simulate(s) == first {
		t.Error("another seed gives the same")
	}
}

// TestBusiest: shares add up, and one server has all.
func TestBusiest(t *testing.T) {
	t.Parallel()
	if k := Busiest(1000, 1, 1, 1); k.Share != 1 || k.Count != 1000 || math.Abs(k.upTo[999]-1) > 1e-9 {
		t.Errorf("one server has %.3f of the requests, and %d keys", k.Share, k.Count)
	}
	near(t, "hottest of a thousand", Busiest(1000, 1, 1, 1).Hottest, 1/7.4855, 0.001) // the harmonic number
	if k := Busiest(1000, 10, 1, 1); k.Share < 0.1 || k.Share > 0.4 {
		t.Errorf("the busiest of ten has %.3f", k.Share)
	}
	if k := Busiest(100_000, 10, 0, 1); k.Share < 0.1 || k.Share > 0.11 {
		t.Errorf("the busiest of ten has %.3f of keys that are all alike", k.Share)
	}
	near(t, "keys that one of many sees", Seen(1000, 10, 1000), 95.16, 0.001)
}

var update = flag.Bool("update", false, "write the tables into docs/scaling.md")

// TestDocumentedTables: docs/scaling.md shows what the program prints.
func TestDocumentedTables(t *testing.T) {
	t.Parallel()
	file := filepath.Join("..", "..", "docs", "scaling.md")
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	document := string(content)
	for table := range strings.SplitSeq(strings.TrimSpace(Tables()), "\n\n") {
		if strings.Contains(document, table) {
			continue
		}
		head, _, _ := strings.Cut(table, "\n")
		before, rest, found := strings.Cut(document, head)
		_, after, ends := strings.Cut(rest, "\n\n")
		if !*update || !found || !ends {
			t.Errorf("%s has not this table (go test ./scale -update):\n%s", file, table)
			continue
		}
		document = before + table + "\n\n" + after
	}
	if *update {
		if err := os.WriteFile(file, []byte(document), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
