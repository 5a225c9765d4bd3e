package main

import (
	"os"
	"strings"
	"testing"

	"github.com/tiergate/tiergate/internal/devstack"
)

// TestUncounted: envoyproxy/ratelimit is compared with where it has counted every limit of every
// request, in whichever service it was asked.
func TestUncounted(t *testing.T) {
	t.Parallel()
	server, err := devstack.StartRedisServer(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{stops: []func() error{server.Stop}}
	t.Cleanup(func() {
		if err := b.stop(); err != nil {
			t.Error(err)
		}
	})
	for _, p := range []protocol{check, rls} {
		m := meter{of: rateLimitCase(p), target: target{pid: os.Getpid(), redis: b.redisAt(server.Address)}}
		if err := m.start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := m.stop(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "0 calls of incrby for 1 requests: want 3") {
			t.Errorf("%s: %v: want that nothing was counted", m.of.name, err)
		}
	}
}
