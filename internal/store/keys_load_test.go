package store

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/tiergate/tiergate/internal/apikey"
)

// TestHundredThousandKeys are loaded in less than 2 s and take less than 500 bytes
// each. It does not run beside others, which would count as its own.
func TestHundredThousandKeys(t *testing.T) { //nolint:paralleltest // see above
	t.Run("file", func(t *testing.T) {
		n := 100_000
		if raced() {
			n = 10_000 // writing more takes the file a minute then
		}
		manyKeys(t, NewFileKeys(openFile(t, ""), KeyNotices{}), n)
	})
	t.Run("redis", func(t *testing.T) {
		manyKeys(t, NewRedisKeys(redisStore(t, redisServer(t)), KeyNotices{}), 100_000)
	})
}

func manyKeys(t *testing.T, k keyStore, n int) {
	t.Helper()
	began := time.Now()
	var last []apikey.Record
	for first := 0; first < n; first += apikey.MaxChanges {
		records := make([]apikey.Record, apikey.MaxChanges)
		for i := range records {
			records[i] = ordinaryRecord(first + i)
		}
		last = write(t, k, records...)
	}
	t.Logf("%d keys written in %s", n, time.Since(began))

	load := func() (*watched, time.Duration) {
		began := time.Now()
		w := watch(t, k)
		return w, time.Since(began)
	}
	before := heap()
	w, took := load()
	each := (heap() - before) / uint64(n)
	t.Logf("loaded in %s, %d bytes a key", took, each)
	most := 2 * time.Second
	if raced() {
		most *= 10
	}
	for tries := 0; tries < 3 && took > most; tries++ { // other work on the machine takes time too
		_, took = load()
	}
	// Fewer keys do not fill the maps as well.
	if w.stored.Directory().Len() != n || (each > 500 && n == 100_000) || took > most {
		t.Errorf("%d keys in %s, %d bytes each: want %d in %s, 500 bytes each", w.stored.Directory().Len(), took, each, n, most)
	}

	last = write(t, k, last...)
	w.awaitThat(t, "all changes", func(d *apikey.Directory) bool {
		return !slices.ContainsFunc(last, func(r apikey.Record) bool { return d.ByID(r.ID).Revision != 2 })
	})
	began = time.Now()
	if list := events(t, k, last[0].ID, "", 3); len(list) != 2 {
		t.Errorf("%d events of a key: want 2", len(list))
	}
	t.Logf("events of one key among %d in %s", n, time.Since(began))
}

// TestTheAuditLogIsBounded: the oldest events go, of all keys and of each.
func TestTheAuditLogIsBounded(t *testing.T) {
	t.Parallel()
	const kept = 1500
	f := openFile(t, "")
	inFile := NewFileKeys(f, KeyNotices{})
	inRedis := NewRedisKeys(redisStore(t, redisServer(t)), KeyNotices{})
	inFile.kept, inRedis.kept = kept, kept
	for _, k := range []keyStore{inFile, inRedis} {
		oldest := write(t, k, plainRecord("oldest"))[0]
		var records []apikey.Record
		for i := range apikey.MaxChanges {
			records = append(records, plainRecord("k"+strconv.Itoa(i)))
		}
		for range 3 {
			records = write(t, k, records...)
		}
		if list := events(t, k, "oldest", "", 10); len(list) != 0 {
			t.Errorf("%T: the oldest event is still there", k)
		}
		if list := events(t, k, "", "", 5000); len(list) != maxEventsRead {
			t.Errorf("%T: %d events at once: want %d", k, len(list), maxEventsRead)
		}
		wantRecord(t, k, oldest)
	}
	if n := inRedis.client.XLen(t.Context(), inRedis.audit).Val(); n < kept || n > kept+200 {
		t.Errorf("%d entries in Redis: want about %d", n, kept)
	}
	err := f.db.View(func(tx *bbolt.Tx) error {
		for _, name := range []string{"key_audit", "key_audit_of"} {
			if n := tx.Bucket([]byte(name)).Stats().KeyN; n != kept {
				t.Errorf("%d entries in %s: want %d", n, name, kept)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
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

// raced reports whether the race detector is on, under which all takes far longer.
func raced() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}
