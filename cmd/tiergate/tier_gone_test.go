package main

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
)

// tiersOf writes a configuration with these tiers.
func tiersOf(t *testing.T, file string, tiers ...string) {
	t.Helper()
	const one = ": {priority: normal, unlimited: true}\n  "
	text := "keys: {file: keys.yaml}\ntiers:\n  " + strings.Join(tiers, one) + one
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestTierIsGone: keys of the store whose tier is not configured are told of when the
// store is read, when one comes and when the configuration changes, and so is why their
// requests fail.
func TestTierIsGone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "tiergate.yaml")
	tiersOf(t, file, "gold", "other")
	inFile := apikey.Redacting("sk-of-the-file").Hash()
	keys := "keys: [{id: key_file, hash: '" + inFile.String() + "', tier: other}]\n"
	if err := os.WriteFile(filepath.Join(dir, "keys.yaml"), []byte(keys), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startServer(t, file)
	record := func(id, tier string) apikey.Record {
		return apikey.Record{ID: id, Hash: apikey.Redacting("sk-of-" + id).Hash(), Tier: tier, Revision: 1}
	}
	ended, hidden := record("key_ended", "gold"), record("key_file", "gold")
	ended.Revoked = true
	s.directory.apply([]apikey.Record{record("key_b", "gold"), record("key_a", "gold"), record("key_c", "other"), ended, hidden}, true)
	const told = "level=WARN msg=\"keys of the store name a tier that is not configured"
	if s.log.count(told) != 0 {
		t.Error("told though all tiers are there")
	}
	s.directory.apply([]apikey.Record{record("key_d", "silver")}, false)
	if s.log.count("tier=silver keys=1 key_id=key_d\n") != 1 || s.log.count(told) != 1 {
		t.Error("a key that comes is not told of")
	}
	tiersOf(t, file, "other")
	eventually(t, "the reload tells", func() bool { return s.log.count("tier=gold keys=2 key_id=key_a\n") == 1 })

	conn := dial(t, s.start.GRPC.Address)
	for range 3 {
		if got := answers(t, conn, "sk-of-key_a", nil); got.Status != http.StatusServiceUnavailable {
			t.Errorf("%+v", got)
		}
	}
	if n := s.log.count("level=WARN msg=refused outcome=failed code=limiter_unavailable limit=\"\" key_id=key_a tier=gold"); n != 1 {
		t.Errorf("%d lines of three requests that failed", n)
	}
	if s.log.count(`no tier \"gold\" is configured: add it, or give the key another`) != 1 {
		t.Error("the log does not say why a request failed")
	}
}

// TestKeysWithoutTierAreShown by the list and alone.
func TestKeysWithoutTierAreShown(t *testing.T) {
	t.Parallel()
	s := startServer(t, "")
	s.directory.apply([]apikey.Record{{ID: "key_a", Hash: apikey.Redacting("sk-of-key_a").Hash(), Tier: "gone", Revision: 1}}, true)
	for _, command := range []string{"list", "show key_a"} {
		var out bytes.Buffer
		env := environment{getenv: func(string) string { return "" }, stdout: &out, stderr: &out}
		args := append(strings.Fields("keys "+command), "--server", "http://"+s.start.Operator.Address)
		if err := run(t.Context(), args, env); err != nil {
			t.Fatal(err)
		}
		if strings.Count(out.String(), "gone (not configured)") != 1 || strings.Count(out.String(), "(not configured)") != 1 {
			t.Errorf("%s:\n%s", command, out.String())
		}
	}
}

// TestKeyWithoutItsPepperIsShown, and why its requests are refused. So is a former secret that lacks it.
func TestKeyWithoutItsPepperIsShown(t *testing.T) {
	t.Parallel()
	pepper, err := apikey.NewPepper("p1", "0123456789abcdef")
	if err != nil {
		t.Fatal(err)
	}
	s := startServer(t, "")
	s.directory.apply([]apikey.Record{
		{ID: "key_a", Hash: apikey.Redacting("sk-of-key_a").HashWith(pepper), Tier: "pro", Revision: 1},
		{ID: "key_b", Hash: apikey.Redacting("sk-of-key_b").Hash(), Tier: "pro", Revision: 2, Former: &apikey.Former{
			Hash: apikey.Redacting("sk-former-of-key_b").HashWith(pepper), Until: time.Now().Add(time.Hour),
		}},
	}, true)
	for command, want := range map[string]string{
		"keys show key_a": "\npepper     p1 (not configured)\n",
		"keys show key_b": "\nformer pepper  p1 (not configured)\n",
		"explain key_a":   `refused with 401 invalid_api_key: pepper "p1" is not configured: add it to keys.peppers` + "\n",
	} {
		var out bytes.Buffer
		env := environment{getenv: func(string) string { return "" }, stdout: &out, stderr: &out}
		if err := run(t.Context(), append(strings.Fields(command), "--server", "http://"+s.start.Operator.Address), env); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s:\n%s", command, out.String())
		}
	}
}

// TestFormerSecretWithoutItsPepperIsTold: of a key whose present secret works the log says no more than
// that its former one does not, and nothing when that has ended.
func TestFormerSecretWithoutItsPepperIsTold(t *testing.T) {
	t.Parallel()
	pepper, err := apikey.NewPepper("p1", "0123456789abcdef")
	if err != nil {
		t.Fatal(err)
	}
	s := startServer(t, "")
	former := func(id string, until time.Duration) apikey.Record {
		return apikey.Record{ID: id, Hash: apikey.Redacting("sk-of-" + id).Hash(), Tier: "pro", Revision: 2, Former: &apikey.Former{
			Hash: apikey.Redacting("sk-former-of-" + id).HashWith(pepper), Until: time.Now().Add(until),
		}}
	}
	s.directory.apply([]apikey.Record{former("key_a", time.Hour), former("key_b", -time.Hour)}, true)
	if s.log.count("the former secret of a key of the store does not work\" key_id=key_a") != 1 || s.log.count("does not work") != 1 {
		t.Error("not told of, once, that the former secret of key_a does not work, and of nothing else")
	}
}
