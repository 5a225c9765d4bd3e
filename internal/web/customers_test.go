package web

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/store"
)

var noon = time.Date(2026, 3, 1, 12, 0, 30, 0, time.UTC)

// newCustomers returns the API of some keys, and the limiter that counts for them.
func newCustomers(t *testing.T, clock func() time.Time) (*Customers, *quota.Limiter, *Accounts) {
	t.Helper()
	hash := func(secret string) apikey.Hash {
		key, err := apikey.Parse(secret)
		if err != nil {
			t.Fatal(err)
		}
		return key.Hash()
	}
	directory, faults := apikey.NewDirectory([]apikey.Record{
		{ID: "key_a", Name: "Ada", Hash: hash("sk-a"), Tier: "free", Overrides: []quota.Override{
			{Limit: quota.Limit{Metric: quota.Requests, Window: quota.Day, Max: 7}, Until: noon.Add(time.Hour)},
		}},
		{ID: "key_b", Hash: hash("sk-b"), Tier: "free", Priority: quota.Critical, Resources: []string{"chat", "images"}},
		{ID: "key_all", Hash: hash("sk-all"), Tier: "enterprise"},
		{ID: "key_demo", Hash: hash("sk-demo"), Tier: "free", Demo: true},
		{ID: "key_old", Hash: hash("sk-old"), Tier: "free", Expires: noon},
		{ID: "key_gone", Hash: hash("sk-gone"), Tier: "free", Revoked: true},
	}, nil)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	plans := map[string]*quota.Plan{}
	for _, tier := range []quota.Tier{
		{Name: "free", Priority: quota.Low, Limits: []quota.Limit{{Metric: quota.Requests, Window: quota.Minute, Max: 10}, {Metric: quota.Tokens, Window: quota.Minute, Max: 1000}}},
		{Name: "enterprise", Priority: quota.Critical, Unlimited: true},
	} {
		plans[tier.Name] = quota.NewPlan(tier, quota.ByKey, nil)
	}
	accounts := &Accounts{KeyHeaders: []string{"authorization", "x-api-key"}, Keys: apikey.Keyring{File: directory}, Plans: plans, UnlimitedText: "unlimited"}
	limiter := quota.NewLimiter(store.NewMemory(clock, 1000))
	c, err := NewCustomers(CustomersOptions{
		Accounts: accounts, Limiter: limiter, Usage: keptUsage{}, SessionSecret: []byte(strings.Repeat("s", MinSessionSecret)),
		Log: slog.New(slog.DiscardHandler), Now: clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	return c, limiter, accounts
}

func get(c *Customers, path string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	c.Handler().ServeHTTP(w, r)
	return w
}

// TestLimits shows a caller every limit of its own key, and takes nothing.
func TestLimits(t *testing.T) {
	t.Parallel()
	c, limiter, accounts := newCustomers(t, func() time.Time { return noon })
	for _, id := range []string{"key_a", "key_a", "key_b"} {
		_, err := limiter.Decide(t.Context(), quota.Request{
			Account: id, Tier: accounts.Plans["free"], Resource: "default", Priority: quota.Low, Cost: quota.Cost{Requests: 1, Tokens: 40},
		}, noon)
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		w := get(c, "/v1/limits", "Authorization", "Bearer sk-a")
		want := `{"key_id":"key_a","name":"Ada","tier":"free","priority":1,"resources":null,"now":1772366430,"limits":[` +
			`{"name":"requests_per_minute","metric":"requests","per":"minute","limit":10,"used":2,"remaining":8,"reset":1772366460},` +
			`{"name":"tokens_per_minute","metric":"tokens","per":"minute","limit":1000,"used":80,"remaining":920,"reset":1772366460},` +
			`{"name":"requests_per_day","metric":"requests","per":"day","limit":7,"used":0,"remaining":7,"reset":1772409600}]}` + "\n"
		if w.Code != http.StatusOK || w.Body.String() != want || w.Header().Get("Content-Type") != "application/json" || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%d %v\n%s\nwant\n%s", w.Code, w.Header(), w.Body, want)
		}
		for name, want := range map[string]string{
			"X-RateLimit-Limit": "10", "X-RateLimit-Remaining": "8", "X-RateLimit-Used": "2", "X-RateLimit-Reset": "1772366460",
			"X-RateLimit-Resource": "default", "X-Request-Priority": "1",
		} {
			if have := w.Header().Get(name); have != want {
				t.Errorf("%s: %q, want %q", name, have, want)
			}
		}
	}
	if w := get(c, "/v1/limits?key_id=key_a", "X-Api-Key", "sk-b"); !strings.Contains(w.Body.String(), `"key_id":"key_b","name":"","tier":"free","priority":4,"resources":["chat","images"],`) {
		t.Errorf("another key: %s", w.Body)
	}
	if w := get(c, "/v1/limits", "X-Api-Key", "sk-all"); !strings.Contains(w.Body.String(), `"limit":null,"used":0,"remaining":null`) ||
		w.Header().Get("X-RateLimit-Limit") != "unlimited" || w.Header().Get("X-RateLimit-Remaining") != "unlimited" {
		t.Errorf("unlimited: %s", w.Body)
	}
	if _, err := limiter.Decide(t.Context(), quota.Request{Account: "key_all", Tier: accounts.Plans["enterprise"], Cost: quota.Cost{Requests: 1}}, noon); err != nil {
		t.Fatal(err)
	}
	for unlimited, want := range map[string][2]string{"1000": {"1000", "999"}, "": {"", ""}} {
		changed := *accounts
		changed.UnlimitedText = unlimited
		c.Use(&changed)
		h := get(c, "/v1/limits", "X-Api-Key", "sk-all").Header()
		if have := [2]string{h.Get("X-RateLimit-Limit"), h.Get("X-RateLimit-Remaining")}; have != want || h.Get("X-RateLimit-Used") != "1" {
			t.Errorf("unlimited said as %q: %v, want %v", unlimited, h, want)
		}
	}
}

// TestSlidingLimits are said to be that, with what counts of them.
func TestSlidingLimits(t *testing.T) {
	t.Parallel()
	now := noon
	c, limiter, accounts := newCustomers(t, func() time.Time { return now })
	changed := *accounts
	changed.Plans = map[string]*quota.Plan{"free": quota.NewPlan(quota.Tier{Name: "free", Priority: quota.Low, Limits: []quota.Limit{
		{Metric: quota.Requests, Window: quota.Minute.Slide(), Max: 10},
	}}, quota.ByKey, nil)}
	c.Use(&changed)
	for range 2 {
		for range 4 {
			_, err := limiter.Decide(t.Context(), quota.Request{
				Account: "key_b", Tier: changed.Plans["free"], Resource: "default", Priority: quota.Low, Cost: quota.Cost{Requests: 1},
			}, now)
			if err != nil {
				t.Fatal(err)
			}
		}
		now = now.Add(45 * time.Second)
	}
	now = now.Add(-15 * time.Second) // 12:01:45: a quarter of the first 4, and the others
	want := `{"name":"requests_per_minute","metric":"requests","per":"minute","algorithm":"sliding","limit":10,"used":5,"remaining":5,"reset":1772366520}`
	if w := get(c, "/v1/limits", "X-Api-Key", "sk-b"); !strings.Contains(w.Body.String(), want) || w.Header().Get("X-RateLimit-Used") != "5" {
		t.Errorf("%v\n%s\nwant\n%s", w.Header(), w.Body, want)
	}
}

// TestLimitsWithoutRedis: what is shown then is what this instance knows, and the answer says
// so.
func TestLimitsWithoutRedis(t *testing.T) {
	t.Parallel()
	c, _, accounts := newCustomers(t, func() time.Time { return noon })
	redis := store.NewRedis(store.RedisOptions{Address: "127.0.0.1:1", KeyPrefix: "test", Timeout: time.Second, PoolSize: 1})
	t.Cleanup(func() { redis.Close() })
	began := time.Now()
	paths := []string{"/v1/limits", "/v1/usage"}
	for _, path := range paths {
		if h := get(c, path, "X-Api-Key", "sk-a").Header(); h.Values("X-RateLimit-Degraded") != nil {
			t.Errorf("%s: %v", path, h)
		}
	}
	c.limiter = quota.NewLimiter(store.NewFallback(redis, store.FallbackOptions{
		Instance: "one", MaxAccounts: 100, MaxQueued: 1, AssumedInstances: 2,
		Now: func() time.Time { return noon }, Elapsed: func() time.Duration { return time.Since(began) },
	}))
	for _, path := range paths {
		w := get(c, path, "X-Api-Key", "sk-a")
		if w.Code != http.StatusOK || w.Header().Get("X-RateLimit-Degraded") != "1" || w.Header().Get("X-RateLimit-Remaining") != "5" ||
			(path == "/v1/limits" && !strings.Contains(w.Body.String(), `"degraded":true`)) {
			t.Errorf("%s: %d %v %s", path, w.Code, w.Header(), w.Body)
		}
	}
	denying := *accounts
	denying.Plans = map[string]*quota.Plan{}
	for name, plan := range accounts.Plans {
		tier := plan.Tier
		tier.OnFailure = quota.Deny
		denying.Plans[name] = quota.NewPlan(tier, quota.ByKey, nil)
	}
	c.Use(&denying)
	for _, path := range paths {
		w := get(c, path, "X-Api-Key", "sk-a")
		h := w.Header()
		if w.Code != http.StatusServiceUnavailable || h.Get("X-RateLimit-Degraded") != "1" || h.Get("X-RateLimit-Limit") != "10" || h.Get("X-RateLimit-Remaining") != "0" ||
			h.Get("X-RateLimit-Used") != "10" || h.Get("X-Request-Priority") != "1" {
			t.Errorf("%s, where nothing passes: %d %v %s", path, w.Code, h, w.Body)
		}
	}
}

// TestLimitsByResource: the headers are those of the resource default, also where each
// resource is counted by itself or has a limit of its own.
func TestLimitsByResource(t *testing.T) {
	t.Parallel()
	perMinute := func(most int64, resource string, priority quota.Priority) quota.Limit {
		return quota.Limit{Metric: quota.Requests, Window: quota.Minute, Max: most, Resource: resource, Priority: priority}
	}
	resources := []quota.Resource{{Name: "chat"}, {Name: "images"}}
	for name, test := range map[string]struct {
		countBy quota.CountBy
		limits  []quota.Limit
		want    string // limit, remaining, used
	}{
		"by key":                      {quota.ByKey, []quota.Limit{perMinute(10, "", 0), perMinute(2, "images", 0)}, "10 8 2"},
		"by resource":                 {quota.ByKeyAndResource, []quota.Limit{perMinute(10, "", 0), perMinute(2, "images", 0)}, "10 9 1"},
		"by resource, of its own":     {quota.ByKeyAndResource, []quota.Limit{perMinute(10, "", 0), perMinute(5, "default", 0)}, "5 4 1"},
		"default has a limit":         {quota.ByKey, []quota.Limit{perMinute(10, "", 0), perMinute(5, "default", 0)}, "5 4 1"},
		"the priority has a limit":    {quota.ByKey, []quota.Limit{perMinute(10, "", 0), perMinute(3, "", quota.Low)}, "3 1 2"},
		"another priority has one":    {quota.ByKey, []quota.Limit{perMinute(10, "", 0), perMinute(3, "", quota.High)}, "10 8 2"},
		"by resource, without limits": {quota.ByKeyAndResource, nil, "unlimited unlimited 1"},
	} {
		c, limiter, accounts := newCustomers(t, func() time.Time { return noon })
		plan := quota.NewPlan(quota.Tier{Name: "free", Priority: quota.Low, Limits: test.limits, Unlimited: test.limits == nil}, test.countBy, resources)
		changed := *accounts
		changed.Plans = map[string]*quota.Plan{"free": plan}
		c.Use(&changed)
		for _, resource := range []string{"chat", "default"} {
			if _, err := limiter.Decide(t.Context(), quota.Request{Account: "key_a", Tier: plan, Resource: resource, Priority: quota.Low, Cost: quota.Cost{Requests: 1}}, noon); err != nil {
				t.Fatal(err)
			}
		}
		h := get(c, "/v1/limits", "X-Api-Key", "sk-a").Header()
		have := h.Get("X-RateLimit-Limit") + " " + h.Get("X-RateLimit-Remaining") + " " + h.Get("X-RateLimit-Used")
		if have != test.want || h.Get("X-RateLimit-Reset") != "1772366460" || h.Get("X-Request-Priority") != "1" {
			t.Errorf("%s: %s, want %s; %v", name, have, test.want, h)
		}
	}
}

// TestTierIsGone: a stored key may outlive its tier in the configuration.
func TestTierIsGone(t *testing.T) {
	t.Parallel()
	c, _, accounts := newCustomers(t, func() time.Time { return noon })
	changed := *accounts
	changed.Plans = nil
	c.Use(&changed)
	for _, path := range []string{"/v1/limits", "/v1/usage"} {
		if w := get(c, path, "X-Api-Key", "sk-a"); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "limiter_unavailable") {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

// TestShortSecret signs no sessions.
func TestShortSecret(t *testing.T) {
	t.Parallel()
	_, err := NewCustomers(CustomersOptions{SessionSecret: []byte("geheim")})
	if err == nil || !strings.Contains(err.Error(), "has 6 bytes: want at least 32") || strings.Contains(err.Error(), "geheim") {
		t.Errorf("%v", err)
	}
}

// TestCustomersAreAuthenticated in the words of the API's contract.
func TestCustomersAreAuthenticated(t *testing.T) {
	t.Parallel()
	c, _, accounts := newCustomers(t, func() time.Time { return noon })
	for name, want := range map[string]struct {
		headers []string
		code    string
	}{
		"none":      {nil, "missing_api_key"},
		"unknown":   {[]string{"Authorization", "Bearer sk-nobody"}, "invalid_api_key"},
		"two":       {[]string{"Authorization", "Bearer sk-a", "X-Api-Key", "sk-b"}, "invalid_api_key"},
		"demo":      {[]string{"X-Api-Key", "sk-demo"}, "invalid_api_key"},
		"expired":   {[]string{"X-Api-Key", "sk-old"}, "expired_api_key"},
		"revoked":   {[]string{"X-Api-Key", "sk-gone"}, "revoked_api_key"},
		"twice two": {[]string{"X-Api-Key", "sk-a", "X-Api-Key", "sk-b"}, "invalid_api_key"},
	} {
		w := get(c, "/v1/limits", want.headers...)
		var body struct{ Error struct{ Code string } }
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || w.Code != http.StatusUnauthorized || body.Error.Code != want.code ||
			w.Header().Get("WWW-Authenticate") != "Bearer" || strings.Contains(w.Body.String(), "sk-") {
			t.Errorf("%s: %d %v %s, want %s", name, w.Code, w.Header(), w.Body, want.code)
		}
	}
	if w := get(c, "/metrics", "X-Api-Key", "sk-a"); w.Code != http.StatusNotFound {
		t.Errorf("a page of the operators': %d", w.Code)
	}
	other := *accounts
	other.KeyHeaders = []string{"x-api-key"}
	c.Use(&other)
	if w := get(c, "/v1/limits", "Authorization", "Bearer sk-a"); w.Code != http.StatusUnauthorized || !strings.Contains(w.Body.String(), "Send it in a header: x-api-key: YOUR_API_KEY.") {
		t.Errorf("a key in a header that is not looked at: %d %s", w.Code, w.Body)
	}
}

// TestVisits: a key may ask some times at once, then some times a second; another
// key's visits are its own, and those of many keys are not kept for ever.
func TestVisits(t *testing.T) {
	t.Parallel()
	now := noon
	c, _, accounts := newCustomers(t, func() time.Time { return now })
	for range visitsAtOnce {
		if w := get(c, "/v1/limits", "X-Api-Key", "sk-a"); w.Code != http.StatusOK {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	}
	w := get(c, "/v1/limits", "X-Api-Key", "sk-a")
	if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "1" || w.Header().Get("Retry-After-Ms") != "200" || !strings.Contains(w.Body.String(), "Please retry after 1 seconds.") {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	if have := w.Header().Get("X-RateLimit-Reset"); have != strconv.FormatInt(noon.Unix()+1, 10) {
		t.Errorf("Reset %q: want the first whole second in which it passes", have)
	}
	if w := get(c, "/v1/limits", "X-Api-Key", "sk-b"); w.Code != http.StatusOK {
		t.Errorf("another key: %d", w.Code)
	}
	now = now.Add(time.Second)
	for i := range visitsPerSecond + 1 {
		if w := get(c, "/v1/limits", "X-Api-Key", "sk-a"); (w.Code == http.StatusOK) != (i < visitsPerSecond) {
			t.Errorf("visit %d of the next second: %d", i, w.Code)
		}
	}
	for i := range 2 * visitors {
		c.visits.wait(strconv.Itoa(i), now)
	}
	if len(c.visits.who) != visitors {
		t.Errorf("%d visitors are remembered, want %d", len(c.visits.who), visitors)
	}
	changed := *accounts
	changed.AllowDemoKeys = true
	c.Use(&changed)
	if w := get(c, "/v1/limits", "X-Api-Key", "sk-demo"); w.Code != http.StatusOK {
		t.Errorf("after a reload: %d", w.Code)
	}
}
