// Package store keeps the counters of API keys: in the process (Memory) or in
// Redis (Redis). Both charge all limits of a request in one atomic step or none
// of them, and both compute the windows from one clock.
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

// maxUsed is where counters stop growing: far above any maximum, and exact in
// the numbers of a Redis script.
const maxUsed = 4 * quota.MaxMax
