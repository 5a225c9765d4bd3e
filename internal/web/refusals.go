package web

import (
	"cmp"
	"net/http"
	"slices"
	"time"

	"github.com/tiergate/tiergate/internal/apierror"
	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/usage"
)

// The customers' view of their latest refused requests, as JSON.
type refusalsView struct {
	KeyID    string        `json:"key_id"`
	Refusals []refusalView `json:"refusals"` // the latest first
}

type refusalView struct {
	At       int64  `json:"at"`     // Unix seconds
	Status   int    `json:"status"` // 429, or 413 where the request is more than the whole limit
	Resource string `json:"resource"`
	Limit    string `json:"limit"` // the name of the limit that refused
	Used     int64  `json:"used"`  // of it, then
	Max      int64  `json:"max"`
	Asked    int64  `json:"asked"`   // what did not fit any more
	FitsAt   *int64 `json:"fits_at"` // Unix seconds; null: never
}

// refusals answers with the latest refused requests of the caller's key.
func (c *Customers) refusals(w http.ResponseWriter, r *http.Request, _ *Accounts, record *apikey.Record) {
	refusals, err := c.kept.Refusals(r.Context(), record.ID)
	if err != nil {
		c.unreadable(w, r, err)
		return
	}
	view := refusalsView{KeyID: record.ID, Refusals: make([]refusalView, len(refusals))}
	for i := range refusals {
		view.Refusals[i] = viewOfRefusal(&refusals[i])
	}
	slices.SortStableFunc(view.Refusals, func(a, b refusalView) int { return cmp.Compare(b.At, a.At) })
	answer(w, http.StatusOK, view)
}

func viewOfRefusal(r *usage.Refusal) refusalView {
	v := refusalView{
		At: r.At.Unix(), Status: http.StatusTooManyRequests, Resource: r.Resource, Limit: r.Limit, Used: r.Used, Max: r.Max, Asked: r.Asked,
	}
	if r.TooLarge {
		v.Status = http.StatusRequestEntityTooLarge
		return v
	}
	fits := r.At.Unix() + apierror.Up(r.Wait, time.Second)
	v.FitsAt = &fits
	return v
}
