package main

import (
	"os"
	"strings"
	"testing"
)

// TestUncounted: envoyproxy/ratelimit is compared with where it has counted every limit of every
// request, in whichever service it was asked.
func TestUncounted(t *testing.T) {
	t.Parallel()
	client := startRedis(t)
	for _, p := range []protocol{check, rls} {
		m := meter{of: rateLimitCase(p), target: target{pid: os.Getpid(), redis: client}}
		if err := m.start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := m.stop(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "0 calls of incrby for 1 requests: want 3") {
			t.Errorf("%s: %v: want that nothing was counted", m.of.name, err)
		}
	}
}
