package main

import (
	"bytes"
	"fmt"
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// A protocol is one of the two by which Envoy has a request decided.
type protocol string

const (
	check protocol = "Check" // external authorization
	rls   protocol = "RLS"   // the rate limit service
)

func (p protocol) method() string {
	if p == check {
		return authv3.Authorization_Check_FullMethodName
	}
	return rlsv3.RateLimitService_ShouldRateLimit_FullMethodName
}

// A request as Envoy sends it with the shipped files, here of an OpenAI client that asks
// for a chat. The two IDs are filled in for each call.
const (
	httpID    = "1684767892331790285"
	requestID = "86811ad6-e2b1-4075-ad36-1e6c7395ac19"
	path      = "/v1/chat/completions"
	host      = "api.example.com"
	userAgent = "OpenAI/Python 2.8.1"
	bodyBytes = 143
)

// request is what a shipped file sends by the protocol.
func (p protocol) request(authorization string) proto.Message {
	if p == check {
		return checkRequest(authorization)
	}
	return rateLimitRequest(authorization)
}

func facts() *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{
		"max_tokens": structpb.NewStringValue("100"), "model": structpb.NewStringValue("mock-1"), "read": structpb.NewStringValue("yes"),
	}}
}

func address(host string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

// checkRequest is what envoy/envoy.yaml sends.
func checkRequest(authorization string) *authv3.CheckRequest {
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source:      &authv3.AttributeContext_Peer{Address: address("192.0.2.2", 58188)},
		Destination: &authv3.AttributeContext_Peer{Address: address("192.0.2.1", 10000)},
		Request: &authv3.AttributeContext_Request{
			Time: &timestamppb.Timestamp{Seconds: 1795890487, Nanos: 615945000},
			Http: &authv3.AttributeContext_HttpRequest{
				Id: httpID, Method: "POST", Path: path, Host: host, Scheme: "http", Size: bodyBytes, Protocol: "HTTP/1.1",
				Headers: map[string]string{
					":authority": host, ":method": "POST", ":path": path, ":scheme": "http",
					"accept": "application/json", "accept-encoding": "gzip, deflate", "authorization": authorization,
					"content-length": strconv.Itoa(bodyBytes), "content-type": "application/json", "user-agent": userAgent,
					"x-forwarded-for": "192.0.2.2", "x-forwarded-proto": "http", "x-request-id": requestID,
					"x-stainless-arch": "x64", "x-stainless-async": "false", "x-stainless-lang": "python", "x-stainless-os": "Linux",
					"x-stainless-package-version": "2.8.1", "x-stainless-read-timeout": "600", "x-stainless-retry-count": "0",
					"x-stainless-runtime": "CPython", "x-stainless-runtime-version": "3.13.1",
				},
			},
		},
		MetadataContext:      &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"tiergate.request": facts()}},
		RouteMetadataContext: &corev3.Metadata{},
	}}
}

// rateLimitRequest is what envoy/ratelimit.yaml sends. It has no ID.
func rateLimitRequest(authorization string) *rlsv3.RateLimitRequest {
	var entries []*ratelimitv3.RateLimitDescriptor_Entry
	for _, e := range [][2]string{
		{"gateway", "envoy"},
		{"api_key.bearer", authorization},
		{"path", path},
		{"request.method", "POST"},
		{"request.content_length", strconv.Itoa(bodyBytes)},
		{"request.read", "yes"},
		{"request.model", "mock-1"},
		{"request.max_tokens", "100"},
	} {
		entries = append(entries, &ratelimitv3.RateLimitDescriptor_Entry{Key: e[0], Value: e[1]})
	}
	return &rlsv3.RateLimitRequest{Domain: "tiergate", Descriptors: []*ratelimitv3.RateLimitDescriptor{{Entries: entries}}}
}

// accessLog is what both files send at the end of an answer that has a reservation: one
// entry, and no batches.
func accessLog(p protocol, ticket string) *alsv3.StreamAccessLogsMessage {
	filter := "envoy.filters.http.ext_authz"
	if p == rls {
		filter = "envoy.filters.http.ratelimit"
	}
	metadata := map[string]*structpb.Struct{
		filter:             {Fields: map[string]*structpb.Value{"reservation": structpb.NewStringValue(ticket)}},
		"tiergate.request": facts(),
		"tiergate.usage": {Fields: map[string]*structpb.Value{
			"input": structpb.NewNumberValue(12), "output": structpb.NewNumberValue(24), "total": structpb.NewNumberValue(36),
		}},
	}
	took := func(microseconds int32) *durationpb.Duration { return &durationpb.Duration{Nanos: 1000 * microseconds} }
	entry := &accesslogv3.HTTPAccessLogEntry{
		CommonProperties: &accesslogv3.AccessLogCommon{
			DownstreamRemoteAddress: address("192.0.2.2", 58188), DownstreamLocalAddress: address("192.0.2.1", 10000),
			DownstreamDirectRemoteAddress: address("192.0.2.2", 58188),
			StartTime:                     &timestamppb.Timestamp{Seconds: 1795890487, Nanos: 615945000},
			TimeToLastRxByte:              took(407), TimeToFirstUpstreamTxByte: took(1809), TimeToLastUpstreamTxByte: took(1814),
			TimeToFirstUpstreamRxByte: took(2272), TimeToLastUpstreamRxByte: took(2355),
			TimeToFirstDownstreamTxByte: took(2477), TimeToLastDownstreamTxByte: took(2491), Duration: took(2509),
			UpstreamRemoteAddress: address("192.0.2.3", 8080), UpstreamLocalAddress: address("192.0.2.1", 40464), UpstreamCluster: "upstream",
			Metadata: &corev3.Metadata{FilterMetadata: metadata}, UpstreamRequestAttemptCount: 1, StreamId: requestID,
			DownstreamWireBytesSent: 572, DownstreamWireBytesReceived: 634, UpstreamWireBytesSent: 823, UpstreamWireBytesReceived: 464,
			AccessLogType: accesslogv3.AccessLogType_DownstreamEnd,
		},
		ProtocolVersion: accesslogv3.HTTPAccessLogEntry_HTTP11,
		Request: &accesslogv3.HTTPRequestProperties{
			RequestMethod: corev3.RequestMethod_POST, Scheme: "http", Authority: host, Path: path, UserAgent: userAgent, ForwardedFor: "192.0.2.2",
			RequestId: requestID, RequestHeadersBytes: 607, RequestBodyBytes: bodyBytes, UpstreamHeaderBytesSent: 642, DownstreamHeaderBytesReceived: 437,
		},
		Response: &accesslogv3.HTTPResponseProperties{
			ResponseCode: wrapperspb.UInt32(200), ResponseHeadersBytes: 259, ResponseBodyBytes: 260,
			ResponseHeaders: map[string]string{"content-type": "application/json"}, ResponseCodeDetails: "via_upstream",
			UpstreamHeaderBytesReceived: 179, DownstreamHeaderBytesSent: 293,
		},
	}
	return &alsv3.StreamAccessLogsMessage{LogEntries: &alsv3.StreamAccessLogsMessage_HttpLogs{
		HttpLogs: &alsv3.StreamAccessLogsMessage_HTTPAccessLogEntries{LogEntry: []*accesslogv3.HTTPAccessLogEntry{entry}},
	}}
}

// A logEntry is an encoded message of the access log. Only its reservation is another each
// time, and mostly as long as the one before.
type logEntry struct {
	protocol protocol
	encoded  []byte
	at, size int // of the reservation
}

func newLogEntry(p protocol) *logEntry { return &logEntry{protocol: p} }

// fill returns the message with a reservation, in memory that the next uses again.
func (e *logEntry) fill(ticket []byte) ([]byte, error) {
	if len(ticket) != e.size {
		encoded, err := proto.Marshal(accessLog(e.protocol, string(ticket)))
		if err != nil {
			return nil, fmt.Errorf("encode an access log: %w", err)
		}
		e.encoded, e.at, e.size = encoded, bytes.Index(encoded, ticket), len(ticket)
	}
	copy(e.encoded[e.at:], ticket)
	return e.encoded, nil
}

// A prepared is an encoded request of a key, and where in it stands what is another each
// time: the key, and the IDs, at the end of each of which is a number.
type prepared struct {
	encoded []byte
	keys    []int // where the key begins, in bytes
	ends    []int
}

// digits is how long that number is.
const digits = 12

// newPrepared returns the request of a key: a template for all keys of this length.
func newPrepared(request func(authorization string) proto.Message, key string) (*prepared, error) {
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(request(bearer + key))
	if err != nil {
		return nil, fmt.Errorf("encode a request: %w", err)
	}
	t := &prepared{encoded: encoded}
	for at, with := 0, []byte(bearer+key); ; at += len(key) {
		i := bytes.Index(encoded[at:], with)
		if i < 0 {
			break
		}
		at += i + len(bearer)
		t.keys = append(t.keys, at)
	}
	for _, id := range []string{httpID, requestID} {
		if i := bytes.Index(encoded, []byte(id)); i >= 0 {
			t.ends = append(t.ends, i+len(id))
		}
	}
	return t, nil
}

// bearer is before a key.
const bearer = "Bearer "

// fill returns the request of a key with a number of its own, in buffer.
func (t *prepared) fill(buffer []byte, key string, number uint64) []byte {
	buffer = append(buffer[:0], t.encoded...)
	for _, at := range t.keys {
		copy(buffer[at:], key)
	}
	for _, end := range t.ends {
		for i, n := end-1, number; i >= end-digits; i-- {
			buffer[i] = byte('0' + n%10)
			n /= 10
		}
	}
	return buffer
}

// A verdict is what the load generator reads in an answer.
type verdict struct {
	admitted, degraded bool
	ticket             []byte // the reservation that settles it; empty: none
}

// read reads an answer without decoding what it does not need.
func (p protocol) read(answer []byte, ticket bool) verdict {
	v := verdict{degraded: bytes.Contains(answer, []byte("X-RateLimit-Degraded"))}
	metadata := protowire.Number(4)
	if p == check {
		v.admitted = field(answer, 3) != nil // ok_response
	} else {
		number, _, n := protowire.ConsumeTag(answer)
		v.admitted = number == 1 && n > 0 && answer[n] == byte(rlsv3.RateLimitResponse_OK)
		metadata = 6
	}
	if ticket {
		v.ticket = field(answer, metadata, 1, 2, 3) // dynamic_metadata, fields, value, string_value
	}
	return v
}

// field returns the contents of the first field with this number, then of the one in it,
// and so on; nil: there is none.
func field(message []byte, numbers ...protowire.Number) []byte {
	for _, wanted := range numbers {
		var found []byte
		for rest := message; len(rest) > 0 && found == nil; {
			number, kind, n := protowire.ConsumeTag(rest)
			if n < 0 {
				return nil
			}
			size := protowire.ConsumeFieldValue(number, kind, rest[n:])
			if size < 0 {
				return nil
			}
			if number == wanted && kind == protowire.BytesType {
				found, _ = protowire.ConsumeBytes(rest[n:]) // not nil, though it be empty
			}
			rest = rest[n+size:]
		}
		if found == nil {
			return nil
		}
		message = found
	}
	return message
}
