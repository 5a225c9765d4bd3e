package envoyapi

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

// named is the Codec as grpc-go's servers have codecs.
type named struct{ Codec }

func (named) Name() string { return "proto" }

// wire encodes a message.
func wire(tb testing.TB, m proto.Message) []byte {
	tb.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// fullCheck is a CheckRequest with all that Envoy sends.
func fullCheck(key string) *authv3.CheckRequest {
	peer := &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{
		SocketAddress: &corev3.SocketAddress{Address: "10.1.2.3", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 40000}},
	}}}
	facts, err := structpb.NewStruct(map[string]any{"read": "yes", "model": "gpt-4o", "max_tokens": 77, "n": nil})
	if err != nil {
		panic(err)
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source: peer, Destination: peer, ContextExtensions: map[string]string{"resource": "images", "x": "y"},
		MetadataContext: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{RequestNamespace: facts, "jwt": facts}}, RouteMetadataContext: &corev3.Metadata{},
		TlsSession: &authv3.AttributeContext_TLSSession{Sni: "api.example.com"},
		Request: &authv3.AttributeContext_Request{Time: timestamppb.New(noon), Http: &authv3.AttributeContext_HttpRequest{
			Id: "1234567890", Method: "POST", Path: "/v1/chat/completions?x=é", Host: "api.example.com", Scheme: "https", Protocol: "HTTP/1.1", Size: -1,
			Query: "x=é", Fragment: "f", Body: "{}", RawBody: []byte{0xff},
			Headers: map[string]string{
				"authorization": "Bearer " + key, "content-length": "512", "content-type": "application/json", "x-request-priority": "low", ":path": "/v1/chat/completions",
			},
		}},
	}}
}

// fullLimit is a RateLimitRequest as the shipped Envoy file makes it.
func fullLimit(key string) *rlsv3.RateLimitRequest {
	return &rlsv3.RateLimitRequest{Domain: "tiergate", Descriptors: []*ratelimitv3.RateLimitDescriptor{{Entries: entriesOf(
		"gateway", "envoy", "api_key.bearer", "Bearer "+key, "path", "/v1/chat/completions", "priority", "2", "request.method", "POST",
		"request.content_length", "512", "request.model", "gpt-4o", "request.max_tokens", "100", "request.other", "x", "resource", "chat", "", "x", "unknown", "x",
	)}}}
}

func entriesOf(texts ...string) (all []*ratelimitv3.RateLimitDescriptor_Entry) {
	for i := 0; i < len(texts); i += 2 {
		all = append(all, &ratelimitv3.RateLimitDescriptor_Entry{Key: texts[i], Value: texts[i+1]})
	}
	return all
}

// changed returns a message with a change.
func changed[T any](m T, change func(T)) T {
	change(m)
	return m
}

// checks are CheckRequests on the wire, and whether they are usual.
func checks(tb testing.TB) map[string]struct {
	message []byte
	usual   bool
} {
	tb.Helper()
	full := wire(tb, fullCheck("sk-pro"))
	http := func(m *authv3.CheckRequest) *authv3.AttributeContext_HttpRequest {
		return m.GetAttributes().GetRequest().GetHttp()
	}
	return map[string]struct {
		message []byte
		usual   bool
	}{
		"empty":   {nil, true},
		"full":    {full, true},
		"refused": {wire(tb, fullCheck("sk-nobody")), true},
		"in parts": {append(wire(tb, changed(fullCheck("sk-free"), func(m *authv3.CheckRequest) {
			m.Attributes.MetadataContext = nil
		})), full...), true},
		"metadata in parts": {append(wire(tb, fullCheck("sk-free")), full...), false},
		"unknown fields":    {append(bytes.Clone(full), 0x78, 1, 0x7a, 1, 'x', 0x79, 1, 2, 3, 4, 5, 6, 7, 8, 0x7d, 1, 2, 3, 4), true},
		"header map": {wire(tb, changed(fullCheck("sk-pro"), func(m *authv3.CheckRequest) {
			http(m).Headers = nil
			http(m).HeaderMap = &corev3.HeaderMap{Headers: []*corev3.HeaderValue{{Key: "Authorization", RawValue: []byte("Bearer sk-pro")}, {Key: "x-api-key", Value: "sk-pro"}}}
		})), false},
		"a field of another kind": {append(bytes.Clone(full), 0x08, 1), false},
		"a group":                 {append(bytes.Clone(full), 0x7b, 0x7c), false},
		"cut off":                 {full[:len(full)-3], false},
		"field 0":                 {append(bytes.Clone(full), 0x02, 0), false},
		"an endless number":       {append(bytes.Clone(full), bytes.Repeat([]byte{0xff}, 12)...), false},
		"no UTF-8":                {bytes.Replace(full, []byte("Bearer sk-pro"), []byte("Bearer \xff\xfe\xff\xfe\xff\xfe"), 1), false},
		"facts of other kinds": {wire(tb, changed(fullCheck("sk-pro"), func(m *authv3.CheckRequest) {
			facts, err := structpb.NewStruct(map[string]any{"read": true, "model": []any{"x"}, "max_tokens": "1e3", "n": 1.5, "best_of": map[string]any{"x": 1}, "other": 7})
			if err != nil {
				tb.Fatal(err)
			}
			m.Attributes.MetadataContext.FilterMetadata[RequestNamespace] = facts
		})), true},
		"facts twice": {append(bytes.Clone(full), wire(tb, changed(fullCheck("sk-pro"), func(m *authv3.CheckRequest) {
			delete(m.GetAttributes().GetMetadataContext().GetFilterMetadata()[RequestNamespace].GetFields(), "model")
		}))...), false},
		"faulty metadata": {append(bytes.Clone(full), 0x0a, 3, 0x5a, 1, 0xff), false},
		"a number that is a text": {append(bytes.Clone(part("\x0a", part("\x5a", part("\x0a", append(part("\x0a", []byte(RequestNamespace)),
			part("\x12", part("\x0a", []byte("\x0a\x01n\x12\x03\x12\x01x")))...))))), wire(tb, changed(fullCheck("sk-pro"), func(m *authv3.CheckRequest) {
			m.Attributes.MetadataContext = nil
		}))...), false},
		"a number for attributes":   {[]byte{0x08, 1}, false},
		"attributes that end early": {append(bytes.Clone(full), 0x0a, 2, 0x22, 5), false},
		"a message that ends early": {append(bytes.Clone(full), 0x0a, 5), false},
		"a number beyond 64 bits":   {append(append(append(bytes.Clone(full), 0x78), bytes.Repeat([]byte{0xff}, 9)...), 2), false},
		"a field beyond all":        {append(bytes.Clone(full), 0x80, 0x80, 0x80, 0x80, 0x10, 1), false},
		"a GET": {wire(tb, changed(fullCheck("sk-pro"), func(m *authv3.CheckRequest) {
			http(m).Method = "GET"
			delete(http(m).GetHeaders(), "content-length")
			m.Attributes.MetadataContext, m.Attributes.ContextExtensions = nil, nil
		})), true},
	}
}

// part is a field of a message that has another in it, shorter than 128 bytes.
func part(tag string, inner []byte) []byte {
	return append(append([]byte(tag), byte(len(inner))), inner...)
}

// limits are RateLimitRequests on the wire, and whether they are usual.
func limits(tb testing.TB) map[string]struct {
	message []byte
	usual   bool
} {
	tb.Helper()
	full := wire(tb, fullLimit("sk-pro"))
	with := func(change func(*rlsv3.RateLimitRequest)) []byte {
		return wire(tb, changed(fullLimit("sk-pro"), change))
	}
	descriptor := fullLimit("sk-pro").GetDescriptors()[0]
	return map[string]struct {
		message []byte
		usual   bool
	}{
		"empty":          {nil, false},
		"full":           {full, true},
		"refused":        {wire(tb, fullLimit("sk-nobody")), true},
		"no descriptors": {with(func(m *rlsv3.RateLimitRequest) { m.Descriptors = nil }), true},
		"empty descriptor": {with(func(m *rlsv3.RateLimitRequest) {
			m.Descriptors = append(m.Descriptors, &ratelimitv3.RateLimitDescriptor{})
		}), true},
		"two of them":         {with(func(m *rlsv3.RateLimitRequest) { m.Descriptors = append(m.Descriptors, descriptor) }), true},
		"hits":                {with(func(m *rlsv3.RateLimitRequest) { m.HitsAddend = 7 }), true},
		"a descriptor's hits": {with(func(m *rlsv3.RateLimitRequest) { m.Descriptors[0].HitsAddend = wrapperspb.UInt64(0) }), false},
		"negative hits":       {with(func(m *rlsv3.RateLimitRequest) { m.Descriptors[0].IsNegativeHits = true }), false},
		"a limit": {with(func(m *rlsv3.RateLimitRequest) {
			m.Descriptors[0].Limit = &ratelimitv3.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: 1, Unit: 1}
		}), false},
		"another domain": {with(func(m *rlsv3.RateLimitRequest) { m.Domain = "other" }), false},
		"a settlement":   {with(func(m *rlsv3.RateLimitRequest) { m.Domain = "tiergate-settle" }), false},
		"too many descriptors": {with(func(m *rlsv3.RateLimitRequest) {
			for range 64 {
				m.Descriptors = append(m.Descriptors, &ratelimitv3.RateLimitDescriptor{})
			}
		}), false},
		"too many entries": {with(func(m *rlsv3.RateLimitRequest) {
			for range 300 {
				m.Descriptors[0].Entries = append(m.Descriptors[0].Entries, entriesOf("a", "b")...)
			}
		}), false},
		"cut off":             {full[:len(full)-3], false},
		"no UTF-8":            {bytes.Replace(full, []byte("Bearer sk-pro"), []byte("Bearer \xff\xfe\xff\xfe\xff\xfe"), 1), false},
		"unknown fields":      {append(bytes.Clone(full), 0x78, 1), true},
		"ends early":          {append(bytes.Clone(full), 0x12, 5), false},
		"hits beyond 32 bits": {append(bytes.Clone(full), 0x18, 0x81, 0x80, 0x80, 0x80, 0x10), false},
		"nothing known": {with(func(m *rlsv3.RateLimitRequest) {
			m.Descriptors[0].Entries = entriesOf("generic_key", "x")
		}), true},
	}
}

// rawCodec sends and receives bytes.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("%T is no message", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("%T is no message", v)
	}
	*b = data.Materialize()
	return nil
}

// served connects to a server over memory.
func served(t *testing.T, server *grpc.Server) *grpc.ClientConn {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestCodec: a server with the codec answers each message as one without, byte by byte,
// errors too.
func TestCodec(t *testing.T) {
	t.Parallel()
	for _, allow := range []bool{false, true} {
		codecAnswers(t, func(s *Settings) {
			withTokens(s)
			s.Plans["pro"] = quota.NewPlan(quota.Tier{Name: "pro", Priority: quota.High, Limits: []quota.Limit{
				{Metric: quota.Requests, Window: quota.Minute, Max: 1000}, {Metric: quota.Tokens, Window: quota.Minute, Max: 1_000_000},
			}}, quota.ByKey, nil)
			s.Tokens.SettleByAccessLog, s.Tokens.SettleByRateLimit = false, false // tickets differ
			s.RateLimit.AllowUnknown = allow
		})
	}
}

func codecAnswers(t *testing.T, settings func(*Settings)) {
	t.Helper()
	theirs, ours := grpc.NewServer(), grpc.NewServer(grpc.ForceServerCodec(named{}))
	g := newGate(t, settings)
	authv3.RegisterAuthorizationServer(theirs, NewAuthz(g))
	rlsv3.RegisterRateLimitServiceServer(theirs, NewRateLimit(g))
	g = newGate(t, settings)
	NewAuthz(g).Register(ours)
	NewRateLimit(g).Register(ours)
	official, own := served(t, theirs), served(t, ours)
	same := func(name, method string, message []byte) {
		var want, have []byte
		errWant, errHave := official.Invoke(t.Context(), method, message, &want), own.Invoke(t.Context(), method, message, &have)
		if status.Code(errWant) != status.Code(errHave) || status.Convert(errWant).Message() != status.Convert(errHave).Message() {
			t.Errorf("%s, %s: %v, want %v", method, name, errHave, errWant)
		}
		if !bytes.Equal(want, have) {
			t.Errorf("%s, %s:\n%q, want\n%q", method, name, have, want)
		}
	}
	id := 0
	for name, c := range checks(t) {
		id++ // or all would be repeats of the first
		same(name, authv3.Authorization_Check_FullMethodName, bytes.ReplaceAll(c.message, []byte("1234567890"), fmt.Appendf(nil, "%010d", id)))
	}
	for name, c := range limits(t) {
		same(name, rlsv3.RateLimitService_ShouldRateLimit_FullMethodName, c.message)
	}
}

// TestUsualMessages are read as they came, and unusual ones by the protobuf types.
func TestUsualMessages(t *testing.T) {
	t.Parallel()
	s := newGate(t, nil).settings.Load()
	for name, c := range checks(t) {
		if _, usual := readCheck(string(c.message), s); usual != c.usual {
			t.Errorf("check, %s: usual %v", name, usual)
		}
	}
	for name, c := range limits(t) {
		if usual := new(limitCall).read(string(c.message), &s.RateLimit); usual != c.usual {
			t.Errorf("rate limit, %s: usual %v", name, usual)
		}
	}
	s.KeyHeaders = strings.Split(strings.Repeat("x-key ", maxWanted), " ")
	g := newGate(t, func(*Settings) {})
	g.Use(s)
	if _, usual := readCheck(string(wire(t, fullCheck("sk-pro"))), s); usual {
		t.Error("more headers are wanted than there is room for, and they are looked for")
	}
}

// TestMessagesAreNotPrinted: they hold keys and the secrets of reservations.
func TestMessagesAreNotPrinted(t *testing.T) {
	t.Parallel()
	const canary = "sk-canary"
	for _, m := range []any{&message{canary}, &encoded{[]byte(canary)}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			if text := fmt.Sprintf(verb, m); text != "[message]" {
				t.Errorf("%s prints %s", verb, text)
			}
		}
	}
}

// FuzzCheckMessage looks for a CheckRequest that is read in another way than the protobuf
// types read it.
func FuzzCheckMessage(f *testing.F) {
	for _, c := range checks(f) {
		f.Add(c.message)
	}
	all := []*Settings{newGate(f, nil).settings.Load(), newGate(f, func(s *Settings) {
		s.Identity = Identity{KeyID: MetadataPath{"jwt", []string{"model"}}, Tier: MetadataPath{"jwt", []string{"read"}}}
	}).settings.Load()}
	f.Fuzz(func(t *testing.T, message []byte) {
		var r authv3.CheckRequest
		err := proto.Unmarshal(message, &r)
		for _, s := range all {
			have, usual := readCheck(string(message), s)
			if err != nil || !usual { // what is not read may be anything
				continue
			}
			if want := fieldsOf(&r).inquiry(s); !reflect.DeepEqual(have, want) {
				t.Errorf("%q is\n%+v, want\n%+v", message, have, want)
			}
		}
	})
}

// FuzzLimitMessage looks for a RateLimitRequest that is read in another way than the
// protobuf types read it.
func FuzzLimitMessage(f *testing.F) {
	for _, c := range limits(f) {
		f.Add(c.message)
	}
	s := newGate(f, nil).settings.Load().RateLimit
	tokens := s
	tokens.HitsMetric, tokens.Entries.KeyID, tokens.Entries.Tier = quota.Tokens, "key_id", "tier"
	f.Fuzz(func(t *testing.T, message []byte) {
		var r rlsv3.RateLimitRequest
		err := proto.Unmarshal(message, &r)
		for _, s := range []*RateLimitSettings{&s, &tokens} {
			var c limitCall
			if !c.read(string(message), s) || err != nil {
				continue
			}
			have := c.inquiry(s)
			want, known := inquire(&s.Entries, r.GetDescriptors())
			if err := count(&want, s, &r); err != nil || s.bound(r.GetDescriptors()) != nil {
				t.Errorf("%q is refused: %v", message, err)
			}
			if !reflect.DeepEqual(have, want) || known != c.described.known || c.descriptors != len(r.GetDescriptors()) || r.GetDomain() != s.Domain {
				t.Errorf("%q is\n%+v, want\n%+v", message, have, want)
			}
		}
	})
}

// FuzzAnswers looks for an answer to what is allowed that is not what the protobuf types
// would write.
func FuzzAnswers(f *testing.F) {
	f.Add("key_pro", "1:key_pro:1:S:chat:declaration:1:1:210:200", int64(100), int64(3), int64(86_400_000), true, false, uint8(1))
	f.Add("", "", int64(0), int64(-1), int64(-1), false, true, uint8(0))
	f.Add(strings.Repeat("k", 64), strings.Repeat("t", 5000), quota.NoMax, quota.MaxUsed, int64(1), true, true, uint8(200))
	f.Fuzz(func(t *testing.T, id, ticket string, most, used, window int64, degraded, bare bool, descriptors uint8) {
		if !utf8.ValidString(id) || !utf8.ValidString(ticket) {
			return // no texts of ours
		}
		g := newGate(t, func(s *Settings) {
			s.ForwardCredentials, s.PerMetric, s.IETF, s.OmitUnlimited = bare, degraded, degraded, bare
		})
		s := g.settings.Load()
		limit := quota.Limit{Metric: quota.Requests, Window: quota.Minute, Max: max(most, 0)}
		if window > 0 {
			limit.Window = quota.Window(window)
		}
		v := Verdict{
			Outcome: Allowed, Key: &apikey.Record{ID: id}, At: noon, Tier: "pro", Resource: "chat", Priority: quota.High, Ticket: ticket,
			Decision: quota.Decision{Admitted: true, Used: used, Remaining: max(used, 0), Now: noon, Reset: noon.Add(time.Duration(max(used, 0) % 1e15)), Degraded: degraded},
		}
		if most >= 0 {
			v.Decision.Shown = limit
		}
		deterministic := proto.MarshalOptions{Deterministic: true}
		want, err := deterministic.Marshal(allowed(&v, s))
		if err != nil {
			t.Fatal(err)
		}
		if have := encodeAllowed(&v, s); !bytes.Equal(have, want) {
			t.Errorf("%.500q, want\n%.500q", have, want)
		}
		if want, err = deterministic.Marshal(answer(&v, s, int(descriptors))); err != nil {
			t.Fatal(err)
		}
		if have := encodeAnswer(&v, s, int(descriptors)); !bytes.Equal(have, want) {
			t.Errorf("%.500q, want\n%.500q", have, want)
		}
	})
}
