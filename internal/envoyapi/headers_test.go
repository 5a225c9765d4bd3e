package envoyapi

import (
	"testing"
)

// TestHeaderSets beside the six, where they are switched on.
func TestHeaderSets(t *testing.T) {
	t.Parallel()
	g := newGate(t, func(s *Settings) { withTokens(s); s.IETF = true })
	a := check(t, g, "/v1/chat", map[string]string{"api-key": "sk-pro", "content-length": "40"})
	wantHeaders(t, a, map[string]string{
		"x-ratelimit-limit-requests": "100", "x-ratelimit-remaining-requests": "99", "x-ratelimit-reset-requests": "30s",
		"x-ratelimit-limit-tokens": "1000", "x-ratelimit-remaining-tokens": "890", "x-ratelimit-reset-tokens": "30s",
		"RateLimit-Policy": `"requests_per_minute";q=100;w=60, "tokens_per_minute";q=1000;w=60`,
		"RateLimit":        `"requests_per_minute";r=99;t=30, "tokens_per_minute";r=890;t=30`,
		"X-RateLimit-Used": "1",
	})
	for key, n := range map[string]int{"sk-enterprise": 6, "sk-nobody": 9} { // 401 has three more, of its own
		if a := check(t, g, "/v1/chat", map[string]string{"api-key": key}); len(a.headers) != n {
			t.Errorf("%s: %v", key, a.headers)
		}
	}
}
