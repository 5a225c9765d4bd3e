package store

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/tiergate/tiergate/internal/apikey"
)

// TestHundredThousandKeys are loaded in less than 2 s and take less than 500 bytes
// each; and the audit log of so many changes is bounded. It does not run beside others,
// which would count as its own.
func TestHundredThousandKeys(t *testing.T) { //nolint:paralleltest // see above
	t.Run("file", func(t *testing.T) {
		f := openFile(t, "")
		manyKeys(t, NewFileKeys(f, KeyNotices{}), func() (kept int) {
			err := f.db.View(func(tx *bbolt.Tx) error {
				kept = tx.Bucket([]byte("key_audit")).Stats().KeyN
				if n := tx.Bucket([]byte("key_audit_of")).Stats().KeyN; n != kept {
					t.Errorf("%d events by key, %d in all", n, kept)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			return kept
		})
	})
	t.Run("redis", func(t *testing.T) {
		k := NewRedisKeys(redisStore(t, redisServer(t)), KeyNotices{})
		manyKeys(t, k, func() int { return int(k.client.XLen(t.Context(), k.audit).Val()) })
	})
}

func manyKeys(t *testing.T, k keyStore, eventsKept func() int) {
	t.Helper()
	const keys = 100_000
	began := time.Now()
	var last []apikey.Record
	for first := 0; first < keys; first += MaxChanges {
		records := make([]apikey.Record, MaxChanges)
		for i := range records {
			records[i] = ordinaryRecord(first + i)
		}
		last = write(t, k, records...)
	}
	t.Logf("%d keys written in %s", keys, time.Since(began))

	before := heap()
	began = time.Now()
	w := watch(t, k)
	took := time.Since(began)
	each := (heap() - before) / keys
	t.Logf("loaded in %s, %d bytes a key", took, each)
	if w.stored.Directory().Len() != keys || each > 500 || took > atMost(2*time.Second) {
		t.Errorf("%d keys in %s, %d bytes each: want %d in 2 s, 500 bytes each", w.stored.Directory().Len(), took, each, keys)
	}

	last = write(t, k, last...)
	w.awaitThat(t, "all changes", func(d *apikey.Directory) bool {
		return !slices.ContainsFunc(last, func(r apikey.Record) bool { return d.ByID(r.ID).Revision != 2 })
	})
	if kept := eventsKept(); kept < maxEvents || kept > maxEvents+500 {
		t.Errorf("%d events kept: want about %d", kept, maxEvents)
	}
	began = time.Now()
	if list := events(t, k, last[0].ID, "", 3); len(list) != 2 {
		t.Errorf("%d events of a key: want 2", len(list))
	}
	t.Logf("events of one key among %d in %s", maxEvents, time.Since(began))
}

// ordinaryRecord is the record of a key as most are.
func ordinaryRecord(n int) apikey.Record {
	return apikey.Record{
		ID: apikey.NewID(), Name: fmt.Sprintf("Production key %d", n), Owner: fmt.Sprintf("Customer %d", n/10), Hash: apikey.New().Hash(),
		Tier: "basic", Resources: []string{"chat", "embeddings"}, Created: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
	}
}

// heap is how many bytes are in use.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// atMost is a bound of time, or ten times as much under the race detector.
func atMost(bound time.Duration) time.Duration {
	info, ok := debug.ReadBuildInfo()
	if ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		return 10 * bound
	}
	return bound
}
