package envoyapi

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	aiv3 "github.com/envoyproxy/go-control-plane/envoy/data/ai/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tiergate/tiergate/internal/quota"
)

// FuzzClassify looks for a path that is not in order when it is normalized, or that is
// spelled so that it counts as another resource.
func FuzzClassify(f *testing.F) {
	for _, p := range []string{
		"/v1/images/generations", "/v1/images/../chat", "/v1/chat/..;/images", "/v1/%2569mages", "/v1/chat%3f/../images", "//v1///IMAGES/?/v1/chat",
		`/v1\images`, "/v1/images%zz", "*", "http://x/v1/chat", "/v1/./images;a=b/c", "/%76%31/%69mages", "/v1/images%", "/v1/%%36%39mages",
	} {
		f.Add(p)
	}
	classifier := NewClassifier([]quota.Resource{
		{Name: "chat", PathPrefixes: []string{"/v1/chat"}}, {Name: "images", PathPrefixes: []string{"/v1/images"}}, {Name: "fine", PathPrefixes: []string{"/v1/chat/fine"}},
	})
	f.Fuzz(func(t *testing.T, p string) {
		n := normalize(p)
		if again := normalize(n); again != n {
			t.Errorf("%q is %q, and that is %q", p, n, again)
		}
		if n != "" && (n[0] != '/' || strings.Contains(n, "//") || strings.HasSuffix(n, "/") || strings.ContainsAny(n, `;?#\`)) {
			t.Errorf("%q is %q", p, n)
		}
		if slices.Contains(strings.Split(n, "/"), "..") || slices.Contains(strings.Split(n, "/"), ".") {
			t.Errorf("%q is %q", p, n)
		}
		resource := classifier.Classify("", p)
		if _, ok := classifier.names[resource]; !ok {
			t.Errorf("%q is of %q", p, resource)
		}
		if n == "" {
			return
		}
		var escaped, twice strings.Builder
		for i := range len(n) {
			fmt.Fprintf(&escaped, "%%%02X", n[i])
			fmt.Fprintf(&twice, "%%25%02x", n[i])
		}
		for _, spelling := range []string{n, n + "/", "/" + n, "/x/.." + n, n + ";a=b", n + "?/v1/images", escaped.String(), twice.String()} {
			if have := classifier.Classify("", spelling); have != resource {
				t.Errorf("%q is of %s, and %q, which is %q, of %s", p, resource, spelling, normalize(spelling), have)
			}
		}
	})
}

// FuzzBody looks for facts about a body that are out of bounds.
func FuzzBody(f *testing.F) {
	f.Add("POST", "17", "yes", "2e4", "3", "gpt-4o", 1.5)
	f.Add("POST", "9223372036854775807", "yes", "9223372036854775807", "99999999999", "m", 1e300)
	f.Add("GET", "", "", "-1", "1e999", strings.Repeat("m", 300), math.Inf(1))
	f.Add("", "+9223372036854775808", "no", "0x10", " 7 ", "\xff", math.NaN())
	f.Fuzz(func(t *testing.T, method, length, read, most, n, model string, number float64) {
		values := map[string]string{
			"read": read, "max_tokens": most, "n": n, "best_of": text(structpb.NewNumberValue(number)), "max_output_tokens": text(structpb.NewNumberValue(number)), "model": model,
		}
		b, name := readBody(method, "", length, func(name string) string { return values[name] })
		if b.Bytes < quota.Unknown || b.Declared < quota.Unknown || b.Declared > quota.MaxCost || b.Choices < 1 || b.Choices > quota.MaxCost {
			t.Errorf("%+v", b)
		}
		if len(name) > maxModel || !strings.HasPrefix(model, name) || b.Read != (read != "no") {
			t.Errorf("%+v of %q", b, name)
		}
		if w := NewModelWeights(map[string]float64{"m*": 2, "": 3}).Of(name, b.Read); w < 1 || w > 3 {
			t.Errorf("%q counts %v", name, w)
		}
	})
}

// FuzzUsage looks for usage that panics, or whose cost is out of bounds: as metadata, and
// as what Envoy's AI filter says.
func FuzzUsage(f *testing.F) {
	typed, err := proto.Marshal(&aiv3.TokenUsage{InputTokens: wrapperspb.UInt64(math.MaxUint64), ProviderTotalTokens: wrapperspb.UInt64(7)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(typed, "input", 12.5, "output", "34")
	f.Add([]byte{0xff}, "cache_read", math.Inf(-1), "total", "-1")
	f.Add([]byte{}, "cached", 1e300, "input", "9223372036854775807")
	f.Fuzz(func(t *testing.T, typed []byte, name string, value float64, other, text string) {
		e := entryOf("1:key_pro:1:S:chat:declaration:1:1:210:200", 200, viaUpstream, map[string]*structpb.Value{
			name: structpb.NewNumberValue(value), other: structpb.NewStringValue(text), "": structpb.NewListValue(nil),
		})
		e.CommonProperties.Metadata.TypedFilterMetadata = map[string]*anypb.Any{
			tokenUsageNamespace: {TypeUrl: "type.googleapis.com/envoy.data.ai.v3.TokenUsage", Value: typed},
		}
		r, ok := reported(e)
		if !ok {
			t.Fatal("the entry is taken for none of ours")
		}
		var u aiv3.TokenUsage
		for _, n := range []int64{r.usage.Input, r.usage.CachedInput, r.usage.Output, r.usage.Total} {
			if n < quota.Unknown || n > 3*quota.MaxCost { // the input and what is beside it
				t.Errorf("%+v", r.usage)
			}
		}
		all := []quota.Usage{r.usage}
		if proto.Unmarshal(typed, &u) == nil {
			all = append(all, typedUsage(&u))
		}
		for _, usage := range all {
			for _, cached := range []float64{0, 0.1, 1} {
				c := usage.Cost(quota.Weights{Model: quota.MaxModelWeight, CachedInput: cached})
				for _, n := range []int64{c.Tokens, c.InputTokens, c.OutputTokens} {
					if n < quota.Unknown || n > quota.MaxCost {
						t.Errorf("%+v costs %+v", usage, c)
					}
				}
			}
		}
	})
}

// FuzzSettlement looks for a call that settles without the ticket, or that lowers a
// charge though the answer did not end well, or leaves one out of bounds.
func FuzzSettlement(f *testing.F) {
	f.Add("1:key_pro:1:S:chat:declaration:1:1:210:200", "via_upstream", "200", "17", "output", uint64(5))
	f.Add("", "downstream_remote_disconnect", "0", "-1", "total", uint64(math.MaxUint64))
	f.Add("", "downstream_remote_disconnect", "499", "1", "total", uint64(5))
	f.Add("1:key_free:1:S:chat:history:1:1:210:200", "cache.response_from_cache_filter", "99999999999999999999", "1e18", "input", uint64(0))
	f.Fuzz(func(t *testing.T, forged, details, code, bytes, count string, hits uint64) {
		g := newGate(t, withTokens)
		service := NewRateLimit(g)
		good := admit(t, g, declaring("200"))
		used := func() int64 {
			d, err := g.limiter.Look(t.Context(), quota.Request{Account: "key_pro", Tier: g.settings.Load().Plans["pro"], Resource: "chat"}, noon)
			if err != nil {
				t.Fatal(err)
			}
			for s := range d.Limits {
				if s.Limit.Metric == quota.Tokens {
					return s.Used
				}
			}
			t.Fatal("no limit on tokens")
			return 0
		}
		call := func(ticket string) {
			d := &ratelimitv3.RateLimitDescriptor{HitsAddend: wrapperspb.UInt64(hits), Entries: []*ratelimitv3.RateLimitDescriptor_Entry{
				entry(reservationField, ticket), entry(settleEntry, count), entry(codeEntry, code), entry(detailsEntry, details), entry(bytesEntry, bytes),
			}}
			r, err := service.ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: "tiergate-settle", Descriptors: []*ratelimitv3.RateLimitDescriptor{d}})
			if err != nil || r.GetOverallCode() != rlsv3.RateLimitResponse_OK {
				t.Fatalf("%v, %v", r, err)
			}
		}
		const reserved = 210
		if forged != good {
			call(forged)
			if have := used(); have != reserved {
				t.Errorf("%q settles: %d tokens used", forged, have)
			}
		}
		call(good)
		have := used()
		if have < 0 || have > 2*quota.MaxCost {
			t.Errorf("%d tokens used", have)
		}
		if clean := details == viaUpstream || details == "cache.response_from_cache_filter"; !clean && have < reserved {
			t.Errorf("an answer that ended with %q lowers the charge to %d", details, have)
		}
		if call(good); used() != have {
			t.Errorf("a second settlement makes %d of %d", used(), have)
		}
	})
}

// FuzzHits looks for a call that counts out of bounds, or gives back where that is not
// configured.
func FuzzHits(f *testing.F) {
	f.Add(uint32(0), uint64(0), true, true, uint32(10), int32(2), true)
	f.Add(uint32(math.MaxUint32), uint64(math.MaxUint64), true, false, uint32(math.MaxUint32), int32(-7), false)
	f.Fuzz(func(t *testing.T, hits uint32, own uint64, said, negative bool, limit uint32, unit int32, tokens bool) {
		one := &ratelimitv3.RateLimitDescriptor{
			IsNegativeHits: negative, Limit: &ratelimitv3.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: limit, Unit: typev3.RateLimitUnit(unit)},
		}
		if said {
			one.HitsAddend = wrapperspb.UInt64(own)
		}
		request := &rlsv3.RateLimitRequest{HitsAddend: hits, Descriptors: []*ratelimitv3.RateLimitDescriptor{one}}
		for _, s := range []RateLimitSettings{{}, {NegativeHits: true, LimitOverride: true}} {
			if s.HitsMetric = quota.Requests; tokens {
				s.HitsMetric = quota.Tokens
			}
			q := inquiry{tokens: quota.Unknown}
			if err := count(&q, &s, request); err != nil {
				continue
			}
			if q.hits < 0 || q.hits > quota.MaxCost || q.tokens < quota.Unknown || q.tokens > quota.MaxCost || (q.credit && !s.NegativeHits) {
				t.Errorf("%v counts %+v", request, q)
			}
			for _, l := range q.limits {
				if err := l.Validate(); err != nil || !s.LimitOverride {
					t.Errorf("%v: %+v, %v", request, l, err)
				}
			}
		}
	})
}
