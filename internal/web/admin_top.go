package web

import (
	"strconv"

	"github.com/tiergate/tiergate/internal/usage"
)

// A KeyName is a key in a list of those that stand out: what an operator knows it by.
// Only its ID is known of one that is in no directory any more.
type KeyName struct {
	KeyID string `json:"key_id"`
	Name  string `json:"name,omitempty"`
	Owner string `json:"owner,omitempty"`
	Tier  string `json:"tier,omitempty"`
}

func (a *AdminAccounts) name(id string) KeyName {
	n := KeyName{KeyID: id}
	if r := a.Keys.ByID(id); r != nil {
		n.Name, n.Owner, n.Tier = r.Name, r.Owner, r.Tier
	}
	return n
}

// A TopList is the keys with the most of something.
type TopList struct {
	By    usage.Rank `json:"by"`
	Hours int        `json:"hours"` // the one under way and so many before it
	Keys  []TopKey   `json:"keys"`  // the first has the most
}

// A TopKey is a key and what it has.
type TopKey struct {
	KeyName

	Count int64 `json:"count"`
}

// top answers with the keys that have the most of something.
func (a *Admin) top(c *call) (any, error) {
	q := c.query()
	by, hours := usage.ByRequests, 1
	switch text := usage.Rank(q.text("by")); text {
	case usage.ByRequests, usage.ByTokens, usage.ByRefusals:
		by = text
	case "":
	default:
		q.fault("by", "want requests, tokens or refused")
	}
	if text := q.text("hours"); text != "" {
		const most = 24
		var err error
		if hours, err = strconv.Atoi(text); err != nil || hours < 1 || hours > most {
			q.fault("hours", "want 1 to %d", most)
		}
	}
	most := q.limit()
	if err := q.end(); err != nil {
		return nil, err
	}
	ranked, err := a.fleet.Top(c.Context(), by, hours, most)
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what and why, for the answer
	}
	list := TopList{By: by, Hours: hours, Keys: make([]TopKey, len(ranked))}
	for i, r := range ranked {
		list.Keys[i] = TopKey{c.accounts.name(r.Account), r.Count}
	}
	return list, nil
}

// A NearList is the keys that are near a limit.
type NearList struct {
	Keys []NearKey `json:"keys"` // the nearest first
}

// A NearKey is a key, and the limit that it has used most of.
type NearKey struct {
	KeyName

	Limit string  `json:"limit"` // its name
	Share float64 `json:"share"` // used of its maximum, 0.8 to 1 and more
}

// near answers with the keys that are near a limit.
func (a *Admin) near(c *call) (any, error) {
	if err := c.query().end(); err != nil {
		return nil, err
	}
	all, err := a.fleet.Near(c.Context())
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what and why, for the answer
	}
	list := NearList{Keys: make([]NearKey, len(all))}
	for i, n := range all {
		list.Keys[i] = NearKey{c.accounts.name(n.Account), n.Limit, rounded(n.Share)}
	}
	return list, nil
}
