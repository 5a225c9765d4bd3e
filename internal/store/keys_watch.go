package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/apikey"
)

const (
	// watchFor is how long one question for news waits for an answer. As often, at the
	// least, a watcher sees to it that the directory is still the one it knows.
	watchFor = 2 * time.Second
	// watchGrace is how much longer than that the answer may take to arrive.
	watchGrace = time.Second
	// watchAgain is how long a watcher waits before it connects anew.
	watchAgain = 100 * time.Millisecond
	// watchChunk is how many records or changes are fetched at once.
	watchChunk = 1000
	// streamStart is before every entry of a stream.
	streamStart = "0-0"
)

// Watch calls apply with every record there is (whole is true) and then, within moments
// of each write by whatever instance, with the records that were written, until ctx is
// done. It returns nil then. Where the directory has been replaced by another, or by an
// older state of itself, it calls apply with the whole again. While Redis cannot be
// reached, or has lost the directory, it goes on trying; see KeyNotices. The records are
// apply's to keep.
func (k *RedisKeys) Watch(ctx context.Context, apply func(records []apikey.Record, whole bool)) error {
	w := &keysWatcher{keys: k, apply: apply}
	for {
		err := w.follow(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // it is what ended the watch
		}
		w.tell(err)
		k.redis.lookAgain(ctx)
		waits(ctx, watchAgain)
	}
}

// A keysWatcher is what one call of Watch knows of the directory.
type keysWatcher struct {
	keys   *RedisKeys
	apply  func(records []apikey.Record, whole bool)
	client *redis.Client // while following
	loaded bool
	epoch  string         // of what is known; empty: there was no directory
	last   redis.XMessage // entry of the audit log up to which all is known
	outage error          // that was told
}

// tell passes on the beginning, the end and a change of the kind of an outage.
func (w *keysWatcher) tell(err error) {
	same := (err == nil) == (w.outage == nil) && errors.Is(err, apikey.ErrLost) == errors.Is(w.outage, apikey.ErrLost)
	if w.outage = err; !same {
		w.keys.notices.outage(err)
	}
}

// follow applies what happens until a call fails. It has a client of its own each time:
// the pool of one that has often failed to connect tries again only once a second.
func (w *keysWatcher) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var err error
	if w.client, err = w.keys.watchClient(ctx); err != nil {
		return err
	}
	defer func() { _ = w.client.Close() }() // nothing of use is on its way
	var news []redis.XMessage
	for {
		current, err := w.isCurrent(ctx)
		for errors.Is(err, apikey.ErrLost) && ctx.Err() == nil {
			w.tell(err)
			waits(ctx, watchAgain)
			current, err = w.isCurrent(ctx)
		}
		if err == nil && current {
			err = w.takeUp(ctx, news)
		} else if err == nil {
			err = w.load(ctx)
		}
		if err != nil {
			return err
		}
		w.tell(nil)
		if news, err = w.await(ctx); err != nil {
			return err
		}
	}
}

// isCurrent reports whether the directory in Redis is what is known or has grown from
// it. If not it is to be loaded: it is another, or an older state of it was restored, or
// more has happened than the audit log keeps. An entry is called by the clock of the server
// that makes it, so another may be called as one that was lost with a server before.
func (w *keysWatcher) isCurrent(ctx context.Context) (bool, error) {
	epoch, entries, err := w.position(ctx, w.last.ID, w.last.ID)
	switch {
	case err != nil:
		return false, err
	case epoch == "" && w.epoch != "":
		return false, fmt.Errorf("watch keys in Redis: %w", apikey.ErrLost)
	default:
		there := w.last.ID == streamStart || len(entries) == 1 && maps.Equal(entries[0].Values, w.last.Values)
		return w.loaded && epoch == w.epoch && there, nil
	}
}

// position reads the epoch and, in the same moment, the last entry of the audit log in
// a range.
func (w *keysWatcher) position(ctx context.Context, last, first string) (string, []redis.XMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	if last == "" {
		last, first = "+", "-"
	}
	var epoch *redis.StringCmd
	var entries *redis.XMessageSliceCmd
	_, err := w.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
		epoch = p.Get(ctx, w.keys.epochKey)
		entries = p.XRevRangeN(ctx, w.keys.audit, last, first, 1)
		return nil
	})
	switch {
	case errors.Is(err, redis.Nil): // there is no epoch
		err = entries.Err()
	case redis.HasErrorPrefix(err, "EXECABORT"): // why is in the answers before
		err = cmp.Or(epoch.Err(), entries.Err())
	}
	if err != nil {
		return "", nil, fmt.Errorf("watch keys in Redis: %w", advised(err))
	}
	return epoch.Val(), entries.Val(), nil
}

// load takes up the whole directory. What is written meanwhile may be part of it or
// not; it comes again as news.
func (w *keysWatcher) load(ctx context.Context) error {
	epoch, entries, err := w.position(ctx, "", "")
	if err != nil {
		return err
	}
	last := redis.XMessage{ID: streamStart}
	if len(entries) > 0 {
		last = entries[0]
	}
	records, err := w.all(ctx)
	if err != nil {
		return err
	}
	w.apply(records, true)
	w.loaded, w.epoch, w.last = true, epoch, last
	if epoch != "" {
		w.keys.epoch.Store(epoch)
	}
	return nil
}

// all reads every record.
func (w *keysWatcher) all(ctx context.Context) ([]apikey.Record, error) {
	n, err := w.client.HLen(ctx, w.keys.records).Result()
	if err != nil {
		return nil, fmt.Errorf("load keys from Redis: %w", advised(err))
	}
	reader, records, seen := newKeyReader(), make([]apikey.Record, 0, n), make(map[string]bool, n)
	for cursor, more := uint64(0), true; more; more = cursor != 0 {
		var pairs []string // ID, record, …; one may come more than once
		if pairs, cursor, err = w.client.HScan(ctx, w.keys.records, cursor, "", watchChunk).Result(); err != nil {
			return nil, fmt.Errorf("load keys from Redis: %w", advised(err))
		}
		for i := 0; i+1 < len(pairs); i += 2 {
			if !seen[pairs[i]] {
				seen[pairs[i]] = true
				records = w.readInto(records, reader, pairs[i], pairs[i+1])
			}
		}
	}
	return records, nil
}

// readInto adds a record, or gives notice of one that cannot be read.
func (w *keysWatcher) readInto(records []apikey.Record, reader keyReader, id, text string) []apikey.Record {
	record, fault := reader.read(id, []byte(text))
	if fault != nil {
		w.keys.notices.unreadable(fault)
		return records
	}
	return append(records, record)
}

// await returns what has happened since what is known, and waits where that is nothing.
func (w *keysWatcher) await(ctx context.Context) ([]redis.XMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, watchFor+watchGrace)
	defer cancel()
	question := redis.XReadArgs{Streams: []string{w.keys.audit, w.last.ID}, Count: watchChunk, Block: watchFor}
	streams, err := w.client.XRead(ctx, &question).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("wait for changes of keys in Redis: %w", advised(err))
	}
	if len(streams) != 1 {
		return nil, nil
	}
	return streams[0].Messages, nil
}

// takeUp fetches and applies the records that news are about.
func (w *keysWatcher) takeUp(ctx context.Context, news []redis.XMessage) error {
	if len(news) == 0 {
		return nil
	}
	var ids []string
	seen := map[string]bool{}
	for _, entry := range news {
		if id, _ := ofEntry(entry); id != "" && !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	if len(ids) > 0 {
		records, whole, err := w.some(ctx, ids)
		if err != nil {
			return err
		}
		if !whole { // a key whose record cannot be read any more is in force no more, as after a start
			return w.load(ctx)
		}
		w.apply(records, false)
	}
	w.last = news[len(news)-1]
	return nil
}

// some reads the records of IDs, as far as there are any; whole says that all could be
// read.
func (w *keysWatcher) some(ctx context.Context, ids []string) (records []apikey.Record, whole bool, err error) {
	texts, err := w.client.HMGet(ctx, w.keys.records, ids...).Result()
	if err != nil {
		return nil, false, fmt.Errorf("read changed keys in Redis: %w", advised(err))
	}
	found := 0
	reader := newKeyReader()
	for i, text := range texts {
		if text, ok := text.(string); ok {
			found++
			records = w.readInto(records, reader, ids[i], text)
		}
	}
	return records, len(records) == found, nil
}
