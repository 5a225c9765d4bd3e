package store

import (
	"hash/maphash"
	"sync/atomic"
	"time"
)

// refusedKept is how long an account counts as refused lately.
const refusedKept = 10 * time.Second

// latelyRefused knows what accounts have been refused an order lately, and may take others for such: it
// is so large, and does not grow. It is safe for concurrent use.
type latelyRefused struct {
	seed  maphash.Seed
	slots [4096]atomic.Int64 // when an account was refused that falls here, ns by any clock; 0: none was
}

func newLatelyRefused() *latelyRefused { return &latelyRefused{seed: maphash.MakeSeed()} }

func (r *latelyRefused) slot(account string) *atomic.Int64 {
	return &r.slots[maphash.String(r.seed, account)%uint64(len(r.slots))]
}

func (r *latelyRefused) note(account string, now int64) { r.slot(account).Store(now) }

func (r *latelyRefused) lately(account string, now int64) bool {
	at := r.slot(account).Load()
	return at != 0 && now-at < int64(refusedKept)
}
