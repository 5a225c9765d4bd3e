package e2e

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
)

// wholeSuite asks for every fault, long and at the full rate, with the times as shipped
// and a TierGate without the race detector.
var wholeSuite = flag.Bool("whole", false, "run the whole fault suite, as make chaos does")

// pick returns what the whole suite has, or the short form.
func pick[T any](whole, short T) T {
	if *wholeSuite {
		return whole
	}
	return short
}

// A trial is a fleet under load in which something breaks.
type trial struct {
	t       *testing.T
	stacks  []*devstack.Stack // the instances
	edges   []*devstack.Stack // those with an Envoy
	rate    int               // requests per second
	timeout time.Duration     // of a call to Redis
	narrow  int               // requests a minute that a narrow key may make: half of what it asks for

	load     *steadyLoad
	outcomes []outcome     // of the load, when it has ended
	struck   time.Duration // when the fault began, since the load did
	healed   time.Duration // when its cause was gone
}

// newTrial starts instances on one Redis, each with an Envoy.
func newTrial(t *testing.T, o devstack.Options, instances int) *trial {
	t.Helper()
	f := newStoppedTrial(t, &o)
	for range instances {
		f.add(o)
		o.RedisRunning, o.RedisAddress = true, f.stacks[0].Options.RedisAddress
	}
	f.edges = f.stacks
	f.awaitFleet()
	return f
}

// newTrialBehindOne starts instances on one Redis, all behind one Envoy.
func newTrialBehindOne(t *testing.T, o devstack.Options, instances int) *trial {
	t.Helper()
	addresses, customers := freeAddresses(t, instances), freeAddresses(t, instances)
	change := o.EditEnvoy
	o.EditEnvoy = func(file []byte) []byte {
		if change != nil {
			file = change(file)
		}
		return withEndpoints(t, withEndpoints(t, file, 9001, addresses[1:]), 9003, customers[1:])
	}
	f := newStoppedTrial(t, &o)
	for i := range instances {
		o.TierGateAddress, o.CustomerAddress = addresses[i], customers[i]
		f.add(o)
		o.RedisRunning, o.RedisAddress, o.ServerOnly = true, f.stacks[0].Options.RedisAddress, true
	}
	f.edges = f.stacks[:1]
	f.awaitFleet()
	eventually(t, "Envoy finds all instances healthy", func() bool { return envoyStat(t, f.edges[0], "cluster.tiergate.membership_healthy") == instances })
	return f
}

func freeAddresses(t *testing.T, n int) []string {
	t.Helper()
	addresses := make([]string, n)
	for i := range addresses {
		var err error
		if addresses[i], err = devstack.FreeAddress(); err != nil {
			t.Fatal(err)
		}
	}
	return addresses
}

// newStoppedTrial completes the options of the instances.
func newStoppedTrial(t *testing.T, o *devstack.Options) *trial {
	t.Helper()
	freshDay(t, 5*time.Minute)
	f := &trial{t: t, rate: pick(500, 150), timeout: pick(50*time.Millisecond, 250*time.Millisecond)}
	f.narrow = f.rate / 5 * int(narrowFor/time.Second) / 2
	o.Store = "redis"
	f.prepare(o)
	return f
}

// prepare gives the options the configuration of trials. In the short form Envoy waits
// longer for TierGate, so that a busy machine is not taken for a fault.
func (f *trial) prepare(o *devstack.Options) {
	var keys string
	o.Config, keys = ownConfig(f.t)
	merge(f.t, o.Config, fmt.Sprintf(`tiers:
  counted:
    priority: critical
    limits:
      - {metric: requests, per: minute, max: 100000000}
      - {metric: requests, per: day, max: 100000000}
      - {metric: tokens, per: day, max: 100000000000}
  narrow:
    priority: normal
    limits:
      - {metric: requests, per: minute, max: %d}
`, f.narrow))
	list := strings.Builder{}
	list.WriteString("keys:\n")
	for i := range countedKeys {
		list.WriteString(keyEntry(countedKey(i), "counted"))
	}
	for i := range narrowKeys {
		list.WriteString(keyEntry(narrowKey(i), "narrow"))
	}
	list.WriteString(keyEntry(probeKey, "counted"))
	if err := os.WriteFile(keys, []byte(list.String()), 0o600); err != nil {
		f.t.Fatal(err)
	}
	o.Sets = append([]string{"store.redis.timeout=" + f.timeout.String()}, o.Sets...)
	change := o.EditEnvoy
	o.EditEnvoy = func(file []byte) []byte {
		if change != nil {
			file = change(file)
		}
		return pick(file, patient(file))
	}
}

// add starts an instance.
func (f *trial) add(o devstack.Options) {
	f.t.Helper()
	f.stacks = append(f.stacks, upAsShipped(f.t, o))
}

// awaitFleet returns when each instance knows how many there are.
func (f *trial) awaitFleet() {
	f.t.Helper()
	for i, s := range f.stacks {
		eventually(f.t, fmt.Sprintf("instance %d knows of %d", i, len(f.stacks)), func() bool {
			return metric(f.t, s, "tiergate_instances") == float64(len(f.stacks))
		})
	}
}

// run sends the load, strikes, waits as long as the fault is to last, heals, and measures
// until all is as before. The counts are those of the first instance in the end.
func (f *trial) run(name string, lasts time.Duration, strike, heal func()) row {
	f.t.Helper()
	addresses := make([]string, len(f.edges))
	for i, s := range f.edges {
		addresses[i] = s.API
	}
	f.load = startLoad(f.t, addresses, f.rate)
	f.wait(pick(5*time.Second, time.Second))
	f.struck = f.load.now()
	strike()
	f.wait(f.struck + lasts)
	heal()
	f.healed = f.load.now()
	r := row{fault: name}
	r.shared = f.awaitShared()
	f.wait(f.healed + pick(5*time.Second, time.Second))
	f.outcomes = f.load.stop()
	before, after := summarize(f.outcomes, 0, f.struck), summarize(f.outcomes, f.healed, f.load.now())
	r.during = summarize(f.outcomes, f.struck, f.healed)
	r.errors = r.during.failed + after.failed
	r.normal = f.normalAfter()
	r.over = f.over()
	f.count(&r)
	f.t.Logf("%s\n%s", name, phases(before, r.during, after))
	if err := cmp.Or(before.firstFailure, r.during.firstFailure, after.firstFailure); err != nil {
		f.t.Logf("the first error of a client: %v", err)
	}
	return r
}

// normalAfter returns how long after the fault degraded answers still came. One that comes
// later than a quarter of a second after all others is of something else, such as a machine
// that is busy.
func (f *trial) normalAfter() time.Duration {
	var ends []time.Duration
	for _, o := range f.outcomes {
		if end := o.due + o.took; o.degraded && end >= f.struck {
			ends = append(ends, end)
		}
	}
	if len(ends) == 0 {
		return none
	}
	slices.Sort(ends)
	last := f.healed
	for _, end := range ends {
		if end > last && end-last <= 250*time.Millisecond {
			last = end
		}
	}
	return last - f.healed
}

// wait returns at a time since the load began.
func (f *trial) wait(until time.Duration) {
	f.t.Helper()
	waitUntil(f.t, f.load.began.Add(until))
}

// probeKey is asked by nobody else.
const probeKey = "sk-probe"

// awaitShared returns how long after the fault the last instance sees what the first has
// just admitted, and neither counts by itself.
func (f *trial) awaitShared() time.Duration {
	f.t.Helper()
	ask := func(s *devstack.Stack) outcome {
		o := outcome{key: probeKey}
		o.ask(f.load.client, s.API)
		return o
	}
	var first, last outcome
	shared := trueWithin(pick(15*time.Second, 20*time.Second), func() bool {
		first, last = ask(f.edges[0]), ask(f.edges[len(f.edges)-1])
		return !first.failed() && !last.failed() && !first.degraded && !last.degraded && last.used == first.used+1
	})
	if !shared {
		f.t.Errorf("counts are not shared again: one instance says %+v, another %+v", first, last)
		return none
	}
	return f.load.now() - f.healed
}
