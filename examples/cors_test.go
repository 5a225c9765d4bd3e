package examples

import (
	"net/http"
	"testing"
)

// TestPagesInIstio: Istio's CORS stands behind TierGate, which so refuses what a browser asks
// first, and hides its answers from pages. The filter of docs/envoy.md before TierGate takes the
// same policy and does both.
func TestPagesInIstio(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		first  bool
		status int
		origin string // what a page is told of itself
	}{
		"as Istio has it":  {false, http.StatusUnauthorized, ""},
		"the filter first": {true, http.StatusOK, "https://app.example.com"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			istio := meshGateways["istio"]
			s := meshUp(t, withPolicy(istio.bootstrap(t), c.first), istio.clusters)
			for _, method := range []string{http.MethodOptions, http.MethodPost} {
				r, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.API+"/v1/chat/completions", nil)
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("Origin", "https://app.example.com")
				r.Header.Set("Access-Control-Request-Method", "POST")
				status, header, _ := exchange(t, r)
				want := c.status
				if method == http.MethodPost {
					want = http.StatusUnauthorized // no key
				}
				if origin := header.Get("Access-Control-Allow-Origin"); status != want || origin != c.origin {
					t.Errorf("%s: %d for %q, want %d for %q", method, status, origin, want, c.origin)
				}
			}
		})
	}
}

// withPolicy is a gateway with what Istio makes of the corsPolicy of a VirtualService, and, where
// that is asked for, with the filter before all others.
func withPolicy(bootstrap object, first bool) object {
	listener := list(bootstrap["static_resources"], "listeners")[0]
	config := list(list(listener, "filter_chains")[0], "filters")[0].(object)["typed_config"].(object)
	if first {
		filter := object{"name": "envoy.filters.http.cors", "typed_config": object{"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"}}
		config["http_filters"] = append([]any{filter}, list(config, "http_filters")...)
	}
	host := list(config, "route_config", "virtual_hosts")[0]
	list(host, "routes")[0].(object)["typed_per_filter_config"] = object{"envoy.filters.http.cors": object{
		"@type":                     "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
		"allow_origin_string_match": []any{object{"exact": "https://app.example.com"}},
		"allow_methods":             "GET, POST", "allow_headers": "authorization, *", "expose_headers": "*",
	}}
	return bootstrap
}
