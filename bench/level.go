package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// A level is how many requests are sent to an Envoy a second.
type level string

const (
	// halfBusy is the rate at which the processors of the machine are busy half of the time
	// with all that TierGate needs, and with the load and the upstream.
	halfBusy level = "half busy"
	// halfRate is half the rate that passes with TierGate. It takes more than half of a
	// machine of two cores: the fewer come at a time, the more each costs.
	halfRate level = "half the rate"
)

// through names the results of a chain at a level, with TierGate or the canned answer
// behind it.
func through(chain, target string, l level) string {
	return fmt.Sprintf("Envoy, %s, %s, %s", chain, target, l)
}

// halfRateRounds are the first ones, in which it is measured too.
const halfRateRounds = 3

// busy is how many percent of the time the processors did something.
const busy figure = "busy"

// half is how busy they are to be.
const half = 0.5

// searches are the tries to find the rate that makes them so.
const searches = 3

// searchHalfBusy returns the rate at which the processors are half busy, beginning with a
// quarter of the capacity.
func (t *table) searchHalfBusy(ctx context.Context, f *front, capacity float64) (float64, error) {
	rate := capacity / 4
	for range searches {
		o, p, err := f.watch(ctx, load{inFlight: atATime(t.spread), rate: rate}, t.spread.duration)
		if err == nil {
			err = o.fewFailed()
		}
		if err != nil {
			return 0, fmt.Errorf("search the rate that keeps the processors half busy: %w", err)
		}
		rate = nearer(rate, p.share(), capacity)
	}
	return rate, nil
}

// nearer returns a rate at which the processors are busy nearer to half of the time. It is
// not below a tenth of the capacity, where a machine does something else.
func nearer(rate, share, capacity float64) float64 {
	return min(max(rate*half/max(share, half/2), capacity/10), capacity)
}

// atATime is how many requests are sent at a time: so many that none waits for another.
func atATime(s spread) int { return 4 * s.inFlight }

// watch runs a load, and tells what the processors did meanwhile.
func (f *front) watch(ctx context.Context, l load, duration time.Duration) (*outcome, processors, error) {
	before, err := readProcessors()
	if err != nil {
		return nil, before, err
	}
	o, err := f.run(ctx, l, duration)
	if err != nil {
		return nil, before, err
	}
	after, err := readProcessors()
	return o, after.since(before), err
}

// A passage is what was sent through an Envoy at a level in one round.
type passage struct {
	*outcome

	processors processors
}

// count adds what was sent in one run, and what the processors did meanwhile.
func (p *passage) count(o *outcome, did processors) {
	p.add(o)
	p.processors = p.processors.and(did)
}

// figures are those of a round.
func (p *passage) figures() figures {
	f := figures{}
	f.add(p.outcome)
	f[busy] = 100 * p.processors.share()
	return f
}

// passInTurn sends a load through each of the Envoys for so long, in turns.
func passInTurn(ctx context.Context, fronts map[string]*front, l load, duration time.Duration) (map[string]*passage, error) {
	all := map[string]*passage{}
	for _, target := range behind() {
		all[target] = &passage{outcome: newOutcome()}
	}
	for range max(1, duration/turn) {
		for _, target := range behind() {
			o, did, err := fronts[target].watch(ctx, l, min(turn, duration))
			if err != nil {
				return nil, fmt.Errorf("behind Envoy, %s: %w", target, err)
			}
			all[target].count(o, did)
		}
	}
	for _, target := range behind() {
		if err := all[target].fewFailed(); err != nil {
			return nil, fmt.Errorf("behind Envoy, %s: %w", target, err)
		}
	}
	return all, nil
}

// turn is how long one of the servers is asked before it is the other's turn: what disturbs the
// machine for longer than that disturbs both, and little of what one leaves behind falls into the
// other's.
const turn = 300 * time.Millisecond

// levels measures the latency at all levels, round by round.
func (t *table) levels(ctx context.Context, r results, chain string, fronts map[string]*front, rates map[level]float64, progress io.Writer) error {
	for round := range t.rounds {
		for _, l := range []struct {
			level    level
			duration time.Duration
		}{{halfBusy, 3 * t.spread.duration}, {halfRate, t.spread.duration}} {
			if l.level == halfRate && round >= halfRateRounds {
				continue
			}
			these, err := passInTurn(ctx, fronts, load{inFlight: atATime(t.spread), rate: rates[l.level]}, l.duration)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", chain, l.level, err)
			}
			for _, target := range behind() {
				name, f := through(chain, target, l.level), these[target].figures()
				f[perSecond] = rates[l.level] // that were to be sent
				r[name] = append(r[name], f)
				fmt.Fprintf(progress, "round %d of %d: %s: p50 %.2f ms, p99 %.2f ms, %.0f %% busy\n", round+1, t.rounds, name, f[p50], f[p99], f[busy])
			}
		}
	}
	return nil
}

// processors are what those of the machine have done together, in ticks.
type processors struct{ busy, all int64 }

func (p processors) since(before processors) processors {
	return processors{p.busy - before.busy, p.all - before.all}
}

func (p processors) and(other processors) processors {
	return processors{p.busy + other.busy, p.all + other.all}
}

// share returns which part of the time they did something.
func (p processors) share() float64 { return float64(p.busy) / float64(max(p.all, 1)) }

func readProcessors() (processors, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return processors{}, fmt.Errorf("read what the processors do: %w", err)
	}
	return parseProcessors(string(stat))
}

// parseProcessors reads /proc/stat. Time that a virtual machine had to wait for a processor
// is busy: a request waits as well.
func parseProcessors(stat string) (processors, error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	const guest = 9 // is part of user, as is what follows
	if len(fields) < guest || fields[0] != "cpu" {
		return processors{}, errors.New("read what the processors do: /proc/stat does not begin with all of them")
	}
	var p processors
	for i, field := range fields[1:guest] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return processors{}, fmt.Errorf("read what the processors do: %w", err)
		}
		p.all += n
		if i != 3 && i != 4 { // idle, and idle while a disk works
			p.busy += n
		}
	}
	return p, nil
}
