// Package store keeps what outlives a request: the counters of API keys with the
// reservations that wait for their settlement, the directory of keys with its audit
// log, and what keys have used.
//
// Counters are in the process (Memory) or in Redis (Redis), and for the time in which
// that is away, in the process again (Fallback). All charge all limits of a request in
// one atomic step or none of them, and compute the windows from one clock. The files
// keys*.go and usage*.go are the two others, in Redis or in a File.
//
// It does not know what a limit means to a client, nor Envoy or HTTP. It is the
// only package that speaks to Redis.
package store

import (
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// A span is a window that slides, and those beside it. All are Unix ms.
type span struct {
	before     int64 // the start of the window before
	start, end int64 // of the current one
	keep       int64 // the end of the next one: until then what is used now counts
}

func spanOf(w quota.Window, now time.Time) span {
	start, end := w.Bounds(now)
	before, _ := w.Bounds(start.Add(-time.Millisecond))
	_, keep := w.Bounds(end)
	return span{before.UnixMilli(), start.UnixMilli(), end.UnixMilli(), keep.UnixMilli()}
}

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

// beforeSuffix ends the names of counters of what was used in the window before the current
// one, where that slides.
const beforeSuffix = "!before"

// beforeCounter names the counter of what was used of another in the window before.
func beforeCounter(counter string) string { return counter + beforeSuffix }

// noteBefore notes of a charge whose window slides what was used in the one before.
func noteBefore(t *quota.Taken, charge int, used int64) {
	if t.Before == nil {
		t.Before = make([]int64, len(t.Used))
	}
	t.Before[charge] = used
}

// counts returns what counts of a charge's limit, of which so much is used in its window.
func counts(t *quota.Taken, charge int, c *quota.Charge) int64 {
	return c.Limit.Window.Weighed(t.Used[charge], t.UsedBefore(charge), t.Now)
}

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
