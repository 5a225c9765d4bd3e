package web

import (
	"cmp"
	"net/http"
	"slices"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/usage"
)

// A RefusalsView is the latest requests of a key that were refused with 429 or 413, as
// JSON.
type RefusalsView struct {
	KeyID    string        `json:"key_id"`
	Refusals []RefusalView `json:"refusals"` // the latest first
}

// A RefusalView is one of them.
type RefusalView struct {
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
	answer(w, http.StatusOK, viewOfRefusals(record.ID, refusals))
}

// viewOfRefusals puts the refusals of a key in order.
func viewOfRefusals(keyID string, refusals []usage.Refusal) RefusalsView {
	view := RefusalsView{KeyID: keyID, Refusals: make([]RefusalView, len(refusals))}
	for i := range refusals {
		view.Refusals[i] = viewOfRefusal(&refusals[i])
	}
	slices.SortStableFunc(view.Refusals, func(a, b RefusalView) int { return cmp.Compare(b.At, a.At) })
	return view
}

func viewOfRefusal(r *usage.Refusal) RefusalView {
	v := RefusalView{
		At: r.At.Unix(), Status: http.StatusTooManyRequests, Resource: r.Resource, Limit: r.Limit, Used: r.Used, Max: r.Max, Asked: r.Asked,
	}
	if r.TooLarge {
		v.Status = http.StatusRequestEntityTooLarge
	}
	if r.TooLarge || r.Wait <= 0 {
		return v
	}
	fits := max(r.At.Add(r.Wait+time.Second-1).Unix(), r.At.Unix()+1) // rounded up
	v.FitsAt = &fits
	return v
}
