package store

import (
	"context"
	"crypto/rand"
	_ "embed" // for the script
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/apikey"
)

//go:embed keys.lua
var keysSource string

// keysTimeout is how long one call about the directory may take. No request waits for
// it, and a thousand records take longer than a count.
const keysTimeout = patientTimeout

// eventsChunk is how many entries of the audit log are fetched at once.
const eventsChunk = 1000

// RedisKeys keeps the directory of keys in Redis, where every instance reads it. All of
// it is under one hash tag, so that one script can write it:
//
//	<prefix>:{keys}:records  hash: ID → JSON of the record
//	<prefix>:{keys}:hashes   hash: digest of a key's hash, current or former → ID
//	<prefix>:{keys}:epoch    a random text made with the first write: a directory that
//	                         was lost and begun anew has another
//	<prefix>:{keys}:audit    stream: one entry for each change, about the latest 100,000
//
// The audit log is also how instances learn of changes. None of it has a TTL. It is
// safe for concurrent use.
type RedisKeys struct {
	redis   *Redis
	client  redis.UniversalClient
	write   script
	notices KeyNotices
	kept    int          // events
	epoch   atomic.Value // string: that of the directory that this process knows

	records, hashes, epochKey, audit string // names of Redis keys
}

// NewRedisKeys returns the directory of keys in the Redis of a store, which stays the
// caller's to close. It does not connect yet.
func NewRedisKeys(r *Redis, notices KeyNotices) *RedisKeys {
	name := func(last string) string { return r.prefix + ":{keys}:" + last }
	k := &RedisKeys{
		redis: r, client: r.patient, notices: notices, kept: maxEvents,
		write:   newScript(keysSource),
		records: name("records"), hashes: name("hashes"), epochKey: name("epoch"), audit: name("audit"),
	}
	k.epoch.Store("")
	return k
}

// Read returns the record of an ID as it is in Redis, or a KeyError with ErrUnknown. Where Redis
// has lost the directory that this process knows, the error is ErrLost.
func (k *RedisKeys) Read(ctx context.Context, id string) (apikey.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	text, err := k.client.HGet(ctx, k.records, id).Bytes()
	if errors.Is(err, redis.Nil) {
		return apikey.Record{}, k.missing(ctx, id)
	}
	if err != nil {
		return apikey.Record{}, fmt.Errorf("read key %s in Redis: %w", id, advised(err))
	}
	record, fault := newKeyReader().read(id, text)
	if fault != nil {
		return apikey.Record{}, fault
	}
	return record, nil
}

// missing says why there is no record of an ID.
func (k *RedisKeys) missing(ctx context.Context, id string) error {
	epoch, err := k.client.Get(ctx, k.epochKey).Result()
	switch known := k.epoch.Load(); {
	case err != nil && !errors.Is(err, redis.Nil):
		return fmt.Errorf("read key %s in Redis: %w", id, advised(err))
	case known != "" && known != epoch:
		return fmt.Errorf("read key %s in Redis: %w", id, apikey.ErrLost)
	default:
		return &apikey.KeyError{ID: id, Err: apikey.ErrUnknown}
	}
}

// Write makes all changes and adds their events to the audit log, or does nothing. It
// returns the records with their new revisions. A change fails with a KeyError that
// wraps ErrTaken where its revision is 0 and there is such a key, or where one of its
// hashes, current or former, is another key's; and ErrConflict where its revision is
// not that of the record. The changes count one after the other: a hash that one lets
// go is free for the next. Two changes of one ID, or more than apikey.MaxChanges, are an
// error. Where Redis has lost the directory that this process knows, the error is
// ErrLost; where Redis answers with another error, as when it is full, ErrRefused. After
// an error of another kind it is unknown whether the changes were made: read one of the
// keys to see.
func (k *RedisKeys) Write(ctx context.Context, changes []apikey.Change) ([]apikey.Record, error) {
	written, records, err := keyChanges(changes)
	if err != nil || len(changes) == 0 {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	args := []any{k.epoch.Load(), rand.Text(), k.kept}
	for _, c := range written {
		args = append(args, c.id, c.revision, c.record, strings.Join(c.digests, " "), c.event)
	}
	answer, err := k.redis.run(ctx, k.client, k.write, []string{k.records, k.hashes, k.epochKey, k.audit}, args)
	if refusedByRedis(err) {
		return nil, fmt.Errorf("write keys to Redis: %w: %w", apikey.ErrRefused, err)
	}
	if err != nil {
		return nil, fmt.Errorf("write keys to Redis: %w", err)
	}
	reply, err := answer.Slice()
	if err != nil {
		return nil, fmt.Errorf("write keys to Redis: %w", err)
	}
	if len(reply) != 2 {
		return nil, fmt.Errorf("write keys to Redis: %d values in the answer, want 2", len(reply))
	}
	if epoch, ok := reply[1].(string); ok && reply[0] == "ok" {
		k.epoch.Store(epoch)
		return records, nil
	}
	return nil, refusal(reply, written)
}

// refusal says what the script has found wrong.
func refusal(reply []any, written []keyChange) error {
	code, _ := reply[0].(string)
	reason := map[string]error{
		"taken": apikey.ErrTaken, "conflict": apikey.ErrConflict,
		"unreadable": errors.New("the record in the store cannot be read: mend it by hand"),
	}[code]
	n, ok := reply[1].(int64)
	switch {
	case code == "lost":
		return fmt.Errorf("write keys to Redis: %w", apikey.ErrLost)
	case !ok || reason == nil || n < 0 || n >= int64(len(written)):
		return fmt.Errorf("write keys to Redis: unknown answer %v", reply)
	default:
		return &apikey.KeyError{ID: written[n].id, Err: reason}
	}
}

// streamID is the ID of an entry of the audit log.
var streamID = regexp.MustCompile(`^[0-9]{1,20}(-[0-9]{1,20})?$`)

// Events returns the latest entries of the audit log, the newest first and at most
// 1,000: those of one key, or of all where keyID is empty, that are older than the
// entry before, or all where that is empty. The log keeps about the latest 100,000
// entries. For one key all of them may have to be read, 1,000 at a time.
func (k *RedisKeys) Events(ctx context.Context, keyID, before string, most int) ([]apikey.Event, error) {
	if before != "" && !streamID.MatchString(before) {
		return nil, fmt.Errorf("read the audit log before %q: %w", before, apikey.ErrNoEvent)
	}
	ctx, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	most = min(most, maxEventsRead)
	var events []apikey.Event
	for len(events) < most {
		chunk := eventsChunk
		if keyID == "" {
			chunk = most - len(events)
		}
		entries, err := k.client.XRevRangeN(ctx, k.audit, olderThan(before), "-", int64(chunk)).Result()
		if err != nil {
			return nil, fmt.Errorf("read the audit log in Redis: %w", advised(err))
		}
		for _, entry := range entries {
			before = entry.ID
			id, text := ofEntry(entry)
			if len(events) == most || id == "" || (keyID != "" && keyID != id) {
				continue
			}
			event, err := readEvent(entry.ID, []byte(text))
			if err != nil {
				return nil, err
			}
			events = append(events, event)
		}
		if len(entries) < chunk {
			break
		}
	}
	return events, nil
}

// olderThan is where a range of the audit log ends that stops short of an entry.
func olderThan(before string) string {
	if before == "" {
		return "+"
	}
	return "(" + before
}

// ofEntry returns what an entry of the audit log says: whose key, and the event's JSON.
func ofEntry(entry redis.XMessage) (id, event string) {
	id, _ = entry.Values["key"].(string)
	event, _ = entry.Values["event"].(string)
	return id, event
}
