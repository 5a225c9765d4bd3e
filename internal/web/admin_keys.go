package web

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
)

// A KeyList is a part of the list of keys.
type KeyList struct {
	Keys []KeyView `json:"keys"`
	Next string    `json:"next,omitempty"` // ask again with after= this; without: that was all
}

// list answers with the keys that a filter lets pass, by ID.
func (a *Admin) list(c *call) (any, error) {
	q := c.query()
	tier, owner, text := q.text("tier"), q.text("owner"), strings.ToLower(q.text("q"))
	state, from, most := KeyState(q.text("state")), q.text("after"), q.limit()
	if states := []KeyState{"", KeyActive, KeyRevoked, KeyExpired, KeyDisabled}; !slices.Contains(states, state) {
		q.fault("state", "want active, revoked, expired or disabled")
	}
	all := a.listing.of(c.accounts.Keys)
	if _, configured := c.accounts.Plans[tier]; tier != "" && len(q.faults) == 0 && !configured && !slices.ContainsFunc(all, func(l listed) bool { return l.Tier == tier }) {
		q.fault("tier", "unknown tier %q: want one of %s", short(tier), c.accounts.tierNames())
	}
	if err := q.end(); err != nil {
		return nil, err
	}
	contains := func(s string) bool { return strings.Contains(strings.ToLower(s), text) }
	found, next := pageOf(after(all, from), most, func(l listed) bool {
		return (tier == "" || l.Tier == tier) && (owner == "" || l.Owner == owner) &&
			(state == "" || c.accounts.state(l.Record, c.now) == state) &&
			(text == "" || contains(l.ID) || contains(l.Name) || contains(l.Owner))
	})
	views := make([]KeyView, len(found))
	for i, l := range found {
		views[i] = c.accounts.view(l.Record, l.fromFile, c.now)
	}
	a.addLastUsed(c.Context(), views)
	return KeyList{views, next}, nil
}

// addLastUsed says when keys were last used. The rest is worth showing when that cannot
// be read.
func (a *Admin) addLastUsed(ctx context.Context, views []KeyView) {
	ids := make([]string, len(views))
	for i := range views {
		ids[i] = views[i].ID
	}
	ids = slices.Compact(ids)
	if len(ids) == 0 {
		return
	}
	used, err := a.usage.LastUsed(ctx, ids)
	if err != nil {
		return
	}
	for i := range views {
		views[i].LastUsed = json.RawMessage("null")
		if at, ok := used[views[i].ID]; ok {
			views[i].LastUsed = json.RawMessage(at.UTC().Format(`"` + time.RFC3339 + `"`))
		}
	}
}

// shown is the view of one record, with when it was last used.
func (a *Admin) shown(c *call, r *apikey.Record, fromFile bool) KeyView {
	views := []KeyView{c.accounts.view(r, fromFile, c.now)}
	a.addLastUsed(c.Context(), views)
	return views[0]
}

// record finds the key that the path names, in the file or in the store.
func (c *call) record() (*apikey.Record, error) {
	if r := c.accounts.Keys.ByID(c.PathValue("id")); r != nil {
		return r, nil
	}
	return nil, c.accounts.Keys.Missing() //nolint:wrapcheck // a reason as it is
}

func (c *call) inFile(id string) bool { return c.accounts.Keys.File.ByID(id) != nil }

// show answers with one key.
func (a *Admin) show(c *call) (any, error) {
	if err := c.query().end(); err != nil {
		return nil, err
	}
	r, err := c.record()
	if err != nil {
		return nil, err
	}
	return a.shown(c, r, c.inFile(r.ID)), nil
}

// A NewKey is a key whose secret has just been made: this is the one time it is shown.
type NewKey struct {
	Key    string  `json:"key"`
	Record KeyView `json:"record"`
}

// create makes a key.
func (a *Admin) create(c *call) (any, error) {
	o, err := newObject(c.body)
	if err != nil {
		return nil, err
	}
	key := apikey.New()
	r := apikey.Record{ID: c.accounts.takeID(o), Created: c.now.Truncate(time.Second)}
	r.Hash = c.accounts.takePepper(o, "")(key)
	c.accounts.describe(o, &r)
	toCome(o, "expires", r.Expires, c.now, "a key that is never to work need not be made")
	r.Overrides = c.accounts.overrides(o)
	untilToCome(o, r, c.now)
	o.end()
	if err := o.err(); err != nil {
		return nil, err
	}
	written, err := a.write(c, []apikey.Change{c.change(r, "create", "tier "+r.Tier)})
	if err != nil {
		return nil, err
	}
	return NewKey{key.Reveal(), a.shown(c, &written[0], false)}, nil
}

// change is what is written, and what the audit log says of it.
func (c *call) change(r apikey.Record, action, detail string) apikey.Change {
	return apikey.Change{Record: r, Event: apikey.Event{At: c.now, By: c.who, Action: action, KeyID: r.ID, Detail: detail}}
}

// write writes to the store, and lets this process know what is there now.
func (a *Admin) write(c *call, changes []apikey.Change) ([]apikey.Record, error) {
	written, err := a.keys.Write(c.Context(), changes)
	if err != nil {
		return nil, unwritten(err)
	}
	a.stored.Apply(written) // without faults: all was checked
	return written, nil
}

// changeTries is how often a change is tried that others get in the way of.
const changeTries = 4

// edit is what a change makes of a record. It returns what the audit log says of it; ""
// where there is nothing to change.
type edit func(*apikey.Record) (detail string, err error)

// modify changes the key that the path names, as it is in the store at that time, and
// returns how it is then.
func (a *Admin) modify(c *call, action string, change edit) (KeyView, error) {
	id := c.PathValue("id")
	if !apikey.ValidID(id) { // a secret goes no further
		return KeyView{}, noSuchKey()
	}
	inFile := c.inFile(id)
	of := problem(kindInFile, "change "+id+" there")
	if inFile && action != "revoke" { // one of the store that the file hides may be ended
		return KeyView{}, of
	}
	for try := 1; ; try++ {
		r, err := a.keys.Read(c.Context(), id)
		if inFile && errors.Is(err, apikey.ErrUnknown) {
			return KeyView{}, of
		}
		if err != nil {
			return KeyView{}, err //nolint:wrapcheck // it says what and why, for the answer
		}
		if r.Revoked && action != "revoke" {
			return KeyView{}, problem(kindRevoked, "key "+id+" is revoked, for good: create another")
		}
		detail, err := change(&r)
		if err != nil {
			return KeyView{}, err
		}
		if detail == "" {
			view := a.shown(c, &r, false)
			view.Unchanged = true
			return view, nil
		}
		written, err := a.write(c, []apikey.Change{c.change(r, action, detail)})
		if err == nil {
			return a.shown(c, &written[0], false), nil
		}
		if !errors.Is(err, apikey.ErrConflict) || try == changeTries {
			return KeyView{}, err
		}
	}
}

// patch changes what is known of a key, as RFC 7396 has it: null takes away.
func (a *Admin) patch(c *call) (any, error) {
	return a.modify(c, "change", func(r *apikey.Record) (string, error) {
		o, err := newObject(c.body)
		if err != nil {
			return "", err
		}
		before := *r
		c.accounts.describe(o, r)
		if !r.Expires.Equal(before.Expires) {
			toCome(o, "expires", r.Expires, c.now, "to end a key now, revoke it")
		}
		o.end()
		return difference(&before, r), o.err()
	})
}

// revoke ends a key for good, and what it was before. A second time is no error and
// changes nothing: the first reason stays.
func (a *Admin) revoke(c *call) (any, error) {
	o, err := newObject(c.body)
	if err != nil {
		return nil, err
	}
	var reason string
	if take(o, "reason", aText, &reason) {
		plain(o, "reason", reason)
	}
	o.end()
	if err := o.err(); err != nil {
		return nil, err
	}
	return a.modify(c, "revoke", func(r *apikey.Record) (string, error) {
		if r.Revoked {
			return "", nil
		}
		r.Revoked = true
		if reason == "" {
			return "no reason given", nil
		}
		return reason, nil
	})
}
