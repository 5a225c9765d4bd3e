package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"

	"go.etcd.io/bbolt"

	"github.com/tiergate/tiergate/internal/apikey"
)

// eventIDLen is how long the IDs of events are: long enough for every number, with
// zeros before, so that they sort.
const eventIDLen = 20

// log adds an entry to the audit log.
func (b keyBuckets) log(id, event []byte) error {
	n, err := b.audit.NextSequence()
	if err != nil {
		return err //nolint:wrapcheck // Write does
	}
	number := binary.BigEndian.AppendUint64(nil, n)
	if err := b.audit.Put(number, event); err != nil {
		return err //nolint:wrapcheck // Write does
	}
	return b.auditOf.Put(append(ofKey(id), number...), nil) //nolint:wrapcheck // Write does
}

// ofKey is before the numbers of a key's events.
func ofKey(id []byte) []byte { return append(slices.Clone(id), 0) }

// trim removes the oldest entries of the audit log beyond those that are kept.
func (b keyBuckets) trim(kept uint64) error {
	if b.audit.Sequence() <= kept {
		return nil
	}
	end := binary.BigEndian.AppendUint64(nil, b.audit.Sequence()-kept)
	var numbers [][]byte
	cursor := b.audit.Cursor()
	for number, text := cursor.First(); number != nil && bytes.Compare(number, end) <= 0; number, text = cursor.Next() {
		if event, err := readEvent("", text); err == nil {
			if err := b.auditOf.Delete(append(ofKey([]byte(event.KeyID)), number...)); err != nil {
				return err //nolint:wrapcheck // Write does
			}
		}
		numbers = append(numbers, slices.Clone(number))
	}
	for _, number := range numbers {
		if err := b.audit.Delete(number); err != nil {
			return err //nolint:wrapcheck // Write does
		}
	}
	return nil
}

// Events returns the latest entries of the audit log, the newest first and at most
// 1,000: those of one key, or of all where keyID is empty, that are older than the
// entry before, or all where that is empty. The log keeps the latest 100,000 entries.
func (k *FileKeys) Events(_ context.Context, keyID, before string, most int) ([]apikey.Event, error) {
	end, err := eventNumber(before)
	if err != nil {
		return nil, fmt.Errorf("read the audit log before %q: %w", before, apikey.ErrNoEvent)
	}
	most = min(most, maxEventsRead)
	var events []apikey.Event
	err = k.view(func(b keyBuckets) error {
		cursor, prefix := b.audit.Cursor(), []byte{}
		if keyID != "" {
			cursor, prefix = b.auditOf.Cursor(), ofKey([]byte(keyID))
		}
		at := lastBefore(cursor, binary.BigEndian.AppendUint64(slices.Clone(prefix), end))
		for ; at != nil && bytes.HasPrefix(at, prefix) && len(events) < most; at, _ = cursor.Prev() {
			number := at[len(prefix):]
			event, err := readEvent(fmt.Sprintf("%0*d", eventIDLen, binary.BigEndian.Uint64(number)), b.audit.Get(number))
			if err != nil {
				return err
			}
			events = append(events, event)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the audit log in the file: %w", err)
	}
	return events, nil
}

// eventNumber reads the ID of an event. An empty one is greater than all.
func eventNumber(id string) (uint64, error) {
	if id == "" {
		return ^uint64(0), nil
	}
	return strconv.ParseUint(id, 10, 64) //nolint:wrapcheck // Events does
}

// lastBefore returns the last name before another.
func lastBefore(cursor *bbolt.Cursor, name []byte) []byte {
	at, _ := cursor.Seek(name)
	if at == nil {
		at, _ = cursor.Last()
		return at
	}
	at, _ = cursor.Prev()
	return at
}
