package main

import (
	"context"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
)

// TestTurns: what is compared is asked in turn, and what it uses is that of its own turns, all together.
func TestTurns(t *testing.T) {
	t.Parallel()
	const n = 3
	var asked []string // one after the other, each once as long as it is asked
	var asking sync.Mutex
	var all []*measurement
	for _, name := range []string{"a", "b"} {
		client := startRedis(t)
		var s scripted
		s.check = func(ctx context.Context) (*authv3.CheckResponse, error) {
			asking.Lock()
			if len(asked) == 0 || asked[len(asked)-1] != name {
				asked = append(asked, name)
			}
			asking.Unlock()
			return s.allowed, client.Incr(ctx, name).Err()
		}
		address, _ := s.start(t)
		g, err := newGenerator(t.Context(), address, load{protocol: check, keys: []string{"k"}, inFlight: 4, connections: 1})
		if err != nil {
			t.Fatal(err)
		}
		m := &measurement{of: benchCase{name: name}, target: target{address: address, pid: os.Getpid(), redis: client}, generator: g}
		defer m.close()
		if err := m.start(t.Context()); err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
	if err := takeTurns(t.Context(), all, n*100*time.Millisecond, n); err != nil {
		t.Fatal(err)
	}
	if want := []string{"a", "b", "a", "b", "a", "b"}; !slices.Equal(asked, want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
	for _, m := range all {
		f, err := m.figures()
		if err != nil {
			t.Fatal(err)
		}
		// Each call makes one command, and the meter and connections some. The server is this process, as the load is.
		if f[commands] < 1 || f[commands] > 1.5 {
			t.Errorf("%s: %.2f commands for each request", m.of.name, f[commands])
		}
		if f[serverCPU] < f[loadCPU]*0.6 {
			t.Errorf("%s: %.1f µs of the server for each request, and %.1f of the same process by another clock", m.of.name, f[serverCPU], f[loadCPU])
		}
	}
}
