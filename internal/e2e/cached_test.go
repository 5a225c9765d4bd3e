package e2e

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
)

// TestCacheAndMirror: with the documents' cache and clusters, what the cache fetches and what is
// mirrored has no API key, an upstream's own limit headers are not stored, and what is answered
// from the cache is given back.
func TestCacheAndMirror(t *testing.T) {
	both(t, func(t *testing.T, chain string) {
		mirrored := make(chan http.Header, 1)
		mirror := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { mirrored <- r.Header }))
		t.Cleanup(mirror.Close)
		s := up(t, devstack.Options{
			Chain: chain, EditEnvoy: cachedAndMirrored(t, mirror.Listener.Addr().String()),
			Sets: []string{"tokens.refunds.cached=true", "tokens.refunds.max_share=0.5"},
		})
		freshMinute(t, 15*time.Second)
		key := http.Header{"X-Api-Key": {"sk-demo-basic"}}
		fetched := 0
		ask := func() (cached bool) {
			r := do(t, s, call{method: http.MethodGet, path: "/v1/models", header: key})
			if r.StatusCode != http.StatusOK {
				t.Fatalf("%s: %s", r.Status, r.body)
			}
			used := number(t, r, "X-RateLimit-Used")
			checkSix(t, r, "50", strconv.Itoa(50-used), "models", strconv.Itoa(used), "2")
			if cached = r.Header.Get("Age") != ""; !cached {
				fetched++
			}
			return cached
		}
		eventually(t, "an answer is stored", ask)
		for range 5 {
			if !ask() {
				t.Error("what was stored is fetched again")
			}
		}
		eventually(t, "what the cache answered is given back", func() bool {
			r := do(t, s, call{method: http.MethodGet, path: "/v1/limits", header: key})
			return r.Header.Get("X-RateLimit-Used") == strconv.Itoa(fetched)
		})

		noKey := func(what, headers string) {
			if strings.Contains(headers, "sk-demo") || !strings.Contains(headers, "key_demo_basic") {
				t.Errorf("%s has %s: want the key's ID, and no key", what, headers)
			}
		}
		echo := http.Header{"X-Api-Key": {"sk-demo-basic"}, "X-Mock-Echo": {"1"}}
		noKey("what the cache fetches", do(t, s, call{method: http.MethodGet, path: "/v1/files", header: echo}).body)
		if r := do(t, s, call{key: "sk-demo-basic"}); r.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", r.Status, r.body)
		}
		select {
		case h := <-mirrored:
			var text strings.Builder
			if err := h.Write(&text); err != nil {
				t.Fatal(err)
			}
			noKey("what is mirrored", text.String())
		case <-time.After(10 * time.Second):
			t.Error("nothing is mirrored")
		}
	})
}

// cachedAndMirrored puts the documents' cache before the router, and sends to an address what the
// upstream gets besides.
func cachedAndMirrored(t *testing.T, address string) func([]byte) []byte {
	t.Helper()
	host, port, _ := strings.Cut(address, ":")
	const upstream, router, route = "  - name: upstream\n", "          - name: envoy.filters.http.router\n", "route: {cluster: upstream, timeout: 0s}"
	indented := func(indent, text string) string {
		return indent + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n"+indent) + "\n"
	}
	cluster := indented("    ", block(t, "yaml cluster upstream"))
	storable := strings.Replace(cluster, "- {remove: x-request-priority}", `- {append: {header: {key: cache-control, value: "public, max-age=60"}}}`, 1)
	cache := "          - " + strings.TrimSpace(indented("            ", block(t, "yaml filter cache"))) + "\n"
	return func(file []byte) []byte {
		for _, part := range []string{upstream, router, route} {
			if strings.Count(string(file), part) != 1 {
				t.Errorf("the shipped file does not have this once: %s", part)
			}
		}
		return []byte(strings.NewReplacer(
			upstream, "  - name: mirror\n    type: STATIC\n"+cluster+"    load_assignment: {cluster_name: mirror, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: "+
				host+", port_value: "+port+"}}}}]}]}\n"+upstream+storable,
			router, cache+router,
			route, "route: {cluster: upstream, timeout: 0s, request_mirror_policies: [{cluster: mirror}]}",
		).Replace(string(file)))
	}
}
