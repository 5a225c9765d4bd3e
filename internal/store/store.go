// Package store keeps the counters of API keys: in the process (Memory) or in
// Redis (Redis), and for the time in which that is away, in the process again
// (Fallback). All charge all limits of a request in one atomic step or none
// of them, and compute the windows from one clock.
//
// It does not know what a limit means to a client, nor Envoy or HTTP. It is the
// only package that speaks to Redis.
package store

import (
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// windowStart returns the beginning of the current window in Unix milliseconds.
func windowStart(w quota.Window, now time.Time) int64 {
	start, _ := w.Bounds(now)
	return start.UnixMilli()
}

// settledKept is how long a settled reservation is remembered, to tell a duplicate
// from one that never was, and for repeats.
const settledKept = quota.RepeatWindow

// refundCounter names the counter of what refunds have given back to another.
func refundCounter(counter string) string { return counter + "!refunded" }

// usedOf returns what a settlement says was used of a metric.
func usedOf(used quota.Cost, metric quota.Metric) int64 {
	switch metric {
	case quota.Tokens:
		return used.Tokens
	case quota.InputTokens:
		return used.InputTokens
	case quota.OutputTokens:
		return used.OutputTokens
	case quota.Requests:
	}
	return quota.Unknown // a request stays a request
}
