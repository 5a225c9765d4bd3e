package web

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	visitsPerSecond = 5
	visitsAtOnce    = 20
	// visitors is how many visitors are remembered; beyond that some are forgotten, who
	// may then come at once again.
	visitors = 10_000
)

// visits limits how often each visitor may come. It is safe for concurrent use.
type visits struct {
	perSecond rate.Limit
	atOnce    int

	mu  sync.Mutex
	who map[string]*rate.Limiter
}

// newVisits lets each come so many times at once, and then so often.
func newVisits(perSecond rate.Limit, atOnce int) *visits {
	return &visits{perSecond: perSecond, atOnce: atOnce, who: map[string]*rate.Limiter{}}
}

// wait returns how long a visitor has to wait, or 0 and counts the visit.
func (v *visits) wait(id string, now time.Time) time.Duration {
	reservation := v.limiter(id).ReserveN(now, 1)
	wait := reservation.DelayFrom(now)
	if wait > 0 {
		reservation.CancelAt(now)
	}
	return wait
}

// limiter returns a visitor's.
func (v *visits) limiter(id string) *rate.Limiter {
	v.mu.Lock()
	defer v.mu.Unlock()
	l := v.who[id]
	if l == nil {
		for other := range v.who {
			if len(v.who) < visitors {
				break
			}
			delete(v.who, other)
		}
		l = rate.NewLimiter(v.perSecond, v.atOnce)
		v.who[id] = l
	}
	return l
}
