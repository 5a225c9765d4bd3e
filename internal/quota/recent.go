package quota

import (
	"hash/maphash"
	"sync/atomic"
	"time"
)

// recentKept is how long an account counts as recent.
const recentKept = 10 * time.Second

// A recent knows of which accounts something has been noted lately, and may take others for
// such: it is so large, and not larger. It is safe for concurrent use.
type recent struct {
	seed  maphash.Seed
	slots *[4096]atomic.Int64 // when an account was noted that falls here, Unix ns
}

func newRecent() recent { return recent{maphash.MakeSeed(), new([4096]atomic.Int64)} }

func (r recent) slot(account string) *atomic.Int64 {
	return &r.slots[maphash.String(r.seed, account)%uint64(len(r.slots))]
}

func (r recent) note(account string, now time.Time) { r.slot(account).Store(now.UnixNano()) }

func (r recent) lately(account string, now time.Time) bool {
	age := now.UnixNano() - r.slot(account).Load()
	return -int64(recentKept) < age && age < int64(recentKept) // calls that run at the same time have read the clock in any order
}
