package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestChangesThatAFullRedisRefuses are not made, and that is what the command line and the admin API say, with
// what to do: nobody need look whether they were.
func TestChangesThatAFullRedisRefuses(t *testing.T) {
	t.Parallel()
	redis := startRedis(t)
	s := startServer(t, "", "store.type=redis", "store.redis.address="+redis.Address)
	tiergate := func(command string) (string, error) {
		var out bytes.Buffer
		env := environment{getenv: func(string) string { return "" }, stdout: &out, stderr: &out}
		err := run(t.Context(), append(strings.Fields(command), "--server", "http://"+s.start.Operator.Address), env)
		return out.String(), err
	}
	memory := func(most string) {
		if _, err := redis.Do(t.Context(), "CONFIG", "SET", "maxmemory", most); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "keys.ndjson")
	if err := os.WriteFile(file, []byte(`{"id": "key_b", "secret": "sk-made-elsewhere", "tier": "free"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tiergate("keys create --id key_a --tier free"); err != nil {
		t.Fatal(err)
	}
	memory("1")
	const why = "The store refuses changes: write keys to Redis: nothing was changed: OOM .*: " +
		"Redis is full: raise its maxmemory, and leave maxmemory-policy at noeviction$"
	for command, want := range map[string]string{
		"keys create --id key_b --tier free": "^" + why,
		"keys change key_a --tier pro":       "^" + why,
		"keys revoke key_a":                  "^" + why,
		"keys import " + file:                "^entries up to 0 are in, those from 1 on are not; mend it and go on with --skip 0: " + why,
	} {
		if out, err := tiergate(command); err == nil || !regexp.MustCompile(want).MatchString(err.Error()) {
			t.Errorf("%s: %v\n%s", command, err, out)
		}
	}
	memory("0")
	if out, err := tiergate("keys show key_a"); err != nil || !strings.Contains(out, "active") || !strings.Contains(out, "revision   1\n") {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := tiergate("keys import " + file); err != nil {
		t.Error(err)
	}
}

// TestAnImportThatStopped: after the answer of something between, such as a gateway that lost patience, a part
// may be in; after one of the server that says that nothing was changed it is not.
func TestAnImportThatStopped(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		problem serverError
		known   bool
	}{
		{serverError{Type: problemInvalid, Status: http.StatusBadRequest}, true},
		{serverError{Type: problemRefused, Status: http.StatusServiceUnavailable}, true},
		{serverError{Type: problemEmptied, Status: http.StatusServiceUnavailable}, true},
		{serverError{Type: "urn:tiergate:problem:store-away", Status: http.StatusServiceUnavailable}, false},
		{serverError{Type: "about:blank", Status: http.StatusGatewayTimeout}, false},
	} {
		part := chunk{first: 5, keys: make([]json.RawMessage, 3)}
		if err := part.stopped(&c.problem); strings.Contains(err.Error(), "all or none") == c.known {
			t.Errorf("%s: %v", c.problem.Type, err)
		}
	}
}
