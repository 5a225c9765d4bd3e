package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
)

// turns are how often each of those that take turns in a round has its own: what disturbs the machine for
// longer than one disturbs all.
const turns = 4

// A measurement is of one case in one round: the load, and what became of it.
type measurement struct {
	of        benchCase
	target    target
	generator *generator
	meter     *meter
	outcome   *outcome
	floors    []*floor   // of its Redis
	canned    *generator // of the floors; nil: it has none
}

// measure measures cases once, in turns, after a fifth of the time to warm each.
func (b *bed) measure(ctx context.Context, cases []benchCase, s spread) ([]figures, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	all := make([]*measurement, len(cases))
	for i, c := range cases {
		m, err := b.newMeasurement(ctx, c, s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		defer m.close()
		all[i] = m
	}
	for _, m := range all {
		if err := m.warm(ctx, s.duration/5); err != nil {
			return nil, fmt.Errorf("%s: %w", m.of.name, err)
		}
	}
	n := turns
	if len(all) == 1 && len(all[0].floors) == 0 { // with whom none takes turns
		n = 1
	}
	if err := takeTurns(ctx, all, s.duration, n); err != nil {
		return nil, err
	}
	measured := make([]figures, len(all))
	for i, m := range all {
		f, err := m.figures()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.of.name, err)
		}
		measured[i] = f
	}
	return measured, nil
}

// newMeasurement connects to the server of a case.
func (b *bed) newMeasurement(ctx context.Context, c benchCase, s spread) (*measurement, error) {
	m := &measurement{of: c, target: b.targets[c.target]}
	l := load{
		protocol: c.protocol, keys: b.keys[c.tier], inFlight: s.inFlight, connections: s.connections, zipf: s.zipf, settle: c.settle, request: c.request,
	}
	var err error
	if m.generator, err = newGenerator(ctx, m.target.address, l); err != nil || !c.besideRedis() {
		return m, err
	}
	if m.canned, err = newGenerator(ctx, b.targets["canned"].address, l); err == nil {
		m.floors, err = b.newFloors(ctx, m.canned)
	}
	if err != nil {
		m.close()
	}
	return m, err
}

func (m *measurement) close() {
	m.generator.close()
	if m.canned != nil {
		m.canned.close()
	}
}

// warm has the server asked for a while, and learns from that how the floors are to be measured.
func (m *measurement) warm(ctx context.Context, duration time.Duration) error {
	if err := m.start(ctx); err != nil {
		return err
	}
	if err := m.ask(ctx, duration); err != nil {
		return err
	}
	batch := m.meter.figures(m.outcome.requests)[batchSize]
	for _, f := range m.floors {
		if err := f.warm(ctx, m.outcome, batch, duration); err != nil {
			return err
		}
	}
	return m.start(ctx)
}

// start begins to measure.
func (m *measurement) start(ctx context.Context) (err error) {
	m.outcome = newOutcome()
	m.meter, err = newMeter(ctx, m.target)
	return err
}

// takeTurns has each asked for so long, in so many turns, with the floors of its Redis.
func takeTurns(ctx context.Context, all []*measurement, duration time.Duration, n int) error {
	each := duration / time.Duration(n)
	for range n {
		for _, m := range all {
			if err := m.ask(ctx, each); err != nil {
				return fmt.Errorf("%s: %w", m.of.name, err)
			}
			for _, f := range m.floors {
				if err := f.measure(ctx, m.outcome, each); err != nil {
					return fmt.Errorf("%s: %w", m.of.name, err)
				}
			}
		}
	}
	return nil
}

// ask sends the load for a while, in which no usage is flushed. Settlements that belong to it are part of what is
// measured.
func (m *measurement) ask(ctx context.Context, duration time.Duration) error {
	if err := await(ctx, m.target.flushes.free(time.Now(), duration+flushTime)); err != nil {
		return err
	}
	if err := m.meter.on(ctx); err != nil {
		return err
	}
	o := m.generator.run(ctx, duration)
	if err := m.faults(o); err != nil {
		return err
	}
	m.outcome.add(o)
	m.outcome.tickets = nil
	if m.of.settle == atOnce {
		if err := m.meter.awaitSettled(ctx, m.outcome.settlements); err != nil {
			return err
		}
	}
	if err := m.meter.off(ctx); err != nil || m.of.settle != later {
		return err
	}
	return errors.Join(m.generator.settle(o), m.meter.awaitSettled(ctx, m.outcome.settlements))
}

// figures are those of what it was asked since the start.
func (m *measurement) figures() (figures, error) {
	if m.of.counted {
		if err := countedEach(m.meter.redis, m.outcome.requests); err != nil {
			return nil, err
		}
	}
	f := m.meter.figures(m.outcome.requests)
	f.add(m.outcome)
	for _, floor := range m.floors {
		if err := floor.add(f); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// tolerated is the share of requests that may miss a deadline on a machine that the load
// takes whole: TierGate then decides without Redis, or Envoy without TierGate.
const tolerated = 0.01

// faults tells what spoils a measurement.
func (m *measurement) faults(o *outcome) error {
	most := int64(len(m.generator.load.keys)) // admitted, where they are refused
	switch {
	case o.failed > 0:
		return fmt.Errorf("%d of %d calls failed: %w", o.failed, o.requests, o.err)
	case o.requests == 0:
		return errors.New("no call was made")
	case float64(o.degraded) > tolerated*float64(o.requests):
		return fmt.Errorf("%d of %d requests were decided without Redis", o.degraded, o.requests)
	case m.of.refused && o.admitted > most:
		return fmt.Errorf("%d of %d requests were admitted: want %d at most", o.admitted, o.requests, most)
	case !m.of.refused && o.admitted != o.requests:
		return fmt.Errorf("%d of %d requests were refused", o.requests-o.admitted, o.requests)
	case m.of.settle != never && o.settlements != o.admitted:
		return fmt.Errorf("%d of %d admitted requests had a reservation", o.settlements, o.admitted)
	}
	return nil
}

// A meter measures what a target uses while it is on.
type meter struct {
	target      target
	settlements float64 // of the target before

	cpu            time.Duration
	redis          redisUsage
	calls, entries float64 // of batches

	cpuBefore                  time.Duration // when it was switched on
	redisBefore                redisUsage
	callsBefore, entriesBefore float64
}

// newMeter returns a meter that is off.
func newMeter(ctx context.Context, t target) (*meter, error) {
	settlements, err := t.settled(ctx)
	return &meter{target: t, settlements: settlements}, err
}

func (m *meter) on(ctx context.Context) (err error) {
	if m.callsBefore, m.entriesBefore, err = m.target.sent(ctx); err != nil {
		return err
	}
	if m.redisBefore, err = usageOf(ctx, m.target.redis); err != nil {
		return err
	}
	m.cpuBefore, err = devstack.CPU(m.target.pid)
	return err
}

func (m *meter) off(ctx context.Context) error {
	cpu, err := devstack.CPU(m.target.pid)
	if err != nil {
		return err
	}
	redis, err := usageOf(ctx, m.target.redis)
	if err != nil {
		return err
	}
	calls, entries, err := m.target.sent(ctx)
	if err != nil {
		return err
	}
	m.cpu += cpu - m.cpuBefore
	m.redis = m.redis.and(redis.since(m.redisBefore))
	m.calls += calls - m.callsBefore
	m.entries += entries - m.entriesBefore
	return nil
}

// awaitSettled waits for so many settlements since it was made.
func (m *meter) awaitSettled(ctx context.Context, n int64) error {
	return m.target.awaitSettled(ctx, m.settlements+float64(n))
}

// figures are what so many requests took.
func (m *meter) figures(requests int64) figures {
	f := figures{serverCPU: perRequest(m.cpu, requests)}
	if m.target.redis == nil {
		return f
	}
	f[redisCPU] = perRequest(m.redis.cpu, requests)
	f[commands] = float64(m.redis.commands) / float64(requests)
	if m.calls > 0 {
		f[batchSize] = m.entries / m.calls
	}
	return f
}
