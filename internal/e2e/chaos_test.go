package e2e

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/devstack"
)

// A fault is something that breaks under load.
type fault struct {
	name  string
	short bool // also in the short form
	run   func(t *testing.T) row
}

func faults() []fault {
	return []fault{
		{"redis_stopped", true, redisStopped},
		{"redis_killed", true, redisKilled},
		{"sentinel_fail-over", true, sentinelFailOver},
		{"cluster_fail-over", true, clusterFailOver},
		{"cluster_resharding", false, clusterResharding},
		{"slow_network_30ms", false, func(t *testing.T) row { return slowNetwork(t, 30*time.Millisecond) }},
		{"slow_network_200ms", false, func(t *testing.T) row { return slowNetwork(t, 200*time.Millisecond) }},
		{"black_hole", false, blackHole},
		{"connection_resets", false, connectionResets},
		{"function_flush", false, functionFlush},
		{"instance_killed", true, instanceKilled},
		{"envoy_restarted", false, envoyRestarted},
		{"disk_full", true, diskFull},
	}
}

// TestFaults breaks what TierGate works with, under steady load through Envoy, and says
// in a table what became of it. The short form has fewer faults, each for a shorter time.
func TestFaults(t *testing.T) {
	rows := [][]string{head()}
	for _, f := range faults() {
		if f.short || *wholeSuite {
			t.Run(f.name, func(t *testing.T) { rows = append(rows, f.run(t).cells()) })
		}
	}
	t.Logf("under %d requests per second:\n%s", pick(500, 150), table(rows...))
}

// A promise is what must be true of a row.
type promise struct {
	slowest time.Duration // that any answer takes; 0: nothing is promised
	over    int           // requests above a limit at the most
	lost    int           // the same of counts
	doubt   int
	tokens  int
	errors  int
	alone   bool // the instances count by themselves all the time, each within its share
}

// inDoubt is how many calls may be under way when Redis goes silent, until the circuit
// breaker opens: their outcome is unknown.
func (f *trial) inDoubt() int { return int(3*f.timeout.Seconds()*float64(f.rate)) + 3*len(f.stacks) }

// slowest is what an answer may take at the most. The short form asks only that nothing
// hangs: it shares the machine with others.
func slowest() time.Duration { return pick(250*time.Millisecond, 0) }

// check holds a row against what is promised.
func (f *trial) check(r row, p promise) row {
	f.t.Helper()
	if r.during.p99 > 2*time.Second || p.slowest > 0 && r.during.longest > p.slowest {
		f.t.Errorf("answers took up to %s, 99 of 100 up to %s: want at most %s", r.during.longest, r.during.p99, p.slowest)
	}
	for _, c := range []struct {
		what      string
		have, max int
	}{
		{"errors of clients", r.errors, p.errors},
		{"requests above the limits", r.over, p.over},
		{"counts lost", r.lost, p.lost},
		{"requests counted that no client saw admitted", r.doubt, p.doubt},
		{"tokens counted too many", r.tokens, p.tokens},
		{"tokens counted too few", -r.tokens, p.tokens},
	} {
		if c.have > c.max {
			f.t.Errorf("%d %s: want at most %d", c.have, c.what, c.max)
		}
	}
	if n := f.overAlone(); p.alone && n > 0 {
		f.t.Errorf("an instance that counted by itself admitted %d requests above its share of a limit", n)
	}
	if most := pick(2*time.Second, 10*time.Second); r.shared > most || r.normal > most {
		f.t.Errorf("answers were degraded for %s after the fault, counts shared again after %s: want at most %s", r.normal, r.shared, most)
	}
	return r
}

// redisStopped: a Redis that hangs costs the first few calls their time-out and nobody an
// answer, and what it had received is counted once.
func redisStopped(t *testing.T) row {
	f := newTrial(t, devstack.Options{}, 2)
	redis := f.stacks[0].Redis
	resume := func() {
		if err := redis.Signal(syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(resume)
	r := f.run("Redis stopped (SIGSTOP)", pick(10*time.Second, 3*time.Second), func() { freeze(t, redis) }, resume)
	if r.during.degraded < r.during.requests/2 {
		t.Errorf("%d of %d answers are degraded: want most", r.during.degraded, r.during.requests)
	}
	return f.check(r, promise{slowest: slowest(), alone: true, over: f.stale(), doubt: f.inDoubt(), tokens: f.unsettled()})
}

// stale is how many requests above the limits the instances may admit together for what
// each had not yet seen of the others' when Redis went away: of two keys what came within
// two time-outs, and a rounding for each instance.
func (f *trial) stale() int {
	return 2 * (int(2*f.timeout.Seconds()*float64(f.rate/5)) + len(f.stacks))
}

// unsettled is how many tokens the calls in doubt may be counted wrong by. A request
// takes some 60, of which it uses 30.
func (f *trial) unsettled() int { return 100 * f.inDoubt() }

// redisKilled: what Redis had answered survives in its log of commands.
func redisKilled(t *testing.T) row {
	f := newTrial(t, devstack.Options{Keep: true}, 2)
	one := f.stacks[0]
	r := f.run("Redis killed and started again", pick(5*time.Second, time.Second), func() { kill(t, one.Redis) }, func() {
		if err := one.StartRedis(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	return f.check(r, promise{slowest: slowest(), alone: true, over: f.stale(), lost: f.inDoubt(), doubt: f.inDoubt(), tokens: f.unsettled()})
}

// functionFlush: Redis forgets functions and scripts ten times a second.
func functionFlush(t *testing.T) row {
	f := newTrial(t, devstack.Options{}, 2)
	c := redis.NewClient(&redis.Options{Addr: f.stacks[0].Options.RedisAddress})
	t.Cleanup(func() { c.Close() })
	var stop func()
	r := f.run("FUNCTION FLUSH every 100 ms", pick(10*time.Second, 3*time.Second), func() {
		stop = regularly(100*time.Millisecond, func() {
			if err := errors.Join(c.FunctionFlush(t.Context()).Err(), c.ScriptFlush(t.Context()).Err()); err != nil {
				t.Error(err)
			}
		})
	}, func() { stop() })
	return f.check(r, promise{slowest: slowest()})
}

// regularly does something at an interval until it is stopped.
func regularly(interval time.Duration, do func()) (stop func()) {
	halt, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-halt:
				return
			case <-tick.C:
				do()
			}
		}
	}()
	return func() { close(halt); <-ended }
}
