package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tiergate/tiergate/internal/devstack"
)

// An intruder reaches TierGate's port for Envoy.
type intruder struct {
	authz authv3.AuthorizationClient
	rls   rlsv3.RateLimitServiceClient
	log   alsv3.AccessLogServiceClient
}

func intrude(t *testing.T, s *devstack.Stack) intruder {
	t.Helper()
	conn := dial(t, s)
	return intruder{authv3.NewAuthorizationClient(conn), rlsv3.NewRateLimitServiceClient(conn), alsv3.NewAccessLogServiceClient(conn)}
}

// admitted has a request of the pro key admitted that declares 1,000 tokens, as Envoy
// would, and returns its ticket.
func (i intruder) admitted(t *testing.T) string {
	t.Helper()
	r, err := i.authz.Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Id: "request-1", Method: http.MethodPost, Path: "/v1/chat/completions", Headers: map[string]string{"authorization": "Bearer sk-demo-pro", "content-length": "40"},
		}},
		MetadataContext: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"tiergate.request": {Fields: map[string]*structpb.Value{
			"read": structpb.NewStringValue("yes"), "max_tokens": structpb.NewStringValue("1000"),
		}}}},
	}})
	if err != nil || ticketOf(r) == "" {
		t.Fatalf("%v, %v", r, err)
	}
	return ticketOf(r)
}

// settle says by a call that nothing was used.
func (i intruder) settle(t *testing.T, domain, ticket string) error {
	t.Helper()
	return i.call(t, domain, ticket, 0)
}

// call says by a call that so many tokens were used for the prompt, and as many for the answer.
func (i intruder) call(t *testing.T, domain, ticket string, tokens uint64) error {
	t.Helper()
	one := func(name string) *ratelimitv3.RateLimitDescriptor {
		return &ratelimitv3.RateLimitDescriptor{HitsAddend: wrapperspb.UInt64(tokens), Entries: []*ratelimitv3.RateLimitDescriptor_Entry{
			{Key: "reservation", Value: ticket}, {Key: "settle", Value: name}, {Key: "details", Value: "via_upstream"}, {Key: "code", Value: "200"},
		}}
	}
	_, err := i.rls.ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: domain, Descriptors: []*ratelimitv3.RateLimitDescriptor{one("done"), one("input"), one("output")}})
	return err
}

// report says the same by access logs.
func (i intruder) report(t *testing.T, tickets ...string) {
	t.Helper()
	stream, err := i.log.StreamAccessLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var entries []*accesslogv3.HTTPAccessLogEntry
	for _, ticket := range tickets {
		entries = append(entries, &accesslogv3.HTTPAccessLogEntry{
			Response: &accesslogv3.HTTPResponseProperties{ResponseCode: wrapperspb.UInt32(200), ResponseCodeDetails: "via_upstream"},
			CommonProperties: &accesslogv3.AccessLogCommon{Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
				"envoy.filters.http.ext_authz": {Fields: map[string]*structpb.Value{"reservation": structpb.NewStringValue(ticket)}},
				"tiergate.usage":               {Fields: map[string]*structpb.Value{"input": structpb.NewNumberValue(0), "output": structpb.NewNumberValue(0)}},
			}}},
		})
	}
	message := &alsv3.StreamAccessLogsMessage{LogEntries: &alsv3.StreamAccessLogsMessage_HttpLogs{
		HttpLogs: &alsv3.StreamAccessLogsMessage_HTTPAccessLogEntries{LogEntry: entries},
	}}
	if err := stream.Send(message); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.CloseAndRecv(); err != nil { // it answers when all is settled
		t.Fatal(err)
	}
}

// TestSettlementForgery: who reaches the port for Envoy, and has not seen a ticket, gives
// nothing back to anybody; and who has seen one can use it once.
func TestSettlementForgery(t *testing.T) {
	t.Parallel()
	for _, store := range []string{"memory", "redis"} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			s := upTokens(t, devstack.Options{Store: store, Sets: []string{"tokens.settle_by=[access_log, ratelimit]"}})
			freshMinute(t, 20*time.Second)
			i := intrude(t, s)
			ticket := i.admitted(t)
			const reserved = 1010
			fields := strings.Split(ticket, ":")
			with := func(n int, value string) string {
				changed := append([]string{}, fields...)
				changed[n] = value
				return strings.Join(changed, ":")
			}
			forged := []string{
				"", "1", strings.Repeat("1:", 5000), with(0, "2"), with(1, "key_demo_free"), with(1, "key_demo_enterprise"), with(1, "{key_demo_pro}"), with(1, "*"), with(2, "request-2"), with(2, "*"),
				with(2, ""), with(3, ""), with(3, fields[3][1:]), with(3, strings.ToLower(fields[3])), with(3, "*"), with(7, "NaN"), with(7, "-1"), with(8, "-1000"), with(9, "99999999999999999999"), ticket + ":", ticket + " ",
			}
			for _, f := range forged {
				if err := i.settle(t, "tiergate-settle", f); err != nil {
					t.Errorf("%.60q: %v", f, err)
				}
			}
			i.report(t, forged...)
			settlements := func(result string) float64 { return metric(t, s, "tiergate_settlements_total", `result="`+result+`"`) }
			if have := tokensUsed(t, s, "sk-demo-pro"); have != reserved || settlements("settled")+settlements("duplicate")+settlements("unreserved") != 0 {
				t.Errorf("forged settlements: %d tokens used, want %d; %v settled", have, reserved, settlements("settled"))
			}
			for range 3 {
				if err := i.settle(t, "tiergate-settle", ticket); err != nil {
					t.Error(err)
				}
			}
			i.report(t, ticket, ticket)
			if have := tokensUsed(t, s, "sk-demo-pro"); have != 0 || settlements("settled") != 1 || settlements("duplicate") != 4 {
				t.Errorf("one ticket five times: %d tokens used, %v settled, %v duplicates", have, settlements("settled"), settlements("duplicate"))
			}
		})
	}
}

// TestIntruder: as shipped, who reaches the port for Envoy is nobody without a key, gives
// nothing back, and settles by no call.
func TestIntruder(t *testing.T) {
	t.Parallel()
	s := upTokens(t, devstack.Options{})
	freshMinute(t, 20*time.Second)
	i := intrude(t, s)
	if err := i.settle(t, "tiergate-settle", i.admitted(t)); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a settlement by a call: %v", err)
	}
	ask := func(change func(*ratelimitv3.RateLimitDescriptor), entries ...string) (*rlsv3.RateLimitResponse, error) {
		d := &ratelimitv3.RateLimitDescriptor{}
		for n := 0; n < len(entries); n += 2 {
			d.Entries = append(d.Entries, &ratelimitv3.RateLimitDescriptor_Entry{Key: entries[n], Value: entries[n+1]})
		}
		if change != nil {
			change(d)
		}
		return i.rls.ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: "tiergate", Descriptors: []*ratelimitv3.RateLimitDescriptor{d}})
	}
	for _, entries := range [][]string{
		{}, {"key_id", "key_demo_enterprise"}, {"key_id", "key_demo_enterprise", "tier", "enterprise"}, {"", "sk-demo-pro"}, {"api_key", "key_demo_pro"}, {"remote_address", "127.0.0.1"},
	} {
		if r, err := ask(nil, entries...); err != nil || r.GetOverallCode() != rlsv3.RateLimitResponse_OVER_LIMIT || !strings.Contains(string(r.GetRawBody()), "authentication_error") {
			t.Errorf("%q: %v, %v", entries, r, err)
		}
	}
	if r, err := ask(func(d *ratelimitv3.RateLimitDescriptor) { d.IsNegativeHits = true }, "api_key", "sk-demo-pro"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("negative hits: %v, %v", r, err)
	}
	r, err := ask(func(d *ratelimitv3.RateLimitDescriptor) {
		d.Limit = &ratelimitv3.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: 1_000_000, Unit: 2}
	}, "api_key", "sk-demo-free")
	if err != nil || r.GetStatuses()[0].GetCurrentLimit().GetRequestsPerUnit() != 10 {
		t.Errorf("a limit of the caller's: %v, %v", r, err)
	}
}

// TestTicketsAreNotTold: what settles a request is seen by neither its client nor the
// upstream.
func TestTicketsAreNotTold(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		s := upTokens(t, devstack.Options{Chain: chain})
		for _, h := range []http.Header{{"X-Mock-Echo": {"1"}}, {"X-Mock-Status": {"500"}}, {"X-Mock-Usage": {"none"}}} {
			h.Set("Reservation", "1:key_demo_pro:r:s:chat:declaration:1:1:210:200")
			r := do(t, s, call{key: "sk-demo-pro", header: h, body: `{"max_tokens": 1000, "reservation": "x"}`})
			seen := strings.ReplaceAll(fmt.Sprint(r.Header, r.body), h.Get("Reservation"), "")
			if strings.Contains(seen, "1:key_demo_pro:") || strings.Contains(seen, ":declaration:") {
				t.Errorf("a ticket is told: %s", seen)
			}
		}
	})
}

// TestUsageOutOfBounds: an upstream that reports nonsense lowers no charge below nothing,
// and raises it no further than the largest there is.
func TestUsageOutOfBounds(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		s := upTokens(t, devstack.Options{Chain: chain})
		freshMinute(t, 20*time.Second)
		const body, reserved = `{"max_tokens": 1000}`, 1005
		settled := func() float64 { return metric(t, s, "tiergate_settlements_total", `result="settled"`) }
		for n, usage := range []string{"-5,-7", "-9000000000000000000,-1"} {
			r := do(t, s, call{key: "sk-demo-pro", body: body, header: http.Header{"X-Mock-Usage": {usage}}})
			eventually(t, "it is settled", func() bool { return settled() == float64(n+1) })
			if have := tokensUsed(t, s, "sk-demo-pro"); have != (n+1)*reserved {
				t.Errorf("%s: %s: %d tokens used, want %d", usage, r.Status, have, (n+1)*reserved)
			}
		}
		do(t, s, call{key: "sk-demo-pro", body: body, header: http.Header{"X-Mock-Usage": {"9000000000000000000,9000000000000000000"}}})
		eventually(t, "it is settled", func() bool { return settled() == 3 })
		// Envoy's AI filter takes such numbers for none, and the reservation stands.
		want := map[string]int{"ai-protocol": 3 * reserved}[chain]
		if want == 0 {
			want = 1_000_000 // all of the limit; the count itself stops at 1e9 a charge
		}
		if have := tokensUsed(t, s, "sk-demo-pro"); have != want {
			t.Errorf("beyond every number: %d tokens used, want %d", have, want)
		}
		r := do(t, s, call{method: http.MethodGet, path: "/v1/limits", key: "sk-demo-pro"})
		if strings.Contains(r.body, `"used":-`) || strings.Contains(r.body, `"remaining":-`) {
			t.Errorf("%s", r.body)
		}
	})
}
