package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"go.etcd.io/bbolt"

	"github.com/tiergate/tiergate/internal/apikey"
)

// FileKeys keeps the directory of keys in a node's file. It is safe for concurrent use.
type FileKeys struct {
	file    *File
	notices KeyNotices
	kept    uint64 // events

	mu       sync.Mutex // of writers, from the file to the watchers
	watchers []*fileWatcher
}

// A fileWatcher is one call of Watch.
type fileWatcher struct {
	apply func(records []apikey.Record, whole bool)
}

// NewFileKeys returns the directory of keys in a file, which stays the caller's to
// close.
func NewFileKeys(f *File, notices KeyNotices) *FileKeys {
	return &FileKeys{file: f, notices: notices, kept: maxEvents}
}

// keyBuckets are the parts of the file that the directory is in. They are nil as long
// as nothing was written.
type keyBuckets struct {
	records  *bbolt.Bucket // ID → JSON of the record
	hashes   *bbolt.Bucket // text of a key's hash, current or former → ID
	audit    *bbolt.Bucket // number of the event, 8 bytes → its JSON
	auditOf  *bbolt.Bucket // ID, 0 and number of the event → nothing
	complete bool
}

// names of the buckets, in the order of keyBuckets.
func keyBucketNames() [4]string {
	return [4]string{"keys", "key_hashes", "key_audit", "key_audit_of"}
}

func keyBucketsOf(open func(name []byte) (*bbolt.Bucket, error)) (keyBuckets, error) {
	var found [4]*bbolt.Bucket
	for i, name := range keyBucketNames() {
		bucket, err := open([]byte(name))
		if err != nil {
			return keyBuckets{}, fmt.Errorf("open %s: %w", name, err)
		}
		found[i] = bucket
	}
	return keyBuckets{found[0], found[1], found[2], found[3], !slices.Contains(found[:], nil)}, nil
}

// view reads. It does nothing as long as nothing was written.
func (k *FileKeys) view(read func(b keyBuckets) error) error {
	return k.file.view(func(tx *bbolt.Tx) error { //nolint:wrapcheck // callers do
		b, err := keyBucketsOf(func(name []byte) (*bbolt.Bucket, error) { return tx.Bucket(name), nil })
		if err != nil || !b.complete {
			return err
		}
		return read(b)
	})
}

// Read returns the record of an ID as it is in the file, or a KeyError with ErrUnknown.
func (k *FileKeys) Read(_ context.Context, id string) (apikey.Record, error) {
	record, fault := apikey.Record{}, &apikey.KeyError{ID: id, Err: apikey.ErrUnknown}
	err := k.view(func(b keyBuckets) error {
		if text := b.records.Get([]byte(id)); text != nil {
			record, fault = newKeyReader().read(id, text)
		}
		return nil
	})
	if err != nil {
		return apikey.Record{}, fmt.Errorf("read key %s in the file: %w", id, err)
	}
	if fault != nil {
		return apikey.Record{}, fault
	}
	return record, nil
}

// Write makes all changes and adds their events to the audit log, or does nothing, and
// returns the records with their new revisions. Changes fail as with RedisKeys. Watchers
// have applied the records when it returns.
func (k *FileKeys) Write(_ context.Context, changes []apikey.Change) ([]apikey.Record, error) {
	written, records, err := keyChanges(changes)
	if err != nil || len(changes) == 0 {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	err = k.file.update(func(tx *bbolt.Tx) error {
		b, err := keyBucketsOf(tx.CreateBucketIfNotExists)
		if err != nil {
			return err
		}
		for _, c := range written {
			if err := b.write(c); err != nil {
				return err
			}
		}
		return b.trim(k.kept)
	})
	if fault, ok := errors.AsType[*apikey.KeyError](err); ok {
		return nil, fault
	}
	if err != nil {
		return nil, fmt.Errorf("write keys to the file: %w", err)
	}
	for _, w := range k.watchers {
		w.apply(slices.Clone(records), false)
	}
	return records, nil
}

// write makes one change, unless it is at fault.
func (b keyBuckets) write(c keyChange) error {
	id := []byte(c.id)
	old := b.records.Get(id)
	switch {
	case old != nil && c.revision == 0:
		return &apikey.KeyError{ID: c.id, Err: apikey.ErrTaken}
	case old == nil && c.revision > 0:
		return &apikey.KeyError{ID: c.id, Err: apikey.ErrConflict}
	case old != nil:
		before, fault := newKeyReader().read(c.id, old)
		if fault != nil {
			return fault
		}
		if before.Revision != c.revision {
			return &apikey.KeyError{ID: c.id, Err: apikey.ErrConflict}
		}
		for _, h := range before.Hashes() {
			if err := b.release(id, []byte(digestOf(h))); err != nil {
				return err
			}
		}
	}
	for _, h := range c.digests {
		if owner := b.hashes.Get([]byte(h)); owner != nil && !bytes.Equal(owner, id) {
			return &apikey.KeyError{ID: c.id, Err: apikey.ErrTaken}
		}
		if err := b.hashes.Put([]byte(h), id); err != nil {
			return err //nolint:wrapcheck // Write does
		}
	}
	if err := b.records.Put(id, c.record); err != nil {
		return err //nolint:wrapcheck // Write does
	}
	return b.log(id, c.event)
}

// release lets go a hash that is the key's.
func (b keyBuckets) release(id, hash []byte) error {
	if !bytes.Equal(b.hashes.Get(hash), id) {
		return nil
	}
	return b.hashes.Delete(hash) //nolint:wrapcheck // Write does
}

// Watch calls apply with every record there is (whole is true) and then with those of
// each Write, until ctx is done. It returns nil then, or an error where the file cannot
// be read. The records are apply's to keep. apply must not write keys.
func (k *FileKeys) Watch(ctx context.Context, apply func(records []apikey.Record, whole bool)) error {
	w := &fileWatcher{apply}
	if err := k.begin(w); err != nil {
		return err
	}
	<-ctx.Done()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.watchers = slices.DeleteFunc(k.watchers, func(other *fileWatcher) bool { return other == w })
	return nil
}

// begin applies what there is, and has what comes applied.
func (k *FileKeys) begin(w *fileWatcher) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var records []apikey.Record
	err := k.view(func(b keyBuckets) error {
		reader := newKeyReader()
		records = make([]apikey.Record, 0, b.records.Stats().KeyN)
		return b.records.ForEach(func(id, text []byte) error { //nolint:wrapcheck // see below
			record, fault := reader.read(string(id), text)
			if fault != nil {
				k.notices.unreadable(fault)
			} else {
				records = append(records, record)
			}
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("load keys from the file: %w", err)
	}
	w.apply(records, true)
	k.watchers = append(k.watchers, w)
	return nil
}
