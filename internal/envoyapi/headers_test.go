package envoyapi

import (
	"strings"
	"testing"
	"time"

	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/store"
	"github.com/tiergate/tiergate/internal/usage"
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

// TestHeadersOfTheLargestLimit: what structured fields of RFC 9651 can hold of it is shown.
func TestHeadersOfTheLargestLimit(t *testing.T) {
	t.Parallel()
	g := newGate(t, func(s *Settings) {
		s.IETF = true
		s.Plans["free"] = quota.NewPlan(quota.Tier{Name: "free", Priority: quota.Low, Limits: []quota.Limit{
			{Metric: quota.Requests, Window: quota.Minute, Max: quota.MaxMax}, {Metric: quota.Tokens, Window: quota.Minute, Max: quota.MaxMax},
		}}, quota.ByKey, nil)
	})
	a := check(t, g, "/v1/models", map[string]string{"api-key": "sk-free"})
	wantHeaders(t, a, map[string]string{
		"X-RateLimit-Limit": "1000000000000000", "X-RateLimit-Remaining": "999999999999999",
		"RateLimit-Policy": `"requests_per_minute";q=999999999999999;w=60, "tokens_per_minute";q=999999999999999;w=60`,
		"RateLimit":        `"requests_per_minute";r=999999999999999;t=30, "tokens_per_minute";r=999999999999999;t=30`,
	})
}

// TestSlidingLimit: what counts is shown, and a refusal says when the request fits, between two
// seconds though it be: in whole seconds rounded up.
func TestSlidingLimit(t *testing.T) {
	t.Parallel()
	now := noon // 12:00:30
	var s *Settings
	newGate(t, func(settings *Settings) {
		s = settings
		s.IETF, s.PerMetric = true, true
		s.RateLimit.LimitOverride = true
		s.Plans["free"] = quota.NewPlan(quota.Tier{Name: "free", Priority: quota.Low, Limits: []quota.Limit{
			{Metric: quota.Requests, Window: quota.Minute.Slide(), Max: 7}, {Metric: quota.Requests, Window: quota.Day, Max: 500},
		}}, quota.ByKey, nil)
	})
	clock := func() time.Time { return now }
	g := NewGate(s, quota.NewLimiter(store.NewMemory(clock, 100)), usage.NewHistory(10), clock, noObserver{})
	request := func() answerText { return check(t, g, "/v1/chat", map[string]string{"api-key": "sk-free"}) }
	status := func(most uint32) *rlsv3.RateLimitResponse_DescriptorStatus {
		d := &ratelimitv3.RateLimitDescriptor{Entries: []*ratelimitv3.RateLimitDescriptor_Entry{entry("api_key", "sk-free")}}
		if most > 0 {
			d.Limit = &ratelimitv3.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: most, Unit: typev3.RateLimitUnit_MINUTE}
		}
		response, err := NewRateLimit(g).ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: "tiergate", Descriptors: []*ratelimitv3.RateLimitDescriptor{d}})
		if err != nil {
			t.Fatal(err)
		}
		return response.GetStatuses()[0]
	}
	for range 7 {
		request()
	}
	now = now.Add(30500 * time.Millisecond) // 7 × 51428/60000 is the first below 6: at 12:01:08.572
	a := request()
	wantHeaders(t, a, map[string]string{
		"X-RateLimit-Limit": "7", "X-RateLimit-Remaining": "0", "X-RateLimit-Used": "7", "X-RateLimit-Reset": "1772366469",
		"Retry-After": "9", "retry-after-ms": "8072", "X-RateLimit-Limited-By": "requests_per_minute",
		"RateLimit": `"requests_per_minute";r=0;t=60, "requests_per_day";r=493;t=43140`,
	})
	if a.status != 429 || !strings.Contains(a.body, "Please retry after 9 seconds.") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if st := status(0); st.GetDurationUntilReset().AsDuration() != 8072*time.Millisecond || st.GetCurrentLimit().GetUnit() != rlsv3.RateLimitResponse_RateLimit_MINUTE {
		t.Errorf("%v", st)
	}
	if st := status(8); st.GetCode() != rlsv3.RateLimitResponse_OK || st.GetLimitRemaining() != 0 || st.GetDurationUntilReset().AsDuration() != 59500*time.Millisecond { // 7 of before, and 1
		t.Errorf("a limit of the descriptor's own: %v", st)
	}
	now = now.Add(9 * time.Second)
	wantHeaders(t, request(), map[string]string{ // 6 of before, and the one of the descriptor's limit
		"X-RateLimit-Used": "7", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1772366478", "retry-after-ms": "7643",
	})
	now = now.Add(10 * time.Second) // 7 × 40.5/60 is 5
	a = request()
	wantHeaders(t, a, map[string]string{
		"X-RateLimit-Used": "7", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1772366520", "x-ratelimit-reset-requests": "40.5s", "x-ratelimit-remaining-requests": "0",
	})
	if a.status != 200 {
		t.Errorf("%d", a.status)
	}
}
