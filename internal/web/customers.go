package web

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

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

// MinSessionSecret is the shortest secret for the sessions of a dashboard, in bytes.
const MinSessionSecret = 32

// CustomersOptions are what a Customers is made of.
type CustomersOptions struct {
	Accounts *Accounts
	Limiter  *quota.Limiter // whose counts are shown
	Usage    Usage
	// SessionSecret signs the dashboard's sessions: MinSessionSecret bytes or more, the
	// same in every instance. Another one ends all sessions.
	SessionSecret []byte
	Log           *slog.Logger
	Now           func() time.Time
}

// Customers is the API and the dashboard for the holders of keys, who each see what is
// theirs. Its requests are not charged to the quotas and have small limits of their own.
// It is safe for concurrent use.
type Customers struct {
	accounts atomic.Pointer[Accounts]
	limiter  *quota.Limiter
	kept     Usage
	log      *slog.Logger
	now      func() time.Time
	visits   *visits // of keys to the API

	dashboard dashboard
}

// NewCustomers returns the API. It is an error if the secret of the sessions is too short.
func NewCustomers(o CustomersOptions) (*Customers, error) {
	if len(o.SessionSecret) < MinSessionSecret {
		return nil, fmt.Errorf("the secret of the dashboard's sessions has %d bytes: want at least %d", len(o.SessionSecret), MinSessionSecret)
	}
	d, err := newDashboard(o.SessionSecret)
	if err != nil {
		return nil, err
	}
	c := &Customers{limiter: o.Limiter, kept: o.Usage, log: o.Log, now: o.Now, visits: newVisits(visitsPerSecond, visitsAtOnce), dashboard: d}
	c.Use(o.Accounts)
	return c, nil
}

// Use makes the API know other accounts, from the next request on.
func (c *Customers) Use(a *Accounts) { c.accounts.Store(a) }

// Handler serves GET /v1/limits and GET /v1/usage, and the dashboard: /dashboard and all
// below it.
func (c *Customers) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/limits", c.authenticated(c.limits))
	mux.HandleFunc("GET /v1/usage", c.authenticated(c.series))
	pages := c.pages()
	mux.Handle(dashboardPath, pages)
	mux.Handle(dashboardPath+"/", pages)
	return mux
}

// An accountHandler answers a request of the holder of a key.
type accountHandler func(http.ResponseWriter, *http.Request, *Accounts, *apikey.Record)

// authenticated hands on the requests of keys that may be used, as often as visits
// allows.
func (c *Customers) authenticated(next accountHandler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a, now := c.accounts.Load(), c.now()
		var credentials []string
		for _, name := range a.KeyHeaders {
			for _, value := range r.Header.Values(name) {
				credentials = apikey.AppendCredentials(credentials, value, name == "authorization")
			}
		}
		record, err := a.Keys.Authenticate(credentials, a.AllowDemoKeys, now)
		if errors.Is(err, apikey.ErrUnread) {
			unavailable(w)
			return
		}
		if err != nil {
			w.Header().Set("WWW-Authenticate", "Bearer") // RFC 9110, 11.6.1
			refuse(w, http.StatusUnauthorized, apierror.OfKey(err, a.KeyHeaders))
			return
		}
		if wait := c.visits.wait(record.ID, now); wait > 0 {
			refuseVisit(w, now, wait)
			return
		}
		next(w, r, a, record)
	}
}

// refuseVisit answers who comes too often.
func refuseVisit(w http.ResponseWriter, now time.Time, wait time.Duration) {
	w.Header().Set("X-RateLimit-Reset", strconv.FormatInt(apierror.UpUnix(now.Add(wait)), 10))
	w.Header().Set("Retry-After", strconv.FormatInt(apierror.Up(wait, time.Second), 10))
	w.Header().Set("Retry-After-Ms", strconv.FormatInt(apierror.Up(wait, time.Millisecond), 10))
	w.Header().Set("X-RateLimit-Limited-By", "limits_per_second")
	refuse(w, http.StatusTooManyRequests, apierror.TooMany(wait))
}

// unavailable answers while the store cannot be read: nobody's key is wrong.
func unavailable(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "1")
	refuse(w, http.StatusServiceUnavailable, apierror.Unavailable)
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
