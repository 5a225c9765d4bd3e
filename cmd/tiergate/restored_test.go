package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
)

// TestLossesOfRedisAreCounted, by whether it has anything left.
func TestLossesOfRedisAreCounted(t *testing.T) {
	t.Parallel()
	redis := startRedis(t)
	s := startServer(t, "", "store.type=redis", "store.redis.address="+redis.Address, "store.redis.timeout=4s")
	const heard = "tiergate:{~fleet}:heard" // when Redis last heard of an instance
	for _, loss := range []struct {
		kind    string
		command []string
	}{
		{"older", []string{"SET", heard, "1000"}},
		{"emptied", []string{"FLUSHALL"}},
	} {
		eventually(t, "Redis has heard of the instance", func() bool {
			n, err := redis.Do(t.Context(), "EXISTS", heard)
			return err == nil && n == "1"
		})
		if n := s.metric(t, "tiergate_redis_losses_total", loss.kind); n != 0 {
			t.Errorf("%s: %v before", loss.kind, n)
		}
		if _, err := redis.Do(t.Context(), loss.command...); err != nil {
			t.Fatal(err)
		}
		eventually(t, loss.kind+" is counted", func() bool { return s.metric(t, "tiergate_redis_losses_total", loss.kind) == 1 })
	}
}

// TestOlderStateOfKeys: where the store's keys are loaded anew and what was done to some is
// undone, that is told of, and nothing else is.
func TestOlderStateOfKeys(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "tiergate.yaml")
	tiersOf(t, file, "gold")
	if err := os.WriteFile(filepath.Join(filepath.Dir(file), "keys.yaml"), []byte("keys: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startServer(t, file)
	record := func(id string, revision int64) apikey.Record {
		return apikey.Record{ID: id, Hash: apikey.Redacting("sk-of-" + id).Hash(), Tier: "gold", Revision: revision}
	}
	rotated, revoked := record("key_rotated", 2), record("key_revoked", 2)
	rotated.Hash = apikey.Redacting("sk-another").Hash()
	revoked.Revoked = true
	const told = "level=WARN msg=\"the store has an older state of its keys"
	s.directory.apply([]apikey.Record{record("key_a", 1), record("key_rotated", 1)}, true)
	s.directory.apply([]apikey.Record{record("key_a", 1), rotated, revoked, record("key_new", 1)}, true)
	if s.log.count(told) != 0 {
		t.Error("told of what came by itself")
	}
	s.directory.apply([]apikey.Record{record("key_a", 1), record("key_rotated", 1), record("key_revoked", 1)}, true)
	if s.log.count("revoked_keys_work=1 replaced_secrets_work=1 changes_undone=0 keys_gone=1 key_id=key_r") != 1 || s.log.count(told) != 1 {
		t.Error("not told of, once, what was undone")
	}

	changed := record("key_a", 2)
	changed.Expires = time.Date(2031, 1, 31, 0, 0, 0, 0, time.UTC)
	s.directory.apply([]apikey.Record{changed}, false)
	s.directory.apply([]apikey.Record{record("key_a", 1), record("key_rotated", 1), record("key_revoked", 1)}, true)
	if s.log.count("revoked_keys_work=0 replaced_secrets_work=0 changes_undone=1 keys_gone=0 key_id=key_a") != 1 || s.log.count(told) != 2 {
		t.Error("not told of, once, that a change was undone")
	}
}
