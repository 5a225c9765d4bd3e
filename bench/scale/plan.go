package main

import (
	"math"
	"time"
)

// What the tables begin with. Where the figures come from is said in docs/scaling.md.
const (
	instanceCPU  = 30 * time.Microsecond // of one request
	instanceBusy = 0.6                   // that an instance may be in the mean
	serverBusy   = 0.7                   // that a server of Redis may be

	mostTogether = 128 // as internal/store has these three
	enough       = 32
	mostWait     = 2 * time.Millisecond

	fewestInstances = 2
	connections     = 32 + 12         // that an instance may have to each server
	usageInterval   = 5 * time.Second // usage.interval, and a longer one
	usageLonger     = time.Minute
	mostSeries      = 100_000         // usage.max_series
	usageTogether   = 8               // keys that an instance writes at once
	usageGentle     = 2 * time.Second // as long as it has done so by then, else
	usagePipeline   = 200             // as many
	usageRead       = 30              // of these, how many a server reads at once: 16 kB
	rankCost        = 5 * time.Microsecond
	keyBytes        = 255              // counters of a key
	usageBytes      = 20_000           // of a key that is used every minute
	repeatBytes     = 235              // of a request, for ten seconds
	reservedBytes   = 380              // of one with tokens, until ten seconds after it is settled
	answerTime      = 10 * time.Second // of an answer with tokens, in the mean
	repeatWindow    = 10 * time.Second
)

// costs are for limits on requests alone, or on tokens too, and where each key has calls
// of its own, as in a Cluster, or not. Where they change, go test ./scale -update writes
// the tables anew.
func costs(tokens, byKey bool) Costs {
	const us = time.Microsecond
	c := Costs{Wire: 3500 * time.Nanosecond, Call: 2500 * time.Nanosecond, Order: 5500 * time.Nanosecond, Usage: 12 * us}
	if tokens {
		c.Settle = 6500 * time.Nanosecond
	}
	if byKey {
		c.Usage = 16 * us
	}
	return c
}

// A Fleet is what the tables are about.
type Fleet struct {
	Rate     float64 // requests per second
	Tokens   bool    // limits on tokens too: each request is reserved for and settled
	Keys     int     // that make requests
	Zipf     float64
	Servers  int
	Cores    int           // of an instance
	Interval time.Duration // usage.interval
	Requests int           // to simulate
}

// fleet is one of ten requests a second for each key.
func fleet(rate float64, tokens bool, servers int, interval time.Duration) Fleet {
	return Fleet{Rate: rate, Tokens: tokens, Keys: max(int(rate/10), 1), Servers: servers, Cores: 4, Interval: interval, Requests: 30_000}
}

// Instances is how many carry the rate, by their CPU.
func (f Fleet) Instances() int {
	return max(fewestInstances, int(math.Ceil(f.Rate*instanceCPU.Seconds()/(float64(f.Cores)*instanceBusy))))
}

// Written is of how many keys all instances together write usage in a second.
func (f Fleet) Written() float64 {
	seen := Seen(f.Keys, f.Instances(), f.Rate*f.Interval.Seconds())
	return float64(f.Instances()) * min(seen, mostSeries) / f.Interval.Seconds()
}

// Memory is what all servers together need, in bytes.
func (f Fleet) Memory() float64 {
	record, kept := repeatBytes, repeatWindow
	if f.Tokens {
		record, kept = reservedBytes, repeatWindow+answerTime
	}
	return float64(f.Keys)*(keyBytes+usageBytes) + f.Rate*float64(record)*kept.Seconds()
}

// Simulate plays the busiest server, which has the ranks of all keys besides its own.
func (f Fleet) Simulate() Result {
	const seed = 7
	s := Server{
		Instances: f.Instances(), RoundTrip: 300 * time.Microsecond, Costs: costs(f.Tokens, f.Servers > 1), Batch: mostTogether, Enough: enough, Gather: mostWait,
		ByKey: f.Servers > 1, Keys: Busiest(f.Keys, f.Servers, f.Zipf, seed), Seed: seed, Warm: f.Requests / 5, Requests: f.Requests,
	}
	s.Rate = f.Rate * s.Keys.Share
	if f.Interval > 0 {
		s.Costs.Usage += time.Duration(f.Servers) * rankCost
		s.Written = max(min(f.together(s.Costs, s.RoundTrip)/f.Servers, usageRead), 1)
		s.Writers = f.Written() * s.Keys.Share / float64(s.Written)
	}
	return Simulate(s)
}

// together is how many keys an instance writes at once.
func (f Fleet) together(c Costs, trip time.Duration) int {
	keys := f.Written() * f.Interval.Seconds() / float64(f.Instances())
	if took := keys / usageTogether * (trip + usageTogether*c.Usage).Seconds(); took > usageGentle.Seconds() {
		return usagePipeline
	}
	return usageTogether
}

// serverCounts are how many servers a Cluster is tried with.
func serverCounts() []int { return []int{1, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128} }

// Fit returns the fleet with the fewest servers of which the busiest is no busier than it
// may be, or false.
func (f Fleet) Fit() (Fleet, Result, bool) {
	var r Result
	for _, n := range serverCounts() {
		f.Servers = n
		if c := costs(f.Tokens, f.Servers > 1); f.Rate*(c.Order+c.Settle).Seconds() > float64(n) {
			continue // it need not be played
		}
		if r = f.Simulate(); r.Busy <= serverBusy {
			return f, r, true
		}
	}
	return f, r, false
}

// Wall is the rate at which the busiest server is as busy as it may be: the fleet grows
// with the rate.
func Wall(of func(rate float64) Fleet) float64 {
	low, high := 1e4, 5e6
	for high/low > 1.05 {
		middle := math.Sqrt(low * high)
		if of(middle).Simulate().Busy > serverBusy {
			high = middle
		} else {
			low = middle
		}
	}
	return low
}
