package web

import (
	"net/http"
	"strconv"

	"github.com/tiergate/tiergate/internal/apierror"
	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

// A LimitsView is every limit of a key and what is used of it, as JSON.
type LimitsView struct {
	KeyID    string `json:"key_id"`
	Name     string `json:"name"`
	Tier     string `json:"tier"`
	Priority int    `json:"priority"`
	// Resources are those that the key may use. Null: all.
	Resources []string `json:"resources"`
	Now       int64    `json:"now"` // Unix seconds
	// Degraded: Redis cannot be reached, and the limits are what this instance would admit.
	Degraded bool        `json:"degraded,omitempty"`
	Limits   []LimitView `json:"limits"`
}

// A LimitView is one of them.
type LimitView struct {
	Name      string `json:"name"`
	Metric    string `json:"metric"`
	Per       string `json:"per"`
	Algorithm string `json:"algorithm,omitempty"` // without: fixed
	Resource  string `json:"resource,omitempty"`  // counts this one alone
	Priority  int    `json:"priority,omitempty"`  // the same
	Limit     *int64 `json:"limit"`               // null: unlimited
	Used      int64  `json:"used"`
	Remaining *int64 `json:"remaining"` // null: unlimited
	Reset     int64  `json:"reset"`     // Unix seconds
}

// limits answers with every limit of the caller's key, and what is used of it.
func (c *Customers) limits(w http.ResponseWriter, r *http.Request, a *Accounts, record *apikey.Record) {
	s, ok := c.standing(w, r, a, record)
	if !ok {
		return
	}
	answer(w, http.StatusOK, viewOfLimits(record, s))
}

func viewOfLimits(record *apikey.Record, s standing) LimitsView {
	view := LimitsView{
		KeyID: record.ID, Name: record.Name, Tier: record.Tier, Priority: int(s.priority), Now: s.Now.Unix(), Degraded: s.Degraded, Limits: make([]LimitView, len(s.States)),
	}
	if len(record.Resources) > 0 {
		view.Resources = record.Resources
	}
	for i, state := range s.States {
		view.Limits[i] = viewOf(state)
	}
	return view
}

// A standing is how a key stands with its limits.
type standing struct {
	quota.Standing

	priority quota.Priority
}

// standing looks up how the caller's key stands, and says the limit on requests per
// minute in the headers of the contract, and whether it is what this instance alone knows,
// as every answer of the API does. Where it cannot, it refuses the request and returns false.
func (c *Customers) standing(w http.ResponseWriter, r *http.Request, a *Accounts, record *apikey.Record) (standing, bool) {
	plan := a.Plans[record.Tier]
	if plan == nil { // the tier of a stored key is not configured any more
		refuse(w, http.StatusServiceUnavailable, apierror.Unavailable)
		return standing{}, false
	}
	stands, err := c.limiter.States(r.Context(), quota.Request{Account: record.ID, Tier: plan, Overrides: record.Overrides}, c.now())
	s := standing{stands, record.Granted(plan.Tier.Priority)}
	if state, ok := s.Shown(quota.DefaultResource, s.priority); ok {
		setHeaders(w.Header(), state, s.priority, a.UnlimitedText)
	}
	if s.Degraded {
		w.Header().Set("X-RateLimit-Degraded", "1")
	}
	if err != nil {
		unavailable(w)
		return standing{}, false
	}
	return s, true
}

// setHeaders sets the six headers. Where there is no such limit, Envoy fills in 0.
func setHeaders(h http.Header, s quota.State, priority quota.Priority, unlimited string) {
	if limit, remaining := apierror.LimitHeaders(s, unlimited); limit != "" {
		h.Set("X-RateLimit-Limit", limit)
		h.Set("X-RateLimit-Remaining", remaining)
	}
	h.Set("X-RateLimit-Used", strconv.FormatInt(s.Used, 10))
	h.Set("X-RateLimit-Reset", strconv.FormatInt(s.Reset.Unix(), 10))
	h.Set("X-RateLimit-Resource", quota.DefaultResource)
	h.Set("X-Request-Priority", priority.Number())
}

func viewOf(s quota.State) LimitView {
	v := LimitView{
		Name: s.Limit.Name(), Metric: s.Limit.Metric.String(), Per: s.Limit.Window.String(), Algorithm: s.Limit.Window.Algorithm(),
		Resource: s.Limit.Resource, Priority: int(s.Limit.Priority), Used: s.Used, Reset: s.Reset.Unix(),
	}
	if s.Limit.Max != quota.NoMax {
		most, remaining := s.Limit.Max, s.Remaining()
		v.Limit, v.Remaining = &most, &remaining
	}
	return v
}
