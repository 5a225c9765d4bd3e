package store

import (
	"context"
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/devstack"
)

// instance returns the directory as another instance would use it.
func instance(t *testing.T, s *devstack.Stack) *RedisKeys {
	t.Helper()
	return NewRedisKeys(redisStore(t, s), KeyNotices{})
}

// noticing is an instance whose outages are received from a channel.
func noticing(t *testing.T, s *devstack.Stack) (*RedisKeys, chan error) {
	t.Helper()
	outages := make(chan error, 100)
	return NewRedisKeys(redisStore(t, s), KeyNotices{Outage: func(err error) { outages <- err }}), outages
}

// told expects the next notice of an outage; nil is the end of one.
func told(t *testing.T, outages chan error, want error) error {
	t.Helper()
	select {
	case err := <-outages:
		if (err == nil) != (want == nil) || (errors.Is(want, apikey.ErrLost) && !errors.Is(err, apikey.ErrLost)) {
			t.Errorf("told of %v: want %v", err, want)
		}
		return err
	case <-time.After(15 * time.Second):
		t.Errorf("not told of %v", want)
		return nil
	}
}

// errAway is some error of the connection.
var errAway = errors.New("away")

// TestInstancesSeeEachOthersKeys within a second of the write.
func TestInstancesSeeEachOthersKeys(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	one, two := instance(t, server), instance(t, server)
	first, second := watch(t, one), watch(t, two)
	a := write(t, one, newRecord("a"))[0]
	second.soon(t, a)
	a.Revoked = true
	a = write(t, two, a)[0]
	first.soon(t, a)
	second.soon(t, a)
}

// TestWatchersThatLoseTheirConnection miss nothing of what is written meanwhile.
func TestWatchersThatLoseTheirConnection(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	writer := instance(t, server)
	watching, outages := noticing(t, server)
	a := write(t, writer, newRecord("a"))[0]
	w := watch(t, watching)
	for range 5 {
		killWatchers(t, writer)
		a = write(t, writer, a)[0]
		w.soon(t, a)
		told(t, outages, errAway)
		told(t, outages, nil)
	}
	if n := w.wholes.Load(); n != 1 {
		t.Errorf("%d loads of the whole: want the first alone", n)
	}
}

// killWatchers ends the connections of those who wait for news.
func killWatchers(t *testing.T, k *RedisKeys) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		list, err := k.client.ClientList(t.Context()).Result()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(list) {
			if strings.Contains(line, "cmd=xread ") {
				id, _, _ := strings.Cut(strings.TrimPrefix(line, "id="), " ")
				if err := k.client.ClientKillByFilter(t.Context(), "ID", id).Err(); err != nil {
					t.Fatal(err)
				}
				return
			}
		}
		select {
		case <-timeout:
			t.Fatalf("nobody waits for news:\n%s", list)
		default:
		}
	}
}

// TestRestartedRedis: what was written comes back with Redis, and what is written then
// arrives within a second.
func TestRestartedRedis(t *testing.T) {
	t.Parallel()
	server := &devstack.Stack{Options: devstack.Options{Dir: t.TempDir()}}
	var err error
	if server.Options.RedisAddress, err = devstack.FreeAddress(); err != nil {
		t.Fatal(err)
	}
	process := startLasting(t, server)
	writer := instance(t, server)
	watching, outages := noticing(t, server)
	a := write(t, writer, newRecord("a"))[0]
	w := watch(t, watching)
	for range 2 {
		if err := process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-process.Done()
		told(t, outages, errAway)
		w.has(t, a)
		process = startLasting(t, server)
		fresh := instance(t, server) // one whose connections have not failed
		a = write(t, fresh, a)[0]
		w.soon(t, a)
		told(t, outages, nil)
	}
	if n := w.wholes.Load(); n != 1 {
		t.Errorf("%d loads of the whole: want the first alone", n)
	}
}

// startLasting starts a redis-server that writes everything to disk at once.
func startLasting(t *testing.T, s *devstack.Stack) *devstack.Process {
	t.Helper()
	_, port, _ := strings.Cut(s.Options.RedisAddress, ":")
	process, err := devstack.Start("redis-server", []string{
		"redis-server", "--bind", "127.0.0.1", "--port", port, "--dir", s.Options.Dir, "--save", "", "--appendonly", "yes", "--appendfsync", "always",
	}, nil, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = process.Stop(10 * time.Second) })
	r := redisStore(t, s)
	timeout := time.After(20 * time.Second)
	for r.Ping(t.Context()) != nil {
		select {
		case <-timeout:
			t.Fatal("redis-server does not answer")
		default:
			r = redisStore(t, s)
		}
	}
	return process
}

// TestFullRedisIsNamed: why keys cannot be followed is told, not that a transaction was refused.
func TestFullRedisIsNamed(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	k, outages := noticing(t, server)
	watch(t, k)
	setting := func(memory string) {
		if err := k.client.ConfigSet(t.Context(), "maxmemory", memory).Err(); err != nil {
			t.Fatal(err)
		}
	}
	setting("1")
	if err := told(t, outages, errAway); err == nil || !strings.HasPrefix(err.Error(), "watch keys in Redis: OOM") || !strings.Contains(err.Error(), "raise its maxmemory") {
		t.Errorf("told of %v", err)
	}
	setting("0")
	told(t, outages, nil)
}

// TestRefusedWrite: where Redis answers a write with an error of its own, nothing is written, and the error says
// so. Where it does not answer, nobody knows.
func TestRefusedWrite(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	k := NewRedisKeys(openRedis(t, at(server.Address)), KeyNotices{})
	one := write(t, k, plainRecord("one"))[0]
	for _, c := range []struct{ code, setting, bad, good string }{
		{"OOM", "maxmemory", "1", "0"},
		{"NOREPLICAS", "min-replicas-to-write", "1", "0"},
	} {
		do(t, server, "CONFIG", "SET", c.setting, c.bad)
		for _, r := range []apikey.Record{one, plainRecord("two")} {
			if _, err := k.Write(t.Context(), []apikey.Change{{Record: r}}); !errors.Is(err, apikey.ErrRefused) || !strings.Contains(err.Error(), ": nothing was changed: "+c.code) {
				t.Errorf("%s: %v", c.code, err)
			}
		}
		do(t, server, "CONFIG", "SET", c.setting, c.good)
		if r, err := k.Read(t.Context(), "one"); err != nil || r.Revision != one.Revision {
			t.Errorf("%s: %+v, %v", c.code, r, err)
		}
		if r, err := k.Read(t.Context(), "two"); !errors.Is(err, apikey.ErrUnknown) {
			t.Errorf("%s: %+v, %v", c.code, r, err)
		}
	}
	do(t, server, "CONFIG", "SET", "requirepass", "another")
	server.CLIArgs = []string{"-a", "another"}
	do(t, server, "CLIENT", "KILL", "TYPE", "normal")
	if _, err := k.Write(t.Context(), []apikey.Change{{Record: one}}); !errors.Is(err, apikey.ErrRefused) || !strings.Contains(err.Error(), "wants a password") {
		t.Errorf("another password: %v", err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Write(t.Context(), []apikey.Change{{Record: one}}); err == nil || errors.Is(err, apikey.ErrRefused) {
		t.Error(err)
	}
}

// TestEmptiedRedis: instances keep the keys they know and write nothing into the void.
// One that starts then begins anew, and all follow.
func TestEmptiedRedis(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	k, outages := noticing(t, server)
	w := watch(t, k)
	a := write(t, k, newRecord("a"))[0]
	w.await(t, a)
	if err := k.client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Write(t.Context(), []apikey.Change{changing(a)}); !errors.Is(err, apikey.ErrLost) {
		t.Errorf("written to an emptied Redis: %v", err)
	}
	if _, err := k.Read(t.Context(), a.ID); !errors.Is(err, apikey.ErrLost) {
		t.Errorf("a key of an emptied Redis: %v", err)
	}
	told(t, outages, apikey.ErrLost)
	w.has(t, a)

	fresh := instance(t, server)
	if n := watch(t, fresh).stored.Directory().Len(); n != 0 {
		t.Errorf("a new instance knows %d keys", n)
	}
	b := write(t, fresh, newRecord("b"))[0]
	w.soon(t, b)
	told(t, outages, nil)
	if w.stored.Directory().Len() != 1 {
		t.Error("the lost keys still work beside a new directory")
	}
	write(t, k, b)
	if len(outages) > 0 {
		t.Errorf("%d notices too many", len(outages))
	}
}

// TestLostBeforeItIsSeen: the directory is another before the writer has noticed.
func TestLostBeforeItIsSeen(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	k, fresh := instance(t, server), instance(t, server)
	a := write(t, k, newRecord("a"))[0]
	if err := k.client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	write(t, fresh, newRecord("b"))
	if _, err := k.Write(t.Context(), []apikey.Change{changing(a)}); !errors.Is(err, apikey.ErrLost) {
		t.Errorf("written to another directory: %v", err)
	}
}

// dumped returns a function that brings all that Redis has now back, and does something more in the
// same moment.
func dumped(t *testing.T, k *RedisKeys) (restore func(more func(redis.Pipeliner))) {
	t.Helper()
	names := k.client.Keys(t.Context(), "*").Val()
	var dumps []string
	for _, name := range names {
		dumps = append(dumps, k.client.Dump(t.Context(), name).Val())
	}
	return func(more func(redis.Pipeliner)) {
		t.Helper()
		_, err := k.client.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
			for i, name := range names {
				p.RestoreReplace(t.Context(), name, 0, dumps[i])
			}
			more(p)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestOlderStateCalledAsNewer: Redis comes back without the latest writes, and by a clock that is behind
// the one before another is called as one of these. Watchers end up with what is in Redis.
func TestOlderStateCalledAsNewer(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	k := instance(t, server)
	w := watch(t, k)
	a := write(t, k, newRecord("a"))[0]
	restore := dumped(t, k)
	w.await(t, write(t, k, newRecord("lost"))[0])
	lost := k.client.XRevRangeN(t.Context(), k.audit, "+", "-", 1).Val()[0]
	restore(func(p redis.Pipeliner) {
		p.XAdd(t.Context(), &redis.XAddArgs{Stream: k.audit, ID: lost.ID, Values: []string{"key", "a", "event", "of another"}})
	})
	w.awaitThat(t, "the older state", func(d *apikey.Directory) bool { return d.ByID("lost") == nil })
	w.has(t, a)
}

// TestOlderState: Redis comes back without the latest writes, as after a failover, and
// others are written. Watchers end up with what is in Redis.
func TestOlderState(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	k := instance(t, server)
	w := watch(t, k)
	a := write(t, k, newRecord("a"))[0]
	restore := dumped(t, k)
	later := a
	later.Tier = "pro"
	w.await(t, write(t, k, later, newRecord("lost"))[0])

	var b apikey.Record
	restore(func(redis.Pipeliner) {})
	for range 3 {
		b = write(t, k, newRecord(apikey.NewID()))[0]
	}
	w.awaitThat(t, "the older state and what came after", func(d *apikey.Directory) bool {
		return d.ByID(b.ID) != nil && d.ByID("lost") == nil && d.Len() == 4
	})
	w.has(t, a)
}

// TestBackupWithoutItsDirectory: where the directory was taken out of an older state, as the guide to keys
// says, nothing that was done since is undone at any moment, and the audit log of that state goes on.
func TestBackupWithoutItsDirectory(t *testing.T) {
	t.Parallel()
	guide, err := os.ReadFile("../../docs/keys.md")
	if err != nil {
		t.Fatal(err)
	}
	taken := regexp.MustCompile("tiergate(:{keys}:[a-z]+)").FindAllSubmatch(guide, -1)
	server := redisServer(t)
	k, outages := noticing(t, server)
	w := watch(t, k)
	a := write(t, k, newRecord("a"))[0]
	w.await(t, a)
	restore := dumped(t, k)
	a.Tier = "pro"
	b := write(t, k, a, newRecord("b"))
	w.await(t, b[1])
	restore(func(p redis.Pipeliner) {
		for _, name := range taken {
			p.Del(t.Context(), "test"+string(name[1]))
		}
	})
	told(t, outages, apikey.ErrLost)
	if _, err := k.Write(t.Context(), []apikey.Change{changing(b[0])}); !errors.Is(err, apikey.ErrLost) {
		t.Errorf("written: %v", err)
	}
	for _, r := range b {
		w.has(t, r)
	}

	imported := newRecord("a")
	imported.Tier = "imported"
	imported = write(t, instance(t, server), imported)[0]
	w.awaitThat(t, "what was imported", func(d *apikey.Directory) bool {
		known := d.ByID("a")
		return known != nil && known.Tier == "imported"
	})
	w.has(t, imported)
	if n := k.client.XLen(t.Context(), k.audit).Val(); n != 2 {
		t.Errorf("%d entries in the audit log, want the older one and that of the import", n)
	}
}

// TestRecordsOfOthers: one that was written by hand is left out and told of, the rest
// works.
func TestRecordsOfOthers(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	faults := make(chan *apikey.KeyError, 10)
	k := NewRedisKeys(redisStore(t, server), KeyNotices{Unreadable: func(fault *apikey.KeyError) { faults <- fault }})
	a := write(t, k, newRecord("a"))[0]
	for id, text := range map[string]string{"broken": "{", "other": `{"id":"a","hash":"` + a.Hash.String() + `"}`} {
		if err := k.client.HSet(t.Context(), "test:{keys}:records", id, text).Err(); err != nil {
			t.Fatal(err)
		}
	}
	w := watch(t, k)
	w.has(t, a)
	var told []string
	for len(faults) > 0 {
		told = append(told, (<-faults).ID)
	}
	if slices.Sort(told); !slices.Equal(told, []string{"broken", "other"}) || w.stored.Directory().Len() != 1 {
		t.Errorf("told of %q, %d keys known", told, w.stored.Directory().Len())
	}
	if _, err := k.Read(t.Context(), "broken"); err == nil || !strings.Contains(err.Error(), "key broken: read the record in the store") {
		t.Errorf("read: %v", err)
	}
	mended := plainRecord("broken")
	mended.Revision = 1
	if _, err := k.Write(t.Context(), []apikey.Change{changing(mended)}); err == nil || !strings.Contains(err.Error(), "key broken: the record in the store cannot be read") {
		t.Errorf("write: %v", err)
	}
	w.soon(t, write(t, k, newRecord("b"))[0])

	// A key that was in force is so no more when its record cannot be read.
	if err := k.client.HSet(t.Context(), "test:{keys}:records", "a", "{").Err(); err != nil {
		t.Fatal(err)
	}
	if err := k.client.XAdd(t.Context(), &redis.XAddArgs{Stream: "test:{keys}:audit", Values: []string{"key", "a", "event", "{}"}}).Err(); err != nil {
		t.Fatal(err)
	}
	w.awaitThat(t, "the key is gone, and no other", func(d *apikey.Directory) bool { return d.ByID("a") == nil && d.ByID("b") != nil })
}

// TestDirectoryIsUnderOneTag: every Redis key of the directory is in one slot, and
// holds hashes of keys but no key.
func TestDirectoryIsUnderOneTag(t *testing.T) {
	t.Parallel()
	k := instance(t, redisServer(t))
	secret := apikey.New()
	r := newRecord("a")
	r.Hash = secret.Hash()
	write(t, k, r)
	names := k.client.Keys(t.Context(), "*").Val()
	slices.Sort(names)
	if want := []string{"test:{keys}:audit", "test:{keys}:epoch", "test:{keys}:hashes", "test:{keys}:records"}; !slices.Equal(names, want) {
		t.Errorf("%q: want %q", names, want)
	}
	var raw strings.Builder
	for _, name := range names {
		raw.WriteString(k.client.Dump(t.Context(), name).Val())
	}
	record := k.client.HGet(t.Context(), "test:{keys}:records", "a").Val()
	raw.WriteString(record)
	if strings.Contains(raw.String(), secret.Reveal()) || strings.Contains(raw.String(), apikey.Prefix) {
		t.Error("a secret is in Redis")
	}
	hashes := regexp.MustCompile(`"hash":"sha256:[0-9a-f]{64}"`).FindAllString(record, -1)
	if len(hashes) != 2 || !strings.Contains(record, secret.Hash().String()) {
		t.Errorf("the record has the hashes %q", hashes)
	}
}

// TestRedisAway: calls say what was tried, and a watcher goes on trying.
func TestRedisAway(t *testing.T) {
	t.Parallel()
	address, err := devstack.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	s := &devstack.Stack{Options: devstack.Options{RedisAddress: address}}
	k, outages := noticing(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- k.Watch(ctx, func([]apikey.Record, bool) { t.Error("something was applied") }) }()
	if err := told(t, outages, errAway); err == nil || !strings.HasPrefix(err.Error(), "connect to Redis: ") {
		t.Errorf("told of %v", err)
	}
	_, readErr := k.Read(t.Context(), "a")
	_, writeErr := k.Write(t.Context(), []apikey.Change{changing(plainRecord("a"))})
	_, eventsErr := k.Events(t.Context(), "", "", 1)
	for want, err := range map[string]error{"read key a in Redis": readErr, "write keys to Redis": writeErr, "read the audit log in Redis": eventsErr} {
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v: want %q", err, want)
		}
	}
	cancel()
	if err := <-ended; err != nil || len(outages) > 0 {
		t.Errorf("the watch ended with %v and %d more notices", err, len(outages))
	}
}
