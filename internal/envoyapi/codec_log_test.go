package envoyapi

import (
	"bytes"
	"reflect"
	"testing"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	aiv3 "github.com/envoyproxy/go-control-plane/envoy/data/ai/v3"
	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const oneTicket = "1:key_pro:1:S:chat:declaration:1:1:210:200"

// fullEntry is an entry with all that Envoy sends.
func fullEntry() *accesslogv3.HTTPAccessLogEntry {
	e := entryOf(oneTicket, 200, viaUpstream, map[string]*structpb.Value{
		"input": structpb.NewNumberValue(12), "cached": structpb.NewStringValue(" 4 "), "output": structpb.NewNumberValue(34.5), "other": structpb.NewBoolValue(true),
		"total": structpb.NewNullValue(), "cache_read": structpb.NewListValue(&structpb.ListValue{}), "cache_write": structpb.NewNumberValue(3),
	})
	e.ProtocolVersion = accesslogv3.HTTPAccessLogEntry_HTTP2
	e.Request = &accesslogv3.HTTPRequestProperties{Path: "/v1/chat/completions", Authority: "api.example.com", RequestHeaders: map[string]string{"user-agent": "x"}}
	e.Response.ResponseBodyBytes, e.Response.ResponseHeaders = 70_000, map[string]string{"content-type": "text/event-stream", "server": "x"}
	common := e.GetCommonProperties()
	common.ResponseFlags, common.TimeToLastDownstreamTxByte = &accesslogv3.ResponseFlags{}, durationpb.New(7)
	common.Metadata.FilterMetadata["envoy.lb"] = ticketMetadata("x")
	common.CustomTags, common.AccessLogType = map[string]string{"a": "b"}, accesslogv3.AccessLogType_DownstreamEnd
	return e
}

// typedEntry is one whose usage Envoy's AI filter has found.
func typedEntry(tb testing.TB) *accesslogv3.HTTPAccessLogEntry {
	tb.Helper()
	typed, err := anypb.New(&aiv3.TokenUsage{InputTokens: wrapperspb.UInt64(7), TotalTokens: wrapperspb.UInt64(9)})
	if err != nil {
		tb.Fatal(err)
	}
	e := entryOf(oneTicket, 200, viaUpstream, nil)
	e.CommonProperties.Metadata.TypedFilterMetadata = map[string]*anypb.Any{tokenUsageNamespace: typed, "other": typed}
	return e
}

// logOf is a message with entries.
func logOf(entries ...*accesslogv3.HTTPAccessLogEntry) *alsv3.StreamAccessLogsMessage {
	return &alsv3.StreamAccessLogsMessage{
		Identifier: &alsv3.StreamAccessLogsMessage_Identifier{LogName: "tiergate"},
		LogEntries: &alsv3.StreamAccessLogsMessage_HttpLogs{HttpLogs: &alsv3.StreamAccessLogsMessage_HTTPAccessLogEntries{LogEntry: entries}},
	}
}

// logs are messages of access logs on the wire, how many reports they have, and whether they
// are usual.
func logs(tb testing.TB) map[string]struct {
	message []byte
	reports int
	usual   bool
} {
	tb.Helper()
	full := wire(tb, logOf(fullEntry()))
	with := func(change func(e *accesslogv3.HTTPAccessLogEntry)) []byte {
		return wire(tb, logOf(changed(fullEntry(), change)))
	}
	flags := func(f *accesslogv3.ResponseFlags) []byte {
		return with(func(e *accesslogv3.HTTPAccessLogEntry) { e.CommonProperties.ResponseFlags = f })
	}
	ticketOf := func(filter, ticket string) []byte {
		return with(func(e *accesslogv3.HTTPAccessLogEntry) {
			e.CommonProperties.Metadata.FilterMetadata[filter] = ticketMetadata(ticket)
		})
	}
	// entryWith is a full entry with more fields of its common properties, on the wire.
	entryWith := func(common ...byte) []byte {
		entry := append(wire(tb, fullEntry()), append([]byte{0x0a, byte(len(common))}, common...)...)
		field := func(number byte, content []byte) []byte {
			return append([]byte{number<<3 | 2, byte(len(content)&0x7f) | 0x80, byte(len(content) >> 7)}, content...)
		}
		return field(2, field(1, entry))
	}
	return map[string]struct {
		message []byte
		reports int
		usual   bool
	}{
		"empty":            {nil, 0, true},
		"full":             {full, 1, true},
		"several":          {wire(tb, logOf(fullEntry(), typedEntry(tb), &accesslogv3.HTTPAccessLogEntry{}, fullEntry())), 3, true},
		"in parts":         {append(bytes.Clone(full), full...), 2, true},
		"typed usage":      {wire(tb, logOf(typedEntry(tb))), 1, true},
		"no ticket":        {ticketOf(authzFilter, ""), 0, true},
		"by rate limit":    {ticketOf(rateLimitFilter, "1:other"), 1, true},
		"from a cache":     {flags(&accesslogv3.ResponseFlags{ResponseFromCacheFilter: true}), 1, true},
		"faulty":           {flags(&accesslogv3.ResponseFlags{ResponseFromCacheFilter: true, DurationTimeout: true}), 1, true},
		"unauthorized":     {flags(&accesslogv3.ResponseFlags{UnauthorizedDetails: &accesslogv3.ResponseFlags_Unauthorized{}}), 1, true},
		"a flag not set":   {entryWith(0x82, 1, 2, 0x10, 0), 1, false},
		"a later flag":     {entryWith(0x82, 1, 3, 0xd8, 4, 1), 1, true},
		"a flag as text":   {entryWith(0x82, 1, 2, 0x12, 0), 1, true},
		"a cache as text":  {entryWith(0x82, 1, 3, 0xaa, 1, 0), 1, false},
		"a cache not set":  {entryWith(0x82, 1, 3, 0xa8, 1, 0), 1, true},
		"no flags":         {flags(nil), 1, true},
		"no response":      {with(func(e *accesslogv3.HTTPAccessLogEntry) { e.Response = nil }), 1, true},
		"no code":          {with(func(e *accesslogv3.HTTPAccessLogEntry) { e.Response.ResponseCode = nil }), 1, true},
		"endless":          {with(func(e *accesslogv3.HTTPAccessLogEntry) { e.Response.ResponseBodyBytes = 1 << 63 }), 1, true},
		"another usage":    {entryWith(append([]byte{0x8a, 1, byte(len(UsageNamespace) + 4), 0x0a, byte(len(UsageNamespace) + 2), 0x0a, byte(len(UsageNamespace))}, UsageNamespace...)...), 1, true},
		"another ticket":   {entryWith(append([]byte{0x8a, 1, byte(len(authzFilter) + 4), 0x0a, byte(len(authzFilter) + 2), 0x0a, byte(len(authzFilter))}, authzFilter...)...), 0, true},
		"before its end":   {entryWith(0x88, 2, 5), 0, true},
		"its end":          {entryWith(0x88, 2, 5, 0x88, 2, 6), 1, true},
		"upstream's end":   {entryWith(0x88, 2, 9), 1, true},
		"a type as text":   {entryWith(0x8a, 2, 0), 1, false},
		"of TCP":           {append(bytes.Clone(full), 0x1a, 0), 0, false},
		"of TCP before":    {append([]byte{0x1a, 0}, full...), 1, false},
		"metadata as text": {entryWith(0x88, 1, 1), 1, false},
		"no UTF-8":         {bytes.Replace(full, []byte(oneTicket), bytes.Repeat([]byte{0xff}, len(oneTicket)), 1), 0, false},
		"cut off":          {full[:len(full)-3], 0, false},
	}
}

// TestLogs are read as they came as the protobuf types read them.
func TestLogs(t *testing.T) {
	t.Parallel()
	for name, c := range logs(t) {
		have, usual := readLog(string(c.message))
		if usual != c.usual {
			t.Errorf("%s: usual %v", name, usual)
		}
		var log alsv3.StreamAccessLogsMessage
		if err := proto.Unmarshal(c.message, &log); err != nil {
			continue
		}
		want := reports(&log)
		if len(want) != c.reports {
			t.Errorf("%s: %d reports, want %d", name, len(want), c.reports)
		}
		if usual && !reflect.DeepEqual(have, want) {
			t.Errorf("%s:\n%+v, want\n%+v", name, have, want)
		}
	}
}

// TestUnusualLogsSettle too, by the protobuf types, and what is no message ends the stream.
func TestUnusualLogsSettle(t *testing.T) {
	t.Parallel()
	g := newGate(t, withTokens)
	ticket := admit(t, g, declaring("200"))
	_, client := accessLog(t, g)
	e := entryOf(ticket, 200, viaUpstream, usageOf(10, 20))
	e.CommonProperties.ResponseFlags = &accesslogv3.ResponseFlags{}
	e.CommonProperties.ResponseFlags.ProtoReflect().SetUnknown([]byte{0xd8, 4, 0})
	if _, usual := readLog(string(wire(t, logOf(e)))); usual {
		t.Fatal("an entry with a flag of an Envoy to come is usual")
	}
	log(t, client, e)
	if have := remaining(t, g); have != "790" { // the answer is not known to be whole
		t.Errorf("%s remain, want 790", have)
	}
	stream, err := client.StreamAccessLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := logOf()
	m.ProtoReflect().SetUnknown([]byte{0x12, 1, 0xff})
	if err := stream.Send(m); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.CloseAndRecv(); status.Code(err) != codes.Internal {
		t.Errorf("what is no message: %v", err)
	}
}

// FuzzLogMessage looks for access logs that are read in another way than the protobuf types
// read them.
func FuzzLogMessage(f *testing.F) {
	for _, c := range logs(f) {
		f.Add(c.message)
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		var log alsv3.StreamAccessLogsMessage
		err := proto.Unmarshal(message, &log)
		have, usual := readLog(string(message))
		if err != nil || !usual { // what is not read may be anything
			return
		}
		if want := reports(&log); !reflect.DeepEqual(have, want) {
			t.Errorf("%q reports\n%+v, want\n%+v", message, have, want)
		}
	})
}
