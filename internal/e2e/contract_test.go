package e2e

import (
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
)

// six are the headers of the contract.
var six = []string{
	"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset",
	"X-RateLimit-Resource", "X-RateLimit-Used", "X-Request-Priority",
}

// limitBody is the contract's 429, to the letter.
const limitBody = `{
  "error": {
    "type": "rate_limit_error",
    "message": "Rate limit exceeded. Please retry after %d seconds.",
    "code": "rate_limit_exceeded"
  }
}`

// checkSix fails unless each of the six headers is there exactly once, with
// these values.
func checkSix(t *testing.T, r reply, limit, remaining, resource, used, priority string) {
	t.Helper()
	want := map[string]string{
		"X-RateLimit-Limit": limit, "X-RateLimit-Remaining": remaining, "X-RateLimit-Resource": resource,
		"X-RateLimit-Used": used, "X-Request-Priority": priority,
	}
	for _, name := range six {
		values := r.Header.Values(name)
		if len(values) != 1 {
			t.Errorf("%s %s: %s: have %q, want one value", r.Request.URL.Path, r.Status, name, values)
			continue
		}
		if w, ok := want[name]; ok && values[0] != w {
			t.Errorf("%s %s: %s: have %q, want %q", r.Request.URL.Path, r.Status, name, values[0], w)
		}
	}
	for name, ofUpstream := range map[string]string{
		"X-Ratelimit-Limit-Requests": "999", "X-Ratelimit-Remaining-Tokens": "149984", "Ratelimit-Limit": "999", "Anthropic-Ratelimit-Requests-Limit": "999",
	} {
		if r.Header.Get(name) == ofUpstream {
			t.Errorf("the upstream's header %s leaks", name)
		}
	}
}

func reset(t *testing.T, r reply) int64 {
	t.Helper()
	n, err := strconv.ParseInt(r.Header.Get("X-RateLimit-Reset"), 10, 64)
	if err != nil {
		t.Errorf("X-RateLimit-Reset: %v", err)
	}
	return n
}

// TestSixtyCallsInAMinute is the contract's main promise: 50 of 60 calls of a
// Basic key pass, counted down in the headers; the others are told when to come
// back, and then pass.
func TestSixtyCallsInAMinute(t *testing.T) {
	both(t, func(t *testing.T, chain string) {
		s := up(t, devstack.Options{Chain: chain})
		freshMinute(t, 15*time.Second)
		end := time.Now().Truncate(time.Minute).Add(time.Minute).Unix()
		for i := 1; i <= 50; i++ {
			r := do(t, s, call{key: "sk-demo-basic"})
			if r.StatusCode != http.StatusOK {
				t.Fatalf("call %d: %s: %s", i, r.Status, r.body)
			}
			checkSix(t, r, "50", strconv.Itoa(50-i), "chat", strconv.Itoa(i), "2")
			if reset(t, r) != end {
				t.Errorf("call %d: Reset %d, want the end of the minute %d", i, reset(t, r), end)
			}
		}
		var wait int64
		for i := 51; i <= 60; i++ {
			before := time.Now()
			r := do(t, s, call{key: "sk-demo-basic"})
			wait = checkLimited(t, r, before)
			checkSix(t, r, "50", "0", "chat", "50", "2")
			if reset(t, r) != end {
				t.Errorf("call %d: Reset %d, want the end of the minute %d", i, reset(t, r), end)
			}
		}
		if r := do(t, s, call{key: "sk-demo-enterprise"}); r.StatusCode != http.StatusOK {
			t.Errorf("another key: %s", r.Status)
		}
		waitUntil(t, time.Now().Add(time.Duration(wait)*time.Second))
		r := do(t, s, call{key: "sk-demo-basic"})
		if r.StatusCode != http.StatusOK {
			t.Errorf("after the wait of %d seconds: %s", wait, r.Status)
		}
		checkSix(t, r, "50", "49", "chat", "1", "2")
	})
}

// checkLimited checks a 429 by requests per minute and returns its N, which
// must be the time left of the minute.
func checkLimited(t *testing.T, r reply, before time.Time) int64 {
	t.Helper()
	return checkLimitedBy(t, r, before, "requests_per_minute")
}

// checkLimitedBy checks one by another limit per minute.
func checkLimitedBy(t *testing.T, r reply, before time.Time, limit string) int64 {
	t.Helper()
	if r.StatusCode != http.StatusTooManyRequests {
		t.Fatalf("%s: %s: want 429", r.Status, r.body)
	}
	n, err := strconv.ParseInt(r.Header.Get("Retry-After"), 10, 64)
	if err != nil {
		t.Fatalf("Retry-After: %v", err)
	}
	end := before.Truncate(time.Minute).Add(time.Minute)
	longest, shortest := int64(end.Sub(before)/time.Second)+1, int64(time.Until(end)/time.Second)
	if n > longest || n < max(shortest, 1) {
		t.Errorf("Retry-After %d: want %d to %d", n, shortest, longest)
	}
	if want := fmt.Sprintf(limitBody, n); r.body != want {
		t.Errorf("body:\n%s\nwant:\n%s", r.body, want)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/json", "Cache-Control": "no-store", "X-RateLimit-Limited-By": limit,
	} {
		if values := r.Header.Values(name); len(values) != 1 || values[0] != want {
			t.Errorf("%s: have %q, want %q", name, values, want)
		}
	}
	ms, err := strconv.ParseInt(r.Header.Get("Retry-After-Ms"), 10, 64)
	if err != nil || ms > n*1000 || ms <= (n-1)*1000 {
		t.Errorf("retry-after-ms %q does not fit Retry-After %d", r.Header.Get("Retry-After-Ms"), n)
	}
	return n
}

// TestEnterpriseIsUnlimited: many calls, no 429, Used counts.
func TestEnterpriseIsUnlimited(t *testing.T) {
	both(t, func(t *testing.T, chain string) {
		s := up(t, devstack.Options{Chain: chain})
		freshMinute(t, 10*time.Second)
		for i := 1; i <= 300; i++ {
			r := do(t, s, call{key: "sk-demo-enterprise"})
			if r.StatusCode != http.StatusOK {
				t.Fatalf("call %d: %s", i, r.Status)
			}
			checkSix(t, r, "unlimited", "unlimited", "chat", strconv.Itoa(i), "4")
		}
	})
}

// TestLimitsOfResourcesAndPriorities: a tier's limits may differ by resource and by priority. They
// come on top of those for all, or by resource in their place, and the headers tell of the one of
// which least is left.
func TestLimitsOfResourcesAndPriorities(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		config, _ := ownConfig(t)
		merge(t, config, `tiers:
  free: {priority: low, unlimited: true}
  basic:
    priority: normal
    limits:
      - {metric: requests, per: minute, max: 10}
      - {metric: requests, per: minute, max: 4, resource: images}
      - {metric: requests, per: minute, max: 3, priority: low}
      - {metric: tokens, per: minute, max: 2000, resource: chat, priority: low}
  pro: {priority: high, unlimited: true}
  enterprise: {priority: critical, unlimited: true}`)
		for _, countBy := range []string{"key", "key_and_resource"} {
			s := up(t, devstack.Options{Chain: chain, Config: config, Sets: []string{"count_by=" + countBy}})
			freshMinute(t, 15*time.Second)
			low := http.Header{"X-Request-Priority": {"low"}}
			for i, c := range []struct {
				path                    string
				header                  http.Header
				tokens                  int
				status                  int
				limitedBy               string
				byKey, byKeyAndResource [2]string // Limit and Remaining
			}{
				{"images/generations", nil, 0, 200, "", [2]string{"4", "3"}, [2]string{"4", "3"}},
				{"chat/completions", nil, 0, 200, "", [2]string{"10", "8"}, [2]string{"10", "9"}},
				{"chat/completions", low, 10, 200, "", [2]string{"3", "2"}, [2]string{"3", "2"}},
				{"chat/completions", low, 2001, 413, "chat_low_tokens_per_minute", [2]string{"3", "2"}, [2]string{"3", "2"}},
				{"audio/speech", low, 2001, 200, "", [2]string{"3", "1"}, [2]string{"3", "2"}},
				{"images/generations", low, 0, 200, "", [2]string{"3", "0"}, [2]string{"4", "2"}},
			} {
				r := do(t, s, call{key: "sk-demo-basic", path: "/v1/" + c.path, header: c.header, body: fmt.Sprintf(`{"max_tokens": %d}`, c.tokens)})
				want := map[string][2]string{"key": c.byKey, "key_and_resource": c.byKeyAndResource}[countBy]
				if have := [2]string{r.Header.Get("X-RateLimit-Limit"), r.Header.Get("X-RateLimit-Remaining")}; r.StatusCode != c.status || have != want || r.Header.Get("X-RateLimit-Limited-By") != c.limitedBy {
					t.Errorf("by %s, request %d: %s, limited by %q, %v: want %d, %q, %v", countBy, i, r.Status, r.Header.Get("X-RateLimit-Limited-By"), have, c.status, c.limitedBy, want)
				}
			}
			for limit, c := range map[string]struct {
				path   string
				header http.Header
				passes map[string]int
			}{
				"low_requests_per_minute":    {"moderations", low, map[string]int{"key": 0, "key_and_resource": 3}},
				"images_requests_per_minute": {"images/generations", nil, map[string]int{"key": 2, "key_and_resource": 2}},
			} {
				for range c.passes[countBy] {
					if r := do(t, s, call{key: "sk-demo-basic", path: "/v1/" + c.path, header: c.header}); r.StatusCode != http.StatusOK {
						t.Errorf("by %s, %s: %s: %s", countBy, limit, r.Status, r.body)
					}
				}
				before := time.Now()
				checkLimitedBy(t, do(t, s, call{key: "sk-demo-basic", path: "/v1/" + c.path, header: c.header}), before, limit)
			}
		}
	})
}
