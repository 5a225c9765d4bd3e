package e2e

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
)

// TestCustomersSeeTheirLimits through Envoy, with the same key, in every chain: what
// is used is what was charged, and asking is not charged.
func TestCustomersSeeTheirLimits(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		s := up(t, devstack.Options{Chain: chain, Store: "redis"})
		freshMinute(t, 15*time.Second)
		for range 3 {
			do(t, s, call{key: "sk-demo-basic", header: http.Header{"X-Mock-Usage": {"100,50"}}})
		}
		type limit struct {
			Name                   string
			Limit, Used, Remaining int64
		}
		var seen struct {
			KeyID  string `json:"key_id"`
			Tier   string
			Limits []limit
		}
		want := []limit{{"requests_per_minute", 50, 3, 47}, {"tokens_per_minute", 200_000, 450, 199_550}, {"requests_per_day", 10_000, 3, 9997}}
		ask := func() bool {
			r := do(t, s, call{method: http.MethodGet, path: "/v1/limits", key: "sk-demo-basic"})
			if err := json.Unmarshal([]byte(r.body), &seen); err != nil || r.StatusCode != http.StatusOK {
				t.Fatalf("%s %s: %v", r.Status, r.body, err)
			}
			checkSix(t, r, "50", "47", "default", "3", "2") // nothing is charged
			return reflect.DeepEqual(seen.Limits, want)
		}
		if !trueWithin(3*time.Second, func() bool { // the settlement may take a moment; a key may ask 5 times a second
			if ask() {
				return true
			}
			waitUntil(t, time.Now().Add(250*time.Millisecond))
			return false
		}) || seen.KeyID != "key_demo_basic" || seen.Tier != "basic" {
			t.Errorf("%+v, want %+v", seen, want)
		}
		for _, c := range []struct {
			call call
			code string
		}{
			{call{method: http.MethodGet, path: "/v1/limits"}, "missing_api_key"},
			{call{method: http.MethodGet, path: "/v1/limits", key: "sk-nobody"}, "invalid_api_key"},
			{call{method: http.MethodGet, path: "/v1/limits", key: "sk-demo-basic", header: http.Header{"X-Api-Key": {"sk-demo-free"}}}, "invalid_api_key"},
		} {
			r := do(t, s, c.call)
			if r.StatusCode != http.StatusUnauthorized || errorCode(t, r) != c.code {
				t.Errorf("%v: %s %s", c.call, r.Status, r.body)
			}
			checkSix(t, r, "0", "0", "default", "0", "1")
		}
		if r := do(t, s, call{path: "/v1/limits", key: "sk-demo-basic"}); r.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("POST: %s", r.Status)
		}
		for _, path := range []string{"/v1/limits/", "/v1/limits/x", "/V1/limits"} { // not the customers' API
			if r := do(t, s, call{method: http.MethodGet, path: path, key: "sk-demo-basic"}); r.StatusCode != http.StatusNotFound || strings.Contains(r.body, "key_demo") {
				t.Errorf("%s: %s %s", path, r.Status, r.body)
			}
		}
		kill(t, s.Redis)
		r := do(t, s, call{method: http.MethodGet, path: "/v1/limits", key: "sk-demo-free"})
		if r.StatusCode != http.StatusOK || !strings.Contains(r.body, `"requests_per_minute"`) {
			t.Errorf("without Redis: %s %s", r.Status, r.body)
		}
	})
}

// TestReadmeLimits runs the README's command and compares its answer with a real one.
func TestReadmeLimits(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{})
	freshMinute(t, 5*time.Second)
	do(t, s, call{key: "sk-demo-basic", header: http.Header{"X-Mock-Status": {"500"}}})
	command := strings.ReplaceAll(commandWith(t, "/v1/limits"), "127.0.0.1:10000", s.API)
	out, err := exec.CommandContext(t.Context(), "bash", "-c", command).Output()
	if err != nil {
		t.Fatal(err)
	}
	fields := func(text string) map[string]any {
		var v map[string]any
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		first := v["limits"].([]any)[0].(map[string]any)
		delete(v, "limits")
		for name, value := range first {
			v["limits."+name] = value
		}
		for _, name := range []string{"now", "limits.reset", "limits.used", "limits.remaining"} {
			if v[name] == nil {
				t.Errorf("%s has no %s", text, name)
			}
			delete(v, name)
		}
		return v
	}
	if have, want := fields(string(out)), fields(block(t, "json")); !reflect.DeepEqual(have, want) {
		t.Errorf("the README shows %v, the answer is %v", want, have)
	}
}

// TestCustomersOfAFleet: where one of several instances breaks off or hangs, another answers the
// holders of keys. Nobody tells Envoy before.
func TestCustomersOfAFleet(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		for name, fault := range map[string]http.HandlerFunc{
			"breaks off": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
			"hangs":      func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				mux := http.NewServeMux()
				mux.HandleFunc("GET /dashboard/signin", func(http.ResponseWriter, *http.Request) {}) // Envoy's health check
				mux.HandleFunc("/", fault)
				sick := httptest.NewServer(mux)
				t.Cleanup(sick.Close)
				s := up(t, devstack.Options{Chain: chain, EditEnvoy: func(file []byte) []byte {
					return withEndpoints(t, file, 9003, []string{sick.Listener.Addr().String()})
				}})
				eventually(t, "both are taken for healthy", func() bool { return envoyStat(t, s, "cluster.tiergate_customers.membership_healthy") == 2 })
				for _, key := range []string{"free", "basic", "pro", "enterprise"} {
					for _, path := range []string{"/v1/limits", "/v1/usage"} {
						if r := do(t, s, call{method: http.MethodGet, path: path, key: "sk-demo-" + key}); r.StatusCode != http.StatusOK {
							t.Errorf("%s of %s: %s %s", path, key, r.Status, r.body)
						}
					}
				}
				together(20, func(int) {
					if r := do(t, s, call{method: http.MethodGet, path: "/v1/limits"}); r.StatusCode != http.StatusUnauthorized {
						t.Errorf("one of many at once, without a key: %s %s", r.Status, r.body)
					}
				})
			})
		}
	})
}
