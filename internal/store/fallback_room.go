package store

import (
	"sync"

	"github.com/tiergate/tiergate/internal/quota"
)

// A waitingRoom is where settlements wait that only Redis can verify. Each key, and all strangers
// together, may have as many there as there is room left, so that whoever floods it leaves
// room for the others: one key half of it, two a third. It is safe for concurrent use.
type waitingRoom struct {
	mu    sync.Mutex
	most  int
	taken int
	by    map[string]int // key; "" is no ID, and stands for strangers
}

func newWaitingRoom(most int) *waitingRoom { return &waitingRoom{most: most, by: map[string]int{}} }

// sharer returns whose share of the room a settlement takes.
func sharer(s quota.Settlement) string {
	if s.Stranger {
		return ""
	}
	return s.Account
}

// enter takes room for a settlement, and reports whether there was any.
func (r *waitingRoom) enter(s quota.Settlement) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	who := sharer(s)
	if r.by[who] >= r.most-r.taken {
		return false
	}
	r.by[who]++
	r.taken++
	return true
}

// leave gives the room of a settlement back.
func (r *waitingRoom) leave(s quota.Settlement) {
	r.mu.Lock()
	defer r.mu.Unlock()
	who := sharer(s)
	r.taken--
	if r.by[who]--; r.by[who] == 0 {
		delete(r.by, who)
	}
}

// waiting returns how many settlements wait.
func (r *waitingRoom) waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.taken
}
