package envoyapi

import (
	"context"
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tiergate/tiergate/internal/apierror"
	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/store"
	"github.com/tiergate/tiergate/internal/usage"
)

// noon is when the tests take place: 30 s before the end of a minute.
var noon = time.Date(2026, 3, 1, 12, 0, 30, 0, time.UTC)

const (
	minuteEnd = "1772366460"
	nextDay   = "1772409600"
)

func newGate(tb testing.TB, change func(*Settings)) *Gate {
	tb.Helper()
	resources := []quota.Resource{
		{Name: "chat", PathPrefixes: []string{"/v1/chat", "/v1/messages"}}, {Name: "images", PathPrefixes: []string{"/v1/images"}},
	}
	plans := map[string]*quota.Plan{}
	for _, tier := range []quota.Tier{
		{Name: "free", Priority: quota.Low, Limits: []quota.Limit{{Metric: quota.Requests, Window: quota.Minute, Max: 2}, {Metric: quota.Requests, Window: quota.Day, Max: 3}}},
		{Name: "pro", Priority: quota.High, Limits: []quota.Limit{{Metric: quota.Requests, Window: quota.Minute, Max: 100}}},
		{Name: "enterprise", Priority: quota.Critical, Unlimited: true},
	} {
		plans[tier.Name] = quota.NewPlan(tier, quota.ByKey, resources)
	}
	hash := func(secret string) apikey.Hash {
		key, err := apikey.Parse(secret)
		if err != nil {
			tb.Fatal(err)
		}
		return key.Hash()
	}
	directory, faults := apikey.NewDirectory([]apikey.Record{
		{ID: "key_free", Hash: hash("sk-free"), Tier: "free"},
		{ID: "key_pro", Hash: hash("sk-pro"), Tier: "pro"},
		{ID: "key_high", Hash: hash("sk-high"), Tier: "free", Priority: quota.Critical},
		{ID: "key_chat", Hash: hash("sk-chat"), Tier: "pro", Resources: []string{"chat"}},
		{ID: "key_enterprise", Hash: hash("sk-enterprise"), Tier: "enterprise"},
		{ID: "key_demo", Hash: hash("sk-demo"), Tier: "pro", Demo: true},
		{ID: "key_revoked", Hash: hash("sk-revoked"), Tier: "pro", Revoked: true},
		{ID: "key_expired", Hash: hash("sk-expired"), Tier: "pro", Expires: noon},
	}, nil)
	if len(faults) > 0 {
		tb.Fatal(faults)
	}
	s := &Settings{
		KeyHeaders: []string{"authorization", "x-api-key", "api-key"}, Resources: NewClassifier(resources), Plans: plans,
		Keys: apikey.Keyring{File: directory}, UnlimitedText: "unlimited",
		RateLimit: RateLimitSettings{
			Domain: "tiergate", SettlementDomain: "tiergate-settle", HitsMetric: quota.Requests, MaxDescriptors: 64,
			Entries: Entries{APIKey: "api_key", Resource: "resource", Path: "path", Priority: "priority", FactPrefix: "request."},
		},
		Tokens: TokenSettings{
			Keep: time.Hour, SettleByAccessLog: true, SettleByRateLimit: true, CachedInput: 1,
			Rules: map[string]quota.TokenRules{"chat": {MaxInput: 500, Output: 100, MaxOutput: 800}},
		},
	}
	if change != nil {
		change(s)
	}
	clock := func() time.Time { return noon }
	return NewGate(s, quota.NewLimiter(store.NewMemory(clock, 10_000)), usage.NewHistory(1000), clock, noObserver{})
}

// An answer is what a client would see of either protocol.
type answerText struct {
	status  int
	headers map[string]string
	body    string
}

func check(t *testing.T, g *Gate, path string, headers map[string]string) answerText {
	t.Helper()
	return ask(t, g, checkRequest(path, headers))
}

func ask(t *testing.T, g *Gate, r *authv3.CheckRequest) answerText {
	t.Helper()
	response, err := NewAuthz(g).Check(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	a := answerText{status: 200, headers: map[string]string{}}
	options := response.GetOkResponse().GetResponseHeadersToAdd()
	if denied := response.GetDeniedResponse(); denied != nil {
		a.status, a.body, options = int(denied.GetStatus().GetCode()), denied.GetBody(), denied.GetHeaders()
	}
	for _, o := range options {
		if o.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
			t.Errorf("%s does not replace what is there", o.GetHeader().GetKey())
		}
		a.add(t, o.GetHeader())
	}
	return a
}

func limit(t *testing.T, g *Gate, entries ...*ratelimitv3.RateLimitDescriptor_Entry) answerText {
	t.Helper()
	response, err := NewRateLimit(g).ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{
		Domain: "tiergate", Descriptors: []*ratelimitv3.RateLimitDescriptor{{Entries: entries}},
	})
	if err != nil {
		t.Fatal(err)
	}
	a := answerText{status: 200, headers: map[string]string{}, body: string(response.GetRawBody())}
	for _, h := range response.GetResponseHeadersToAdd() {
		a.add(t, h)
	}
	if response.GetOverallCode() == rlsv3.RateLimitResponse_OVER_LIMIT {
		a.status = 429
		if text, ok := a.headers[StatusHeader]; ok {
			a.status, _ = strconv.Atoi(text)
			delete(a.headers, StatusHeader)
		}
	}
	if n := len(response.GetStatuses()); n != 1 {
		t.Errorf("%d statuses for one descriptor", n)
	}
	return a
}

func (a *answerText) add(t *testing.T, h *corev3.HeaderValue) {
	t.Helper()
	if _, twice := a.headers[h.GetKey()]; twice {
		t.Errorf("%s twice", h.GetKey())
	}
	a.headers[h.GetKey()] = h.GetValue()
}

func entry(key, value string) *ratelimitv3.RateLimitDescriptor_Entry {
	return &ratelimitv3.RateLimitDescriptor_Entry{Key: key, Value: value}
}

// TestAnswers asks both services the same and compares with what clients are
// promised. Each case is a first request.
func TestAnswers(t *testing.T) {
	t.Parallel()
	six := func(limit, remaining, reset, resource, used, priority string) map[string]string {
		return map[string]string{
			"X-RateLimit-Limit": limit, "X-RateLimit-Remaining": remaining, "X-RateLimit-Reset": reset,
			"X-RateLimit-Resource": resource, "X-RateLimit-Used": used, "X-Request-Priority": priority,
		}
	}
	refused := func(resource string) map[string]string { return six("0", "0", "1772366430", resource, "0", "1") }
	pro := six("100", "99", minuteEnd, "chat", "1", "3")
	for name, c := range map[string]struct {
		authorization, xAPIKey, path, priority string

		status int
		code   string
		six    map[string]string
	}{
		"bearer":                  {authorization: "Bearer sk-pro", status: 200, six: pro},
		"any case, more space":    {authorization: "bEaReR   sk-pro ", status: 200, six: pro},
		"x-api-key":               {xAPIKey: "sk-pro", status: 200, six: pro},
		"basic beside x-api-key":  {authorization: "Basic dXNlcjpwdw==", xAPIKey: "sk-pro", status: 200, six: pro},
		"the same key twice":      {authorization: "Bearer sk-pro", xAPIKey: "sk-pro", status: 200, six: pro},
		"one header twice":        {authorization: "Bearer sk-pro,Bearer sk-pro", status: 200, six: pro},
		"images":                  {authorization: "Bearer sk-pro", path: "/v1/images/generations", status: 200, six: six("100", "99", minuteEnd, "images", "1", "3")},
		"no such path":            {authorization: "Bearer sk-pro", path: "/elsewhere", status: 200, six: six("100", "99", minuteEnd, "default", "1", "3")},
		"a lower priority":        {authorization: "Bearer sk-pro", priority: "low", status: 200, six: six("100", "99", minuteEnd, "chat", "1", "1")},
		"a higher priority":       {authorization: "Bearer sk-pro", priority: "4", status: 200, six: pro},
		"a key's own priority":    {authorization: "Bearer sk-high", status: 200, six: six("2", "1", minuteEnd, "chat", "1", "4")},
		"unlimited":               {authorization: "Bearer sk-enterprise", status: 200, six: six("unlimited", "unlimited", minuteEnd, "chat", "1", "4")},
		"no key":                  {status: 401, code: "missing_api_key", six: refused("chat")},
		"an empty key":            {authorization: "Bearer ", status: 401, code: "missing_api_key", six: refused("chat")},
		"basic alone":             {authorization: "Basic dXNlcjpwdw==", status: 401, code: "missing_api_key", six: refused("chat")},
		"no scheme":               {authorization: "sk-pro", status: 401, code: "missing_api_key", six: refused("chat")},
		"a scheme in x-api-key":   {xAPIKey: "Bearer sk-pro", status: 401, code: "invalid_api_key", six: refused("chat")},
		"an unknown key":          {authorization: "Bearer sk-nobody", path: "/v1/images", status: 401, code: "invalid_api_key", six: refused("images")},
		"a malformed key":         {authorization: "Bearer tg_live_0", status: 401, code: "invalid_api_key", six: refused("chat")},
		"two keys":                {authorization: "Bearer sk-pro", xAPIKey: "sk-free", status: 401, code: "invalid_api_key", six: refused("chat")},
		"two keys, one unknown":   {authorization: "Bearer sk-pro", xAPIKey: "sk-nobody", status: 401, code: "invalid_api_key", six: refused("chat")},
		"two keys in one header":  {xAPIKey: "sk-pro,sk-free", status: 401, code: "invalid_api_key", six: refused("chat")},
		"a demo key":              {authorization: "Bearer sk-demo", status: 401, code: "invalid_api_key", six: refused("chat")},
		"a revoked key":           {authorization: "Bearer sk-revoked", status: 401, code: "revoked_api_key", six: refused("chat")},
		"an expired key":          {authorization: "Bearer sk-expired", status: 401, code: "expired_api_key", six: refused("chat")},
		"no leave":                {authorization: "Bearer sk-chat", path: "/v1/images", status: 403, code: "resource_not_allowed", six: six("100", "100", minuteEnd, "images", "0", "3")},
		"100 KB of key":           {authorization: "Bearer " + strings.Repeat("k", 100_000), status: 401, code: "invalid_api_key", six: refused("chat")},
		"invalid UTF-8":           {authorization: "Bearer \xff\xfe", status: 401, code: "invalid_api_key", six: refused("chat")},
		"a header in the key":     {authorization: "Bearer sk-pro\r\nx-evil: 1", status: 401, code: "invalid_api_key", six: refused("chat")},
		"garbage in the priority": {authorization: "Bearer sk-pro", priority: "\x00\xff9999999999999999999", status: 200, six: pro},
	} {
		if c.path == "" {
			c.path = "/v1/chat/completions?q=1"
		}
		answers := map[string]answerText{}
		headers := map[string]string{}
		entries := []*ratelimitv3.RateLimitDescriptor_Entry{entry("path", c.path)}
		for _, h := range [][3]string{
			{"authorization", "api_key.bearer", c.authorization}, {"x-api-key", "api_key.raw", c.xAPIKey}, {"x-request-priority", "priority", c.priority},
		} {
			if h[2] != "" {
				headers[h[0]] = h[2]
				entries = append(entries, entry(h[1], h[2]))
			}
		}
		answers["authz"] = check(t, newGate(t, nil), c.path, headers)
		answers["ratelimit"] = limit(t, newGate(t, nil), entries...)
		for face, a := range answers {
			if a.status != c.status {
				t.Errorf("%s, %s: status %d, want %d: %s", name, face, a.status, c.status, a.body)
			}
			for header, want := range c.six {
				if a.headers[header] != want {
					t.Errorf("%s, %s: %s: %q, want %q", name, face, header, a.headers[header], want)
				}
			}
			checkRefusal(t, name+", "+face, a, c.code)
		}
	}
}

func checkRefusal(t *testing.T, name string, a answerText, code string) {
	t.Helper()
	if code == "" {
		if a.body != "" || len(a.headers) != 6 {
			t.Errorf("%s: body %q, headers %v: want the six alone", name, a.body, a.headers)
		}
		return
	}
	var body struct{ Error apierror.Error }
	if err := json.Unmarshal([]byte(a.body), &body); err != nil || body.Error.Code != code || body.Error.Message == "" {
		t.Errorf("%s: body %q, want code %s", name, a.body, code)
	}
	if a.headers["Content-Type"] != "application/json" || a.headers["Cache-Control"] != "no-store" {
		t.Errorf("%s: headers %v", name, a.headers)
	}
	if a.status == 401 && (a.headers["WWW-Authenticate"] != "Bearer" || body.Error.Type != "authentication_error") {
		t.Errorf("%s: %v %s", name, a.headers, a.body)
	}
	if a.status != 429 && strings.Contains(a.body, "rate_limit") {
		t.Errorf("%s: clients of the contract would try again: %s", name, a.body)
	}
	if strings.Contains(a.body, "sk-") {
		t.Errorf("%s: the body has the key: %s", name, a.body)
	}
}

// TestRefusedByMinuteThenDay: the wait is that of the limit that refuses, long
// waits tell SDKs not to sleep, and refusals cost nothing.
func TestRefusedByMinuteThenDay(t *testing.T) {
	t.Parallel()
	now := noon
	clock := func() time.Time { return now }
	g := newGate(t, nil)
	g.now, g.limiter = clock, quota.NewLimiter(store.NewMemory(clock, 100))
	ask := func() answerText { // another request each time
		return check(t, g, "/v1/chat", map[string]string{"authorization": "Bearer sk-free"})
	}
	ask()
	ask()
	for range 3 {
		a := ask()
		wantHeaders(t, a, map[string]string{
			"X-RateLimit-Limit": "2", "X-RateLimit-Remaining": "0", "X-RateLimit-Used": "2", "X-RateLimit-Reset": minuteEnd,
			"Retry-After": "30", "retry-after-ms": "30000", "X-RateLimit-Limited-By": "requests_per_minute", "x-should-retry": "",
		})
		want := "{\n  \"error\": {\n    \"type\": \"rate_limit_error\",\n    \"message\": \"Rate limit exceeded. Please retry after 30 seconds.\",\n    \"code\": \"rate_limit_exceeded\"\n  }\n}"
		if a.status != 429 || a.body != want {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	now = noon.Add(28*time.Second + 500*time.Millisecond + 600*time.Microsecond)
	wantHeaders(t, ask(), map[string]string{"Retry-After": "2", "retry-after-ms": "1500"}) // never too short
	now = noon.Add(29*time.Second + 999*time.Millisecond + 600*time.Microsecond)
	wantHeaders(t, ask(), map[string]string{"Retry-After": "1", "retry-after-ms": "1", "X-RateLimit-Reset": minuteEnd})
	now = noon.Add(30 * time.Second)
	if a := ask(); a.status != 200 {
		t.Errorf("in the next minute: %d", a.status)
	}
	a := ask()
	wantHeaders(t, a, map[string]string{
		"X-RateLimit-Limit": "2", "X-RateLimit-Remaining": "1", "X-RateLimit-Used": "1", "X-RateLimit-Reset": nextDay,
		"Retry-After": "43140", "retry-after-ms": "", "x-should-retry": "false", "X-RateLimit-Limited-By": "requests_per_day",
	})
	if !strings.Contains(a.body, "Please retry after 43140 seconds.") {
		t.Error(a.body)
	}
}

// TestLimitsOfZero: no wait helps, and clients are told so: a 429 where a request does not
// say what it takes, 413 where it does.
func TestLimitsOfZero(t *testing.T) {
	t.Parallel()
	g := newGate(t, func(s *Settings) {
		s.Plans["free"] = quota.NewPlan(quota.Tier{Name: "free", Limits: []quota.Limit{{Metric: quota.Requests, Window: quota.Minute}}}, quota.ByKey, nil)
		s.Plans["pro"] = quota.NewPlan(quota.Tier{Name: "pro", Limits: []quota.Limit{
			{Metric: quota.Requests, Window: quota.Minute, Max: 10}, {Metric: quota.Tokens, Window: quota.Minute},
		}}, quota.ByKey, nil)
	})
	key := func(secret string) []*ratelimitv3.RateLimitDescriptor_Entry {
		return []*ratelimitv3.RateLimitDescriptor_Entry{entry("api_key", secret), entry("path", "/v1/chat")}
	}
	declared := append(key("sk-pro"), entry("request.method", "POST"), entry("request.content_length", "40"), entry("request.max_tokens", "7"))
	for name, a := range map[string]answerText{
		"ext_authz": check(t, g, "/v1/chat", map[string]string{"api-key": "sk-free"}),
		"ratelimit": limit(t, g, key("sk-free")...),
	} {
		wantHeaders(t, a, map[string]string{
			"X-RateLimit-Limit": "0", "X-RateLimit-Used": "0", "Retry-After": "30", "retry-after-ms": "", "x-should-retry": "false",
			"X-RateLimit-Limited-By": "requests_per_minute",
		})
		if a.status != 429 || !strings.Contains(a.body, "Rate limit exceeded. Please retry after 30 seconds.") {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	estimated := limit(t, g, key("sk-pro")...)
	wantHeaders(t, estimated, map[string]string{"x-should-retry": "false", "retry-after-ms": "", "X-RateLimit-Limited-By": "tokens_per_minute"})
	a := limit(t, g, declared...)
	wantHeaders(t, a, map[string]string{"x-should-retry": "false", "Retry-After": "", "X-RateLimit-Limited-By": "tokens_per_minute"})
	if estimated.status != 429 || a.status != 413 || !strings.Contains(a.body, "request_too_large") {
		t.Errorf("tokens that are estimated: %d, and declared: %d %s", estimated.status, a.status, a.body)
	}
}

func wantHeaders(t *testing.T, a answerText, want map[string]string) {
	t.Helper()
	for name, value := range want {
		if a.headers[name] != value {
			t.Errorf("%s: %q, want %q", name, a.headers[name], value)
		}
	}
}

// TestUpstreamHeaders replace what the client sent, and credentials go.
func TestUpstreamHeaders(t *testing.T) {
	t.Parallel()
	g := newGate(t, nil)
	request := checkRequest("/v1/chat", map[string]string{"x-api-key": "sk-pro", "x-tiergate-tier": "enterprise"})
	response, err := NewAuthz(g).Check(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	ok := response.GetOkResponse()
	a := answerText{headers: map[string]string{}}
	for _, o := range ok.GetHeaders() {
		a.add(t, o.GetHeader())
	}
	wantHeaders(t, a, map[string]string{
		"x-tiergate-key-id": "key_pro", "x-tiergate-tier": "pro", "x-tiergate-resource": "chat", "X-Request-Priority": "3",
	})
	if strings.Join(ok.GetHeadersToRemove(), " ") != "authorization x-api-key api-key" {
		t.Errorf("removed: %v", ok.GetHeadersToRemove())
	}
	g.Use(func() *Settings { s := *g.settings.Load(); s.ForwardCredentials = true; return &s }())
	response, _ = NewAuthz(g).Check(t.Context(), request)
	if removed := response.GetOkResponse().GetHeadersToRemove(); len(removed) != 0 {
		t.Errorf("forwarding credentials, removed: %v", removed)
	}
}

func TestUnlimitedHeader(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]map[string]string{
		"word":   {"X-RateLimit-Limit": "word", "X-RateLimit-Remaining": "word", "X-RateLimit-Used": "1"},
		"1000":   {"X-RateLimit-Limit": "1000", "X-RateLimit-Remaining": "999", "X-RateLimit-Used": "1"},
		"(omit)": {"X-RateLimit-Limit": "", "X-RateLimit-Remaining": "", "X-RateLimit-Used": "1"},
	} {
		g := newGate(t, func(s *Settings) { s.UnlimitedText, s.OmitUnlimited = text, text == "(omit)" })
		wantHeaders(t, check(t, g, "/v1/chat", map[string]string{"api-key": "sk-enterprise"}), want)
	}
}

// TestStoreFailure is a 503 that says to come back, the tier's limit, and that nothing
// remains of it: see quota.unanswered.
func TestStoreFailure(t *testing.T) {
	t.Parallel()
	g := newGate(t, func(s *Settings) {
		free := s.Plans["free"].Tier
		free.Limits = append(slices.Clip(free.Limits), quota.Limit{Metric: quota.Requests, Window: quota.Minute, Max: 1, Resource: "images"})
		s.Plans["free"] = quota.NewPlan(free, quota.ByKey, []quota.Resource{{Name: "chat"}, {Name: "images"}})
	})
	full := store.NewMemory(func() time.Time { return noon }, 1)
	for i := range 1000 { // until every part of it is full
		_, _ = full.Take(t.Context(), quota.Order{Account: strconv.Itoa(i), Charges: []quota.Charge{{Counter: "c", Cost: 1, Limit: quota.Limit{Window: quota.Day, Max: 1}}}})
	}
	g.limiter = quota.NewLimiter(full)
	for face, a := range map[string]answerText{
		"authz":     check(t, g, "/v1/chat", map[string]string{"api-key": "sk-pro"}),
		"ratelimit": limit(t, g, entry("api_key", "sk-pro"), entry("resource", "chat")),
	} {
		checkRefusal(t, face, a, "limiter_unavailable")
		wantHeaders(t, a, map[string]string{"Retry-After": "1", "X-RateLimit-Resource": "chat", "X-Request-Priority": "3"})
		wantStanding(t, face, a, "100", "0", "100")
		if a.status != 503 {
			t.Errorf("%s: status %d", face, a.status)
		}
	}
	for name, c := range map[string]struct{ key, path, limit, remaining, used string }{
		"unlimited":          {"sk-enterprise", "/v1/chat", "unlimited", "unlimited", "0"},
		"a resource's limit": {"sk-free", "/v1/images", "1", "0", "1"},
	} {
		wantStanding(t, name, check(t, g, c.path, map[string]string{"api-key": c.key}), c.limit, c.remaining, c.used)
	}
}

// wantStanding compares how a tier is said to stand where nobody knows what is used.
func wantStanding(t *testing.T, name string, a answerText, limit, remaining, used string) {
	t.Helper()
	t.Log(name)
	wantHeaders(t, a, map[string]string{
		"X-RateLimit-Limit": limit, "X-RateLimit-Remaining": remaining, "X-RateLimit-Used": used, "X-RateLimit-Reset": minuteEnd, "X-RateLimit-Degraded": "1",
	})
}

func TestClassify(t *testing.T) {
	t.Parallel()
	c := NewClassifier([]quota.Resource{
		{Name: "chat", PathPrefixes: []string{"/v1/chat"}},
		{Name: "images", PathPrefixes: []string{"/v1/images", "/v1/chat/images"}},
		{Name: "embeddings", PathPrefixes: []string{"/v1/embeddings", "/e"}},
	})
	for path, want := range map[string]string{
		"/v1/chat": "chat", "/v1/chat/": "chat", "/v1/chat/completions": "chat", "/v1/chat?x=/v1/images": "chat",
		"/v1/chatter": "default", "/v1": "default", "/": "default", "": "default", "*": "default", "v1/chat": "default",
		"/v1/chat/images": "images", "/v1/chat/images/a": "images", "/v1/chat/imagesque": "chat",
		"//v1//images//": "images", "/v1/./images": "images", "/v1/chat/../images": "images", "/../v1/images": "images",
		"/v1/%69mages": "images", "/v1/images%2fa": "images", "/v1%2Fimages": "images", "/v1/%2e%2e/v1/images": "images",
		"/v1/images;a=b/c": "images", "/v1;x/images": "images", "/;/v1/;x/images": "images", "/V1/Images": "images", `\v1\images`: "default", `/v1\images`: "images",
		"/v1/%zz": "default", "/v1/images#f": "images", "/v1/images/\xff": "images", "/v1/%00images": "default",
		"/v1/chat/%3fx": "chat", "http://host/v1/chat": "default",
		"/v1/%2569mages": "images", "/v1/%25%32%35%36%39mages": "images", "/v1/images/%zz": "images", "/v1/images%3fx": "images", "/v1/images%": "default",
		"/v1/%65mbeddings": "embeddings", "/v1/embeddings/a": "embeddings", "/e/a": "embeddings",
	} {
		if have := c.Classify("", path); have != want {
			t.Errorf("%q: %s, want %s", path, have, want)
		}
	}
	for named, want := range map[string]string{"images": "images", "default": "default", "video": "chat", "": "chat"} {
		if have := c.Classify(named, "/v1/chat"); have != want {
			t.Errorf("named %q: %s, want %s", named, have, want)
		}
	}
	if have := NewClassifier([]quota.Resource{{Name: "all", PathPrefixes: []string{"/"}}}).Classify("", "/x/y"); have != "all" {
		t.Errorf("the prefix /: %s", have)
	}
}

// TestOddRequests: nothing set, nothing sensible set: refused or safe, never a
// panic, and one charge at the most.
func TestOddRequests(t *testing.T) {
	t.Parallel()
	g := newGate(t, nil)
	for _, r := range []*authv3.CheckRequest{nil, {}, {Attributes: &authv3.AttributeContext{}}} {
		response, err := NewAuthz(g).Check(t.Context(), r)
		if err != nil || response.GetDeniedResponse().GetStatus().GetCode() != 401 {
			t.Errorf("%v: %v, %v", r, response, err)
		}
	}
	key := entry("api_key", "sk-free")
	for _, descriptors := range [][]*ratelimitv3.RateLimitDescriptor{nil, {}, {nil}, {{}}, {{Entries: []*ratelimitv3.RateLimitDescriptor_Entry{nil, {}}}}} {
		response, err := NewRateLimit(g).ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: "tiergate", Descriptors: descriptors, HitsAddend: 7})
		if err != nil || response.GetOverallCode() != rlsv3.RateLimitResponse_OVER_LIMIT || len(response.GetStatuses()) != len(descriptors) {
			t.Errorf("%v: %v, %v", descriptors, response, err)
		}
	}
	hits := []*ratelimitv3.RateLimitDescriptor{
		{Entries: []*ratelimitv3.RateLimitDescriptor_Entry{key}, HitsAddend: wrapperspb.UInt64(math.MaxUint64), IsNegativeHits: true},
		{Entries: []*ratelimitv3.RateLimitDescriptor_Entry{key, entry("resource", "chat")}, HitsAddend: wrapperspb.UInt64(0)},
	}
	for range 2 {
		_, err := NewRateLimit(g).ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: "tiergate", Descriptors: hits, HitsAddend: math.MaxUint32})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("negative hits: %v: want INVALID_ARGUMENT", err)
		}
		hits[0].IsNegativeHits = true
		g.Use(func() *Settings { s := *g.settings.Load(); s.RateLimit.NegativeHits = true; return &s }()) // now the two differ
	}
	hits[0].IsNegativeHits = false
	response, err := NewRateLimit(g).ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: "tiergate", Descriptors: hits, HitsAddend: math.MaxUint32})
	if err != nil || response.GetOverallCode() != rlsv3.RateLimitResponse_OVER_LIMIT || response.GetStatuses()[1].GetLimitRemaining() != 0 ||
		!strings.Contains(string(response.GetRawBody()), `"request_too_large"`) {
		t.Errorf("more hits than any limit: %v, %v", response, err)
	}
	g.Use(func() *Settings { s := *g.settings.Load(); s.RateLimit.LimitOverride = true; return &s }())
	_, err = NewRateLimit(g).ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: "tiergate", Descriptors: []*ratelimitv3.RateLimitDescriptor{
		{Entries: []*ratelimitv3.RateLimitDescriptor_Entry{key}, Limit: &ratelimitv3.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: 1, Unit: typev3.RateLimitUnit_YEAR}},
	}})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "YEAR") {
		t.Errorf("a limit per year: %v", err)
	}
	for _, domain := range []string{"", "other", strings.Repeat("d", 100_000)} {
		_, err := NewRateLimit(g).ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: domain})
		if status.Code(err) != codes.InvalidArgument || len(err.Error()) > 300 {
			t.Errorf("domain %.20q: %v", domain, err)
		}
	}
}

// TestStatuses describe the limit that refuses, else the one in the headers.
func TestStatuses(t *testing.T) {
	t.Parallel()
	g := newGate(t, func(s *Settings) {
		s.Plans["pro"] = quota.NewPlan(quota.Tier{Name: "pro", Limits: []quota.Limit{{Metric: quota.Requests, Window: quota.Minute, Max: 9}, {Metric: quota.Requests, Window: quota.Day, Max: 5}}}, quota.ByKey, nil)
	})
	hits := uint32(0)
	ask := func(key string) *rlsv3.RateLimitResponse_DescriptorStatus {
		response, err := NewRateLimit(g).ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{
			HitsAddend: hits, Domain: "tiergate", Descriptors: []*ratelimitv3.RateLimitDescriptor{{Entries: []*ratelimitv3.RateLimitDescriptor_Entry{entry("api_key", key)}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return response.GetStatuses()[0]
	}
	want := func(s *rlsv3.RateLimitResponse_DescriptorStatus, code rlsv3.RateLimitResponse_Code, name string, most, remaining uint32) {
		if s.GetCode() != code || s.GetCurrentLimit().GetName() != name || s.GetCurrentLimit().GetRequestsPerUnit() != most || s.GetLimitRemaining() != remaining {
			t.Errorf("%v: want %s %s %d %d", s, code, name, most, remaining)
		}
	}
	ok, over := rlsv3.RateLimitResponse_OK, rlsv3.RateLimitResponse_OVER_LIMIT
	want(ask("sk-free"), ok, "requests_per_minute", 2, 1)
	want(ask("sk-free"), ok, "requests_per_minute", 2, 0)
	refused := ask("sk-free")
	want(refused, over, "requests_per_minute", 2, 0)
	if refused.GetCurrentLimit().GetUnit() != rlsv3.RateLimitResponse_RateLimit_MINUTE || refused.GetDurationUntilReset().AsDuration() != 30*time.Second {
		t.Errorf("%v", refused)
	}
	hits = 3
	want(ask("sk-pro"), ok, "requests_per_minute", 9, 6)
	want(ask("sk-pro"), over, "requests_per_day", 5, 2)
	g.Use(func() *Settings {
		s := *g.settings.Load()
		s.Plans["pro"] = quota.NewPlan(quota.Tier{Name: "pro", Limits: []quota.Limit{{Metric: quota.Requests, Window: quota.Minute, Max: 2}}}, quota.ByKey, nil)
		return &s
	}())
	hits = 1
	want(ask("sk-pro"), over, "requests_per_minute", 2, 0) // of which 3 are used
	want(ask("sk-enterprise"), ok, "", 0, 0)
	want(ask("sk-nobody"), over, "", 0, 0)
}

// TestStatusesOfPools tell the key's limit: how much all have together is not for clients.
func TestStatusesOfPools(t *testing.T) {
	t.Parallel()
	g := newGate(t, func(s *Settings) {
		s.Pools = map[string]*quota.Pool{"chat": quota.NewPool("chat", []quota.Limit{{Metric: quota.Requests, Window: quota.Minute, Max: 1, Pooled: true}}, quota.UsualShares())}
	})
	response, err := NewRateLimit(g).ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: "tiergate", Descriptors: []*ratelimitv3.RateLimitDescriptor{
		{Entries: []*ratelimitv3.RateLimitDescriptor_Entry{entry("api_key", "sk-free"), entry("path", "/v1/chat")}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	s := response.GetStatuses()[0]
	if s.GetCode() != rlsv3.RateLimitResponse_OVER_LIMIT || s.GetCurrentLimit().GetName() != "requests_per_minute" || s.GetCurrentLimit().GetRequestsPerUnit() != 2 || s.GetLimitRemaining() != 2 {
		t.Errorf("%v", response)
	}
}

// TestTheFirstEntryHolds where one stands twice, and the whole of what Authorization says may be
// the key's.
func TestTheFirstEntryHolds(t *testing.T) {
	t.Parallel()
	g := newGate(t, func(s *Settings) {
		withTokens(s)
		s.RateLimit.Entries.KeyID, s.RateLimit.Entries.Tier = "key_id", "tier"
	})
	a := limit(t, g, entry("resource", "images"), entry("resource", "chat"), entry("priority", "1"), entry("priority", "3"), entry("api_key", "Bearer sk-pro"),
		entry("max_tokens", "3"), entry("request.max_tokens", "200"), entry("request.max_tokens", "1"), entry("request.content_length", "40"))
	wantHeaders(t, a, map[string]string{"X-RateLimit-Resource": "images", "X-Request-Priority": "1", "x-ratelimit-remaining-tokens": "800"})
	a = limit(t, g, entry("key_id", "key_free"), entry("key_id", "key_pro"), entry("tier", "free"), entry("tier", "pro"))
	wantHeaders(t, a, map[string]string{"X-RateLimit-Limit": "2"})
	for _, none := range []string{"bearer", "Basic dXNlcjpwdw=="} {
		checkRefusal(t, none, limit(t, g, entry("api_key", none)), "missing_api_key")
	}
	checkRefusal(t, "another form", limit(t, g, entry("api_key.cooked", "sk-pro")), "missing_api_key")
}

// TestTrustedEntries: key ID and tier are believed only where the configuration
// names the entries, and never more than a record allows.
func TestTrustedEntries(t *testing.T) {
	t.Parallel()
	trusting := func(s *Settings) { s.RateLimit.Entries.KeyID, s.RateLimit.Entries.Tier = "key_id", "tier" }
	for name, c := range map[string]struct {
		change func(*Settings)
		id     string
		tier   string
		key    string
		status int
		limit  string
	}{
		"not configured":            {id: "key_pro", tier: "pro", status: 401, limit: "0"},
		"not configured, a key":     {id: "key_pro", tier: "pro", key: "sk-free", status: 200, limit: "2"},
		"on record":                 {change: trusting, id: "key_pro", status: 200, limit: "100"},
		"on record, another tier":   {change: trusting, id: "key_pro", tier: "free", status: 200, limit: "2"},
		"on record, unknown tier":   {change: trusting, id: "key_pro", tier: "gold", status: 200, limit: "100"},
		"goes before a key":         {change: trusting, id: "key_pro", key: "sk-free", status: 200, limit: "100"},
		"not on record":             {change: trusting, id: "user-7", tier: "pro", status: 200, limit: "100"},
		"not on record, no tier":    {change: trusting, id: "user-7", status: 401, limit: "0"},
		"not on record, no sane ID": {change: trusting, id: "{a}:counts", tier: "pro", status: 401, limit: "0"},
		"a key in its place":        {change: trusting, id: "tg_live_IFP7XUOITS3HEPTZAMG2QDSWQG3cpu2n", tier: "pro", status: 401, limit: "0"},
		"a tier alone":              {change: trusting, tier: "pro", status: 401, limit: "0"},
		"a tier beside a key":       {change: trusting, tier: "pro", key: "sk-free", status: 200, limit: "2"},
		"revoked":                   {change: trusting, id: "key_revoked", tier: "pro", status: 401, limit: "0"},
		"a demo key":                {change: trusting, id: "key_demo", tier: "pro", status: 401, limit: "0"},
		"no name is no entry":       {change: func(s *Settings) { s.RateLimit.Entries.KeyID = "" }, id: "key_pro", status: 401, limit: "0"},
	} {
		var entries []*ratelimitv3.RateLimitDescriptor_Entry
		for _, e := range [][2]string{{"key_id", c.id}, {"tier", c.tier}, {"api_key", c.key}, {"", "key_pro"}} {
			if e[1] != "" {
				entries = append(entries, entry(e[0], e[1]))
			}
		}
		a := limit(t, newGate(t, c.change), entries...)
		if a.status != c.status || a.headers["X-RateLimit-Limit"] != c.limit {
			t.Errorf("%s: %d, limit %s: want %d, %s", name, a.status, a.headers["X-RateLimit-Limit"], c.status, c.limit)
		}
	}
}

// TestRawHeaders: with encode_raw_headers Envoy sends header_map instead.
func TestRawHeaders(t *testing.T) {
	t.Parallel()
	r := checkRequest("/v1/chat", nil)
	r.Attributes.Request.Http.HeaderMap = &corev3.HeaderMap{Headers: []*corev3.HeaderValue{
		{Key: "authorization", RawValue: []byte("Bearer sk-pro")}, {Key: "x-request-priority", RawValue: []byte("2")},
	}}
	response, err := NewAuthz(newGate(t, nil)).Check(t.Context(), r)
	if err != nil || response.GetOkResponse() == nil {
		t.Fatalf("%v, %v", response, err)
	}
	r.Attributes.Request.Http.HeaderMap.Headers = append(r.GetAttributes().GetRequest().GetHttp().GetHeaderMap().GetHeaders(),
		&corev3.HeaderValue{Key: "authorization", RawValue: []byte("Bearer sk-free")})
	if response, _ = NewAuthz(newGate(t, nil)).Check(t.Context(), r); response.GetDeniedResponse().GetStatus().GetCode() != 401 {
		t.Errorf("two keys in raw headers: %v", response)
	}
}

func TestContextExtensionsNameTheResource(t *testing.T) {
	t.Parallel()
	for named, want := range map[string]string{"images": "images", "nonsense": "chat"} {
		r := checkRequest("/v1/chat", map[string]string{"api-key": "sk-pro"})
		r.Attributes.ContextExtensions = map[string]string{"resource": named}
		response, err := NewAuthz(newGate(t, nil)).Check(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		a := answerText{headers: map[string]string{}}
		for _, o := range response.GetOkResponse().GetResponseHeadersToAdd() {
			a.add(t, o.GetHeader())
		}
		wantHeaders(t, a, map[string]string{"X-RateLimit-Resource": want})
	}
}

// FuzzCheck looks for a request that panics, leaks its key or is admitted
// without one.
func FuzzCheck(f *testing.F) {
	f.Add("/v1/chat", "Bearer sk-pro", "", "2", "chat")
	f.Add("//v1/%2e%2e/;", "Bearer \xff", "sk-canary", "\x00", "video")
	f.Fuzz(func(t *testing.T, path, authorization, xAPIKey, priority, resource string) {
		r := checkRequest(path, map[string]string{"authorization": authorization, "x-api-key": xAPIKey, "x-request-priority": priority})
		r.Attributes.ContextExtensions = map[string]string{"resource": resource}
		response, err := NewAuthz(newGate(t, nil)).Check(context.Background(), r)
		if err != nil {
			t.Fatal(err)
		}
		if response.GetOkResponse() != nil && !strings.Contains(authorization+xAPIKey, "sk-") {
			t.Errorf("admitted: %q %q", authorization, xAPIKey)
		}
		if len(xAPIKey) > 20 && strings.Contains(response.String(), xAPIKey) {
			t.Errorf("the key is in the answer: %q", xAPIKey)
		}
	})
}

// FuzzShouldRateLimit does the same for the rate limit service.
func FuzzShouldRateLimit(f *testing.F) {
	f.Add("tiergate", "api_key", "Bearer sk-pro", "resource", "chat", uint32(1), uint64(0))
	f.Add("tiergate", "api_key.bearer", "Bearer sk-pro", "api_key.raw", "sk-pro", uint32(1), uint64(0))
	f.Add("", "", "", "api_key", "\xff", uint32(math.MaxUint32), uint64(math.MaxUint64))
	f.Fuzz(func(t *testing.T, domain, k1, v1, k2, v2 string, hits uint32, more uint64) {
		r := &rlsv3.RateLimitRequest{Domain: domain, HitsAddend: hits, Descriptors: []*ratelimitv3.RateLimitDescriptor{
			{Entries: []*ratelimitv3.RateLimitDescriptor_Entry{entry(k1, v1), entry(k2, v2)}, HitsAddend: wrapperspb.UInt64(more)}, {},
		}}
		response, err := NewRateLimit(newGate(t, nil)).ShouldRateLimit(context.Background(), r)
		if (err == nil) != (domain == "tiergate") {
			t.Errorf("domain %q: %v", domain, err)
		}
		if response.GetOverallCode() == rlsv3.RateLimitResponse_OK && !strings.Contains(v1+v2, "sk-") {
			t.Errorf("admitted: %v", r)
		}
	})
}
