package main

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/config"
)

// shippedStore is the section of the shipped configuration.
var shippedStore = regexp.MustCompile(`(?s)\nstore:\n.*?\n\n`)

// TestAnotherStoreWaitsWithItsPassword: a configuration that names another store, which
// waits for a restart, does not take away what the present one is reached by.
func TestAnotherStoreWaitsWithItsPassword(t *testing.T) {
	t.Parallel()
	redis := startRedis(t, "--requirepass", "first")
	redis.CLIArgs = []string{"-a", "first"}
	for name, another := range map[string]string{
		"memory":        "type: memory",
		"other address": "type: redis, redis: {address: 127.0.0.1:1, password_file: second.password}",
	} {
		dir := t.TempDir()
		write := func(name, content string) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		configure := func(store string) {
			t.Helper()
			for _, name := range []string{"tiergate.yaml", "keys.yaml"} {
				content, err := os.ReadFile("../../config/" + name)
				if err != nil {
					t.Fatal(err)
				}
				write(name, shippedStore.ReplaceAllString(string(content), "\nstore: {"+store+"}\n\n"))
			}
		}
		write("first.password", "first")
		write("second.password", "second")
		configure("type: redis, redis: {address: '" + redis.Address + "', password_file: first.password, timeout: 1s}")
		s := startServer(t, filepath.Join(dir, "tiergate.yaml"))
		if err := s.stores.counts.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		configure(another)
		eventually(t, name+": a restart is asked for", func() bool { return s.metric(t, "tiergate_config_restart_needed", "") == 1 })
		if _, err := redis.Do(t.Context(), "CLIENT", "KILL", "TYPE", "normal"); err != nil {
			t.Fatal(err)
		}
		eventually(t, name+": new connections are let in", func() bool { return s.stores.counts.Ping(t.Context()) == nil })
	}
}

// TestAFileThatIsBeingWrittenIsNotRead: what changes from look to look is not taken up before it
// has lasted, and what is as it was when read not at all.
func TestAFileThatIsBeingWrittenIsNotRead(t *testing.T) {
	t.Parallel()
	r := &reloader{sources: config.Sources{"file": "read"}}
	var at time.Duration
	for _, look := range []struct {
		after time.Duration // the look before
		state string
		read  bool
	}{
		{0, "read", false},
		{time.Second, "read", false},
		{pollInterval, "first half", false},
		{pollInterval, "first half", false},
		{pollInterval, "second half", false},
		{pollInterval, "whole", false},
		{pollInterval, "whole", false},
		{0, "whole", false}, // two that come at once
		{pollInterval, "whole", true},
		{pollInterval, "other", false},
		{pollInterval, "read", false},
		{time.Second, "read", false},
	} {
		at += look.after
		if read := r.look(config.Sources{"file": look.state}, time.Unix(0, 0).Add(at)); read != look.read {
			t.Errorf("a look after %s, which has seen %q: to be read: %t, want %t", at, look.state, read, look.read)
		}
	}
}

// TestHashesOfTheFilesInUse: they tell whether instances have the same files in use, and
// nothing of the secrets that the files name.
func TestHashesOfTheFilesInUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string]string{}
	for _, name := range []string{"tiergate.yaml", "keys.yaml"} {
		content, err := os.ReadFile("../../config/" + name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = strings.Replace(string(content), "  file: keys.yaml\n", "  file: keys.yaml\n  peppers: [{name: p1, file: pepper}]\n", 1)
		write(name, files[name])
	}
	write("pepper", strings.Repeat("a", 32))
	s := startServer(t, filepath.Join(dir, "tiergate.yaml"))
	tell := func(when string) {
		t.Helper()
		for label, name := range map[string]string{"config": "tiergate.yaml", "keys": "keys.yaml"} {
			sum := sha256.Sum256([]byte(files[name]))
			want, err := strconv.ParseUint(hex.EncodeToString(sum[:6]), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			if have := s.metric(t, "tiergate_config_hash", label); have != float64(want) {
				t.Errorf("%s: the hash of %s is %v, want %v", when, name, have, want)
			}
		}
	}
	tell("at first")
	write("pepper", strings.Repeat("b", 32))
	eventually(t, "the new pepper is in use", func() bool { return s.metric(t, "tiergate_config_reloads_total", "success") == 1 })
	tell("with another secret")
	files["keys.yaml"] += "# another\n"
	write("keys.yaml", files["keys.yaml"])
	eventually(t, "the new keys are in use", func() bool { return s.metric(t, "tiergate_config_reloads_total", "success") == 2 })
	tell("with other keys")
	write("tiergate.yaml", files["tiergate.yaml"]+"nonsense: 1\n")
	eventually(t, "the fault shows", func() bool { return s.metric(t, "tiergate_config_last_reload_successful", "") == 0 })
	tell("with a fault")
}

// TestWhatWasReadIsCollected: once a configuration is in use, garbage is collected.
func TestWhatWasReadIsCollected(t *testing.T) { //nolint:paralleltest // it counts the collections of the process
	collections := func() uint32 {
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.NumForcedGC
	}
	dir := t.TempDir()
	for _, name := range []string{"tiergate.yaml", "keys.yaml"} {
		content, err := os.ReadFile("../../config/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := collections()
	startServer(t, filepath.Join(dir, "tiergate.yaml"))
	started := collections()
	if started == before {
		t.Error("nothing was collected at the start")
	}
	if err := os.Chtimes(filepath.Join(dir, "keys.yaml"), time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a reload collects", func() bool { return collections() > started })
}
