package store

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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

// TestFunctionIsLoadedInACluster: each server gets it by the first call that misses it there.
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
			stats := do(t, server, "INFO", "commandstats")
			if strings.Contains(stats, "cmdstat_eval") {
				t.Errorf("%s has run a script: %s", server.Address, stats)
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
			if calls["eval"] != 2 || calls["evalsha"] != 4 || calls["fcall"] > 1 || r.batch.function.without.Load() == 0 { // those refused are not among calls
				t.Errorf("calls %v: want 4 EVALSHA, 2 EVAL and at most one FCALL", calls)
			}
		})
	}
}

// TestRightsAreGiven: the function is used without a restart once the user may, or Redis is
// upgraded.
func TestRightsAreGiven(t *testing.T) {
	t.Parallel()
	for _, right := range []string{"fcall", "function|load"} {
		t.Run(right, func(t *testing.T) {
			t.Parallel()
			server := startRedis(t)
			do(t, server, "ACL", "SETUSER", "default", "-"+right)
			r := openRedis(t, at(server.Address))
			take(t, r, one("a"))
			do(t, server, "ACL", "SETUSER", "default", "+"+right)
			for range callsWithout {
				take(t, r, one("a"))
			}
			before := commandCalls(t, r)
			wantTaken(t, take(t, r, one("a")), true, callsWithout+2)
			after := commandCalls(t, r)
			if before["fcall"] > 1 || after["fcall"] <= before["fcall"] || after["evalsha"] != before["evalsha"] {
				t.Errorf("calls %v, then %v: want scripts, and then the function", before, after)
			}
		})
	}
}

// TestFunctionLacksARight: since Redis 7.2 the answer to that has other words. It is no fault of a
// key, and no reason to call a script.
func TestFunctionLacksARight(t *testing.T) {
	t.Parallel()
	var commands atomic.Int64
	address := serving(t, func(words []string) string {
		switch words[0] {
		case "hello":
			return "-ERR unknown command 'HELLO'\r\n"
		case "fcall", "evalsha":
			commands.Add(1)
			return "-ERR ACL failure in script: User tiergate has no permissions to run the 'time' command script: x, on @user_function:47.\r\n"
		default:
			return "+OK\r\n"
		}
	})
	err := takeError(t, openRedis(t, at(address)), "'time'", "docs/configuration.md")
	wantKnown(t, err, inDoubt)
	if keyAtFault(err) || commands.Load() != 1 {
		t.Errorf("%v after %d calls: want one, and no fault of a key", err, commands.Load())
	}
}

// TestKilledFunction: where FUNCTION KILL ends a call, at whatever line, no window is left behind
// that would go on after its end.
func TestKilledFunction(t *testing.T) {
	t.Parallel()
	r := newScriptedRedis(t, redisServer(t))
	source := r.source
	begin, end := strings.Index(source, "local function forget_windows_that_ended"), strings.Index(source, "-- A reservation is a text")
	if begin < 0 || end < begin {
		t.Fatal("batch.lua does not look at windows where this test expects it")
	}
	lines := strings.Split(source[begin:end], "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, " ") && !strings.HasPrefix(line, "  return") {
			lines[i] += fmt.Sprintf(" if call('GET', 'killed') == '%d' then error('killed') end", i)
		}
	}
	r.batch, r.prefix = newFunction(source[:begin]+strings.Join(lines, "\n")+source[end:]), "killed"
	r.now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	killed := 0
	for line := range lines {
		for minute, used := range []int64{1, 0, 1, 1} {
			r.now = r.now.Add(time.Minute)
			at := -1
			if minute == 1 {
				at = line
			}
			if err := r.client.Set(t.Context(), "killed", at, 0).Err(); err != nil {
				t.Fatal(err)
			}
			taken, err := r.Take(t.Context(), of("a", charge(quota.Minute, 10, 1)))
			switch {
			case minute == 1 && err != nil:
				killed++
			case err != nil:
				t.Fatal(err)
			case used > 0:
				wantTaken(t, taken, true, used)
			}
		}
	}
	if killed < 5 {
		t.Errorf("killed %d times: want it at more lines", killed)
	}
}

// TestFunctionOfTheDocumentedUser: in every form of Redis the rights suffice to load it and to
// call it, or scripts would do the same unnoticed.
func TestFunctionOfTheDocumentedUser(t *testing.T) {
	t.Parallel()
	for _, form := range forms() {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			r := formStore(t, form)
			wantTaken(t, take(t, r, one("a")), true, 1)
			if r.batch.function.without.Load() > 0 {
				t.Error("it was refused")
			}
		})
	}
}
