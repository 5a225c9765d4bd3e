package store

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/tiergate/tiergate/internal/devstack"
	"github.com/tiergate/tiergate/internal/quota"
)

// functionsOf returns the names of TierGate's functions that a server has.
func functionsOf(t *testing.T, server *devstack.RedisServer) []string {
	t.Helper()
	var names []string
	for line := range strings.Lines(do(t, server, "FUNCTION", "LIST", "LIBRARYNAME", "tiergate_*")) {
		if name := strings.TrimSpace(line); strings.HasPrefix(name, "tiergate_") {
			names = append(names, name)
		}
	}
	return names
}

// TestFunctionIsLoaded: the first call loads the function, which others of the same version
// find, and so does one after Redis has lost it. Each is counted once.
func TestFunctionIsLoaded(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	for i := range int64(2) {
		wantTaken(t, take(t, openRedis(t, at(server.Address)), one("a")), true, i+1)
		if names := functionsOf(t, server); len(names) != 2 || names[0] != names[1] { // of the library, and in it
			t.Fatalf("functions %q: want one", names)
		}
	}
	r := openRedis(t, at(server.Address))
	take(t, r, one("a"))
	do(t, server, "FUNCTION", "FLUSH")
	wantTaken(t, take(t, r, one("a")), true, 4)
	do(t, server, "FUNCTION", "FLUSH")
	together := orders(100)
	send(t, r, together)
	for _, op := range together {
		if op.err != nil {
			t.Fatal(op.err)
		}
		wantTaken(t, op.taken, true, 1)
	}
	if calls := commandCalls(t, r); calls["function|load"] != 3 || calls["evalsha"] != 0 || calls["eval"] != 0 {
		t.Errorf("calls %v: want three loads, and no script", calls)
	}
}

// TestFunctionIsLoadedInACluster: each server gets it, also where it is missed by a batch.
func TestFunctionIsLoadedInACluster(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 0)
	r := openRedis(t, inCluster(c.Addresses()))
	for round := range int64(2) {
		for i := range 60 {
			wantTaken(t, take(t, r, one(fmt.Sprintf("a%d", i))), true, round+1)
		}
		for _, server := range c.Servers {
			if names := functionsOf(t, server); len(names) != 2 {
				t.Errorf("%s has functions %q: want one", server.Address, names)
			}
			do(t, server, "FUNCTION", "FLUSH")
		}
	}
	var callers sync.WaitGroup
	for i := range 60 {
		callers.Go(func() {
			taken, err := r.Take(t.Context(), one(fmt.Sprintf("a%d", i)))
			if err != nil {
				t.Error(err)
				return
			}
			wantTaken(t, taken, true, 3)
		})
	}
	callers.Wait()
}

// TestWithoutFunctions: where Redis has no functions, as before 7.0, or the user has no right to
// them, scripts do the same, and Redis is not asked for the function again.
func TestWithoutFunctions(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		words []string // of redis-server
		not   string   // what the user may not
	}{
		{"unknown", []string{"--rename-command", "FCALL", "", "--rename-command", "FUNCTION", ""}, "-ping"},
		{"loading is unknown", []string{"--rename-command", "FUNCTION", ""}, "-ping"},
		{"no right", nil, "-fcall"},
		{"no right to load", nil, "-function|load"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			server := startRedis(t, c.words...)
			do(t, server, "ACL", "SETUSER", "default", c.not)
			r := openRedis(t, at(server.Address))
			for i := range int64(3) {
				wantTaken(t, take(t, r, of("a", charge(quota.Month, 10, 1))), true, i+1)
			}
			do(t, server, "SCRIPT", "FLUSH")
			wantTaken(t, take(t, r, of("a", charge(quota.Month, 10, 1))), true, 4)
			calls := commandCalls(t, r)
			if calls["eval"] != 2 || calls["evalsha"] != 4 || calls["fcall"] > 1 {
				t.Errorf("calls %v: want 4 EVALSHA, 2 EVAL and at most one FCALL", calls)
			}
		})
	}
}
