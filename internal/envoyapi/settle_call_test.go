package envoyapi

import (
	"strings"
	"testing"

	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tiergate/tiergate/internal/quota"
)

// TestCallSettles: a call of the ratelimit filter at the end of an answer corrects the charge,
// once; what did not end well raises it only, and a listed status gives it back.
func TestCallSettles(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		input, output uint64
		code, details string
		want          string // of 1,000, of which 10 + 200 were reserved
	}{
		"less than was reserved": {10, 40, "200", viaUpstream, "950"},
		"more than was reserved": {10, 240, "200", viaUpstream, "750"},
		"broken off":             {10, 40, "200", "downstream_remote_disconnect", "790"},
		"broken off, and more":   {10, 240, "200", "downstream_remote_disconnect", "750"},
		"without details":        {10, 40, "200", "", "790"},
		"given back":             {10, 40, "503", viaUpstream, "1000"},
		"a status beside it":     {10, 40, "502", viaUpstream, "950"},
		"from a cache":           {10, 40, "200", "cache.response_from_cache_filter", "950"},
	} {
		g := newGate(t, func(s *Settings) {
			withTokens(s)
			s.Tokens.RefundStatuses, s.Tokens.RefundShare = []int{503}, 1000
		})
		ticket := admit(t, g, declaring("200"))
		descriptor := func(settle string, hits uint64) *ratelimitv3.RateLimitDescriptor {
			return &ratelimitv3.RateLimitDescriptor{HitsAddend: wrapperspb.UInt64(hits), Entries: []*ratelimitv3.RateLimitDescriptor_Entry{
				entry(reservationField, ticket), entry(settleEntry, settle), entry(codeEntry, c.code), entry(detailsEntry, c.details),
			}}
		}
		call := &rlsv3.RateLimitRequest{
			Domain: "tiergate-settle", Descriptors: []*ratelimitv3.RateLimitDescriptor{descriptor("input", c.input), descriptor("output", c.output), descriptor("done", 0)},
		}
		for range 2 {
			response, err := NewRateLimit(g).ShouldRateLimit(t.Context(), call)
			if err != nil || response.GetOverallCode() != rlsv3.RateLimitResponse_OK || len(response.GetStatuses()) != 3 {
				t.Fatalf("%s: %v, %v", name, response, err)
			}
			if have := remaining(t, g); have != c.want {
				t.Errorf("%s: %s tokens remain, want %s", name, have, c.want)
			}
		}
	}
}

// TestRefundsWithoutABody: where charges are given back, that of a request without a body is too.
func TestRefundsWithoutABody(t *testing.T) {
	t.Parallel()
	for _, refunds := range []bool{true, false} {
		g := newGate(t, func(s *Settings) {
			withTokens(s)
			if refunds {
				s.Tokens.RefundStatuses, s.Tokens.RefundShare = []int{503}, 1000
			}
		})
		_, client := accessLog(t, g)
		get := checkRequest("/v1/chat", map[string]string{"api-key": "sk-pro"})
		get.Attributes.Request.Http.Method = "GET"
		requests := func() int64 {
			d, err := g.limiter.Look(t.Context(), quota.Request{Account: "key_pro", Tier: g.settings.Load().Plans["pro"], Resource: "chat", Priority: quota.High}, noon)
			if err != nil {
				t.Fatal(err)
			}
			return d.Used
		}
		before := requests()
		ticket := admit(t, g, get)
		log(t, client, entryOf(ticket, 503, viaUpstream, nil))
		if have, want := requests()-before, map[bool]int64{true: 0, false: 1}[refunds]; have != want || (ticket != "") != refunds {
			t.Errorf("refunds %t: %d more requests are used, want %d; the ticket is %q", refunds, have, want, ticket)
		}
	}
}

// TestTicketFaults: what could be no ticket of ours is none.
func TestTicketFaults(t *testing.T) {
	t.Parallel()
	good := ticket{account: "key_a", request: "r-1", secret: "S", resource: "chat", source: "declaration", choices: 1, weight: 1, tokens: 210, output: 200}.String()
	if _, err := parseTicket(good, NewTicketKey(nil)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		field int
		texts []string
	}{
		{0, []string{"", "2", "1:1"}},
		{1, []string{"", "{key_a}", "a b"}},
		{2, []string{"{r}", "a b", "r/1"}},
		{3, []string{"", "S S", "{S}"}},
		{6, []string{"", "x", "0", "-1", "1000000001", "99999999999999999999"}},
		{7, []string{"", "x", "0", "-1", "NaN", "Inf", "1000.1"}},
		{8, []string{"", "x", "199", "2000000001"}},
		{9, []string{"", "x", "-1", "211", "1:1"}},
	} {
		for _, text := range c.texts {
			fields := strings.Split(good, ":")
			fields[c.field] = text
			if parsed, err := parseTicket(strings.Join(fields, ":"), NewTicketKey(nil)); err == nil {
				t.Errorf("field %d as %q: %+v: want an error", c.field, text, parsed)
			}
		}
	}
}
