package e2e

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
)

// prepended puts a part of the documents before those of a list of the Envoy file.
func prepended(t *testing.T, file []byte, list, part string) []byte {
	t.Helper()
	return edited(t, string(file), func(doc map[string]any) { prepend(t, doc, list, part) })
}

// customersBelow is the shipped route for customers, as the document says it for /ai/.
func customersBelow(t *testing.T, file []byte) string {
	t.Helper()
	_, route, _ := strings.Cut(string(file), `- match: {safe_regex: {regex: "/v1/(limits|usage)|/dashboard(/.*)?"}}`)
	route, _, found := strings.Cut(route, "- match")
	if !found {
		t.Fatal("the Envoy file has no route for customers")
	}
	const timeout = "timeout: 5s\n                  "
	return strings.Repeat(" ", 16) + "match: {path: /ai/limits}" + strings.Replace(route, timeout, timeout+"prefix_rewrite: /v1/limits\n                  ", 1)
}

// TestBehindAPrefix: the path before the rewrite decides the resource.
func TestBehindAPrefix(t *testing.T) {
	both(t, func(t *testing.T, chain string) {
		config, _ := ownConfig(t)
		merge(t, config, block(t, "yaml resources"))
		s := up(t, devstack.Options{Chain: chain, Config: config, EditEnvoy: func(file []byte) []byte {
			return prepended(t, prepended(t, file, "routes", block(t, "yaml route prefix")), "routes", customersBelow(t, file))
		}})
		freshMinute(t, 5*time.Second)
		for i, c := range []struct{ path, resource string }{
			{"/ai/chat/completions", "chat"},
			{"/ai/messages", "chat"},
			{"/ai/images/generations", "images"},
			{"/v1/images/generations", "images"},
			{"/ai/embeddings", "default"},
		} {
			r := do(t, s, call{key: "sk-demo-pro", path: c.path})
			if r.StatusCode != http.StatusOK {
				t.Errorf("%s: %s: %s", c.path, r.Status, r.body)
			}
			checkSix(t, r, "100", strconv.Itoa(99-i), c.resource, strconv.Itoa(1+i), "3")
		}
		limits := do(t, s, call{method: http.MethodGet, key: "sk-demo-pro", path: "/ai/limits"})
		if limits.StatusCode != http.StatusOK || !strings.Contains(limits.body, `"key_demo_pro"`) {
			t.Errorf("/ai/limits: %s: %s", limits.Status, limits.body)
		}
		checkSix(t, limits, "100", "95", "default", "5", "3")
	})
}

// TestWrongPort: where the cluster leads to another port of TierGate, Envoy says so in
// the ways of the document.
func TestWrongPort(t *testing.T) {
	both(t, func(t *testing.T, chain string) {
		details := map[string]string{"ext_authz": "ext_authz_error", "ratelimit": "rate_limiter_error"}[chain]
		s := up(t, devstack.Options{Chain: chain, EditEnvoy: func(file []byte) []byte {
			// Without the mapper for it, as the README's filter is.
			file = bytes.Replace(file, []byte("response.code_details == '"+details), []byte("response.code_details == 'none"), 1)
			return prepended(t, file, "access_log", block(t, "yaml access_log"))
		}})
		if err := s.Proxy.Stop(10 * time.Second); err != nil {
			t.Fatal(err)
		}
		s.TierGate = s.Options.Operator
		if err := s.StartProxy(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r := do(t, s, call{key: "sk-demo-pro"}); r.StatusCode != http.StatusServiceUnavailable || r.body != "" {
			t.Errorf("%s: %q, want 503 and an empty body", r.Status, r.body)
		}
		var clusters string
		for end := time.Now().Add(20 * time.Second); !strings.Contains(clusters, "health_flags::/failed_active_hc"); waitUntil(t, time.Now().Add(100*time.Millisecond)) {
			clusters = clustersOf(t, s)
			if time.Now().After(end) {
				t.Fatalf("Envoy takes the cluster for healthy:\n%s", clusters)
			}
		}
		of := "tiergate::" + s.TierGate + "::"
		if strings.Contains(clusters, of+"rq_error::0\n") || !strings.Contains(clusters, of+"rq_success::0\n") || !strings.Contains(clusters, of+"health_flags::/failed_active_hc") {
			t.Errorf("the cluster:\n%s", clusters)
		}
		if err := s.Proxy.Stop(10 * time.Second); err != nil { // it writes its log
			t.Fatal(err)
		}
		log, err := os.ReadFile(filepath.Join(s.Options.Dir, "envoy.log"))
		if want := " POST /v1/chat/completions 503 "; err != nil || !strings.Contains(string(log), want) || !strings.Contains(string(log), " "+details+"\n") {
			t.Errorf("%v: Envoy's log has no %q with %s:\n%s", err, want, details, log)
		}
	})
}

// clustersOf returns what Envoy's admin interface says of its clusters.
func clustersOf(t *testing.T, s *devstack.Stack) string {
	t.Helper()
	response, err := client.Get("http://" + s.Admin + "/clusters")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
