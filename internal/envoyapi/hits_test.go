package envoyapi

import (
	"math"
	"strconv"
	"strings"
	"testing"

	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

// TestHits: how often a rate limit call counts.
func TestHits(t *testing.T) {
	t.Parallel()
	type d = ratelimitv3.RateLimitDescriptor
	key := func(d *d) *d {
		d.Entries = []*ratelimitv3.RateLimitDescriptor_Entry{entry("api_key", "sk-pro")}
		return d
	}
	hits := wrapperspb.UInt64
	all := func(s *Settings) { s.RateLimit.NegativeHits, s.RateLimit.LimitOverride = true, true }
	inTokens := func(s *Settings) {
		withTokens(s)
		all(s)
		s.RateLimit.HitsMetric, s.Tokens.Rules["default"] = quota.Tokens, quota.TokenRules{MaxInput: 500, Output: 100}
	}
	over := &ratelimitv3.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: 3, Unit: typev3.RateLimitUnit_MINUTE}
	more := &ratelimitv3.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: 50, Unit: typev3.RateLimitUnit_MINUTE}
	daily := &ratelimitv3.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: 50, Unit: typev3.RateLimitUnit_DAY}
	byResource := func(s *Settings) {
		all(s)
		tier := s.Plans["pro"].Tier
		tier.Limits = append(tier.Limits, quota.Limit{Metric: quota.Requests, Window: quota.Minute, Max: 60, Resource: quota.DefaultResource})
		s.Plans["pro"] = quota.NewPlan(tier, quota.ByKeyAndResource, nil)
	}
	ofKey := func(s *Settings) {
		byResource(s)
		pro := *s.Keys.File.ByID("key_pro")
		pro.Overrides = []quota.Override{{Limit: quota.Limit{Metric: quota.Requests, Window: quota.Minute, Max: 60, Resource: quota.DefaultResource}}}
		s.Plans["pro"] = quota.NewPlan(quota.Tier{Name: "pro", Limits: s.Plans["pro"].Tier.Limits[:1]}, quota.ByKeyAndResource, nil)
		s.Keys.File, _ = apikey.NewDirectory([]apikey.Record{pro}, nil)
	}
	for name, c := range map[string]struct {
		settings func(*Settings)
		before   uint32 // requests taken before
		request  uint32
		ds       []*d
		status   int
		used     string // of the requests per minute
		tokens   string // that remain
	}{
		"none said":                  {ds: []*d{key(&d{})}, used: "1"},
		"of the request":             {request: 7, ds: []*d{key(&d{})}, used: "7"},
		"of a descriptor":            {request: 7, ds: []*d{key(&d{HitsAddend: hits(3)})}, used: "3"},
		"the largest of several":     {request: 2, ds: []*d{key(&d{HitsAddend: hits(5)}), {}, {HitsAddend: hits(0)}}, used: "5"},
		"a look":                     {before: 4, ds: []*d{key(&d{HitsAddend: hits(0)})}, used: "4"},
		"a look at what is full":     {before: 100, ds: []*d{key(&d{HitsAddend: hits(0)})}, used: "100", status: 429},
		"more than is left":          {before: 98, request: 3, ds: []*d{key(&d{})}, used: "98", status: 429},
		"more than there ever is":    {request: 101, ds: []*d{key(&d{})}, used: "0", status: 413},
		"given back":                 {settings: all, before: 10, request: 4, ds: []*d{key(&d{IsNegativeHits: true})}, used: "6"},
		"more given back than used":  {settings: all, before: 2, ds: []*d{key(&d{IsNegativeHits: true, HitsAddend: hits(math.MaxUint64)})}, used: "0"},
		"a limit of its own":         {settings: all, before: 3, ds: []*d{key(&d{Limit: over})}, used: "3", status: 429},
		"the least of several":       {settings: all, before: 3, ds: []*d{key(&d{Limit: over}), {Limit: more}}, used: "3", status: 429},
		"the least is the last":      {settings: all, before: 3, ds: []*d{key(&d{Limit: more}), {Limit: over}}, used: "3", status: 429},
		"of two windows":             {settings: all, before: 3, ds: []*d{key(&d{Limit: daily}), {Limit: over}}, used: "3", status: 429},
		"its limit of each resource": {settings: byResource, before: 3, ds: []*d{key(&d{Limit: over})}, used: "3", status: 429},
		"where the key has its own":  {settings: ofKey, before: 3, ds: []*d{key(&d{Limit: over})}, used: "3", status: 429},
		"its limit is not believed":  {before: 3, ds: []*d{key(&d{Limit: over})}, used: "4"},
		"tokens":                     {settings: inTokens, request: 300, ds: []*d{key(&d{})}, used: "1", tokens: "700"},
		"tokens given back":          {settings: inTokens, ds: []*d{key(&d{HitsAddend: hits(50), IsNegativeHits: true})}, used: "0", tokens: "1000"},
		"tokens, of what was used":   {settings: inTokens, before: 2, ds: []*d{key(&d{HitsAddend: hits(50), IsNegativeHits: true})}, used: "2", tokens: "848"},
		"a look at tokens":           {settings: inTokens, ds: []*d{key(&d{HitsAddend: hits(0)})}, used: "0", tokens: "1000"},
		"tokens, but none said":      {settings: inTokens, ds: []*d{key(&d{})}, used: "1", tokens: "899"},
		"too many tokens":            {settings: inTokens, request: 1001, ds: []*d{key(&d{})}, used: "0", status: 413},
	} {
		g := newGate(t, c.settings)
		ask := func(r *rlsv3.RateLimitRequest) *rlsv3.RateLimitResponse {
			r.Domain = "tiergate"
			response, err := NewRateLimit(g).ShouldRateLimit(t.Context(), r)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			return response
		}
		for range c.before {
			ask(&rlsv3.RateLimitRequest{Descriptors: []*d{key(&d{})}})
		}
		response := ask(&rlsv3.RateLimitRequest{HitsAddend: c.request, Descriptors: c.ds})
		headers := map[string]string{StatusHeader: "429"}
		if response.GetOverallCode() == rlsv3.RateLimitResponse_OK {
			headers[StatusHeader] = "0"
		}
		for _, h := range response.GetResponseHeadersToAdd() {
			headers[h.GetKey()] = h.GetValue()
		}
		if headers[StatusHeader] != strconv.Itoa(c.status) || headers["X-RateLimit-Used"] != c.used || headers["x-ratelimit-remaining-tokens"] != c.tokens && c.tokens != "" {
			t.Errorf("%s: %v: want status %d, %s used, %s tokens left", name, headers, c.status, c.used, c.tokens)
		}
	}
}

// TestHitsOfEveryKind: hits of tokens are charged to every limit on tokens, since the call
// does not say of which kind they are, and given back to each.
func TestHitsOfEveryKind(t *testing.T) {
	t.Parallel()
	g := newGate(t, func(s *Settings) {
		s.RateLimit.HitsMetric, s.RateLimit.NegativeHits, s.IETF = quota.Tokens, true, true
		s.Plans["pro"] = quota.NewPlan(quota.Tier{Name: "pro", Limits: []quota.Limit{
			{Metric: quota.Requests, Window: quota.Minute, Max: 10},
			{Metric: quota.InputTokens, Window: quota.Minute, Max: 100},
			{Metric: quota.OutputTokens, Window: quota.Minute, Max: 80},
		}}, quota.ByKey, nil)
	})
	for i, c := range []struct {
		hits          uint64
		back          bool
		status        int
		input, output string
	}{
		{hits: 30, input: "70", output: "50"},
		{hits: 60, status: 429, input: "70", output: "50"},
		{hits: 90, status: 413, input: "70", output: "50"},
		{hits: 10, back: true, input: "80", output: "60"},
	} {
		response, err := NewRateLimit(g).ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: "tiergate", Descriptors: []*ratelimitv3.RateLimitDescriptor{{
			Entries: []*ratelimitv3.RateLimitDescriptor_Entry{entry("api_key", "sk-pro")}, HitsAddend: wrapperspb.UInt64(c.hits), IsNegativeHits: c.back,
		}}})
		if err != nil {
			t.Fatal(err)
		}
		a := answerText{headers: map[string]string{}}
		for _, h := range response.GetResponseHeadersToAdd() {
			a.add(t, h)
		}
		refused := response.GetOverallCode() == rlsv3.RateLimitResponse_OVER_LIMIT
		if refused != (c.status != 0) || (c.status == 413) != (a.headers[StatusHeader] == "413") ||
			!strings.Contains(a.headers["RateLimit"], `"input_tokens_per_minute";r=`+c.input+";") || !strings.Contains(a.headers["RateLimit"], `"output_tokens_per_minute";r=`+c.output+";") {
			t.Errorf("call %d: %v, %v", i, response.GetOverallCode(), a.headers)
		}
	}
}

// TestUnknownDescriptors are refused, or pass uncounted where that is configured.
func TestUnknownDescriptors(t *testing.T) {
	t.Parallel()
	for allow, want := range map[bool]rlsv3.RateLimitResponse_Code{false: rlsv3.RateLimitResponse_OVER_LIMIT, true: rlsv3.RateLimitResponse_OK} {
		g := newGate(t, func(s *Settings) { s.RateLimit.AllowUnknown = allow })
		for name, c := range map[string]struct {
			entries []*ratelimitv3.RateLimitDescriptor_Entry
			want    rlsv3.RateLimitResponse_Code
		}{
			"unknown":                {[]*ratelimitv3.RateLimitDescriptor_Entry{entry("generic_key", "x")}, want},
			"no name":                {[]*ratelimitv3.RateLimitDescriptor_Entry{entry("", "x")}, want},
			"a path alone":           {[]*ratelimitv3.RateLimitDescriptor_Entry{entry("path", "/v1/chat")}, rlsv3.RateLimitResponse_OVER_LIMIT},
			"a path, and an unknown": {[]*ratelimitv3.RateLimitDescriptor_Entry{entry("path", "/v1/chat"), entry("generic_key", "x")}, rlsv3.RateLimitResponse_OVER_LIMIT},
		} {
			response, err := NewRateLimit(g).ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{
				Domain: "tiergate", Descriptors: []*ratelimitv3.RateLimitDescriptor{{Entries: c.entries}},
			})
			if err != nil || response.GetOverallCode() != c.want || len(response.GetStatuses()) != 1 {
				t.Errorf("allow %t, %s: %v, %v", allow, name, response, err)
			}
		}
	}
}

// TestFirm: what a request takes is firm where no setting lets anything give it back.
func TestFirm(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*Settings)
		want   bool
	}{
		"by default":    {func(*Settings) {}, true},
		"negative hits": {func(s *Settings) { s.RateLimit.NegativeHits = true }, false},
		"refunds":       {func(s *Settings) { s.Tokens.RefundStatuses = []int{503} }, false},
		"cached":        {func(s *Settings) { s.Tokens.RefundCached = true }, false},
	} {
		g := newGate(t, c.change)
		s := g.settings.Load()
		r, _ := g.request(s, &inquiry{hits: 1}, &Verdict{Key: s.Keys.ByID("key_free"), Tier: "free", Resource: "chat"})
		if r.Firm != c.want {
			t.Errorf("%s: firm %t, want %t", name, r.Firm, c.want)
		}
	}
}
