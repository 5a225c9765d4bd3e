package web

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

// KeyState is whether a key works, and if not why.
type KeyState string

// The states. A disabled key is a demo key while allow_demo_keys is off.
const (
	KeyActive   KeyState = "active"
	KeyRevoked  KeyState = "revoked"
	KeyExpired  KeyState = "expired"
	KeyDisabled KeyState = "disabled"
)

// A KeyView is a key as the admin API shows it: neither secret nor hash.
type KeyView struct {
	ID             string            `json:"id"`
	Name           string            `json:"name,omitempty"`
	Owner          string            `json:"owner,omitempty"`
	Source         string            `json:"source"` // file or store
	State          KeyState          `json:"state"`
	Hidden         bool              `json:"hidden,omitempty"` // the file has a key of this ID or hash, which is used in its place
	Tier           string            `json:"tier"`
	NoTier         bool              `json:"no_tier,omitempty"`  // no such tier is configured: requests get 503
	Priority       int               `json:"priority,omitempty"` // without: the tier's
	Resources      []string          `json:"resources,omitempty"`
	Overrides      []OverrideView    `json:"overrides,omitempty"`
	Labels         map[string]string `json:"labels,omitempty"`
	Pepper         string            `json:"pepper,omitempty"`           // of its hash
	NoPepper       bool              `json:"no_pepper,omitempty"`        // that pepper is not configured: requests get 401
	Former         time.Time         `json:"former_until,omitzero"`      // what it was before a rotation works until then
	FormerPepper   string            `json:"former_pepper,omitempty"`    // of the former secret's hash
	NoFormerPepper bool              `json:"no_former_pepper,omitempty"` // that pepper is not configured: requests with the former secret get 401
	Created        time.Time         `json:"created,omitzero"`           // without: not known
	Expires        time.Time         `json:"expires,omitzero"`           // without: never
	LastUsed       json.RawMessage   `json:"last_used,omitempty"`        // a time, or null: not in 400 days; without: it could not be read
	Demo           bool              `json:"demo,omitempty"`             // works only under allow_demo_keys
	Revision       int64             `json:"revision,omitempty"`         // counts its changes; without: it is in the file
	Unchanged      bool              `json:"unchanged,omitempty"`        // answers a change that changed nothing: all was so already
}

// An OverrideView is a limit that a key has instead of its tier's, or beside them.
type OverrideView struct {
	Metric    string    `json:"metric"`
	Per       string    `json:"per"`
	Max       int64     `json:"max"`
	Algorithm string    `json:"algorithm,omitempty"` // without: of a tier's limit fixed, of an override that of the limit that it replaces
	Resource  string    `json:"resource,omitempty"`
	Priority  int       `json:"priority,omitempty"`
	Until     time.Time `json:"until,omitzero"` // without: without end
}

// overrideView shows a limit, without end.
func overrideView(l quota.Limit) OverrideView {
	return OverrideView{
		Metric: l.Metric.String(), Per: l.Window.String(), Max: l.Max, Algorithm: l.Window.Algorithm(),
		Resource: l.Resource, Priority: int(l.Priority),
	}
}

// view shows a record.
func (a *AdminAccounts) view(r *apikey.Record, fromFile bool, now time.Time) KeyView {
	v := KeyView{
		ID: r.ID, Name: r.Name, Owner: r.Owner, Source: "store", State: a.state(r, now), Tier: r.Tier, Priority: int(r.Priority),
		Resources: r.Resources, Labels: r.Labels, Pepper: r.Hash.Pepper(), Created: r.Created, Expires: r.Expires, Demo: r.Demo, Revision: r.Revision,
		NoTier: a.Plans[r.Tier] == nil, NoPepper: a.Keys.Pepperless(r.Hash) != nil,
	}
	if fromFile {
		v.Source = "file"
	} else {
		v.Hidden = a.Keys.File.ByID(r.ID) != nil || a.Keys.File.ByHash(r.Hash) != nil
	}
	if r.Former != nil && !r.Revoked && now.Before(r.Former.Until) {
		v.Former, v.FormerPepper, v.NoFormerPepper = r.Former.Until, r.Former.Hash.Pepper(), a.Keys.Pepperless(r.Former.Hash) != nil
	}
	for _, o := range r.Overrides {
		override := overrideView(o.Limit)
		override.Algorithm, override.Until = o.Algorithm(), o.Until
		v.Overrides = append(v.Overrides, override)
	}
	return v
}

func (a *AdminAccounts) state(r *apikey.Record, now time.Time) KeyState {
	err := r.Admissible(a.AllowDemoKeys, now)
	switch {
	case err == nil:
		return KeyActive
	case errors.Is(err, apikey.ErrRevoked):
		return KeyRevoked
	case errors.Is(err, apikey.ErrExpired):
		return KeyExpired
	default:
		return KeyDisabled
	}
}

// A TierView is a tier of the configuration in use.
type TierView struct {
	Name      string         `json:"name"`
	Priority  int            `json:"priority"`
	Unlimited bool           `json:"unlimited"`
	Limits    []OverrideView `json:"limits"`
}

func tierView(t quota.Tier) TierView {
	v := TierView{Name: t.Name, Priority: int(t.Priority), Unlimited: t.Unlimited, Limits: make([]OverrideView, len(t.Limits))}
	for i, l := range t.Limits {
		v.Limits[i] = overrideView(l)
	}
	return v
}

// Tiers is what keys can be given.
type Tiers struct {
	Tiers     []TierView `json:"tiers"`
	Resources []string   `json:"resources"`
	Peppers   []string   `json:"peppers"` // their names
}

// tiers answers with the tiers, resources and peppers of the configuration in use.
func (a *Admin) tiers(c *call) (any, error) {
	if err := c.query().end(); err != nil {
		return nil, err
	}
	t := Tiers{Tiers: []TierView{}, Resources: c.accounts.resourceNames(), Peppers: []string{}}
	for _, name := range slices.Sorted(maps.Keys(c.accounts.Plans)) {
		t.Tiers = append(t.Tiers, tierView(c.accounts.Plans[name].Tier))
	}
	for _, p := range c.accounts.Peppers {
		t.Peppers = append(t.Peppers, p.Name())
	}
	return t, nil
}

// A listed is a key in the list of all.
type listed struct {
	*apikey.Record

	fromFile bool
}

// listing keeps the keys in order, for as long as they are the same.
type listing struct {
	mu           sync.Mutex
	file, stored *apikey.Directory
	sorted       []listed
}

// of returns every key, by ID; where the file and the store have the same ID, that of
// the file first. The list is not to be changed.
func (l *listing) of(keys apikey.Keyring) []listed {
	stored := &apikey.Directory{}
	if keys.Stored != nil {
		stored = keys.Stored.Directory()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == keys.File && l.stored == stored {
		return l.sorted
	}
	sorted := make([]listed, 0, keys.File.Len()+stored.Len())
	for r := range keys.File.All {
		sorted = append(sorted, listed{r, true})
	}
	for r := range stored.All {
		sorted = append(sorted, listed{r, false})
	}
	slices.SortStableFunc(sorted, func(a, b listed) int { return strings.Compare(a.ID, b.ID) })
	l.file, l.stored, l.sorted = keys.File, stored, sorted
	return sorted
}

// after returns the part of the list behind an ID.
func after(sorted []listed, id string) []listed {
	i, _ := slices.BinarySearchFunc(sorted, id, func(l listed, id string) int { return strings.Compare(l.ID, id) })
	for i < len(sorted) && sorted[i].ID == id {
		i++
	}
	return sorted[i:]
}

// pageOf returns the first keys that a filter lets pass, at most so many but never one of
// two with the same ID, and where to go on: "" at the end.
func pageOf(from []listed, most int, pass func(listed) bool) (found []listed, next string) {
	for _, l := range from {
		if !pass(l) {
			continue
		}
		if len(found) >= most && l.ID != found[len(found)-1].ID {
			return found, found[len(found)-1].ID
		}
		found = append(found, l)
	}
	return found, ""
}
