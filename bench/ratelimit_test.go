package main

import (
	"errors"
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
		m := measurement{of: rateLimitCase(p), target: target{pid: os.Getpid(), redis: client}}
		if err := errors.Join(m.start(t.Context()), m.meter.on(t.Context()), m.meter.off(t.Context())); err != nil {
			t.Fatal(err)
		}
		m.outcome.requests = 1
		if _, err := m.figures(); err == nil || !strings.Contains(err.Error(), "0 calls of incrby for 1 requests: want 3") {
			t.Errorf("%s: %v: want that nothing was counted", m.of.name, err)
		}
	}
}
