package web

import (
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
)

// An Imported says what became of an import.
type Imported struct {
	Count  int      `json:"count"`
	DryRun bool     `json:"dry_run"`
	IDs    []string `json:"ids,omitempty"` // in the order of the keys; without in a dry run
}

// importKeys takes up keys made elsewhere, by their secret or its hash, and those of an
// export: all, or none.
func (a *Admin) importKeys(c *call) (any, error) {
	o, err := newObject(c.body)
	if err != nil {
		return nil, err
	}
	var dry bool
	take(o, "dry_run", "true or false", &dry)
	entries := o.objects("keys", apikey.MaxChanges)
	if len(entries) == 0 && !o.faulty("keys") {
		o.fault("keys", "none: want 1 to %d", apikey.MaxChanges)
	}
	o.end()
	changes := make([]apikey.Change, len(entries))
	seen := &seenKeys{ids: map[string]int{}, digests: map[[32]byte]int{}}
	for i, entry := range entries {
		r, secret := c.imported(entry)
		seen.add(entry, i, r, secret)
		changes[i] = c.change(r, "import", "tier "+r.Tier)
	}
	if err := o.err(); err != nil {
		return nil, err
	}
	result := Imported{Count: len(changes), DryRun: dry}
	if dry {
		return result, nil
	}
	written, err := a.write(c, changes)
	if err != nil {
		return nil, importFault(err, changes)
	}
	for _, r := range written {
		result.IDs = append(result.IDs, r.ID)
	}
	return result, nil
}

// imported reads one key, and the hash of its secret without a pepper, if the secret is
// there. Unlike a new one it may be over already.
func (c *call) imported(o *object) (r apikey.Record, secret apikey.Hash) {
	r.ID = c.accounts.takeID(o)
	r.Hash, secret = c.accounts.takeHash(o)
	c.accounts.describe(o, &r)
	r.Overrides = c.accounts.overrides(o)
	take(o, "revoked", "true or false", &r.Revoked)
	moment(o, "created", &r.Created)
	if r.Created.IsZero() {
		r.Created = c.now.Truncate(time.Second)
	}
	r.Former = c.former(o)
	o.end()
	return r, secret
}

// former reads what the key was before it was rotated.
func (c *call) former(o *object) *apikey.Former {
	fields, given := o.fields["former"]
	if !given || isNull(fields) {
		delete(o.fields, "former")
		return nil
	}
	inner := &object{at: o.at + "former.", faults: o.faults}
	if !take(o, "former", "an object with hash and until", &inner.fields) {
		return nil
	}
	var text string
	var f apikey.Former
	if take(inner, "hash", aText, &text) {
		f.Hash = c.accounts.parseHash(inner, "hash", text)
	} else if !inner.faulty("hash") {
		inner.fault("hash", "missing")
	}
	if !moment(inner, "until", &f.Until) && !inner.faulty("until") {
		inner.fault("until", "missing: want %s", pointInTime)
	}
	inner.end()
	return &f
}

// seenKeys finds twins within one import.
type seenKeys struct {
	ids     map[string]int
	digests map[[32]byte]int // of hashes, and of secrets without a pepper
}

func (s *seenKeys) add(o *object, i int, r apikey.Record, secret apikey.Hash) {
	if first, ok := s.ids[r.ID]; ok && r.ID != "" {
		o.fault("id", "keys[%d] has it too", first)
	}
	s.ids[r.ID] = i
	for _, h := range append(r.Hashes(), secret) {
		if h == (apikey.Hash{}) {
			continue
		}
		if first, ok := s.digests[h.Digest()]; ok && first != i {
			o.fault("hash", "keys[%d] is the same key", first)
		}
		s.digests[h.Digest()] = i
	}
}

// importFault says which key of an import the store refuses.
func importFault(err error, changes []apikey.Change) error {
	var of *apikey.KeyError
	if !errors.As(err, &of) || !errors.Is(err, apikey.ErrTaken) {
		return err
	}
	i := slices.IndexFunc(changes, func(c apikey.Change) bool { return c.Record.ID == of.ID })
	if i < 0 {
		return err
	}
	p := problem(kindTaken, err.Error())
	p.Errors = []Fault{{"keys[" + strconv.Itoa(i) + "]", apikey.ErrTaken.Error()}}
	return p
}

// A KeyExport is a part of all records of the store, hashes and all.
type KeyExport struct {
	Keys []apikey.Record `json:"keys"`
	Next string          `json:"next,omitempty"` // ask again with after= this; without: that was all
}

// exportKeys answers with what an import into an empty store makes the same keys of.
func (a *Admin) exportKeys(c *call) (any, error) {
	q := c.query()
	from, most := q.text("after"), q.limit()
	if err := q.end(); err != nil {
		return nil, err
	}
	if err := c.accounts.Keys.Missing(); errors.Is(err, apikey.ErrUnread) { // it would look as if there were none
		return nil, err //nolint:wrapcheck // a reason as it is
	}
	found, next := pageOf(after(a.listing.of(c.accounts.Keys), from), most, func(l listed) bool { return !l.fromFile })
	export := KeyExport{Keys: make([]apikey.Record, len(found)), Next: next}
	for i, l := range found {
		export.Keys[i] = *l.Record
		export.Keys[i].Revision = 0 // the store's own
	}
	return export, nil
}
