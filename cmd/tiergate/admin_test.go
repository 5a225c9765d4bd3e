package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/config"
	"github.com/tiergate/tiergate/internal/envoyapi"
	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/store"
	"github.com/tiergate/tiergate/internal/usage"
	"github.com/tiergate/tiergate/internal/web"
)

// afternoon is the time by which the admin API of scripts goes.
func afternoon() time.Time { return time.Date(2026, 3, 1, 13, 0, 0, 0, time.UTC) }

// kept is the usage of key_ada and of key_once: an hour ago.
func kept() usage.Batch {
	noon := afternoon().Add(-time.Hour)
	return usage.Batch{ID: "batch", Instance: "one", Made: noon, Accounts: []usage.Account{{
		ID: "key_ada", LimitRequests: 60, Last: afternoon().Add(-time.Minute),
		Cells: []usage.Cell{{Minute: noon.Unix() / 60, Label: "chat", Counts: usage.Counts{
			Admitted: 60, Refused: map[string]int64{"requests_per_minute": 4, "forbidden": 1}, InputTokens: 900, OutputTokens: 1100,
		}}},
		Refusals: []usage.Refusal{
			{At: noon.Add(29 * time.Second), Resource: "chat", Limit: "tokens_per_minute", Max: 1000, Asked: 2000, TooLarge: true},
			{At: noon.Add(30 * time.Second), Resource: "chat", Limit: "requests_per_minute", Used: 60, Max: 60, Asked: 1, Wait: 30 * time.Second},
		},
	}, {
		ID: "key_once", Last: noon,
		Cells: []usage.Cell{{Minute: noon.Unix() / 60, Label: "chat", Counts: usage.Counts{Admitted: 1, InputTokens: 1}}},
	}}}
}

// admin serves the admin API of the shipped configuration, with a store of its own, and
// says where in TIERGATE_SERVER: admin [TOKEN] [-fail N], which gives 502 to all imports
// that write but the first N.
func admin(ts *testscript.TestScript, neg bool, args []string) {
	var (
		options web.AdminOptions
		tokens  []web.AdminToken
	)
	imports := int64(1 << 60)
	for i := 0; i < len(args); i++ {
		if args[i] == "-fail" {
			_, err := fmt.Sscan(args[i+1], &imports)
			ts.Check(err)
			i++
			continue
		}
		tokens = append(tokens, web.AdminToken{Name: "ops", Hash: sha256.Sum256([]byte(args[i]))})
	}
	if neg {
		ts.Fatalf("usage: admin [TOKEN] [-fail N]")
	}
	c, _, err := config.Load(config.Options{File: ts.MkAbs("config/tiergate.yaml")})
	ts.Check(err)
	file, err := store.OpenFile("")
	ts.Check(err)
	ts.Defer(func() { file.Close() })
	options.Stored = apikey.NewStored(nil)
	options.Stored.Replace(nil)
	options.Accounts = &web.AdminAccounts{Tokens: tokens, Keys: apikey.Keyring{File: c.Reload.Directory, Stored: options.Stored}, Plans: c.Reload.Plans, Resources: c.Reload.Resources}
	options.Keys = store.NewFileKeys(file, store.KeyNotices{})
	read := store.NewFileUsage(file, afternoon)
	ts.Check(read.Add(context.Background(), kept()))
	options.Loopback = true
	options.Usage, options.Fleet, options.Limiter, options.Now = read, read, quota.NewLimiter(store.NewMemory(afternoon, 1000)), afternoon
	log := slog.New(slog.DiscardHandler)
	gate := envoyapi.NewGate((&server{directory: &directory{stored: options.Stored}}).settings(c.Reload), options.Limiter, usage.NewHistory(10), afternoon, newObserver(newMetrics(), nil, log))
	options.Explainer = explainer{gate}
	*ts.Value(theGate{}).(*envoyapi.Authz) = *envoyapi.NewAuthz(gate) // see setUp
	api := web.NewAdmin(options).Handler()
	var written atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if bytes.Contains(body, []byte(`"dry_run":false`)) && written.Add(1) > imports {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		api.ServeHTTP(w, r)
	}))
	ts.Defer(server.Close)
	ts.Setenv("TIERGATE_SERVER", server.URL)
}

// theGate is what scripts know the gate of the latest admin by.
type theGate struct{}

// requests sends requests with a key through the gate, as Envoy would, and prints how many
// were admitted: requests KEY PATH N.
func requests(ts *testscript.TestScript, neg bool, args []string) {
	var n int
	if neg || len(args) != 3 {
		ts.Fatalf("usage: requests KEY PATH N")
	}
	_, err := fmt.Sscan(args[2], &n)
	ts.Check(err)
	admitted := 0
	for range n {
		response, err := ts.Value(theGate{}).(*envoyapi.Authz).Check(context.Background(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
			Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
				Method: http.MethodPost, Path: args[1], Headers: map[string]string{"x-api-key": args[0], "content-length": "1000"},
			}},
		}})
		ts.Check(err)
		if response.GetOkResponse() != nil {
			admitted++
		}
	}
	_, _ = fmt.Fprintf(ts.Stdout(), "%d admitted\n", admitted)
}

// guess sends so many wrong tokens to the server that TIERGATE_SERVER names: guess N.
func guess(ts *testscript.TestScript, neg bool, args []string) {
	var n int
	if neg || len(args) != 1 {
		ts.Fatalf("usage: guess N")
	}
	_, err := fmt.Sscan(args[0], &n)
	ts.Check(err)
	for i := range n {
		request, err := http.NewRequest(http.MethodGet, ts.Getenv("TIERGATE_SERVER")+web.AdminPath+"/tiers", nil)
		ts.Check(err)
		request.Header.Set("Authorization", fmt.Sprintf("Bearer guess-%d", i))
		response, err := http.DefaultClient.Do(request)
		ts.Check(err)
		response.Body.Close()
	}
}

// keyOf sets a variable to the key in the latest output: keyof NAME.
func keyOf(ts *testscript.TestScript, neg bool, args []string) {
	key := regexp.MustCompile(`tg_live_\w+`).FindString(ts.ReadFile("stdout"))
	if neg || len(args) != 1 || key == "" {
		ts.Fatalf("usage: keyof NAME, after a key was printed")
	}
	ts.Setenv(args[0], key)
}

// many writes a file of keys to import: many FILE FIRST LAST.
func many(ts *testscript.TestScript, neg bool, args []string) {
	var first, last int
	if neg || len(args) != 3 {
		ts.Fatalf("usage: many FILE FIRST LAST")
	}
	_, err := fmt.Sscan(args[1], &first)
	ts.Check(err)
	_, err = fmt.Sscan(args[2], &last)
	ts.Check(err)
	file, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	defer file.Close()
	for i := first; i <= last; i++ {
		ts.Check(json.NewEncoder(file).Encode(map[string]string{"id": fmt.Sprintf("key_%05d", i), "secret": fmt.Sprintf("sk-of-number-%05d", i), "tier": "free"}))
	}
}

// appendFile appends a file to another: append FILE OTHER.
func appendFile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: append FILE OTHER")
	}
	file, err := os.OpenFile(ts.MkAbs(args[0]), os.O_APPEND|os.O_WRONLY, 0)
	ts.Check(err)
	defer file.Close()
	_, err = file.WriteString(ts.ReadFile(args[1]))
	ts.Check(err)
}

// TestUnknownCertificate: a server whose certificate cannot be trusted is told as one.
func TestUnknownCertificate(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	env := environment{getenv: func(string) string { return "" }, stdout: io.Discard, stderr: io.Discard}
	err := run(t.Context(), []string{"keys", "list", "--server", server.URL}, env)
	if err == nil || !strings.HasPrefix(err.Error(), "cannot reach the server at "+server.URL+": tls: failed to verify certificate: ") {
		t.Errorf("%v", err)
	}
}
