package envoyapi

import (
	"math"
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
	number := wrapperspb.UInt64
	for name, c := range map[string]struct {
		input, output *wrapperspb.UInt64Value
		code, details string
		want          string // of 1,000, of which 10 + 200 were reserved
	}{
		"less than was reserved": {number(10), number(40), "200", viaUpstream, "950"},
		"more than was reserved": {number(10), number(240), "200", viaUpstream, "750"},
		"broken off":             {number(10), number(40), "200", "downstream_remote_disconnect", "790"},
		"broken off, and more":   {number(10), number(240), "200", "downstream_remote_disconnect", "750"},
		"without details":        {number(10), number(40), "200", "", "790"},
		"given back":             {number(10), number(40), "503", viaUpstream, "1000"},
		"a status beside it":     {number(10), number(40), "502", viaUpstream, "950"},
		"from a cache":           {number(10), number(40), "200", "cache.response_from_cache_filter", "950"},
		"no output said":         {number(10), nil, "200", viaUpstream, "790"},
		"more than can be":       {number(10), number(math.MaxUint64), "200", viaUpstream, "0"},
	} {
		g := newGate(t, func(s *Settings) {
			withTokens(s)
			s.Tokens.RefundStatuses, s.Tokens.RefundShare = []int{503}, 1000
		})
		ticket := admit(t, g, declaring("200"))
		descriptor := func(settle string, hits *wrapperspb.UInt64Value) *ratelimitv3.RateLimitDescriptor {
			return &ratelimitv3.RateLimitDescriptor{HitsAddend: hits, Entries: []*ratelimitv3.RateLimitDescriptor_Entry{
				entry(reservationField, ticket), entry(settleEntry, settle), entry(codeEntry, c.code), entry(detailsEntry, c.details),
			}}
		}
		call := &rlsv3.RateLimitRequest{
			Domain: "tiergate-settle", Descriptors: []*ratelimitv3.RateLimitDescriptor{descriptor("input", c.input), descriptor("output", c.output), descriptor("done", number(0))},
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

// TestCallGuesses: a stream that does not say what it used is charged by its length, as the
// call tells that.
func TestCallGuesses(t *testing.T) {
	t.Parallel()
	for media, want := range map[string]string{"text/event-stream": "590", "application/json": "890"} { // of 1,000
		g := newGate(t, withTokens)
		_, err := NewRateLimit(g).ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: "tiergate-settle", Descriptors: []*ratelimitv3.RateLimitDescriptor{{
			Entries: []*ratelimitv3.RateLimitDescriptor_Entry{
				entry(reservationField, admit(t, g, declaring(""))), entry(settleEntry, "done"), entry(codeEntry, "200"), entry(detailsEntry, viaUpstream),
				entry(bytesEntry, "40000"), entry(mediaEntry, media),
			},
		}}})
		if have := remaining(t, g); err != nil || have != want {
			t.Errorf("%s: %s tokens remain, want %s; %v", media, have, want, err)
		}
	}
}

// TestRefundsWithoutABody: where charges are given back, that of a request without a body is too,
// and what its answer says of usage is nothing that it used.
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
		get.Attributes.Request.Http.Id = newID()
		log(t, client, entryOf(admit(t, g, get), 200, viaUpstream, usageOf(10, 20)))
		if have := remaining(t, g); have != "1000" {
			t.Errorf("refunds %t: %s tokens remain after a GET, want 1000", refunds, have)
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
		{4, []string{strings.Repeat("r", maxTicket)}},
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
