package main

import (
	"fmt"
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
	var all []benchCase
	for _, store := range []string{"redis", "memory"} {
		for _, p := range []protocol{check, rls} {
			of := fmt.Sprintf(", %s, %s", store, p)
			if store == "redis" {
				all = append(all, rateLimitCase(p))
			}
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

// besideRedis reports whether it is compared with what the least script costs Redis: for that it has a goal.
func (c benchCase) besideRedis() bool {
	return c.target == "redis" && (c.tier == "requests" || c.settle == atOnce)
}

// groups puts those together that take turns: envoyproxy/ratelimit and what is compared with it, and with the
// first case of a target and a protocol the canned answer of that protocol.
func groups(all []benchCase) [][]benchCase {
	var groups [][]benchCase
	for i, c := range all {
		switch {
		case i > 0 && all[i-1].counted && !c.counted && all[i-1].protocol == c.protocol:
			groups[len(groups)-1] = append(groups[len(groups)-1], c)
		case i > 0 && all[i-1].target == c.target && all[i-1].protocol == c.protocol:
			groups = append(groups, []benchCase{c})
		default:
			groups = append(groups, []benchCase{cannedAnswer(c.protocol), c})
		}
	}
	return groups
}

// A figure is something that is measured.
type figure string

const (
	perSecond figure = "requests/s"
	serverCPU figure = "CPU of the server"         // µs for a request
	cannedCPU figure = "CPU of the canned answer"  // µs for a request, in the same turns, or before in the same round
	loadCPU   figure = "CPU of the load"           // µs for a request
	redisCPU  figure = "CPU of Redis"              // µs for a request
	commands  figure = "commands"                  // of Redis, for a request
	batchSize figure = "batch"                     // requests and settlements for each call that TierGate makes for them
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
	f[loadCPU] = perRequest(o.cpu, o.requests)
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
