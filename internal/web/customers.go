package web

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/tiergate/tiergate/internal/apierror"
	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

// Accounts is what the customers' API knows of keys and tiers. It is swapped whole and
// never changed.
type Accounts struct {
	KeyHeaders    []string // request headers that carry a key, lower case
	Keys          apikey.Keyring
	AllowDemoKeys bool
	Plans         map[string]*quota.Plan // by tier name
	UnlimitedText string                 // what stands for a limit that there is not; empty: no header
}

// Customers is the API for the holders of keys, who each see what is theirs. Its
// requests are not charged to the quotas and have a small limit of their own. It is
// safe for concurrent use.
type Customers struct {
	accounts atomic.Pointer[Accounts]
	limiter  *quota.Limiter
	now      func() time.Time
	visits   visits
}

// NewCustomers returns the API, which reads the counts of the limiter.
func NewCustomers(a *Accounts, limiter *quota.Limiter, now func() time.Time) *Customers {
	c := &Customers{limiter: limiter, now: now}
	c.Use(a)
	return c
}

// Use makes the API know other accounts, from the next request on.
func (c *Customers) Use(a *Accounts) { c.accounts.Store(a) }

// Handler serves GET /v1/limits.
func (c *Customers) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/limits", c.authenticated(c.limits))
	return mux
}

// authenticated hands on the requests of keys that may be used, as often as visits
// allows.
func (c *Customers) authenticated(next func(http.ResponseWriter, *http.Request, *Accounts, *apikey.Record)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a, now := c.accounts.Load(), c.now()
		var credentials []string
		for _, name := range a.KeyHeaders {
			for _, value := range r.Header.Values(name) {
				credentials = apikey.AppendCredentials(credentials, value, name == "authorization")
			}
		}
		record, err := a.Keys.Authenticate(credentials, a.AllowDemoKeys, now)
		if err != nil {
			w.Header().Set("WWW-Authenticate", "Bearer") // RFC 9110, 11.6.1
			refuse(w, http.StatusUnauthorized, apierror.OfKey(err))
			return
		}
		if wait := c.visits.wait(record.ID, now); wait > 0 {
			w.Header().Set("Retry-After", strconv.FormatInt(apierror.Up(wait, time.Second), 10))
			w.Header().Set("Retry-After-Ms", strconv.FormatInt(apierror.Up(wait, time.Millisecond), 10))
			w.Header().Set("X-RateLimit-Limited-By", "limits_per_second")
			refuse(w, http.StatusTooManyRequests, apierror.TooMany(wait))
			return
		}
		next(w, r, a, record)
	}
}

// The customers' view of their limits, as JSON.
type limitsView struct {
	KeyID    string      `json:"key_id"`
	Name     string      `json:"name"`
	Tier     string      `json:"tier"`
	Priority int         `json:"priority"`
	Now      int64       `json:"now"` // Unix seconds
	Limits   []limitView `json:"limits"`
}

type limitView struct {
	Name      string `json:"name"`
	Metric    string `json:"metric"`
	Per       string `json:"per"`
	Resource  string `json:"resource,omitempty"` // counts this one alone
	Priority  int    `json:"priority,omitempty"` // the same
	Limit     *int64 `json:"limit"`              // null: unlimited
	Used      int64  `json:"used"`
	Remaining *int64 `json:"remaining"` // null: unlimited
	Reset     int64  `json:"reset"`     // Unix seconds
}

// limits answers with every limit of the caller's key, and what is used of it.
func (c *Customers) limits(w http.ResponseWriter, r *http.Request, a *Accounts, record *apikey.Record) {
	plan := a.Plans[record.Tier]
	states, now, err := c.limiter.States(r.Context(), quota.Request{Account: record.ID, Tier: plan, Overrides: record.Overrides}, c.now())
	if err != nil {
		w.Header().Set("Retry-After", "1")
		refuse(w, http.StatusServiceUnavailable, apierror.Unavailable)
		return
	}
	priority := record.Granted(plan.Tier.Priority)
	view := limitsView{
		KeyID: record.ID, Name: record.Name, Tier: record.Tier, Priority: int(priority), Now: now.Unix(), Limits: make([]limitView, len(states)),
	}
	for i, s := range states {
		view.Limits[i] = viewOf(s)
		if l := s.Limit; l.Metric == quota.Requests && l.Window == quota.Minute && l.Resource == "" && l.Priority == 0 {
			setHeaders(w.Header(), s, priority, a.UnlimitedText)
		}
	}
	answer(w, http.StatusOK, view)
}

// setHeaders says the limit on requests per minute in the headers of the contract, as
// every answer of the API does. Where there is none, Envoy fills in 0.
func setHeaders(h http.Header, s quota.State, priority quota.Priority, unlimited string) {
	limit, remaining := strconv.FormatInt(s.Limit.Max, 10), strconv.FormatInt(s.Remaining(), 10)
	if s.Limit.Max == quota.NoMax {
		limit, remaining = unlimited, unlimited
	}
	if limit != "" {
		h.Set("X-RateLimit-Limit", limit)
		h.Set("X-RateLimit-Remaining", remaining)
	}
	h.Set("X-RateLimit-Used", strconv.FormatInt(s.Used, 10))
	h.Set("X-RateLimit-Reset", strconv.FormatInt(s.Reset.Unix(), 10))
	h.Set("X-RateLimit-Resource", quota.DefaultResource)
	h.Set("X-Request-Priority", priority.Number())
}

func viewOf(s quota.State) limitView {
	v := limitView{
		Name: s.Limit.Name(), Metric: s.Limit.Metric.String(), Per: s.Limit.Window.String(), Resource: s.Limit.Resource,
		Priority: int(s.Limit.Priority), Used: s.Used, Reset: s.Reset.Unix(),
	}
	if s.Limit.Max != quota.NoMax {
		most, remaining := s.Limit.Max, s.Remaining()
		v.Limit, v.Remaining = &most, &remaining
	}
	return v
}

func refuse(w http.ResponseWriter, status int, e apierror.Error) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, e.Body()) //nolint:gosec // JSON of our own texts; nobody to tell if the caller is gone
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // nobody to tell if the caller is gone
}

const (
	visitsPerSecond = 5
	visitsAtOnce    = 20
	// visitors is how many keys' visits are remembered; beyond that some are forgotten,
	// who may then come at once again.
	visitors = 10_000
)

// visits limits how often each key may ask.
type visits struct {
	mu   sync.Mutex
	keys map[string]*rate.Limiter
}

// wait returns how long a key has to wait, or 0 and counts the visit.
func (v *visits) wait(id string, now time.Time) time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.keys == nil {
		v.keys = map[string]*rate.Limiter{}
	}
	l := v.keys[id]
	if l == nil {
		for other := range v.keys {
			if len(v.keys) < visitors {
				break
			}
			delete(v.keys, other)
		}
		l = rate.NewLimiter(visitsPerSecond, visitsAtOnce)
		v.keys[id] = l
	}
	reservation := l.ReserveN(now, 1)
	wait := reservation.DelayFrom(now)
	if wait > 0 {
		reservation.CancelAt(now)
	}
	return wait
}
