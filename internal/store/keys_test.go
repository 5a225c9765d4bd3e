package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

// keyStore is what both directories of keys can do.
type keyStore interface {
	Read(ctx context.Context, id string) (apikey.Record, error)
	Write(ctx context.Context, changes []apikey.Change) ([]apikey.Record, error)
	Events(ctx context.Context, keyID, before string, most int) ([]apikey.Event, error)
	Watch(ctx context.Context, apply func(records []apikey.Record, whole bool)) error
}

// eachKeys runs a test against every directory of keys.
func eachKeys(t *testing.T, test func(t *testing.T, k keyStore)) {
	t.Helper()
	t.Parallel()
	t.Run("file", func(t *testing.T) {
		t.Parallel()
		test(t, NewFileKeys(openFile(t, ""), KeyNotices{}))
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		test(t, NewRedisKeys(redisStore(t, redisServer(t)), KeyNotices{}))
	})
	for _, form := range []string{"mtls", "sentinel", "cluster"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			test(t, NewRedisKeys(formStore(t, form), KeyNotices{}))
		})
	}
}

func openFile(t *testing.T, path string) *File {
	t.Helper()
	f, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// newRecord is a record of a key of its own, with every field set.
func newRecord(id string) apikey.Record {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	return apikey.Record{
		ID: id, Name: "name of " + id, Owner: "owner", Hash: apikey.New().Hash(), Tier: "basic", Priority: quota.High,
		Former: &apikey.Former{Hash: apikey.New().Hash(), Until: at.Add(time.Hour)}, Resources: []string{"chat", "images"},
		Overrides: []quota.Override{{Limit: quota.Limit{Metric: quota.Tokens, Window: quota.Day, Max: 5, Resource: "chat", Priority: quota.Low}, Until: at}},
		Labels:    map[string]string{"team": "a"}, Created: at, Expires: at.Add(48 * time.Hour), Revoked: true, Demo: true,
	}
}

// plainRecord is a record of a key of its own with what it must have.
func plainRecord(id string) apikey.Record {
	return apikey.Record{ID: id, Hash: apikey.New().Hash(), Tier: "basic"}
}

// changing is a change that makes a record so.
func changing(r apikey.Record) apikey.Change {
	action := "change"
	if r.Revision == 0 {
		action = "create"
	}
	return apikey.Change{Record: r, Event: apikey.Event{At: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), By: "test", Action: action, Detail: "as asked"}}
}

// write writes records and returns them as they are now.
func write(t *testing.T, k keyStore, records ...apikey.Record) []apikey.Record {
	t.Helper()
	var changes []apikey.Change
	for _, r := range records {
		changes = append(changes, changing(r))
	}
	written, err := k.Write(t.Context(), changes)
	if err != nil {
		t.Fatal(err)
	}
	return written
}

// refused expects that records are not written, for a reason and because of a key.
func refused(t *testing.T, k keyStore, reason error, id string, records ...apikey.Record) {
	t.Helper()
	var changes []apikey.Change
	for _, r := range records {
		changes = append(changes, changing(r))
	}
	written, err := k.Write(t.Context(), changes)
	var fault *apikey.KeyError
	if written != nil || !errors.Is(err, reason) || !errors.As(err, &fault) || fault.ID != id {
		t.Errorf("%v, %v: want %v of key %s", written, err, reason, id)
	}
}

// wantRecord expects a record in the store.
func wantRecord(t *testing.T, k keyStore, want apikey.Record) {
	t.Helper()
	if r, err := k.Read(t.Context(), want.ID); err != nil || !reflect.DeepEqual(r, want) {
		t.Errorf("%+v, %v: want %+v", r, err, want)
	}
}

// wantNone expects that there is no record.
func wantNone(t *testing.T, k keyStore, id string) {
	t.Helper()
	var fault *apikey.KeyError
	if r, err := k.Read(t.Context(), id); !errors.Is(err, apikey.ErrUnknown) || !errors.As(err, &fault) || fault.ID != id {
		t.Errorf("%+v, %v: want none of %s", r, err, id)
	}
}

func events(t *testing.T, k keyStore, keyID, before string, most int) []apikey.Event {
	t.Helper()
	list, err := k.Events(t.Context(), keyID, before, most)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestKeysAreWrittenAndRead(t *testing.T) {
	eachKeys(t, func(t *testing.T, k keyStore) {
		wantNone(t, k, "a")
		want := newRecord("a")
		written := write(t, k, want)
		want.Revision = 1
		if !reflect.DeepEqual(written, []apikey.Record{want}) {
			t.Errorf("%+v: want %+v", written, want)
		}
		wantRecord(t, k, want)
		want.Tier, want.Former, want.Labels = "pro", nil, nil
		write(t, k, want)
		want.Revision = 2
		wantRecord(t, k, want)
		wantNone(t, k, "b")
		if written, err := k.Write(t.Context(), nil); written != nil || err != nil {
			t.Errorf("nothing written: %v, %v", written, err)
		}
	})
}

func TestChangesThatAreRefused(t *testing.T) {
	eachKeys(t, func(t *testing.T, k keyStore) {
		a := write(t, k, newRecord("a"))[0]
		refused(t, k, apikey.ErrTaken, "a", newRecord("a"))
		stale, ahead, gone := newRecord("a"), newRecord("a"), newRecord("b")
		ahead.Revision, gone.Revision = 2, 1
		a2 := write(t, k, a)[0]
		stale.Revision = 1
		refused(t, k, apikey.ErrConflict, "a", stale)
		ahead.Revision = 3
		refused(t, k, apikey.ErrConflict, "a", ahead)
		refused(t, k, apikey.ErrConflict, "b", gone)
		wantRecord(t, k, a2)
		wantNone(t, k, "b")
	})
}

// TestHashesBelongToOneKey, the former ones too, as long as a record names them.
func TestHashesBelongToOneKey(t *testing.T) {
	eachKeys(t, func(t *testing.T, k keyStore) {
		a := write(t, k, newRecord("a"))[0]
		current, former := plainRecord("b"), plainRecord("b")
		current.Hash, former.Hash = a.Hash, a.Former.Hash
		refused(t, k, apikey.ErrTaken, "b", current)
		refused(t, k, apikey.ErrTaken, "b", former)
		formerly := plainRecord("b")
		formerly.Former = &apikey.Former{Hash: a.Hash}
		refused(t, k, apikey.ErrTaken, "b", formerly)

		// Rotated: the current one becomes the former, and the former is free.
		freed := a.Former.Hash
		a.Former, a.Hash = &apikey.Former{Hash: a.Hash}, apikey.New().Hash()
		a = write(t, k, a)[0]
		refused(t, k, apikey.ErrTaken, "b", current)
		b := plainRecord("b")
		b.Hash = freed
		b = write(t, k, b)[0]
		a.Former = nil
		write(t, k, a)
		current.ID = "c"
		write(t, k, current)

		// In one batch, what one lets go the next may take; not the other way round.
		d := plainRecord("d")
		d.Hash, b.Hash = b.Hash, apikey.New().Hash()
		refused(t, k, apikey.ErrTaken, "d", d, b)
		write(t, k, b, d)
		e, f := plainRecord("e"), plainRecord("f")
		f.Hash = e.Hash
		refused(t, k, apikey.ErrTaken, "f", e, f)
	})
}

// TestAllChangesOrNone: the last of several is at fault, and nothing is left of the
// others, in the records, the hashes or the audit log.
func TestAllChangesOrNone(t *testing.T) {
	eachKeys(t, func(t *testing.T, k keyStore) {
		a := write(t, k, newRecord("a"))[0]
		changed, added := a, plainRecord("b")
		changed.Tier, changed.Hash, changed.Former = "pro", apikey.New().Hash(), nil
		refused(t, k, apikey.ErrTaken, "a2", changed, added, apikey.Record{ID: "a2", Hash: changed.Hash})
		wantRecord(t, k, a)
		wantNone(t, k, "b")
		if list := events(t, k, "", "", 10); len(list) != 1 {
			t.Errorf("%d events: want that of the first write alone", len(list))
		}
		stolen := plainRecord("c")
		stolen.Hash = a.Former.Hash
		refused(t, k, apikey.ErrTaken, "c", stolen)
		free := plainRecord("d")
		free.Hash = added.Hash
		write(t, k, free)
	})
}

func TestChangesThatAreNoneOfTheStores(t *testing.T) {
	eachKeys(t, func(t *testing.T, k keyStore) {
		var many []apikey.Change
		for i := range apikey.MaxChanges + 1 {
			many = append(many, changing(plainRecord("k"+strconv.Itoa(i))))
		}
		negative := plainRecord("a")
		negative.Revision = -1
		for want, changes := range map[string][]apikey.Change{
			"at most 1000 at once": many,
			"two changes of it":    {changing(plainRecord("a")), changing(plainRecord("b")), changing(plainRecord("a"))},
			"write a key: the ID is not valid: want 1 to 64 letters":        {changing(plainRecord("a{b}"))},
			"write a key: the ID is not valid: has what looks like a key: ": {changing(plainRecord("of_tg_live_x"))},
			"has no hash": {changing(apikey.Record{ID: "a"})},
			"revision -1": {changing(negative)},
		} {
			if written, err := k.Write(t.Context(), changes); written != nil || err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, %v: want %q", written, err, want)
			}
		}
		wantNone(t, k, "a")
		if _, err := k.Write(t.Context(), many[:apikey.MaxChanges]); err != nil {
			t.Error(err)
		}
		for _, before := range []string{"x", "-", "1-2-3", "(1"} {
			if _, err := k.Events(t.Context(), "", before, 1); err == nil || !strings.Contains(err.Error(), "want the ID of an event") {
				t.Errorf("events before %q: %v", before, err)
			}
		}
	})
}

// TestEvents: the newest first, page by page, of all keys and of one.
func TestEvents(t *testing.T) {
	eachKeys(t, func(t *testing.T, k keyStore) {
		if list := events(t, k, "", "", 10); len(list) != 0 {
			t.Errorf("events of an empty directory: %v", list)
		}
		a := write(t, k, plainRecord("a"))[0]
		for range 3 {
			a = write(t, k, a)[0]
		}
		write(t, k, plainRecord("a-b"), plainRecord("b"))
		a = write(t, k, a)[0]
		all := events(t, k, "", "", 100)
		if keys := keysOf(all); keys != "a b a-b a a a a" {
			t.Fatalf("events of %s", keys)
		}
		want := changing(a).Event
		want.ID, want.KeyID = all[0].ID, "a"
		if all[0] != want || all[0].ID == "" {
			t.Errorf("%+v: want %+v", all[0], want)
		}
		for i, e := range all[1:] {
			if e.ID >= all[i].ID {
				t.Errorf("event %q comes after %q", e.ID, all[i].ID)
			}
		}
		for keyID, want := range map[string][]apikey.Event{
			"": all, "a": {all[0], all[3], all[4], all[5], all[6]}, "b": {all[1]}, "a-b": {all[2]}, "c": nil,
		} {
			var paged []apikey.Event
			for before := ""; ; before = paged[len(paged)-1].ID {
				page := events(t, k, keyID, before, 2)
				if len(page) > 2 {
					t.Fatalf("%d events on a page of 2", len(page))
				}
				if paged = append(paged, page...); len(page) < 2 {
					break
				}
			}
			if !slices.Equal(paged, want) {
				t.Errorf("events of %q: %v, want %v", keyID, paged, want)
			}
		}
	})
}

func keysOf(events []apikey.Event) string {
	var ids []string
	for _, e := range events {
		ids = append(ids, e.KeyID)
	}
	return strings.Join(ids, " ")
}

// TestWatch: two watchers see what there is, and then every change.
func TestWatch(t *testing.T) {
	eachKeys(t, func(t *testing.T, k keyStore) {
		empty := watch(t, k)
		if n := empty.stored.Directory().Len(); n != 0 || empty.wholes.Load() != 1 {
			t.Errorf("%d keys of an empty directory, %d loads", n, empty.wholes.Load())
		}
		a := write(t, k, newRecord("a"), plainRecord("b"))[0]
		empty.await(t, a)
		late := watch(t, k)
		late.has(t, a)
		a.Tier = "pro"
		a = write(t, k, a)[0]
		for _, w := range []*watched{empty, late} {
			w.await(t, a)
			if n := w.stored.Directory().Len(); n != 2 {
				t.Errorf("%d keys: want 2", n)
			}
		}
		if n := late.wholes.Load(); n != 1 {
			t.Errorf("%d loads for one change", n)
		}
		late.stop(t)
		c := write(t, k, plainRecord("c"))[0]
		empty.await(t, c)
		if late.stored.Directory().ByID("c") != nil {
			t.Error("a watcher that has ended learns of a change")
		}
	})
}

// TestManyChangesAreWatched: more at once than are fetched at once.
func TestManyChangesAreWatched(t *testing.T) {
	eachKeys(t, func(t *testing.T, k keyStore) {
		write(t, k, plainRecord("first"))
		w := watch(t, k)
		for batch := range 3 {
			var records []apikey.Record
			for i := range apikey.MaxChanges {
				records = append(records, plainRecord(fmt.Sprintf("k%d-%d", batch, i)))
			}
			write(t, k, records...)
		}
		w.awaitThat(t, "all keys", func(d *apikey.Directory) bool { return d.Len() == 3*apikey.MaxChanges+1 })
		if n := w.wholes.Load(); n != 1 {
			t.Errorf("%d loads: want the first alone", n)
		}
	})
}

// TestFileKeysSurviveReopening: the records, whose the hashes are, and the events.
func TestFileKeysSurviveReopening(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tiergate.db")
	f, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	a := write(t, NewFileKeys(f, KeyNotices{}), newRecord("a"))[0]
	if _, err := OpenFile(path); err == nil || !strings.Contains(err.Error(), ": another process has it") || !strings.HasSuffix(err.Error(), ": stop that one, or name another file in store.memory.file") {
		t.Errorf("opened twice: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil || bytes.Contains(raw, []byte(apikey.Prefix)) || !bytes.Contains(raw, []byte(a.Hash.String())) {
		t.Errorf("want the hash of the key in the file, and not the key: %v", err)
	}
	k := NewFileKeys(openFile(t, path), KeyNotices{})
	wantRecord(t, k, a)
	watch(t, k).has(t, a)
	b := plainRecord("b")
	b.Hash = a.Former.Hash
	refused(t, k, apikey.ErrTaken, "b", b)
	first := events(t, k, "", "", 10)
	write(t, k, a)
	if list := events(t, k, "a", "", 10); len(first) != 1 || len(list) != 2 || list[1] != first[0] || list[0].ID <= list[1].ID {
		t.Errorf("events %v, then %v", first, list)
	}
}
