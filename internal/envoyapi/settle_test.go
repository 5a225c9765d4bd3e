package envoyapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	aiv3 "github.com/envoyproxy/go-control-plane/envoy/data/ai/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/store"
)

// withTokens gives the pro tier a limit of 1,000 tokens per minute, and switches
// on the headers that tell of it.
func withTokens(s *Settings) {
	tier := s.Plans["pro"].Tier
	tier.Limits = append(tier.Limits[:1:1], quota.Limit{Metric: quota.Tokens, Window: quota.Minute, Max: 1000})
	s.Plans["pro"] = quota.NewPlan(tier, quota.ByKey, []quota.Resource{{Name: "chat"}, {Name: "images"}})
	s.PerMetric = true
}

// declaring is a request whose body declares so many tokens.
func declaring(tokens string) *authv3.CheckRequest {
	r := checkRequest("/v1/chat", map[string]string{"api-key": "sk-pro", "content-length": "40"})
	r.Attributes.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{RequestNamespace: {Fields: map[string]*structpb.Value{
		"read": structpb.NewStringValue("yes"), "max_tokens": structpb.NewStringValue(tokens),
	}}}}
	return r
}

// admit has a request admitted and returns its ticket.
func admit(t *testing.T, g *Gate, r *authv3.CheckRequest) string {
	t.Helper()
	response, err := NewAuthz(g).Check(t.Context(), r)
	if err != nil || response.GetOkResponse() == nil {
		t.Fatalf("%v, %v", response, err)
	}
	return response.GetDynamicMetadata().GetFields()[reservationField].GetStringValue()
}

// remaining returns how many tokens the pro key has left.
func remaining(t *testing.T, g *Gate) string {
	t.Helper()
	r := checkRequest("/v1/chat", map[string]string{"api-key": "sk-pro"})
	r.Attributes.Request.Http.Method = "GET"
	response, err := NewAuthz(g).Check(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range response.GetOkResponse().GetResponseHeadersToAdd() {
		if o.GetHeader().GetKey() == "x-ratelimit-remaining-tokens" {
			return o.GetHeader().GetValue()
		}
	}
	t.Fatalf("no such header: %v", response)
	return ""
}

func entryOf(ticket string, status uint32, details string, usage map[string]*structpb.Value) *accesslogv3.HTTPAccessLogEntry {
	return &accesslogv3.HTTPAccessLogEntry{
		Response: &accesslogv3.HTTPResponseProperties{ResponseCode: wrapperspb.UInt32(status), ResponseCodeDetails: details},
		CommonProperties: &accesslogv3.AccessLogCommon{Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
			"envoy.filters.http.ext_authz": ticketMetadata(ticket), UsageNamespace: {Fields: usage},
		}}},
	}
}

func usageOf(input, output float64) map[string]*structpb.Value {
	return map[string]*structpb.Value{"input": structpb.NewNumberValue(input), "output": structpb.NewNumberValue(output)}
}

// accessLog serves a gate's access log service and returns it with a client.
func accessLog(t *testing.T, g *Gate) (*AccessLog, alsv3.AccessLogServiceClient) {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer(grpc.ForceServerCodec(named{}))
	service := NewAccessLog(g)
	service.Register(server)
	go func() { _ = server.Serve(listener) }()
	dial := func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }
	conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithContextDialer(dial), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
	})
	return service, alsv3.NewAccessLogServiceClient(conn)
}

func send(t *testing.T, stream alsv3.AccessLogService_StreamAccessLogsClient, entries ...*accesslogv3.HTTPAccessLogEntry) {
	t.Helper()
	err := stream.Send(&alsv3.StreamAccessLogsMessage{LogEntries: &alsv3.StreamAccessLogsMessage_HttpLogs{
		HttpLogs: &alsv3.StreamAccessLogsMessage_HTTPAccessLogEntries{LogEntry: entries},
	}})
	if err != nil && !errors.Is(err, io.EOF) { // a stream that has ended says why when it is read
		t.Fatal(err)
	}
}

// log sends entries over a stream of their own and waits until they are settled.
func log(t *testing.T, client alsv3.AccessLogServiceClient, entries ...*accesslogv3.HTTPAccessLogEntry) {
	t.Helper()
	stream, err := client.StreamAccessLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	send(t, stream, entries...)
	if _, err := stream.CloseAndRecv(); err != nil {
		t.Fatal(err)
	}
}

// TestAccessLogSettles by what an entry says, and by nothing that is no settlement.
func TestAccessLogSettles(t *testing.T) {
	t.Parallel()
	typed := func(u *aiv3.TokenUsage) *anypb.Any {
		packed, err := anypb.New(u)
		if err != nil {
			t.Fatal(err)
		}
		return packed
	}
	number := wrapperspb.UInt64
	for name, c := range map[string]struct {
		change func(*accesslogv3.HTTPAccessLogEntry)
		want   string // remaining of 1,000 after 10 + 200 were reserved
	}{
		"as it is": {func(*accesslogv3.HTTPAccessLogEntry) {}, "970"},
		"no usage": {func(e *accesslogv3.HTTPAccessLogEntry) {
			delete(e.CommonProperties.Metadata.FilterMetadata, UsageNamespace)
		}, "790"},
		"hung up": {func(e *accesslogv3.HTTPAccessLogEntry) {
			e.Response.ResponseCodeDetails = "downstream_remote_disconnect"
		}, "790"},
		"no details": {func(e *accesslogv3.HTTPAccessLogEntry) { e.Response.ResponseCodeDetails = "" }, "790"},
		"flagged": {func(e *accesslogv3.HTTPAccessLogEntry) {
			e.CommonProperties.ResponseFlags = &accesslogv3.ResponseFlags{UpstreamRemoteReset: true}
		}, "790"},
		"no flag is set": {func(e *accesslogv3.HTTPAccessLogEntry) {
			e.CommonProperties.ResponseFlags = &accesslogv3.ResponseFlags{}
		}, "970"},
		"hung up, used more": {func(e *accesslogv3.HTTPAccessLogEntry) {
			e.Response.ResponseCodeDetails = "downstream_remote_disconnect"
			e.CommonProperties.Metadata.FilterMetadata[UsageNamespace].Fields = usageOf(10, 290)
		}, "700"},
		"usage as text": {func(e *accesslogv3.HTTPAccessLogEntry) {
			e.CommonProperties.Metadata.FilterMetadata[UsageNamespace].Fields = map[string]*structpb.Value{"input": structpb.NewStringValue("10"), "total": structpb.NewStringValue("31")}
		}, "969"},
		"nonsense as usage": {func(e *accesslogv3.HTTPAccessLogEntry) {
			e.CommonProperties.Metadata.FilterMetadata[UsageNamespace].Fields = map[string]*structpb.Value{"input": structpb.NewNumberValue(math.NaN()), "output": structpb.NewNumberValue(-5), "total": structpb.NewBoolValue(true)}
		}, "790"},
		"Anthropic's cache": {func(e *accesslogv3.HTTPAccessLogEntry) {
			f := usageOf(10, 20)
			f["cache_read"], f["cache_write"] = structpb.NewNumberValue(100), structpb.NewNumberValue(7)
			e.CommonProperties.Metadata.FilterMetadata[UsageNamespace].Fields = f
		}, "863"},
		"typed": {func(e *accesslogv3.HTTPAccessLogEntry) {
			delete(e.CommonProperties.Metadata.FilterMetadata, UsageNamespace)
			e.CommonProperties.Metadata.TypedFilterMetadata = map[string]*anypb.Any{tokenUsageNamespace: typed(&aiv3.TokenUsage{InputTokens: number(11), OutputTokens: number(22)})}
		}, "967"},
		"typed, and a total with more than both": {func(e *accesslogv3.HTTPAccessLogEntry) {
			delete(e.CommonProperties.Metadata.FilterMetadata, UsageNamespace)
			e.CommonProperties.Metadata.TypedFilterMetadata = map[string]*anypb.Any{tokenUsageNamespace: typed(&aiv3.TokenUsage{
				InputTokens: number(11), OutputTokens: number(22), TotalTokens: number(33), ProviderTotalTokens: number(40),
			})}
		}, "960"},
		"typed, and not all could be read": {func(e *accesslogv3.HTTPAccessLogEntry) {
			delete(e.CommonProperties.Metadata.FilterMetadata, UsageNamespace)
			e.CommonProperties.Metadata.TypedFilterMetadata = map[string]*anypb.Any{tokenUsageNamespace: typed(&aiv3.TokenUsage{
				InputTokens: number(11), OutputTokens: number(22), ExtractionStatus: aiv3.TokenUsage_PARTIAL,
			})}
		}, "790"},
		"typed, not all could be read and it is more": {func(e *accesslogv3.HTTPAccessLogEntry) {
			delete(e.CommonProperties.Metadata.FilterMetadata, UsageNamespace)
			e.CommonProperties.Metadata.TypedFilterMetadata = map[string]*anypb.Any{tokenUsageNamespace: typed(&aiv3.TokenUsage{
				InputTokens: number(10), OutputTokens: number(290), ExtractionStatus: aiv3.TokenUsage_PARTIAL,
			})}
		}, "700"},
		"typed, the total alone": {func(e *accesslogv3.HTTPAccessLogEntry) {
			delete(e.CommonProperties.Metadata.FilterMetadata, UsageNamespace)
			e.CommonProperties.Metadata.TypedFilterMetadata = map[string]*anypb.Any{tokenUsageNamespace: typed(&aiv3.TokenUsage{ProviderTotalTokens: number(math.MaxUint64)})}
		}, "0"},
		"of the other chain": {func(e *accesslogv3.HTTPAccessLogEntry) {
			m := e.GetCommonProperties().GetMetadata().GetFilterMetadata()
			m["envoy.filters.http.ratelimit"] = m["envoy.filters.http.ext_authz"]
			delete(m, "envoy.filters.http.ext_authz")
		}, "970"},
		"no ticket":                   {func(e *accesslogv3.HTTPAccessLogEntry) { e.CommonProperties.Metadata = nil }, "790"},
		"nothing at all":              {func(e *accesslogv3.HTTPAccessLogEntry) { e.Response, e.CommonProperties = nil, nil }, "790"},
		"a forged secret":             {func(e *accesslogv3.HTTPAccessLogEntry) { forge(e, 3, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") }, "790"},
		"another account":             {func(e *accesslogv3.HTTPAccessLogEntry) { forge(e, 1, "key_free") }, "790"},
		"another request":             {func(e *accesslogv3.HTTPAccessLogEntry) { forge(e, 2, "1") }, "790"},
		"a strange account":           {func(e *accesslogv3.HTTPAccessLogEntry) { forge(e, 1, "a}:counts") }, "790"},
		"a resource that was removed": {func(e *accesslogv3.HTTPAccessLogEntry) { forge(e, 4, "video") }, "970"},
	} {
		g := newGate(t, withTokens)
		_, client := accessLog(t, g)
		e := entryOf(admit(t, g, declaring("200")), 200, viaUpstream, usageOf(10, 20))
		if have := remaining(t, g); have != "790" {
			t.Fatalf("%s: %s remain after the reservation, want 790", name, have)
		}
		c.change(e)
		log(t, client, e, e, e)
		if have := remaining(t, g); have != c.want {
			t.Errorf("%s: %s tokens remain, want %s", name, have, c.want)
		}
	}
}

// forge replaces a field of an entry's ticket.
func forge(e *accesslogv3.HTTPAccessLogEntry, field int, value string) {
	v := e.GetCommonProperties().GetMetadata().GetFilterMetadata()["envoy.filters.http.ext_authz"].GetFields()
	parts := strings.Split(v[reservationField].GetStringValue(), ":")
	parts[field] = value
	v[reservationField] = structpb.NewStringValue(strings.Join(parts, ":"))
}

// TestWeights: models and cached prompts count what is configured, at both steps.
func TestWeights(t *testing.T) {
	t.Parallel()
	g := newGate(t, func(s *Settings) {
		withTokens(s)
		s.Tokens.Models, s.Tokens.CachedInput = NewModelWeights(map[string]float64{"Big*": 2, "big-mini": 0.5}), 0.1
	})
	_, client := accessLog(t, g)
	r := declaring("200")
	r.Attributes.MetadataContext.FilterMetadata[RequestNamespace].Fields["model"] = structpb.NewStringValue("BIG-4.1")
	ticket := admit(t, g, r)
	if have := remaining(t, g); have != "580" {
		t.Errorf("%s remain after the reservation, want 580", have)
	}
	usage := usageOf(100, 20)
	usage["cached"] = structpb.NewNumberValue(90)
	log(t, client, entryOf(ticket, 200, viaUpstream, usage))
	if have := remaining(t, g); have != "922" { // 2 · (10 + 9 + 20)
		t.Errorf("%s remain, want 922", have)
	}
	w := NewModelWeights(map[string]float64{"Big*": 2, "big-mini": 0.5, "big-m*": 3})
	for model, want := range map[string]float64{"": 1, "small": 1, "big": 2, "big-mini": 0.5, "big-mini-2": 3, "BIG-M": 3, "a big": 1} {
		if have := w.Of(model, true); have != want {
			t.Errorf("%q: %v, want %v", model, have, want)
		}
	}
}

// TestRefunds give back the charge of listed statuses, unless the client broke off.
func TestRefunds(t *testing.T) {
	t.Parallel()
	g := newGate(t, func(s *Settings) {
		withTokens(s)
		s.Tokens.RefundStatuses, s.Tokens.RefundShare, s.Tokens.RefundCached = []int{500, 503}, 300, true
	})
	_, client := accessLog(t, g)
	settle := func(status uint32, details string, want string) {
		t.Helper()
		log(t, client, entryOf(admit(t, g, declaring("90")), status, details, usageOf(10, 90)))
		if have := remaining(t, g); have != want {
			t.Errorf("%d %s: %s tokens remain, want %s", status, details, have, want)
		}
	}
	settle(200, viaUpstream, "900")
	settle(500, viaUpstream, "900")
	settle(503, "no_healthy_upstream", "900")
	settle(500, "downstream_remote_disconnect", "800")
	settle(500, "", "700")
	settle(502, viaUpstream, "600")
	cached := entryOf(admit(t, g, declaring("90")), 200, "cache.response_from_cache_filter", usageOf(10, 90))
	cached.CommonProperties.ResponseFlags = &accesslogv3.ResponseFlags{ResponseFromCacheFilter: true}
	log(t, client, cached)
	settle(500, viaUpstream, "500") // three refunds of 100 are the share
}

// TestRefundsOfRequests: a tier without a limit on tokens has its requests given back, though nothing
// else is to be settled of it.
func TestRefundsOfRequests(t *testing.T) {
	t.Parallel()
	g := newGate(t, func(s *Settings) {
		s.Tokens.SettleByRateLimit, s.Tokens.RefundStatuses, s.Tokens.RefundShare = false, []int{503}, 1000
	})
	_, client := accessLog(t, g)
	log(t, client, entryOf(admit(t, g, declaring("90")), 503, viaUpstream, nil))
	wantHeaders(t, check(t, g, "/v1/chat", map[string]string{"api-key": "sk-pro"}), map[string]string{"X-RateLimit-Used": "1"})
}

// TestAccessLogDrains: a stream that Envoy keeps open ends when the service drains,
// and what had arrived is settled.
func TestAccessLogDrains(t *testing.T) {
	t.Parallel()
	g := newGate(t, withTokens)
	service, client := accessLog(t, g)
	stream, err := client.StreamAccessLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		send(t, stream, entryOf(admit(t, g, declaring("200")), 200, viaUpstream, usageOf(10, 20)))
	}
	service.Drain()
	service.Drain() // twice is no harm
	if err := stream.RecvMsg(&alsv3.StreamAccessLogsResponse{}); err != nil {
		t.Errorf("the stream ended with %v", err)
	}
	if have := remaining(t, g); have != "880" {
		t.Errorf("%s tokens remain, want 880", have)
	}
}

// TestAccessLogDrainsUnderLoad: entries that go on coming do not keep the service
// from its end.
func TestAccessLogDrainsUnderLoad(t *testing.T) {
	t.Parallel()
	service, client := accessLog(t, newGate(t, withTokens))
	stream, err := client.StreamAccessLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	began, ended := time.Now(), make(chan struct{})
	service.Drain()
	go func() {
		_ = stream.RecvMsg(&alsv3.StreamAccessLogsResponse{})
		close(ended)
	}()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			// It is less where nothing could be sent for a while: then the service is quiet.
			if took := time.Since(began); took > 5*drainTime {
				t.Errorf("it took %s to drain, want %s", took, drainTime)
			}
			return
		case <-tick.C:
			_ = stream.Send(&alsv3.StreamAccessLogsMessage{}) // fails once the stream has ended
		}
	}
}

// TestSwitchedOff: a stream that was open goes on settling nothing when a reload
// says so.
func TestSwitchedOff(t *testing.T) {
	t.Parallel()
	g := newGate(t, withTokens)
	_, client := accessLog(t, g)
	stream, err := client.StreamAccessLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ticket := admit(t, g, declaring("200"))
	g.Use(func() *Settings { s := *g.settings.Load(); s.Tokens.SettleByAccessLog = false; return &s }())
	send(t, stream, entryOf(ticket, 200, viaUpstream, usageOf(10, 20)))
	if err := stream.RecvMsg(&alsv3.StreamAccessLogsResponse{}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("the stream ended with %v", err)
	}
	if have := remaining(t, g); have != "790" {
		t.Errorf("%s tokens remain, want 790", have)
	}
}

// TestSettlesOnlyWhereConfigured: neither way is open by itself.
func TestSettlesOnlyWhereConfigured(t *testing.T) {
	t.Parallel()
	g := newGate(t, func(s *Settings) {
		withTokens(s)
		s.Tokens.SettleByAccessLog, s.Tokens.SettleByRateLimit = false, false
	})
	if ticket := admit(t, g, declaring("200")); ticket != "" {
		t.Errorf("a ticket where nothing settles: %s", ticket)
	}
	_, client := accessLog(t, g)
	stream, err := client.StreamAccessLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.CloseAndRecv(); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("access log: %v", err)
	}
	if _, err := NewRateLimit(g).ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: "tiergate-settle"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("settlement by call: %v", err)
	}
}

// TestRepeatedCheck is answered as the first, whoever's header says what, and a
// request of another key by the same ID is another request.
func TestRepeatedCheck(t *testing.T) {
	t.Parallel()
	g := newGate(t, withTokens)
	r := declaring("200")
	first := admit(t, g, r)
	for range 3 {
		if again := admit(t, g, r); again != first {
			t.Errorf("the ticket of a repeat is %s, want %s", again, first)
		}
	}
	if have := remaining(t, g); have != "790" {
		t.Errorf("%s tokens remain, want 790", have)
	}
	r.Attributes.Request.Http.Headers["api-key"] = "sk-chat" // also of tier pro
	if other := admit(t, g, r); other == first {
		t.Error("two keys share a reservation")
	}
	r = declaring("200")
	r.Attributes.Request.Http.Headers["x-request-id"] = "the same"
	for range 2 {
		r.Attributes.Request.Http.Id = newID()
		admit(t, g, r)
	}
	if have := remaining(t, g); have != "370" {
		t.Errorf("%s tokens remain, want 370: x-request-id identifies nothing", have)
	}
	for _, id := range []string{"", "{a}:counts", strings.Repeat("9", 1000), "\xff\n"} {
		if name := requestID(id); (id != "" && !plainID(name)) || name != requestID(id) {
			t.Errorf("%.20q becomes %q", id, name)
		}
	}
}

// TestHistory: where nothing is declared, the reservation follows what was used.
func TestHistory(t *testing.T) {
	t.Parallel()
	g := newGate(t, withTokens)
	_, client := accessLog(t, g)
	reserved := func() string {
		t.Helper()
		before, _ := strconv.Atoi(remaining(t, g))
		r := declaring("")
		ticket := admit(t, g, r)
		after, _ := strconv.Atoi(remaining(t, g))
		log(t, client, entryOf(ticket, 200, viaUpstream, usageOf(10, 20)))
		return strconv.Itoa(before - after)
	}
	for range 5 {
		if have := reserved(); have != "110" { // 10 of the prompt and the resource's 100
			t.Errorf("without a history %s are reserved, want 110", have)
		}
	}
	if have := reserved(); have != "30" {
		t.Errorf("after five answers of 20 %s are reserved, want 30", have)
	}
}

// TestResourcesWithoutTokens cost none, however many answers say nothing of tokens.
func TestResourcesWithoutTokens(t *testing.T) {
	t.Parallel()
	g := newGate(t, func(s *Settings) {
		withTokens(s)
		s.Tokens.Rules = map[string]quota.TokenRules{"chat": {}}
	})
	_, client := accessLog(t, g)
	for range 10 {
		log(t, client, entryOf(admit(t, g, declaring("")), 200, viaUpstream, nil))
	}
	if have := remaining(t, g); have != "1000" {
		t.Errorf("%s tokens remain, want 1000", have)
	}
}

// FuzzTicket looks for a text that panics, or that is taken for a ticket and is
// none.
func FuzzTicket(f *testing.F) {
	f.Add("1:key_a:17:SECRET:chat:declaration:1:1:210:200")
	f.Add("1:a}:r:s:chat::1:NaN:-1:0")
	f.Fuzz(func(t *testing.T, text string) {
		parsed, err := parseTicket(text, NewTicketKey(nil))
		if err != nil {
			if len(text) > 20 && strings.Contains(err.Error(), text) {
				t.Errorf("the error repeats the ticket: %v", err)
			}
			return
		}
		if again, err := parseTicket(parsed.String(), NewTicketKey(nil)); err != nil || again != parsed || strings.ContainsAny(parsed.account+parsed.request, "{}: ") {
			t.Errorf("%q reads as %+v, and that as %+v, %v", text, parsed, again, err)
		}
	})
}

// FuzzAccessLog looks for an entry that panics, or credits somebody without a
// ticket.
func FuzzAccessLog(f *testing.F) {
	f.Add("1:key_pro:1:S:chat:declaration:1:1:210:200", "via_upstream", "input", 1.0, uint32(200))
	f.Fuzz(func(t *testing.T, ticket, details, name string, value float64, code uint32) {
		g := newGate(t, withTokens)
		admit(t, g, declaring("200"))
		report, ok := reported(entryOf(ticket, code, details, map[string]*structpb.Value{name: structpb.NewNumberValue(value)}))
		if ok {
			if err := g.settle(t.Context(), g.settings.Load(), &report); err != nil {
				t.Fatal(err)
			}
		}
		if have := remaining(t, g); have != "790" {
			t.Errorf("%s tokens remain, want 790", have)
		}
	})
}

// TestStrangers: who has no key shares the room in which settlements wait, unless Envoy may
// name IDs that TierGate knows nothing of, or those of the store are yet to be read.
func TestStrangers(t *testing.T) {
	t.Parallel()
	s := newGate(t, nil).settings.Load()
	if s.stranger("key_pro") || !s.stranger("key_nobody") {
		t.Error("want key_nobody to be one, and key_pro not")
	}
	for name, change := range map[string]func(*Settings){
		"descriptor": func(s *Settings) { s.RateLimit.Entries.Tier = "tier" },
		"metadata":   func(s *Settings) { s.Identity.Tier = MetadataPath{Namespace: "jwt", Fields: []string{"tier"}} },
		"not read":   func(s *Settings) { s.Keys.Stored = apikey.NewStored(nil) },
	} {
		changed := *s
		if change(&changed); changed.stranger("key_nobody") {
			t.Errorf("%s: it may be of a key", name)
		}
	}
}

// withoutRedis is a gate whose Redis is away.
func withoutRedis(t *testing.T, change func(*Settings)) (*Gate, *store.Fallback) {
	t.Helper()
	away := store.NewRedis(store.RedisOptions{Address: "127.0.0.1:1", KeyPrefix: "test", Timeout: time.Second, PoolSize: 1})
	t.Cleanup(func() { away.Close() })
	began := time.Now()
	counts := store.NewFallback(away, store.FallbackOptions{
		Instance: "one", MaxAccounts: 100, MaxQueued: 32, AssumedInstances: 1,
		Now: time.Now, Elapsed: func() time.Duration { return time.Since(began) },
	})
	g := newGate(t, change)
	g.limiter = quota.NewLimiter(counts)
	return g, counts
}

// TestForgedSettlementsTeachNothing: as long as nobody can verify them, estimates stay.
func TestForgedSettlementsTeachNothing(t *testing.T) {
	t.Parallel()
	g, _ := withoutRedis(t, withTokens)
	estimate := func() int64 {
		e := g.Explain(t.Context(), Question{KeyID: "key_pro", Method: "POST", Path: "/v1/chat/completions", ContentLength: "400", Body: map[string]string{"read": "yes"}})
		return e.Output
	}
	before := estimate()
	for n := range 8 {
		a := answered{ticket: fmt.Sprintf("1:key_pro:r%d:forged:chat:default:1:1:210:200", n), by: byAccessLog, status: 200, details: viaUpstream, usage: quota.NoUsage()}
		a.usage.Output = 1_000_000
		if err := g.settle(t.Context(), g.settings.Load(), &a); err != nil {
			t.Fatal(err)
		}
	}
	if after := estimate(); before == 0 || after != before {
		t.Errorf("%d tokens are reserved for an answer: want %d", after, before)
	}
}

// TestSettlementsForNobody leave room for those of keys while Redis is away.
func TestSettlementsForNobody(t *testing.T) {
	t.Parallel()
	g, counts := withoutRedis(t, nil)
	var outcome error
	for _, c := range []struct {
		ticket string
		want   int
	}{{"1:key_nobody%d:r:s:chat:default:1:1:210:200", 16}, {"1:key_pro:r%d:s:chat:default:1:1:210:200", 24}} {
		for n := range 32 {
			a := answered{ticket: fmt.Sprintf(c.ticket, n), by: byRateLimit, usage: quota.NoUsage()}
			outcome = g.settle(t.Context(), g.settings.Load(), &a) // what finds no room is an error
		}
		if n := counts.State().Waiting; n != c.want {
			t.Errorf("%d settlements wait after those of %s: want %d", n, c.ticket, c.want)
		}
	}
	if outcome == nil {
		t.Fatal("every settlement found room")
	}
	notes := &notebook{}
	g.observer = notes
	ticket := "1:key_pro:r99:s:chat:default:1:1:210:200"
	_, err := NewRateLimit(g).ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: "tiergate-settle", Descriptors: []*ratelimitv3.RateLimitDescriptor{
		{Entries: []*ratelimitv3.RateLimitDescriptor_Entry{entry(reservationField, ticket)}},
	}})
	if status.Code(err) != codes.Unavailable { // so Envoy tries again
		t.Errorf("a call that finds no room: %v", err)
	}
	_, client := accessLog(t, g)
	log(t, client, entryOf(ticket, 200, viaUpstream, nil))
	if want := []string{StoreFailed, Lost}; !slices.Equal(notes.lines, want) {
		t.Errorf("%q, want %q", notes.lines, want)
	}
}

// TestUseOfWhatWaits: the tokens of a settlement that waits for Redis are counted at once, and where
// there are two of each answer, of the one that Redis settles.
func TestUseOfWhatWaits(t *testing.T) {
	t.Parallel()
	const used = "key_pro chat 7 + 30"
	for twice, want := range map[bool][]string{false: {"queued", used}, true: {"queued"}} {
		g, _ := withoutRedis(t, func(s *Settings) { s.Tokens.SettleByRateLimit = twice })
		notes := &notebook{}
		g.observer = notes
		a := answered{ticket: "1:key_pro:r:s:chat:default:1:1:210:200", by: byAccessLog, status: 200, details: viaUpstream, usage: quota.Usage{Input: 7, Output: 30, Total: 37}}
		if err := g.settle(t.Context(), g.settings.Load(), &a); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(notes.lines, want) {
			t.Errorf("settled twice %t: %q, want %q", twice, notes.lines, want)
		}
		notes.lines = nil
		for _, outcome := range []quota.Outcome{quota.Duplicate, quota.NotFound, quota.Settled} {
			g.once(Use{Account: "key_pro", Resource: "chat", Input: 7, Output: 30})(outcome)
		}
		if !slices.Equal(notes.lines, []string{used}) {
			t.Errorf("one of three is settled: %q", notes.lines)
		}
	}
}
