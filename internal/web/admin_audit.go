package web

import (
	"errors"
	"strings"

	"github.com/tiergate/tiergate/internal/apikey"
)

// An AuditLog is a part of what was done to keys, the latest first.
type AuditLog struct {
	Events []apikey.Event `json:"events"`
	Next   string         `json:"next,omitempty"` // ask again with before= this; without: that was all
}

// audit answers with what was done to a key, or to all.
func (a *Admin) audit(c *call) (any, error) {
	q := c.query()
	key, before, most := q.text("key"), q.text("before"), q.limit()
	if key != "" && !apikey.ValidID(key) {
		q.fault("key", "want the ID of a key")
	}
	const wantBefore = "want what an earlier answer said under next"
	if strings.Trim(before, "0123456789-") != "" {
		q.fault("before", wantBefore)
	}
	if err := q.end(); err != nil {
		return nil, err
	}
	events, err := a.keys.Events(c.Context(), key, before, most)
	if errors.Is(err, apikey.ErrNoEvent) { // what the store calls its events, it alone knows
		return nil, invalid([]Fault{{"before", wantBefore}})
	}
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what and why, for the answer
	}
	log := AuditLog{Events: append([]apikey.Event{}, events...)}
	if len(events) >= most {
		log.Next = events[len(events)-1].ID
	}
	return log, nil
}
