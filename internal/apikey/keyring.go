package apikey

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A Keyring finds keys in the file of keys and in the store's directory. Where both
// have the same ID or the same hash, the file's record holds: it is what was reviewed.
type Keyring struct {
	File   *Directory
	Stored *Stored // nil: there is none
}

// ByID finds the record of a key ID, or nil.
func (k Keyring) ByID(id string) *Record {
	if r := k.File.ByID(id); r != nil || k.Stored == nil {
		return r
	}
	return k.Stored.Directory().ByID(id)
}

// ByHash finds the record that a hash finds, or nil.
func (k Keyring) ByHash(h Hash) *Record {
	if r := k.File.ByHash(h); r != nil || k.Stored == nil {
		return r
	}
	return k.visible(k.Stored.Directory().ByHash(h))
}

// Pepperless returns an error where a secret does not find the record that has its hash, since the pepper of
// that is not configured.
func (k Keyring) Pepperless(h Hash) error {
	name := h.Pepper()
	if name == "" || k.Twin(h) != nil {
		return nil
	}
	return noPepper(name)
}

// Former returns the former secret of a record while it lets requests in, or nil.
func (k Keyring) Former(r *Record, demo bool, now time.Time) *Former {
	f := r.Former
	if f == nil || !now.Before(f.Until) || r.Admissible(demo, now) != nil || k.ByHash(f.Hash) != r {
		return nil
	}
	return f
}

// Twin finds the record of a hash with the same digest, whatever their schemes, or nil.
func (k Keyring) Twin(h Hash) *Record {
	if r := k.File.Twin(h); r != nil || k.Stored == nil {
		return r
	}
	return k.Stored.Directory().Twin(h)
}

// visible returns the stored record unless the file has one of the same ID.
func (k Keyring) visible(r *Record) *Record {
	if r == nil || k.File.ByID(r.ID) != nil {
		return nil
	}
	return r
}

// Lookup finds the record of a key and the hash that it was found by, or nil.
func (k Keyring) Lookup(key Key) (*Record, Hash) {
	if k.Stored == nil {
		return k.File.Lookup(key)
	}
	stored := k.Stored.Directory()
	var plain Hash
	if k.File.plain || stored.plain { // once for both
		plain = key.Hash()
	}
	if r, h := k.File.lookup(key, plain); r != nil {
		return r, h
	}
	r, h := stored.lookup(key, plain)
	return k.visible(r), h
}

// Authenticate finds the record of the one key among the credentials of a request.
// All credentials must be the same key. Demo keys are unknown unless they are allowed.
// A key that is revoked or has expired is an error too, with its record. A key that is
// not found while the store's directory has not been read yet is ErrUnread.
func (k Keyring) Authenticate(credentials []string, demo bool, now time.Time) (*Record, error) {
	record, _, err := k.Identify(credentials, demo, now)
	return record, err
}

// Identify is Authenticate, and returns the hash that the key was found by too.
func (k Keyring) Identify(credentials []string, demo bool, now time.Time) (*Record, Hash, error) {
	key, err := only(credentials)
	if err != nil {
		return nil, Hash{}, err
	}
	record, hash := k.Lookup(key)
	if record == nil {
		return nil, Hash{}, k.Missing()
	}
	if err := record.Admissible(demo, now); err != nil {
		return record, hash, err
	}
	return record, hash, record.Opens(hash, now)
}

// Missing returns why a key was not found: ErrUnknown, or ErrUnread while the store's
// directory has not been read yet.
func (k Keyring) Missing() error {
	if k.Stored != nil && !k.Stored.loaded.Load() {
		return ErrUnread
	}
	return ErrUnknown
}

// Len returns how many keys are on record.
func (k Keyring) Len() int {
	n := k.File.Len()
	if k.Stored != nil {
		n += k.Stored.Directory().Len()
	}
	return n
}

// Stored is the store's directory as this process knows it. It is safe for concurrent
// use.
type Stored struct {
	current atomic.Pointer[Directory]
	loaded  atomic.Bool // whether it has been read
	mu      sync.Mutex  // of those who change it
	peppers []Pepper
}

// NewStored returns an empty one.
func NewStored(peppers []Pepper) *Stored {
	s := &Stored{peppers: peppers}
	s.current.Store(&Directory{})
	return s
}

// Directory returns the records as they are now.
func (s *Stored) Directory() *Directory { return s.current.Load() }

// Apply takes up changed and new records. What is wrong with some is returned; the
// keys of those do not work, all others do.
func (s *Stored) Apply(records []Record) []RecordError {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, faults := s.current.Load().With(records, s.peppers)
	s.current.Store(next)
	return faults
}

// Replace takes up records in place of all there were: all that the store has.
func (s *Stored) Replace(records []Record) []RecordError {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, faults := NewDirectory(records, s.peppers)
	s.current.Store(next)
	s.loaded.Store(true)
	return faults
}

// UsePeppers takes up other peppers, for the records that there are and those to come.
func (s *Stored) UsePeppers(peppers []Pepper) []RecordError {
	s.mu.Lock()
	defer s.mu.Unlock()
	same := func(a, b Pepper) bool { return a.name == b.name && a.secret.Equal(b.secret) }
	if slices.EqualFunc(s.peppers, peppers, same) {
		return nil
	}
	s.peppers = peppers
	var records []Record
	for r := range s.current.Load().All {
		records = append(records, *r)
	}
	next, faults := NewDirectory(records, peppers)
	s.current.Store(next)
	return faults
}
