package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
)

// TestSlidingLimit: after the wait that a 429 says the request passes, and not the whole limit
// with it: in no span of time are more admitted than the limit slides by.
func TestSlidingLimit(t *testing.T) {
	both(t, func(t *testing.T, chain string) {
		const most, window = 10, 5 * time.Second
		config, _ := ownConfig(t)
		edit(t, config, "per: minute, max: 100}", "per: minute, max: 1000}\n      - {metric: requests, per: 5s, max: 10, algorithm: sliding}")
		s := up(t, devstack.Options{Chain: chain, Config: config, Store: map[string]string{"ext_authz": "redis", "ratelimit": "memory"}[chain]})
		limited := func() (wait time.Duration) { // 0: a request passed
			r := do(t, s, call{key: "sk-demo-pro"})
			if r.StatusCode == http.StatusOK {
				return 0
			}
			wait = time.Duration(number(t, r, "Retry-After")) * time.Second
			if r.StatusCode != http.StatusTooManyRequests || r.Header.Get("X-RateLimit-Limited-By") != "requests_per_5s" || errorCode(t, r) != "rate_limit_exceeded" ||
				!strings.Contains(r.body, "Please retry after "+r.Header.Get("Retry-After")+" seconds.") {
				t.Fatalf("%s %v %s", r.Status, r.Header, r.body)
			}
			if exact := time.Duration(number(t, r, "Retry-After-Ms")) * time.Millisecond; exact > wait || wait-exact >= time.Second {
				t.Errorf("%s, and %s", wait, exact)
			}
			return wait
		}
		edge := time.Now().Truncate(window).Add(window)
		if time.Until(edge) < time.Second {
			edge = edge.Add(window)
		}
		waitUntil(t, edge.Add(-500*time.Millisecond))
		began, admitted := time.Now(), 0
		var wait time.Duration
		for wait == 0 || time.Now().Before(edge.Add(600*time.Millisecond)) {
			if wait = limited(); wait == 0 {
				admitted++
			}
		}
		if d := time.Since(began); admitted < most || float64(admitted) > most*(1+d.Seconds()/window.Seconds()) {
			t.Errorf("%d admitted in %s", admitted, d)
		}
		waitUntil(t, time.Now().Add(wait))
		if again := limited(); again > 0 {
			t.Errorf("after %s it does not pass, and is to wait for %s", wait, again)
		}
		if r := do(t, s, call{method: http.MethodGet, path: "/v1/limits", key: "sk-demo-pro"}); !strings.Contains(r.body, `"per":"5s","algorithm":"sliding","limit":10,`) {
			t.Errorf("%s", r.body)
		}
	})
}
