package store

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/tiergate/tiergate/internal/apikey"
)

const (
	maxEvents     = 100_000 // entries of the audit log; the oldest make room
	maxEventsRead = 1000    // entries that one call of Events returns
)

// KeyNotices are told what becomes of the directory of keys while it is watched. Those
// that are nil are not called. They must not block.
type KeyNotices struct {
	// Outage is called once when the store cannot be watched, with the reason, once
	// when the reason becomes or ceases to be apikey.ErrLost, and once with nil when
	// all is well again. What is known of the keys stays as it was meanwhile.
	Outage func(err error)
	// Unreadable is called for a record that is left out because it is none of ours:
	// somebody has written it by hand.
	Unreadable func(fault *apikey.KeyError)
}

func (n KeyNotices) outage(err error) {
	if n.Outage != nil {
		n.Outage(err)
	}
}

func (n KeyNotices) unreadable(fault *apikey.KeyError) {
	if n.Unreadable != nil {
		n.Unreadable(fault)
	}
}

// keyChange is a change as the stores write it.
type keyChange struct {
	id            string
	revision      int64    // that it changes; 0: there must be no record
	record, event []byte   // JSON
	digests       []string // that find the record from now on
}

// digestOf is the text by which a key is found, whatever the scheme of its hash: one
// digest belongs to one key.
func digestOf(h apikey.Hash) string {
	digest := h.Digest()
	return hex.EncodeToString(digest[:])
}

// keyChanges checks changes as far as that goes without the store, and returns them
// as they are written, with the records as they will be.
func keyChanges(changes []apikey.Change) ([]keyChange, []apikey.Record, error) {
	if len(changes) > apikey.MaxChanges {
		return nil, nil, fmt.Errorf("write %d keys: want at most %d at once", len(changes), apikey.MaxChanges)
	}
	seen := make(map[string]bool, len(changes))
	written, records := make([]keyChange, len(changes)), make([]apikey.Record, len(changes))
	for i, c := range changes {
		id := c.Record.ID
		if err := apikey.CheckID(id); err != nil {
			return nil, nil, fmt.Errorf("write a key: the ID is not valid: %w", err)
		}
		switch {
		case seen[id]:
			return nil, nil, fmt.Errorf("write key %s: two changes of it at once: make one of them", id)
		case slices.Contains(c.Record.Hashes(), apikey.Hash{}):
			return nil, nil, fmt.Errorf("write key %s: it has no hash", id)
		case c.Record.Revision < 0:
			return nil, nil, fmt.Errorf("write key %s: revision %d: want that of the record to change, or 0 for a new one", id, c.Record.Revision)
		}
		seen[id] = true
		records[i] = c.Record
		records[i].Revision++
		written[i] = keyChange{id: id, revision: c.Record.Revision}
		for _, h := range c.Record.Hashes() {
			written[i].digests = append(written[i].digests, digestOf(h))
		}
		c.Event.ID, c.Event.KeyID = "", id
		var errs [2]error
		written[i].record, errs[0] = json.Marshal(records[i])
		written[i].event, errs[1] = json.Marshal(c.Event)
		if err := errors.Join(errs[:]...); err != nil {
			return nil, nil, fmt.Errorf("encode key %s: %w", id, err)
		}
	}
	return written, records, nil
}

// A keyReader decodes the records of the directory. Texts that many of them have, such
// as the tier, it keeps once.
type keyReader struct {
	texts map[string]string
}

func newKeyReader() keyReader { return keyReader{map[string]string{}} }

// read decodes the record that is stored under an ID.
func (k keyReader) read(id string, text []byte) (apikey.Record, *apikey.KeyError) {
	var r apikey.Record
	err := r.UnmarshalJSON(text) // at once: json.Unmarshal would read the text twice
	if err == nil && r.ID != id {
		err = fmt.Errorf("the record calls itself %q", r.ID)
	}
	if err != nil {
		return apikey.Record{}, &apikey.KeyError{ID: id, Err: fmt.Errorf("read the record in the store: %w: write it anew", err)}
	}
	r.Tier, r.Owner = k.once(r.Tier), k.once(r.Owner)
	for i, name := range r.Resources {
		r.Resources[i] = k.once(name)
	}
	return r, nil
}

// once returns the text as it was first seen.
func (k keyReader) once(text string) string {
	if first, ok := k.texts[text]; ok {
		return first
	}
	k.texts[text] = text
	return text
}

// readEvent decodes an entry of the audit log.
func readEvent(id string, text []byte) (apikey.Event, error) {
	var e apikey.Event
	if err := json.Unmarshal(text, &e); err != nil {
		return apikey.Event{}, fmt.Errorf("read entry %s of the audit log: %w", id, err)
	}
	e.ID = id
	return e, nil
}
