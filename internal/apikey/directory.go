package apikey

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// validID is what keys may be called in public. It becomes part of the names of
// Redis keys, so braces have no place in it.
var validID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)

// ValidID reports whether a text can be the ID of a key: 1 to 64 letters, digits,
// - and _, the first of them a letter or a digit.
func ValidID(id string) bool { return validID.MatchString(id) }

// A Record is what is known of a key besides its secret.
type Record struct {
	ID        string // public; the counts belong to it
	Name      string // for people
	Hash      Hash
	Tier      string
	Priority  quota.Priority // 0: the tier's
	Resources []string       // empty: every resource
	Overrides []quota.Override
	Expires   time.Time // zero: never
	Revoked   bool
	Demo      bool // refused unless demo keys are allowed
}

// Reasons why a key that is on record is of no use.
var (
	ErrRevoked = errors.New("revoked API key")
	ErrExpired = errors.New("expired API key")
)

// Usable reports whether the key may be used at an instant, else ErrRevoked or
// ErrExpired.
func (r *Record) Usable(now time.Time) error {
	switch {
	case r.Revoked:
		return ErrRevoked
	case !r.Expires.IsZero() && !now.Before(r.Expires):
		return ErrExpired
	default:
		return nil
	}
}

// Granted returns the priority that the key may use: its own, or that of its tier.
func (r *Record) Granted(tier quota.Priority) quota.Priority {
	if r.Priority != 0 {
		return r.Priority
	}
	return tier
}

// MayUse reports whether the key has leave for a resource.
func (r *Record) MayUse(resource string) bool {
	return len(r.Resources) == 0 || slices.Contains(r.Resources, resource)
}

// A Directory finds the record of a key. It never changes: a new set of keys is
// a new Directory.
type Directory struct {
	plain   bool     // some hashes have no pepper
	peppers []Pepper // those that some hash names
	byHash  map[Hash]*Record
	byID    map[string]*Record
}

// A RecordError is a fault of one record.
type RecordError struct {
	Index int // of the record
	Field string
	Err   error
}

// NewDirectory returns a directory of the records, or every fault in them: two
// records with one ID or one hash, a pepper that is not among the peppers.
func NewDirectory(records []Record, peppers []Pepper) (*Directory, []RecordError) {
	d := &Directory{byHash: make(map[Hash]*Record, len(records)), byID: make(map[string]*Record, len(records))}
	var faults []RecordError
	for i := range records {
		r := &records[i]
		if d.byID[r.ID] != nil {
			faults = append(faults, RecordError{i, "id", fmt.Errorf("%q names two keys: choose another", r.ID)})
		}
		if twin := d.byHash[r.Hash]; twin != nil {
			faults = append(faults, RecordError{i, "hash", fmt.Errorf("key %q has the same hash: remove one of the two", twin.ID)})
		}
		if err := d.use(r.Hash, peppers); err != nil {
			faults = append(faults, RecordError{i, "hash", err})
		}
		d.byID[r.ID], d.byHash[r.Hash] = r, r
	}
	return d, faults
}

// use makes sure that Lookup tries the scheme of the hash.
func (d *Directory) use(h Hash, peppers []Pepper) error {
	name := h.Pepper()
	if name == "" {
		d.plain = true
		return nil
	}
	byName := func(p Pepper) bool { return p.name == name }
	if slices.ContainsFunc(d.peppers, byName) {
		return nil
	}
	i := slices.IndexFunc(peppers, byName)
	if i < 0 {
		return fmt.Errorf("pepper %q is not configured: add it to keys.peppers", name)
	}
	d.peppers = append(d.peppers, peppers[i])
	return nil
}

// Lookup finds the record of a key, or nil. The key is hashed once for each
// scheme in use; a hash betrays nothing by the time it takes to find.
func (d *Directory) Lookup(k Key) *Record {
	if d.plain {
		if r := d.byHash[k.Hash()]; r != nil {
			return r
		}
	}
	for _, p := range d.peppers {
		if r := d.byHash[k.HashWith(p)]; r != nil {
			return r
		}
	}
	return nil
}

// ByID finds the record of a key ID, or nil.
func (d *Directory) ByID(id string) *Record { return d.byID[id] }

// Len returns how many keys are on record.
func (d *Directory) Len() int { return len(d.byID) }
