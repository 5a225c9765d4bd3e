package main

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/tiergate/tiergate/internal/devstack"
)

// shippedStore is the section of the shipped configuration.
var shippedStore = regexp.MustCompile(`(?s)\nstore:\n.*?\n\n`)

// TestAnotherStoreWaitsWithItsPassword: a configuration that names another store, which
// waits for a restart, does not take away what the present one is reached by.
func TestAnotherStoreWaitsWithItsPassword(t *testing.T) {
	t.Parallel()
	redis, err := devstack.StartRedisServer(t.Context(), t.TempDir(), "--requirepass", "first")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := redis.Stop(); err != nil {
			t.Error(err)
		}
	})
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
