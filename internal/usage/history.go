// Package usage remembers what the requests of API keys have used.
//
// It does not know limits, nor what is charged: what it holds are observations.
package usage

import (
	"math"
	"sync"
	"sync/atomic"

	"github.com/tiergate/tiergate/internal/quota"
)

const (
	// historyQuantile is how many of an account's answers are to fit into what is
	// reserved for one.
	historyQuantile = 0.95
	// historyDecay is what one more answer leaves of the weight of those before:
	// the last fifty or so count.
	historyDecay = 0.98
	// historyEnough is how many answers there must be before anything follows.
	historyEnough = 5

	bucketCount = 49
	firstBucket = 16.0 // tokens, after one for none; the last ends at 16 · 1.25^47, more than half a million
	bucketRatio = 1.25
)

// A History remembers how many output tokens the answers to each account and
// resource have used lately. It is safe for concurrent use. What it holds is an
// estimate: each instance has its own, and a restart forgets it.
type History struct {
	mu   sync.RWMutex
	max  int
	seen map[subject]*usages
}

type subject struct{ account, resource string }

// usages is a histogram in which old answers fade.
type usages struct {
	weights [bucketCount]float32 // guarded by the History's lock
	answers int
	high    atomic.Int64 // the quantile; quota.Unknown: not enough answers
}

// NewHistory returns a History of at most so many accounts and resources. Where
// there are more, some are forgotten.
func NewHistory(most int) *History {
	return &History{max: max(most, 1), seen: map[subject]*usages{}}
}

// High returns what few answers exceed, or quota.Unknown.
func (h *History) High(account, resource string) int64 {
	h.mu.RLock()
	u := h.seen[subject{account, resource}]
	h.mu.RUnlock()
	if u == nil {
		return quota.Unknown
	}
	return u.high.Load()
}

// Add remembers an answer.
func (h *History) Add(account, resource string, tokens int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := subject{account, resource}
	u := h.seen[s]
	if u == nil {
		if len(h.seen) >= h.max {
			h.forgetOne()
		}
		u = &usages{}
		u.high.Store(quota.Unknown)
		h.seen[s] = u
	}
	u.add(tokens)
}

// forgetOne removes one subject, whichever comes first in the map's order, which
// is a random one.
func (h *History) forgetOne() {
	for s := range h.seen {
		delete(h.seen, s)
		return
	}
}

func (u *usages) add(tokens int64) {
	for i := range u.weights {
		u.weights[i] *= historyDecay
	}
	u.weights[bucketOf(tokens)]++
	u.answers++
	if u.answers >= historyEnough {
		u.high.Store(u.quantile())
	}
}

// quantile returns the upper edge of the bucket that holds it.
func (u *usages) quantile() int64 {
	var total, sum float32
	for _, w := range u.weights {
		total += w
	}
	edge := 0.0
	for _, w := range u.weights {
		if sum += w; sum >= historyQuantile*total {
			break
		}
		edge = max(edge*bucketRatio, firstBucket)
	}
	return int64(math.Ceil(edge))
}

func bucketOf(tokens int64) int {
	switch {
	case tokens <= 0:
		return 0
	case tokens <= firstBucket:
		return 1
	default:
		return min(1+int(math.Ceil(math.Log(float64(tokens)/firstBucket)/math.Log(bucketRatio))), bucketCount-1)
	}
}
