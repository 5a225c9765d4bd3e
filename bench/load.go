package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"github.com/tiergate/tiergate/internal/devstack"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/tiergate/tiergate/bench/pace"
)

// generatorGC is GOGC of the generator, which shares the machine with what it measures.
const generatorGC = 400

// A load is what is sent to a server.
type load struct {
	protocol    protocol
	keys        []string
	zipf        float64 // how much more often the first keys ask: more than 1; 0: all as often
	inFlight    int     // calls at a time; of an open loop at most
	connections int
	rate        float64 // calls per second, on time whether those before are answered or not; 0: a closed loop
	settle      settling
	request     func(authorization string) proto.Message // nil: as Envoy sends it with the shipped files
}

// settling is when reservations are settled, each by an access log entry.
type settling int

const (
	never settling = iota
	atOnce
	later // after the run, by settle: a reservation that is not settled stays for an hour
)

// outcome is what became of it.
type outcome struct {
	requests, admitted, degraded, failed, settlements int64 // settlements: sent, or to be sent later
	elapsed                                           time.Duration
	cpu                                               time.Duration // of this process; a worker has none
	// latency in nanoseconds. In an open loop it counts from when a call was to be made,
	// so that calls that wait for a slow server are not left out.
	latency *hdrhistogram.Histogram
	err     error    // of one that failed
	tickets []string // of what is to be settled later
}

func (o *outcome) perSecond() float64 { return float64(o.requests) / o.elapsed.Seconds() }

func (o *outcome) add(other *outcome) {
	o.requests += other.requests
	o.admitted += other.admitted
	o.degraded += other.degraded
	o.failed += other.failed
	o.settlements += other.settlements
	o.elapsed += other.elapsed // of runs one after the other; a worker has none
	o.cpu += other.cpu
	o.latency.Merge(other.latency)
	o.err = cmp.Or(o.err, other.err)
	o.tickets = append(o.tickets, other.tickets...)
}

// The range of the histogram.
const shortest, longest = time.Microsecond, 10 * time.Second

func newOutcome() *outcome {
	return &outcome{latency: hdrhistogram.New(int64(shortest), int64(longest), 3)}
}

// newOutcomes returns one for each worker. That takes milliseconds, so a schedule begins after it.
func newOutcomes(n int) []*outcome {
	all := make([]*outcome, n)
	for i := range all {
		all[i] = newOutcome()
	}
	return all
}

// took records a latency.
func (o *outcome) took(d time.Duration) {
	_ = o.latency.RecordValue(int64(min(max(d, shortest), longest))) // in its range
}

// fail counts a call that has failed.
func (o *outcome) fail(err error) { o.failed, o.err = o.failed+1, err }

// A generator sends a load, as often as is wanted, over the same connections.
type generator struct {
	load     load
	conns    []*connection
	logs     []*stream         // the access log of each connection
	requests map[int]*prepared // by the length of the key
	number   atomic.Uint64     // of the last request
}

// newGenerator connects to a server. The context ends the connections.
func newGenerator(ctx context.Context, address string, l load) (*generator, error) {
	g := &generator{load: l, requests: map[int]*prepared{}}
	g.number.Store(uint64(time.Now().UnixMilli()) % 100_000_000 * 1000)
	request := l.request
	if request == nil {
		request = l.protocol.request
	}
	for _, key := range l.keys {
		if g.requests[len(key)] != nil {
			continue
		}
		var err error
		if g.requests[len(key)], err = newPrepared(request, key); err != nil {
			return nil, err
		}
	}
	for range l.connections {
		c, err := connect(ctx, address, longest)
		if err != nil {
			g.close()
			return nil, err
		}
		g.conns = append(g.conns, c)
		if l.settle == never {
			continue
		}
		s := newStream()
		if err := c.start(s, alsv3.AccessLogService_StreamAccessLogs_FullMethodName, 0, nil, true); err != nil {
			g.close()
			return nil, fmt.Errorf("open an access log at %s: %w", address, err)
		}
		g.logs = append(g.logs, s)
	}
	return g, nil
}

func (g *generator) close() {
	for _, c := range g.conns {
		c.close()
	}
}

// log sends an access log entry on one of the connections. It waits until the server takes
// it, or fails with errBusy.
func (g *generator) log(i int, entry []byte, wait bool) error {
	if err := g.conns[i].send(g.logs[i], entry, wait); err != nil {
		return fmt.Errorf("settle a reservation: %w", err)
	}
	return nil
}

// run sends the load for so long.
func (g *generator) run(ctx context.Context, duration time.Duration) *outcome {
	outcomes := newOutcomes(g.load.inFlight)
	next := schedule(ctx, g.load.rate, duration)
	if g.load.rate == 0 {
		return g.chains(outcomes, next)
	}
	return drive(ctx, outcomes, next, func(i int, o *outcome) call { return newWorker(g, i, o).call })
}

// each makes a call for each key, so many at a time.
func (g *generator) each(ctx context.Context, inFlight int) error {
	var begun, asked atomic.Int64
	next := func() (time.Time, bool) {
		return time.Now(), begun.Add(1) <= int64(len(g.load.keys)) && ctx.Err() == nil
	}
	o := drive(ctx, newOutcomes(inFlight), next, func(i int, o *outcome) call {
		w := newWorker(g, i, o)
		w.next = func() int { return int(asked.Add(1)) - 1 }
		return w.call
	})
	if o.admitted != o.requests || o.degraded > 0 {
		return fmt.Errorf("%d of %d requests were refused, %d decided without the store: %w", o.requests-o.admitted, o.requests, o.degraded, cmp.Or(o.err, errors.New("unknown")))
	}
	return nil
}

// settle settles what was left for later.
func (g *generator) settle(o *outcome) error {
	entry := newLogEntry(g.load.protocol)
	for i, ticket := range o.tickets {
		encoded, err := entry.fill([]byte(ticket))
		if err != nil {
			return err
		}
		if err := g.log(i%len(g.logs), encoded, true); err != nil {
			return err
		}
	}
	return nil
}

// A call makes one call that was due at a time.
type call func(ctx context.Context, due time.Time)

// drive has a worker for each outcome make calls, one after the other, as long as next says when
// one is due. What a worker counts is its own.
func drive(ctx context.Context, outcomes []*outcome, next func() (time.Time, bool), worker func(i int, o *outcome) call) *outcome {
	return together(outcomes, func(i int, o *outcome, done func()) {
		do := worker(i, o)
		go func() {
			defer done()
			for due, ok := next(); ok; due, ok = next() {
				do(ctx, due)
			}
		}()
	})
}

// together begins what counts in these outcomes, and says when it is done, and returns what all have counted.
func together(outcomes []*outcome, begin func(i int, o *outcome, done func())) *outcome {
	all := newOutcome()
	var group sync.WaitGroup
	group.Add(len(outcomes))
	start, cpu := time.Now(), ownCPU()
	for i, o := range outcomes {
		begin(i, o, group.Done)
	}
	group.Wait()
	all.elapsed, all.cpu = time.Since(start), ownCPU()-cpu
	for _, o := range outcomes {
		all.add(o)
	}
	return all
}

// schedule says for so long when the next call is due; false: it is over. Of a closed loop it
// is due at once.
func schedule(ctx context.Context, rate float64, duration time.Duration) func() (time.Time, bool) {
	start := time.Now()
	if rate == 0 {
		return func() (time.Time, bool) {
			now := time.Now()
			return now, now.Sub(start) < duration && ctx.Err() == nil
		}
	}
	due := pace.Calls(ctx, start, rate, duration)
	return func() (time.Time, bool) {
		at, ok := <-due
		return at, ok
	}
}

// A worker makes one call after the other.
type worker struct {
	g       *generator
	conn    int
	stream  *stream
	entry   *logEntry
	next    func() int // key
	request []byte
	due     time.Time // when it was to be made
	outcome *outcome
}

func newWorker(g *generator, i int, o *outcome) *worker {
	w := &worker{g: g, conn: i % len(g.conns), stream: newStream(), entry: newLogEntry(g.load.protocol), outcome: o}
	w.next = chooser(rand.New(rand.NewPCG(uint64(i), g.number.Load())), len(g.load.keys), g.load.zipf)
	return w
}

// chooser returns what chooses one of n keys, each as often as the others, or by Zipf's law.
func chooser(chance *rand.Rand, n int, zipf float64) func() int {
	if zipf == 0 {
		return func() int { return chance.IntN(n) }
	}
	law := rand.NewZipf(chance, zipf, 1, uint64(n-1))
	return func() int { return int(law.Uint64()) }
}

// call makes a call, and waits for the answer.
func (w *worker) call(_ context.Context, due time.Time) {
	w.prepare(due)
	answer, err := w.g.conns[w.conn].call(w.stream, w.g.load.protocol.method(), w.request)
	if entry := w.take(answer, err); entry != nil {
		w.settled(w.g.log(w.conn, entry, true))
	}
}

// prepare makes the next request.
func (w *worker) prepare(due time.Time) {
	key := w.g.load.keys[w.next()]
	w.request = w.g.requests[len(key)].fill(w.request, key, w.g.number.Add(1))
	w.due = due
}

// take counts a call that is over, and returns the entry that is to settle it now, if one is.
func (w *worker) take(answer []byte, err error) (entry []byte) {
	o := w.outcome
	o.requests++
	if err != nil {
		o.fail(err)
		return nil
	}
	o.took(time.Since(w.due))
	v := w.g.load.protocol.read(answer, w.g.load.settle != never)
	if v.degraded {
		o.degraded++
	}
	if v.admitted {
		o.admitted++
	}
	if len(v.ticket) == 0 {
		return nil
	}
	o.settlements++
	if w.g.load.settle == later {
		o.tickets = append(o.tickets, string(v.ticket))
		return nil
	}
	entry, err = w.entry.fill(v.ticket)
	w.settled(err)
	return entry
}

// settled counts a settlement that could not be sent.
func (w *worker) settled(err error) {
	if err != nil {
		w.outcome.fail(err)
	}
}

// checkZipf reports an exponent that there is no distribution of.
func checkZipf(zipf float64) error {
	if zipf == 0 || zipf > 1 {
		return nil
	}
	return fmt.Errorf("-zipf %v: want more than 1, or 0", zipf)
}

// loadCommand sends a load to a server that runs already.
func loadCommand(ctx context.Context, flags *flag.FlagSet, stdout io.Writer) func() error {
	l := load{}
	to := flags.String("to", "127.0.0.1:9001", "`address` at which the server has its gRPC services")
	p := flags.String("protocol", "check", "check or rls")
	file := flags.String("keys", "", "`file` with a key on each line")
	duration := flags.Duration("duration", 10*time.Second, "how long")
	flags.Float64Var(&l.zipf, "zipf", 0, "how unevenly keys ask, more than 1; 0: all as often")
	flags.Float64Var(&l.rate, "rate", 0, "calls per second; 0: as many as are answered")
	flags.IntVar(&l.inFlight, "in-flight", 64, "calls at a time, at most")
	flags.IntVar(&l.connections, "connections", 2, "connections")
	settle := flags.Bool("settle", false, "send an access log entry for each reservation")
	pid := flags.Int("pid", 0, "process whose CPU is measured; 0: none")
	return func() error {
		switch strings.ToLower(*p) {
		case "check":
			l.protocol = check
		case "rls":
			l.protocol = rls
		default:
			return fmt.Errorf("unknown protocol %q: want check or rls", *p)
		}
		if *settle {
			l.settle = atOnce
		}
		if *file == "" {
			return errors.New("want -keys: a file with a key on each line")
		}
		content, err := os.ReadFile(*file)
		if err != nil {
			return fmt.Errorf("read the keys: %w", err)
		}
		if l.keys = strings.Fields(string(content)); len(l.keys) == 0 || l.inFlight < 1 || l.connections < 1 {
			return errors.New("want at least one key, one call at a time and one connection")
		}
		if err := checkZipf(l.zipf); err != nil {
			return err
		}
		if l.rate < 0 || *duration <= 0 {
			return errors.New("want no negative rate, and some time")
		}
		debug.SetGCPercent(generatorGC)
		g, err := newGenerator(ctx, *to, l)
		if err != nil {
			return err
		}
		defer g.close()
		before, err := devstack.CPU(*pid)
		if err != nil {
			return err
		}
		o := g.run(ctx, *duration)
		after, err := devstack.CPU(*pid)
		if err != nil {
			return err
		}
		fmt.Fprintf(stdout, "%.0f requests/s, %d admitted of %d, %d degraded, %d failed; ms: p50 %.3f, p99 %.3f, p99.9 %.3f, most %.3f\n",
			o.perSecond(), o.admitted, o.requests, o.degraded, o.failed,
			ms(o.latency.ValueAtQuantile(50)), ms(o.latency.ValueAtQuantile(99)), ms(o.latency.ValueAtQuantile(99.9)), ms(o.latency.Max()))
		fmt.Fprintf(stdout, "%.1f µs of CPU of this load for each request\n", perRequest(o.cpu, o.requests))
		if *pid != 0 {
			fmt.Fprintf(stdout, "%.1f µs of CPU of the process\n", perRequest(after-before, o.requests))
		}
		return o.err
	}
}

// ownCPU returns what this process has used of the processors since its start, more exactly than /proc has it:
// it works between turns too, so what was cut off in one is not in the next.
func ownCPU() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u) // cannot fail with these arguments
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func ms(nanoseconds int64) float64 { return float64(nanoseconds) / 1e6 }
