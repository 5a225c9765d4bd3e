package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/store"
	"github.com/tiergate/tiergate/internal/usage"

	"github.com/tiergate/tiergate/bench/pace"
)

// measure prints what things cost a redis-server of this machine, by the program's own
// store, and how near a simulation comes to a measured run.
func measure(ctx context.Context, w io.Writer) error {
	dir, err := os.MkdirTemp("", "scale")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	defer os.RemoveAll(dir)
	m := measurement{out: w, random: rand.New(rand.NewPCG(1, 1))}
	for _, part := range []struct {
		cluster bool
		do      func(context.Context) error
	}{{true, m.pipelines}, {false, m.single}} {
		m.cluster = part.cluster
		if m.server, err = startServer(ctx, dir, m.cluster); err != nil {
			return err
		}
		err = part.do(ctx)
		if err = errors.Join(err, m.server.Stop()); err != nil {
			return err
		}
	}
	return nil
}

// startServer starts one server, or a Cluster of one.
func startServer(ctx context.Context, dir string, cluster bool) (*devstack.RedisServer, error) {
	if !cluster {
		return devstack.StartRedisServer(ctx, dir)
	}
	server, err := devstack.StartRedisServer(ctx, dir, "--cluster-enabled", "yes")
	if err != nil {
		return nil, err
	}
	if _, err := server.Do(ctx, "cluster", "addslotsrange", "0", "16383"); err != nil {
		return nil, errors.Join(err, server.Stop())
	}
	for { // it says so once it has looked at itself
		state, err := server.Do(ctx, "cluster", "info")
		if err != nil {
			return nil, errors.Join(err, server.Stop())
		}
		if strings.Contains(state, "cluster_state:ok") {
			return server, nil
		}
	}
}

// A measurement is under way on one Redis.
type measurement struct {
	server    *devstack.RedisServer
	cluster   bool
	out       io.Writer
	random    *rand.Rand
	made      int // orders
	pipelined counted
}

// pipelines measures what a Cluster costs, where each key has a call of its own.
func (m *measurement) pipelines(ctx context.Context) error {
	var err error
	if m.pipelined, err = m.counting(ctx, shape{1, 64}); err != nil {
		return err
	}
	return m.usage(ctx)
}

// single measures all else.
func (m *measurement) single(ctx context.Context) error {
	alone, err := m.counting(ctx, shape{16, 1})
	if err != nil {
		return err
	}
	together, err := m.counting(ctx, shape{1, 64})
	if err != nil {
		return err
	}
	costs := parts(alone.order, m.pipelined.order, together.order)
	costs.Order, costs.Settle = costs.Order.Round(100), parts(alone.settle, m.pipelined.settle, together.settle).Order.Round(100)
	fmt.Fprintf(m.out, "so reading and answering costs %s, a call %s, an order %s, a settlement %s\n", costs.Wire, costs.Call, costs.Order, costs.Settle)
	for _, part := range []func(context.Context) error{func(ctx context.Context) error { return m.run(ctx, costs) }, m.memory, m.usage} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

// parts tells apart what an entry costs: alone in a call, in a long pipeline of calls, and
// in a batch.
func parts(alone, pipelined, together spent) Costs {
	share := together.calls // of a call, that an entry of the batch has
	var c Costs
	c.Wire = alone.cpu - pipelined.cpu
	c.Order = time.Duration((float64(together.cpu) - share*float64(alone.cpu)) / (1 - share))
	c.Call = pipelined.cpu - c.Order
	return c
}

// A spent is what Redis spent on each of some things.
type spent struct {
	cpu             time.Duration // of its main thread
	calls           float64       // of the function
	in, out, memory float64       // bytes
}

// spend does n things and returns what Redis spent on each.
func (m *measurement) spend(ctx context.Context, n int, do func() error) (spent, error) {
	before, err := m.info(ctx)
	if err != nil {
		return spent{}, err
	}
	if err := do(); err != nil {
		return spent{}, err
	}
	after, err := m.info(ctx)
	if err != nil {
		return spent{}, err
	}
	each := func(name string) float64 { return (after[name] - before[name]) / float64(n) }
	seconds := each("used_cpu_user_main_thread") + each("used_cpu_sys_main_thread")
	return spent{
		cpu: time.Duration(seconds * float64(time.Second)), calls: each("cmdstat_fcall"),
		in: each("total_net_input_bytes"), out: each("total_net_output_bytes"), memory: each("used_memory"),
	}, nil
}

// info is what the server says of itself.
func (m *measurement) info(ctx context.Context) (map[string]float64, error) {
	text, err := m.server.Do(ctx, "info", "everything")
	if err != nil {
		return nil, err
	}
	return devstack.ParseInfo(text)
}

// instance returns a store as one instance has it.
func (m *measurement) instance() *store.Redis {
	o := store.RedisOptions{Address: m.server.Address, KeyPrefix: "tiergate", Timeout: 5 * time.Second, PoolSize: 32}
	if m.cluster {
		o.Cluster = []string{m.server.Address}
	}
	return store.NewRedis(o)
}

// order is the next request of one of so many keys, with three limits: on requests alone,
// or on tokens too.
func (m *measurement) order(keys int, tokens bool) quota.Order {
	m.made++
	o := quota.Order{
		Account: "key_" + strconv.Itoa(m.made*7919%keys), Request: fmt.Sprintf("01234567-89ab-cdef-0123-%012d", m.made),
	}
	third := quota.Limit{Metric: quota.Requests, Window: quota.Hour}
	if tokens {
		third.Metric, third.Window, o.Keep = quota.Tokens, quota.Minute, time.Hour
		o.Secret = fmt.Sprintf("ABCDEFGHIJKLMN%012d", m.made)
	}
	for _, l := range []quota.Limit{{Metric: quota.Requests, Window: quota.Minute}, {Metric: quota.Requests, Window: quota.Day}, third} {
		l.Max = 1e12
		c := quota.Charge{Limit: l, Counter: l.Metric.String() + "/" + l.Window.String(), Cost: 1}
		if l.Metric == quota.Tokens {
			c.Cost = 1500
		}
		o.Charges = append(o.Charges, c)
	}
	return o
}

func (m *measurement) orders(n, keys int, tokens bool) []quota.Order {
	orders := make([]quota.Order, n)
	for i := range orders {
		orders[i] = m.order(keys, tokens)
	}
	return orders
}

// A shape is so many instances with so many requests in flight each.
type shape struct{ instances, flight int }

// A counted is what orders that reserve tokens cost, and their settlements.
type counted struct{ order, settle spent }

// counting measures orders and settlements.
func (m *measurement) counting(ctx context.Context, s shape) (counted, error) {
	const n, keys = 16_000, 1000
	orders := m.orders(n, keys, true)
	name := fmt.Sprintf("%d instances, %d in flight each, Cluster %v", s.instances, s.flight, m.cluster)
	var c counted
	var err error
	c.order, err = m.together(ctx, s, "orders of "+name, orders, func(r *store.Redis, o *quota.Order) error {
		_, err := r.Take(ctx, *o)
		return err
	})
	if err != nil {
		return c, err
	}
	c.settle, err = m.together(ctx, s, "settlements of "+name, orders, func(r *store.Redis, o *quota.Order) error {
		_, err := r.Settle(ctx, quota.Settlement{
			Account: o.Account, Request: o.Request, Secret: o.Secret, Used: quota.Cost{Requests: quota.Unknown, Tokens: 900, InputTokens: 500, OutputTokens: 400},
		})
		return err
	})
	return c, err
}

// together does something with each order, and prints what it cost.
func (m *measurement) together(ctx context.Context, s shape, name string, orders []quota.Order, do func(*store.Redis, *quota.Order) error) (spent, error) {
	stores := make([]*store.Redis, s.instances)
	for i := range stores {
		stores[i] = m.instance()
		defer stores[i].Close() //nolint:errcheck // nothing of use is on its way
	}
	took, err := m.spend(ctx, len(orders), func() error {
		return each(s.instances*s.flight, len(orders), func(worker, i int) error { return do(stores[worker%s.instances], &orders[i]) })
	})
	fmt.Fprintf(m.out, "%s: %s, %.3f calls, %.0f bytes in, %.0f out\n", name, took.cpu.Round(100*time.Nanosecond), took.calls, took.in, took.out)
	return took, err
}

// each does n things, so many at once, and returns the errors of those that had one.
func each(workers, n int, do func(worker, i int) error) error {
	var group sync.WaitGroup
	errs := make([]error, workers)
	for worker := range workers {
		group.Go(func() {
			for i := worker; i < n && errs[worker] == nil; i += workers {
				errs[worker] = do(worker, i)
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// run sends requests at their times, and prints what was measured beside what a
// simulation of the same says.
func (m *measurement) run(ctx context.Context, costs Costs) error {
	const instances, rate, n, keys = 4, 3000.0, 9000, 1000
	stores := make([]*store.Redis, instances)
	for i := range stores {
		stores[i] = m.instance()
		defer stores[i].Close() //nolint:errcheck // nothing of use is on its way
	}
	alone, err := m.play(ctx, stores, 200, n/10, keys)
	if err != nil {
		return err
	}
	run, err := m.play(ctx, stores, rate, n, keys)
	if err != nil {
		return err
	}
	sim := Simulate(Server{
		Rate: rate, Instances: instances, RoundTrip: alone.p50 - costs.Wire - costs.Call - costs.Order, Costs: Costs{Wire: costs.Wire, Call: costs.Call, Order: costs.Order},
		Batch: mostTogether, Enough: enough, Gather: mostWait, Seed: 1, Warm: n / 10, Requests: n,
	})
	fmt.Fprintf(m.out, "one alone takes %s\n", alone.p50.Round(time.Microsecond))
	const line = "%d instances at %.0f requests/s, %s: busy %.1f %%, batch %.2f, p50 %s, p99 %s\n"
	us := time.Microsecond
	fmt.Fprintf(m.out, line, instances, rate, "measured", 100*rate*run.cpu.Seconds(), 1/run.calls, run.p50.Round(us), run.p99.Round(us))
	fmt.Fprintf(m.out, line, instances, rate, "simulated", 100*sim.Busy, sim.Batch, sim.P50.Round(us), sim.P99.Round(us))
	return nil
}

// A played run is what requests took that came at random times.
type played struct {
	spent

	p50, p99 time.Duration
}

// play sends n requests, each when its time has come.
func (m *measurement) play(ctx context.Context, stores []*store.Redis, rate float64, n, keys int) (played, error) {
	orders, took, errs := m.orders(n, keys, false), make([]time.Duration, n), make([]error, n)
	s, err := m.spend(ctx, n, func() error {
		runtime.LockOSThread() // for pace
		defer runtime.UnlockOSThread()
		var group sync.WaitGroup
		begun, at := time.Now(), time.Duration(0)
		for i := range orders {
			at += time.Duration(m.random.ExpFloat64() / rate * float64(time.Second))
			pace.Until(begun.Add(at))
			due, by := at, stores[m.random.IntN(len(stores))]
			group.Go(func() {
				_, errs[i] = by.Take(ctx, orders[i])
				took[i] = time.Since(begun) - due
			})
		}
		group.Wait()
		return errors.Join(errs...)
	})
	slices.Sort(took)
	return played{s, took[n/2], took[n*99/100]}, err
}

// memory fills an empty Redis.
func (m *measurement) memory(ctx context.Context) error {
	const keys = 5000
	r := m.instance()
	defer r.Close() //nolint:errcheck // nothing of use is on its way
	for _, tokens := range []bool{false, true} {
		if _, err := m.server.Do(ctx, "flushall", "sync"); err != nil {
			return err
		}
		var costs [2]spent
		for kept := range costs {
			orders := m.orders(keys, keys, tokens)
			var err error
			costs[kept], err = m.spend(ctx, keys, func() error {
				return each(64, keys, func(_, i int) error {
					if kept == 0 {
						orders[i].Request, orders[i].Secret = "", ""
					}
					_, err := r.Take(ctx, orders[i])
					return err
				})
			})
			if err != nil {
				return err
			}
		}
		fmt.Fprintf(m.out, "memory, tokens %v: %.0f bytes of a key's three counters, %.0f of a request's record\n", tokens, costs[0].memory, costs[1].memory)
	}
	return nil
}

// usage adds batches of usage: with ranks and without, of new keys and known ones, and
// through a whole day.
func (m *measurement) usage(ctx context.Context) error {
	if _, err := m.server.Do(ctx, "flushall", "sync"); err != nil {
		return err
	}
	r, now := m.instance(), time.Now()
	defer r.Close() //nolint:errcheck // nothing of use is on its way
	u := store.NewRedisUsage(r, func() time.Time { return now })
	add := func(prefix string, keys int) error {
		m.made++
		b := usage.Batch{ID: "B" + strconv.Itoa(m.made), Instance: "a", Made: now}
		for i := range keys {
			a := usage.Account{ID: prefix + strconv.Itoa(i), LimitRequests: 100, LimitTokens: 100_000, Last: now}
			a.Cells = []usage.Cell{{Minute: now.Unix() / 60, Label: "chat", Counts: usage.Counts{Admitted: 3, InputTokens: 1200, OutputTokens: 900}}}
			b.Accounts = append(b.Accounts, a)
		}
		return u.Add(ctx, b)
	}
	const keys, few = 5000, 50
	for _, name := range []string{"new", "known", "known"} {
		for _, prefix := range []string{"key_", "~key_"} { // the latter are not ranked
			s, err := m.spend(ctx, keys, func() error { return add(prefix, keys) })
			if err != nil {
				return err
			}
			fmt.Fprintf(m.out, "usage, %s keys, %s…, Cluster %v: %s, %.3f calls, %.0f bytes in, %.0f bytes kept\n",
				name, prefix, m.cluster, s.cpu.Round(100*time.Nanosecond), s.calls, s.in, s.memory)
		}
	}
	s, err := m.spend(ctx, few, func() error {
		for minute := range 24 * 60 {
			if now = now.Add(time.Minute); minute >= 20*60 || minute%60 == 0 { // minutes are kept for three hours and a half
				if err := add("day_", few); err != nil {
					return err
				}
			}
		}
		return nil
	})
	fmt.Fprintf(m.out, "usage of a key that is used all day: %.0f bytes\n", s.memory)
	return err
}
