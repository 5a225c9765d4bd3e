package main

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// Costs are what one thing costs the one thread of a Redis server.
type Costs struct {
	Wire   time.Duration // reading what a connection has sent at once, and answering
	Call   time.Duration // a call of the function, without what it does
	Order  time.Duration // taking the limits of one request
	Settle time.Duration // settling one request; 0: requests are not settled
	Usage  time.Duration // adding what an instance says of one key, and ranking it
}

// A Server is one Redis server and the instances that ask it. Servers of a Cluster do not
// wait for each other, so one is enough.
type Server struct {
	Rate      float64       // requests per second, of all instances together
	Instances int           // that gather, each by itself
	RoundTrip time.Duration // over the network, without the server's own time
	Costs     Costs
	Batch     int           // how many gather at the most
	Enough    int           // how many do not wait for a call that is under way alone
	Gather    time.Duration // how long the first waits at the most while a round trip is under way
	// ByKey: each key of a batch needs a call of its own, as in a Cluster.
	ByKey bool
	Keys  Keys
	// Writers is how many pipelines of usage come in a second, and Written of how many
	// keys each is.
	Writers float64
	Written int

	Seed     uint64
	Warm     int // requests that are not measured, before those that are
	Requests int // that are measured
}

// A Result is what a simulation has measured.
type Result struct {
	Mean, P50, P99 time.Duration // from asking to the answer, of requests
	Queue          time.Duration // mean time that a call waits for the server
	Batch          float64       // mean number of entries in a call
	Calls          float64       // per second
	Busy           float64       // the share of its time in which the server works
	Usage          float64       // of that, what usage takes
	Late           float64       // the share of requests that took longer than the time-out
	InFlight       float64       // mean number of entries, settlements too, without an answer
	UnderWay       int           // most calls of one instance under way at once
	Entries        float64       // per second, settlements too
	Stay           time.Duration // mean time of entries, settlements too
}

const timeout = 50 * time.Millisecond // store.redis.timeout

// An entry is one request or settlement that waits for its answer.
type entry struct {
	asked    time.Duration
	key      int
	settles  bool
	measured bool
}

// A lane is what one instance knows of the server.
type lane struct {
	gathered []entry
	underWay int
	gather   int // counts the batches that gathered, to know a timer that is late
}

type kind int

const (
	arrives  kind = iota // a request or a settlement
	writes               // a pipeline of usage
	waited               // the first of a batch has waited long enough
	answered             // a call
)

// An event happens at a time.
type event struct {
	at     time.Duration
	number uint64 // events of one time keep their order
	kind   kind
	lane   int
	gather int
	batch  []entry
}

// events are a heap, the next first. (That of the standard library would put each event
// into an interface, and so on the heap of the program.)
type events []event

func (e events) before(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].number < e[j].number
}

func (e *events) push(one event) {
	*e = append(*e, one)
	h := *e
	for i := len(h) - 1; i > 0 && h.before(i, (i-1)/2); i = (i - 1) / 2 {
		h[i], h[(i-1)/2] = h[(i-1)/2], h[i]
	}
}

func (e *events) pop() event {
	h := *e
	first, last := h[0], len(h)-1
	h[0], h[last] = h[last], event{}
	h = h[:last]
	*e = h
	for i := 0; ; {
		child := 2*i + 1
		if child+1 < last && h.before(child+1, child) {
			child++
		}
		if child >= last || !h.before(child, i) {
			return first
		}
		h[i], h[child] = h[child], h[i]
		i = child
	}
}

// A simulation is under way.
type simulation struct {
	Server
	random  *rand.Rand
	now     time.Duration
	next    events
	number  uint64
	lanes   []lane
	free    time.Duration // when the server has done all it was sent
	arrived int           // requests and settlements
	begun   time.Duration // when measuring began
	tally
}

// A tally is what is measured.
type tally struct {
	took           []time.Duration // of requests
	stayed         time.Duration   // of entries, sum
	answers        int             // entries answered
	calls, entries int
	queued         time.Duration // sum over calls
	busy, usage    time.Duration
	inFlight       int
	area           float64 // in flight × seconds
	changed        time.Duration
	underWay       int
}

// Simulate plays requests until enough are answered. The same Server gives the same Result.
func Simulate(s Server) Result {
	sim := simulation{Server: s, random: rand.New(rand.NewPCG(s.Seed, 1)), lanes: make([]lane, s.Instances)}
	sim.later(arrives, sim.gap(sim.entryRate()))
	if s.Writers > 0 {
		sim.later(writes, sim.gap(s.Writers))
	}
	for len(sim.took) < s.Requests {
		e := sim.next.pop()
		sim.advance(e.at)
		switch e.kind {
		case arrives:
			sim.arrive()
		case writes:
			sim.write()
		case waited:
			if l := &sim.lanes[e.lane]; l.gather == e.gather && len(l.gathered) > 0 {
				sim.send(e.lane)
			}
		case answered:
			sim.answer(e.lane, e.batch)
		}
	}
	return sim.result()
}

// entryRate is how many requests and settlements come in a second.
func (s *simulation) entryRate() float64 {
	if s.Costs.Settle > 0 {
		return 2 * s.Rate
	}
	return s.Rate
}

// gap is the time to the next of things that come at random.
func (s *simulation) gap(rate float64) time.Duration {
	return time.Duration(math.Round(s.random.ExpFloat64() / rate * float64(time.Second)))
}

func (s *simulation) later(k kind, after time.Duration) { s.push(event{at: s.now + after, kind: k}) }

func (s *simulation) push(e event) {
	s.number++
	e.number = s.number
	s.next.push(e)
}

// advance lets time pass.
func (s *simulation) advance(to time.Duration) {
	s.area += float64(s.inFlight) * (to - s.changed).Seconds()
	s.now, s.changed = to, to
}

// arrive hands an entry to an instance: alone at once, or to those that gather while a
// call is under way.
func (s *simulation) arrive() {
	s.later(arrives, s.gap(s.entryRate()))
	if s.arrived++; s.arrived == s.Warm+1 {
		inFlight := s.inFlight
		s.tally = tally{inFlight: inFlight, changed: s.now, took: make([]time.Duration, 0, s.Requests)}
		s.begun = s.now
	}
	s.inFlight++
	e := entry{asked: s.now, key: s.Keys.draw(s.random), measured: s.arrived > s.Warm}
	e.settles = s.Costs.Settle > 0 && s.random.IntN(2) == 0
	at := s.random.IntN(len(s.lanes))
	l := &s.lanes[at]
	l.gathered = append(l.gathered, e)
	switch {
	case s.ready(l):
		s.send(at)
	case len(l.gathered) == 1:
		s.push(event{at: s.now + s.Gather, kind: waited, lane: at, gather: l.gather})
	}
}

// ready reports whether those that an instance has gathered do not wait for its calls under way.
func (s *simulation) ready(l *lane) bool {
	n := len(l.gathered)
	return l.underWay == 0 || l.underWay == 1 && n >= s.Enough || n >= s.Batch
}

// send makes a call of what an instance has gathered. Calls come to the server in the
// order in which they are sent, so that when it is done with one is known at once.
func (s *simulation) send(at int) {
	l := &s.lanes[at]
	batch := l.gathered
	l.gathered, l.gather = nil, l.gather+1
	l.underWay++
	s.underWay = max(s.underWay, l.underWay)
	s.calls++
	s.entries += len(batch)
	done := s.serve(s.cost(batch), true)
	s.push(event{at: done + s.RoundTrip/2, kind: answered, lane: at, batch: batch})
}

// serve has the server work, and returns when it will have done that.
func (s *simulation) serve(cost time.Duration, call bool) time.Duration {
	arrival := s.now + s.RoundTrip/2
	start := max(arrival, s.free)
	if call {
		s.queued += start - arrival
	}
	s.free = start + cost
	s.busy += cost
	return s.free
}

// cost is what a call costs the server.
func (s *simulation) cost(batch []entry) time.Duration {
	c, calls := s.Costs.Wire, 1
	if s.ByKey {
		keys := make([]int, len(batch))
		for i := range batch {
			keys[i] = batch[i].key
		}
		slices.Sort(keys)
		calls = len(slices.Compact(keys))
	}
	for i := range batch {
		if batch[i].settles {
			c += s.Costs.Settle
		} else {
			c += s.Costs.Order
		}
	}
	return c + time.Duration(calls)*s.Costs.Call
}

// write has the server add a pipeline of usage, which nobody's request waits for, but all
// that come behind it.
func (s *simulation) write() {
	s.later(writes, s.gap(s.Writers))
	cost := s.Costs.Wire + time.Duration(s.Written)*s.Costs.Usage
	s.usage += cost
	s.serve(cost, false)
}

// answer ends a call. What has gathered meanwhile goes, if it need not wait for another.
func (s *simulation) answer(at int, batch []entry) {
	s.inFlight -= len(batch)
	for _, e := range batch {
		if !e.measured {
			continue
		}
		s.stayed += s.now - e.asked
		s.answers++
		if !e.settles && len(s.took) < s.Requests {
			s.took = append(s.took, s.now-e.asked)
		}
	}
	l := &s.lanes[at]
	l.underWay--
	if len(l.gathered) > 0 && s.ready(l) {
		s.send(at)
	}
}

func (s *simulation) result() Result {
	span := (s.now - s.begun).Seconds()
	slices.Sort(s.took)
	var sum time.Duration
	late := 0
	for _, t := range s.took {
		sum += t
		if t > timeout {
			late++
		}
	}
	n := len(s.took)
	return Result{
		Mean: sum / time.Duration(n), P50: s.took[n/2], P99: s.took[n*99/100], Late: float64(late) / float64(n),
		Queue: s.queued / time.Duration(s.calls), Batch: float64(s.entries) / float64(s.calls), Calls: float64(s.calls) / span,
		Busy: min(s.busy.Seconds()/span, 1), Usage: s.usage.Seconds() / span, InFlight: s.area / span, UnderWay: s.underWay,
		Entries: float64(s.answers) / span, Stay: s.stayed / time.Duration(s.answers),
	}
}
