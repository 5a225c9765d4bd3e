package apikey

import (
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// maxIDLen is the longest ID, in bytes.
const maxIDLen = 64

var errID = fmt.Errorf("want 1 to %d letters, digits, - and _, the first a letter or a digit", maxIDLen)

// CheckID returns what is wrong with a text as the ID of a key. It becomes part of the names of
// Redis keys, so braces have no place in it, and others see it, so a key has none either. The
// error has nothing of the text, which may be a secret in the wrong place.
func CheckID(id string) error {
	if err := CheckPublic(id); err != nil {
		return err
	}
	for i := range len(id) {
		switch c := id[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case (c == '-' || c == '_') && i > 0:
		default:
			return errID
		}
	}
	if id == "" || len(id) > maxIDLen {
		return errID
	}
	return nil
}

// ValidID reports whether a text can be the ID of a key.
func ValidID(id string) bool { return CheckID(id) == nil }

// A Record is what is known of a key besides its secret. What each request asks for stands
// first: of many keys it is in no cache of the processor.
type Record struct {
	Hash      Hash
	Former    *Former // nil: the key has not been rotated
	ID        string  // public; the counts belong to it
	Tier      string
	Priority  quota.Priority // 0: the tier's
	Revoked   bool
	Demo      bool      // refused unless demo keys are allowed
	Expires   time.Time // zero: never
	Resources []string  // empty: every resource
	Overrides []quota.Override

	Name    string            // for people
	Owner   string            // for people
	Labels  map[string]string // of the operators; nothing depends on them
	Created time.Time         // zero: not known

	// Revision counts the changes of a record in the store, from 1. It is 0 for one
	// from the file of keys.
	Revision int64
}

// Former is what a key was before it was rotated. It works for some time, and counts
// as the same key.
type Former struct {
	Hash  Hash
	Until time.Time
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

// Opens reports whether a hash that was found with the record is still that of its
// key: ErrRevoked says that it is one from before a rotation whose time is over.
func (r *Record) Opens(h Hash, now time.Time) error {
	if r.Hash != h && (r.Former == nil || r.Former.Hash != h || !now.Before(r.Former.Until)) {
		return ErrRevoked
	}
	return nil
}

// Hashes are those that find the record.
func (r *Record) Hashes() []Hash {
	if r.Former != nil {
		return []Hash{r.Hash, r.Former.Hash}
	}
	return []Hash{r.Hash}
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

// A Directory finds the record of a key. It never changes: With returns another,
// which shares with the first what is the same.
type Directory struct {
	plain     bool     // some hashes have no pepper
	peppers   []Pepper // those that some hash names
	byHash    [shardCount]map[sum]*Record
	byID      [shardCount]map[uint32]*Record // by its hash, which has no pointer that the garbage collector would follow
	colliding map[string]*Record             // by ID: those whose ID has the hash of another's
}

// shardCount is in how many parts the maps of a Directory are cut, so that a change of
// one record copies little.
const shardCount = 256

// hashOf returns the hash of an ID, by which it is found. The last byte says in which part.
func hashOf(id string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id)) // never fails, see hash.Hash
	return h.Sum32()
}

// A RecordError is a fault of one record.
type RecordError struct {
	Index int    // of the record, among those given
	ID    string // of its key
	Field string // "former": its former key alone
	Err   error
}

// NewDirectory returns a directory of the records, or every fault in them: two
// records with one ID or one hash, a pepper that is not among the peppers.
func NewDirectory(records []Record, peppers []Pepper) (*Directory, []RecordError) {
	return new(Directory).With(records, peppers)
}

// With returns a directory in which the records stand in for those with the same ID,
// unless those are of a later revision. What is wrong with a record is returned, as by
// NewDirectory, and leaves out what it is about: an ID that is given twice its second
// record, a hash that belongs to another or lacks its pepper the key.
func (d *Directory) With(records []Record, peppers []Pepper) (*Directory, []RecordError) {
	next := &copying{Directory: *d, given: make(map[string]bool, len(records))}
	next.peppers = slices.Clone(d.peppers)
	for i := range records {
		next.put(i, &records[i], peppers)
	}
	return &next.Directory, next.faults
}

// A copying is a directory in the making. It copies the parts that it changes.
type copying struct {
	Directory

	given       map[string]bool  // IDs among the records
	hashes, ids [shardCount]bool // whether a part is a copy already
	copied      bool             // whether colliding is one
	faults      []RecordError
}

func (c *copying) put(i int, r *Record, peppers []Pepper) {
	fault := func(field string, err error) { c.faults = append(c.faults, RecordError{i, r.ID, field, err}) }
	again := c.given[r.ID]
	if again {
		fault("id", fmt.Errorf("%q names two keys: choose another", r.ID))
	} else if old := c.ByID(r.ID); old != nil {
		if old.Revision > r.Revision {
			return
		}
		for _, h := range old.Hashes() {
			if c.find(h) == old {
				delete(c.hashShard(h), h.sum)
			}
		}
	}
	field := "hash"
	for _, h := range r.Hashes() {
		twin, err := c.byHash[h.sum[0]][h.sum], c.use(h, peppers)
		switch {
		case err != nil:
			fault(field, err)
		case twin != nil:
			fault(field, fmt.Errorf("key %q has the same hash: remove one of the two", twin.ID))
		case !again:
			c.hashShard(h)[h.sum] = r
		}
		field = "former"
	}
	if !again {
		c.given[r.ID] = true
		c.putByID(r)
	}
}

func (c *copying) putByID(r *Record) {
	hash := hashOf(r.ID)
	shard := own(&c.byID[hash%shardCount], &c.ids[hash%shardCount])
	if other := shard[hash]; other != nil && other.ID != r.ID {
		own(&c.colliding, &c.copied)[r.ID] = r
		return
	}
	shard[hash] = r
}

// hashShard returns the part for a hash, to be changed.
func (c *copying) hashShard(h Hash) map[sum]*Record {
	return own(&c.byHash[h.sum[0]], &c.hashes[h.sum[0]])
}

// own copies a part that is still another directory's.
func own[K comparable](shard *map[K]*Record, copied *bool) map[K]*Record {
	if !*copied {
		*copied = true
		if *shard = maps.Clone(*shard); *shard == nil {
			*shard = map[K]*Record{}
		}
	}
	return *shard
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
		return noPepper(name)
	}
	d.peppers = append(d.peppers, peppers[i])
	return nil
}

func noPepper(name string) error {
	return fmt.Errorf("pepper %q is not configured: add it to keys.peppers", name)
}

// find returns the record that a hash finds, or nil.
func (d *Directory) find(h Hash) *Record {
	r := d.byHash[h.sum[0]][h.sum]
	if r != nil && (r.Hash == h || (r.Former != nil && r.Former.Hash == h)) {
		return r
	}
	return nil
}

// Lookup finds the record of a key and the hash that it was found by, or nil. The key
// is hashed once for each scheme in use; a hash betrays nothing by the time it takes to
// find.
func (d *Directory) Lookup(k Key) (*Record, Hash) {
	var plain Hash
	if d.plain {
		plain = k.Hash()
	}
	return d.lookup(k, plain)
}

// lookup does the same with the key's hash without a pepper, which a directory without
// such hashes does not look at.
func (d *Directory) lookup(k Key, plain Hash) (*Record, Hash) {
	if d.plain {
		if r := d.find(plain); r != nil {
			return r, plain
		}
	}
	for _, p := range d.peppers {
		h := k.HashWith(p)
		if r := d.find(h); r != nil {
			return r, h
		}
	}
	return nil, Hash{}
}

// ByID finds the record of a key ID, or nil.
func (d *Directory) ByID(id string) *Record {
	hash := hashOf(id)
	if r := d.byID[hash%shardCount][hash]; r == nil || r.ID == id {
		return r
	}
	return d.colliding[id]
}

// Twin finds the record of a hash with the same digest, whatever their schemes, or nil.
func (d *Directory) Twin(h Hash) *Record { return d.byHash[h.sum[0]][h.sum] }

// ByHash finds the record of a hash, or nil.
func (d *Directory) ByHash(h Hash) *Record { return d.find(h) }

// Len returns how many keys are on record.
func (d *Directory) Len() int {
	n := len(d.colliding)
	for _, shard := range d.byID {
		n += len(shard)
	}
	return n
}

// All yields every record, in no order.
func (d *Directory) All(yield func(*Record) bool) {
	for _, shard := range d.byID {
		for _, r := range shard {
			if !yield(r) {
				return
			}
		}
	}
	for _, r := range d.colliding {
		if !yield(r) {
			return
		}
	}
}
