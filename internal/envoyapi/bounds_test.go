package envoyapi

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TestDescriptorsAreBounded: a call with as many as may be is decided, one with more is
// refused, and so are entries; settlements are no exception.
func TestDescriptorsAreBounded(t *testing.T) {
	t.Parallel()
	g := newGate(t, func(s *Settings) { s.RateLimit.MaxDescriptors = 3 })
	call := func(domain string, entries ...int) error {
		r := &rlsv3.RateLimitRequest{Domain: domain}
		for _, n := range entries {
			d := &ratelimitv3.RateLimitDescriptor{}
			for range n {
				d.Entries = append(d.Entries, entry("api_key", "sk-pro"))
			}
			r.Descriptors = append(r.Descriptors, d)
		}
		_, err := NewRateLimit(g).ShouldRateLimit(t.Context(), r)
		return err
	}
	for _, domain := range []string{"tiergate", "tiergate-settle"} {
		for _, most := range [][]int{{1, 1, 1}, {12}, {0, 0, 12}} {
			if err := call(domain, most...); err != nil {
				t.Errorf("%s %v: %v", domain, most, err)
			}
		}
		for text, more := range map[string][]int{
			"the call has 4 descriptors: want at most 3, as in ratelimit.max_descriptors":                            {1, 0, 0, 0},
			"the descriptors of the call have 13 entries: want at most 12, four times ratelimit.max_descriptors":     {1, 12},
			"the descriptors of the call have 100000 entries: want at most 12, four times ratelimit.max_descriptors": {100_000},
		} {
			err := call(domain, more...)
			if status.Code(err) != codes.InvalidArgument || status.Convert(err).Message() != text {
				t.Errorf("%s %v: %v", domain, more, err)
			}
		}
	}
}

// TestFieldsAreBounded: a message that is left to the protobuf types takes fifty times its bytes there
// where its fields are empty. One with more fields than Envoy ever sends is refused before.
func TestFieldsAreBounded(t *testing.T) {
	t.Parallel()
	g := newGate(t, func(s *Settings) { s.Identity.KeyID = MetadataPath{"jwt", []string{"sub"}} })
	asks := func(ask func(context.Context, *message) (any, error)) func(string) error {
		return func(text string) error {
			_, err := ask(t.Context(), &message{text})
			return err
		}
	}
	for name, c := range map[string]struct {
		ask     func(text string) error
		before  string // the message, as far as it is not repeated
		numbers []protowire.Number
		empty   string
		most    int // 0: maxFields
	}{
		"descriptors":           {ask: asks(NewRateLimit(g).answer), before: "\x0a\x08tiergate", empty: "\x12\x00"},
		"entries of descriptor": {ask: asks(NewRateLimit(g).answer), before: "\x0a\x08tiergate", numbers: []protowire.Number{2}, empty: "\x0a\x00"},
		"settling":              {ask: asks(NewRateLimit(g).answer), before: "\x0a\x0ftiergate-settle", empty: "\x12\x00"},
		"behind a group":        {ask: asks(NewRateLimit(g).answer), before: "\x0a\x08tiergate\x7b\x7c", empty: "\x12\x00"},
		"raw headers":           {ask: asks(NewAuthz(g).answer), numbers: []protowire.Number{1, 4, 2, 13}, empty: "\x0a\x00"},
		"list in metadata":      {ask: asks(NewAuthz(g).answer), numbers: []protowire.Number{1, 11, 1, 2, 1, 2, 6}, empty: "\x0a\x00"},
		"log entries": {ask: func(text string) error {
			_, err := receiveLog(sent{text: text})
			return err
		}, before: "\x1a\x00", numbers: []protowire.Number{2}, empty: "\x0a\x00", most: maxLogFields},
	} {
		most := cmp.Or(c.most, maxFields)
		of := func(n int) string {
			text := []byte(strings.Repeat(c.empty, n))
			for _, number := range slices.Backward(c.numbers) {
				text = protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), text)
			}
			return c.before + string(text)
		}
		if err := c.ask(of(most - 10)); status.Code(err) == codes.ResourceExhausted {
			t.Errorf("%s: as many as may be: %v", name, err)
		}
		if err := c.ask(of(most + 1)); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("%s: more than may be: %v", name, err)
		}
	}
}

// TestFieldsOfDescriptors: where a call may have more descriptors, it may have their fields.
func TestFieldsOfDescriptors(t *testing.T) {
	t.Parallel()
	const most = 10_000
	g := newGate(t, func(s *Settings) { s.RateLimit.MaxDescriptors = most })
	r := &rlsv3.RateLimitRequest{Domain: "tiergate"}
	for range most {
		r.Descriptors = append(r.Descriptors, &ratelimitv3.RateLimitDescriptor{
			Entries: entriesOf("api_key", "sk-pro", "a", "b", "c", "d", "e", "f"), HitsAddend: wrapperspb.UInt64(1), IsNegativeHits: true,
			Limit: &ratelimitv3.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: 1, Unit: typev3.RateLimitUnit_DAY},
		})
	}
	_, err := NewRateLimit(g).answer(t.Context(), &message{string(wire(t, r))})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "is_negative_hits is not accepted") {
		t.Errorf("a call with as many descriptors as may be: %v", err)
	}
}

// A sent is the stream on which a message comes.
type sent struct {
	grpc.ServerStream

	text string
}

func (s sent) RecvMsg(m any) error { return Codec{}.Unmarshal([]byte(s.text), m) }

// TestLongInput: megabytes in any place are answered as what they are, and no work
// grows faster than they do: else this would take hours.
func TestLongInput(t *testing.T) {
	t.Parallel()
	g := newGate(t, nil)
	const size = 4 << 20
	many := func(s string) string { return strings.Repeat(s, size/len(s)) }
	for name, c := range map[string]struct {
		path    string
		headers map[string]string
		status  int
	}{
		"a long key":             {"/v1/chat", map[string]string{"x-api-key": many("k")}, 401},
		"a key beyond the limit": {"/v1/chat", map[string]string{"x-api-key": strings.Repeat("k", 513)}, 401},
		"many keys":              {"/v1/chat", map[string]string{"x-api-key": many("sk-pro,")}, 401},
		"many schemes":           {"/v1/chat", map[string]string{"authorization": many("Basic x,")}, 401},
		"many segments":          {many("/v1/chat"), map[string]string{"x-api-key": "sk-pro"}, 200},
		"many odd segments":      {many("/V1/%63hat;a"), map[string]string{"x-api-key": "sk-pro"}, 200},
		"many dots":              {many("/a/../b"), map[string]string{"x-api-key": "sk-pro"}, 200},
		"a long priority":        {"/v1/chat", map[string]string{"x-api-key": "sk-pro", "x-request-priority": many("9")}, 200},
		"a long length":          {"/v1/chat", map[string]string{"x-api-key": "sk-pro", "content-length": many("9")}, 200},
	} {
		if a := check(t, g, c.path, c.headers); a.status != c.status {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	raw := checkRequest("/v1/chat", nil)
	http := raw.GetAttributes().GetRequest().GetHttp()
	http.Headers, http.HeaderMap = nil, &corev3.HeaderMap{}
	for range 100_000 {
		http.HeaderMap.Headers = append(http.HeaderMap.Headers, &corev3.HeaderValue{Key: "x-api-key", RawValue: []byte("sk-pro")})
	}
	response, err := NewAuthz(g).Check(t.Context(), raw)
	if err != nil || response.GetDeniedResponse().GetStatus().GetCode() != 401 {
		t.Errorf("many raw headers: %v, %v", response, err)
	}
	if _, err := parseTicket(many(":"), NewTicketKey(nil)); err == nil {
		t.Error("colons are a ticket")
	}
}

// TestCredentialsAreBounded: the same key may come in a few headers, and what is beyond
// is refused, never overlooked.
func TestCredentialsAreBounded(t *testing.T) {
	t.Parallel()
	g := newGate(t, nil)
	for value, want := range map[string]int{
		strings.Repeat("sk-pro,", 16):             200,
		strings.Repeat("sk-pro,", 17):             401,
		strings.Repeat("sk-pro,", 16) + "sk-free": 401,
	} {
		if a := check(t, g, "/v1/chat", map[string]string{"api-key": value}); a.status != want {
			t.Errorf("%d keys: %d, want %d", strings.Count(value, "sk-"), a.status, want)
		}
	}
}

// TestSettlementsOfAllStreamsAreBounded: each waits for a slot, and gives it back when
// it is done.
func TestSettlementsOfAllStreamsAreBounded(t *testing.T) {
	t.Parallel()
	g := newGate(t, withTokens)
	service, client := accessLog(t, g)
	if n := cap(service.slots); n != atOnceInAll {
		t.Errorf("%d slots", n)
	}
	service.slots = make(chan struct{}) // the test hands out each
	ticket := admit(t, g, declaring("200"))
	stream, err := client.StreamAccessLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	send(t, stream, entryOf(ticket, 200, viaUpstream, usageOf(10, 20)))
	late := time.After(10 * time.Second)
	if have := remaining(t, g); have != "790" {
		t.Errorf("remaining tokens before there is a slot: %s", have)
	}
	select {
	case <-service.slots:
	case <-late:
		t.Fatal("no slot is asked for")
	}
	select {
	case service.slots <- struct{}{}:
	case <-late:
		t.Fatal("no slot comes back")
	}
	if _, err := stream.CloseAndRecv(); err != nil {
		t.Fatal(err)
	}
	if have := remaining(t, g); have != "970" {
		t.Errorf("remaining tokens: %s", have)
	}
}
