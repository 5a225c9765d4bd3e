package store

import (
	"sync"

	"github.com/tiergate/tiergate/internal/quota"
)

// A queueQuota bounds how many settlements wait that only Redis can verify. Each account, and
// all strangers together, may have as many as there is room left, so that whoever floods the
// queue leaves room for the others: the first account takes half of it, the next a quarter, two at
// the same time a third each (the dynamic threshold of Choudhury and Hahne, with a factor of
// one). It is safe for concurrent use.
type queueQuota struct {
	mu       sync.Mutex
	capacity int
	taken    int
	accounts map[string]int // "" is no ID, and stands for strangers
}

func newQueueQuota(capacity int) *queueQuota {
	return &queueQuota{capacity: capacity, accounts: map[string]int{}}
}

// sharer returns whose share of the room a settlement takes.
func sharer(s quota.Settlement) string {
	if s.Stranger {
		return ""
	}
	return s.Account
}

// enter takes room for a settlement, and reports whether there was any.
func (q *queueQuota) enter(s quota.Settlement) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	who := sharer(s)
	if q.accounts[who] >= q.capacity-q.taken {
		return false
	}
	q.accounts[who]++
	q.taken++
	return true
}

// leave gives the room of a settlement back.
func (q *queueQuota) leave(s quota.Settlement) {
	q.mu.Lock()
	defer q.mu.Unlock()
	who := sharer(s)
	q.taken--
	if q.accounts[who]--; q.accounts[who] == 0 {
		delete(q.accounts, who)
	}
}

// waiting returns how many settlements wait.
func (q *queueQuota) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.taken
}
