package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
)

// A benchCase is one line of the table.
type benchCase struct {
	name     string
	protocol protocol
	target   string // of the bed
	tier     string
	settle   settling
	refused  bool                                     // every request but the first of a key
	request  func(authorization string) proto.Message // nil: as Envoy sends it with the shipped files
	counted  bool                                     // by commands of Redis: see countedEach
}

// cannedAnswer is what the server of a case is compared with.
func cannedAnswer(p protocol) benchCase {
	return benchCase{name: "canned answer, " + string(p), protocol: p, target: "canned", tier: "requests"}
}

// rateLimitCase is what the throughput of those with Redis is compared with. A Check is as
// TierGate gets it; a call of the rate limit service has a descriptor for each limit.
func rateLimitCase(p protocol) benchCase {
	c := benchCase{name: "envoyproxy/ratelimit, " + string(p), protocol: p, target: "ratelimit", tier: "requests", request: threeLimits, counted: true}
	if p == check {
		c.target, c.request = "ratelimit-check", nil
	}
	return c
}

// cases are what is measured, by target and protocol.
func cases() []benchCase {
	all := []benchCase{rateLimitCase(check), rateLimitCase(rls)}
	for _, store := range []string{"redis", "memory"} {
		for _, p := range []protocol{check, rls} {
			of := fmt.Sprintf(", %s, %s", store, p)
			all = append(all,
				benchCase{name: "requests" + of, protocol: p, target: store, tier: "requests"},
				benchCase{name: "tokens" + of, protocol: p, target: store, tier: "tokens", settle: later},
				benchCase{name: "tokens settled" + of, protocol: p, target: store, tier: "tokens", settle: atOnce},
			)
			if store == "redis" {
				all = append(all,
					benchCase{name: "refused" + of, protocol: p, target: store, tier: "spent", refused: true},
					benchCase{name: "unlimited" + of, protocol: p, target: store, tier: "unlimited"},
				)
			}
		}
	}
	return all
}

// A figure is something that is measured.
type figure string

const (
	perSecond figure = "requests/s"
	serverCPU figure = "CPU of the server"         // µs for a request
	cannedCPU figure = "CPU of the canned answer"  // µs for a request, just before
	loadCPU   figure = "CPU of the load"           // µs for a request
	redisCPU  figure = "CPU of Redis"              // µs for a request
	commands  figure = "commands"                  // of Redis, for a request
	batchSize figure = "batch"                     // requests and settlements for each call that TierGate makes for them
	callRate  figure = "calls/s"                   // of these
	floorIn32 figure = "script floor, batch of 32" // µs for a request
	floorHere figure = "script floor, same batch"  // µs for a request, in batches as large as TierGate's
	floorKept figure = "rate of the script floor"  // as a share of the rate of TierGate, the less of the two
	p50       figure = "p50"                       // ms
	p99       figure = "p99"                       // ms
)

// figures are those of one run.
type figures map[figure]float64

// spread is how the load of all cases is sent.
type spread struct {
	inFlight, connections int
	zipf                  float64
	duration              time.Duration // of a run
}

// add adds what became of a load.
func (f figures) add(o *outcome) {
	f[perSecond], f[p50], f[p99] = o.perSecond(), ms(o.latency.ValueAtQuantile(50)), ms(o.latency.ValueAtQuantile(99))
}

// measure runs a case once: a fifth of the time to warm it, and then to measure.
func (b *bed) measure(ctx context.Context, c benchCase, s spread) (figures, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t := b.targets[c.target]
	g, err := newGenerator(ctx, t.address, load{
		protocol: c.protocol, keys: b.keys[c.tier], inFlight: s.inFlight, connections: s.connections, zipf: s.zipf, settle: c.settle, request: c.request,
	})
	if err != nil {
		return nil, err
	}
	defer g.close()
	m := meter{of: c, target: t}
	run := func(duration time.Duration) (*outcome, figures, error) {
		if err := await(ctx, t.flushes.free(time.Now(), duration+flushTime)); err != nil {
			return nil, nil, err
		}
		if err := m.start(ctx); err != nil {
			return nil, nil, err
		}
		o := g.run(ctx, duration)
		if err := b.faults(c, o); err != nil {
			return nil, nil, err
		}
		if c.settle == atOnce {
			if err := m.settled(ctx, o.settlements); err != nil {
				return nil, nil, err
			}
		}
		f, err := m.stop(ctx, o.requests)
		if err != nil || c.settle != later {
			return o, f, err
		}
		return o, f, errors.Join(g.settle(o), m.settled(ctx, o.settlements))
	}
	if _, _, err := run(s.duration / 5); err != nil {
		return nil, err
	}
	o, f, err := run(s.duration)
	if err != nil {
		return nil, err
	}
	f.add(o)
	return f, nil
}

// tolerated is the share of requests that may miss a deadline on a machine that the load
// takes whole: TierGate then decides without Redis, or Envoy without TierGate.
const tolerated = 0.01

// faults tells what spoils a measurement.
func (b *bed) faults(c benchCase, o *outcome) error {
	most := int64(len(b.keys[c.tier])) // admitted, where they are refused
	switch {
	case o.failed > 0:
		return fmt.Errorf("%d of %d calls failed: %w", o.failed, o.requests, o.err)
	case o.requests == 0:
		return errors.New("no call was made")
	case float64(o.degraded) > tolerated*float64(o.requests):
		return fmt.Errorf("%d of %d requests were decided without Redis", o.degraded, o.requests)
	case c.refused && o.admitted > most:
		return fmt.Errorf("%d of %d requests were admitted: want %d at most", o.admitted, o.requests, most)
	case !c.refused && o.admitted != o.requests:
		return fmt.Errorf("%d of %d requests were refused", o.requests-o.admitted, o.requests)
	case c.settle != never && o.settlements != o.admitted:
		return fmt.Errorf("%d of %d admitted requests had a reservation", o.settlements, o.admitted)
	}
	return nil
}

// A meter measures what a target uses.
type meter struct {
	of     benchCase
	target target

	cpu            []time.Duration // of the target and of this process
	redis          redisUsage
	settlements    int64
	calls, entries float64 // of batches
	begun          time.Time
}

func (m *meter) start(ctx context.Context) (err error) {
	if m.of.settle != never {
		if m.settlements, err = m.target.settled(ctx); err != nil {
			return err
		}
	}
	if m.calls, m.entries, err = m.target.sent(ctx); err != nil {
		return err
	}
	if m.redis, err = usageOf(ctx, m.target.redis); err != nil {
		return err
	}
	m.begun = time.Now()
	m.cpu, err = cpuOf([]int{m.target.pid, os.Getpid()})
	return err
}

// settled waits for so many settlements since the start.
func (m *meter) settled(ctx context.Context, n int64) error {
	return m.target.awaitSettled(ctx, m.settlements+n)
}

func (m *meter) stop(ctx context.Context, requests int64) (figures, error) {
	took := time.Since(m.begun)
	now, err := cpuOf([]int{m.target.pid, os.Getpid()})
	if err != nil {
		return nil, err
	}
	f := figures{serverCPU: perRequest(now[0]-m.cpu[0], requests), loadCPU: perRequest(now[1]-m.cpu[1], requests)}
	if m.target.redis == nil {
		return f, nil
	}
	u, err := usageOf(ctx, m.target.redis)
	if err != nil {
		return nil, err
	}
	u = u.since(m.redis)
	if m.of.counted {
		if err := countedEach(u, requests); err != nil {
			return nil, err
		}
	}
	f[redisCPU] = perRequest(u.cpu, requests)
	f[commands] = float64(u.commands) / float64(requests)
	made, entries, err := m.target.sent(ctx)
	if made > m.calls {
		f[batchSize] = (entries - m.entries) / (made - m.calls)
		f[callRate] = (made - m.calls) / took.Seconds()
	}
	return f, err
}

// results are the figures of each round, by case. A case that failed has fewer.
type results map[string][]figures

// median returns the median of the rounds; false: it was not measured.
func (r results) median(name string, f figure) (float64, bool) {
	return median(r[name], func(round figures) (float64, bool) { v, ok := round[f]; return v, ok })
}

// ratio returns the median of the ratios to another case, round by round: what disturbs
// the machine for longer than a round disturbs both.
func (r results) ratio(name, other string, f figure) (float64, bool) {
	i := -1
	return median(r[name], func(round figures) (float64, bool) {
		if i++; i >= len(r[other]) {
			return 0, false
		}
		v, ok := round[f]
		o, also := r[other][i][f]
		return v / o, ok && also && o > 0
	})
}

// within returns the median of the ratios of two figures of the same round.
func (r results) within(name string, f, other figure) (float64, bool) {
	return median(r[name], func(round figures) (float64, bool) {
		v, ok := round[f]
		o, also := round[other]
		return v / o, ok && also && o > 0
	})
}

func median(rounds []figures, of func(figures) (float64, bool)) (float64, bool) {
	var values []float64
	for _, round := range rounds {
		if v, ok := of(round); ok {
			values = append(values, v)
		}
	}
	if len(values) == 0 {
		return 0, false
	}
	slices.Sort(values)
	if n := len(values); n%2 == 0 {
		return (values[n/2-1] + values[n/2]) / 2, true
	}
	return values[len(values)/2], true
}
