package envoyapi

import (
	"context"
	"errors"
	"fmt"
	"io"

	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Codec reads and writes the messages of calls that decide as they are on the wire: they are
// passed on as they came, and what is answered to them as it goes. Others are protobuf messages.
type Codec struct{}

// A message is one that was received, encoded. It holds secrets and does not print them.
type message struct{ text string }

// Format implements fmt.Formatter.
func (*message) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "[message]") }

// An encoded is one to be sent. It holds secrets likewise.
type encoded struct{ bytes []byte }

// Format implements fmt.Formatter.
func (*encoded) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "[message]") }

// errNoMessage is the error of a value that is no message. It does not print it.
var errNoMessage = errors.New("the value is no protobuf message")

// Unmarshal implements rpc.Codec, and so does Marshal.
func (Codec) Unmarshal(data []byte, v any) error {
	switch m := v.(type) {
	case *message:
		m.text = string(data)
		return nil
	case proto.Message:
		return proto.Unmarshal(data, m) //nolint:wrapcheck // as gRPC's own codec
	}
	return errNoMessage
}

// Marshal encodes a message.
func (Codec) Marshal(v any) ([]byte, error) {
	switch m := v.(type) {
	case *encoded:
		return m.bytes, nil
	case proto.Message:
		return proto.Marshal(m) //nolint:wrapcheck // as gRPC's own codec
	}
	return nil, errNoMessage
}

// Register adds the service to a server that has the Codec.
func (a *Authz) Register(r grpc.ServiceRegistrar) {
	register(r, authv3.Authorization_ServiceDesc, "Check", a, a.answer)
}

// Register adds the service to a server that has the Codec.
func (l *RateLimit) Register(r grpc.ServiceRegistrar) {
	register(r, rlsv3.RateLimitService_ServiceDesc, "ShouldRateLimit", l, l.answer)
}

// Register adds the service to a server that has the Codec.
func (a *AccessLog) Register(r grpc.ServiceRegistrar) {
	d := alsv3.AccessLogService_ServiceDesc
	d.Streams = []grpc.StreamDesc{{
		StreamName: "StreamAccessLogs", ClientStreams: true,
		Handler: func(_ any, stream grpc.ServerStream) error { return a.stream(stream) },
	}}
	r.RegisterService(&d, a)
}

// register adds a service whose one method answers messages as they came.
func register(r grpc.ServiceRegistrar, d grpc.ServiceDesc, method string, service any, answer func(context.Context, *message) (any, error)) {
	info := &grpc.UnaryServerInfo{Server: service, FullMethod: "/" + d.ServiceName + "/" + method}
	handle := func(ctx context.Context, r any) (any, error) {
		m, ok := r.(*message)
		if !ok {
			return nil, status.Errorf(codes.Internal, "the request is %T", r)
		}
		return answer(ctx, m)
	}
	d.Methods = []grpc.MethodDesc{{MethodName: method, Handler: func(_ any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		m := new(message)
		if err := decode(m); err != nil {
			return nil, err
		}
		if intercept == nil {
			return answer(ctx, m)
		}
		return intercept(ctx, m, info, handle)
	}}}
	r.RegisterService(&d, service)
}

// maxFields is how many fields a message may have that is left to the protobuf types, with those of the
// messages in it: Envoy's have hundreds, and an empty message takes fifty times its two bytes there.
// Of a call of the rate limit service it is fieldsOfDescriptor for each descriptor that there may be, if
// that is more. Of the access log it is maxLogFields, for an entry has a hundred, and Envoy sends as many
// at once as buffer_size_bytes says.
const (
	maxFields          = 20_000
	fieldsOfDescriptor = 20 // itself, its entries with key and value, seven others
	maxLogFields       = 100_000
)

// unmarshal reads a message of so many fields at the most by the protobuf types. Its error is what gRPC
// would answer.
func unmarshal(text string, to proto.Message, most int) error {
	encoded := []byte(text)
	if len(encoded) > minField*most && spareFields(encoded, to.ProtoReflect().Descriptor(), most) < 0 {
		return status.Errorf(codes.ResourceExhausted, "the message has more than %d fields", most)
	}
	if err := proto.Unmarshal(encoded, to); err != nil {
		return status.Error(codes.Internal, fmt.Sprintf("grpc: failed to unmarshal the received message: %v", err))
	}
	return nil
}

// minField is how many bytes a field has at the least.
const minField = 2

// spareFields returns how many fields there may be yet after those of an encoded message, below 0
// where there may not be as many. What follows a fault is not looked at: nor do the protobuf types.
func spareFields(text []byte, of protoreflect.MessageDescriptor, spare int) int {
	for len(text) > 0 && spare >= 0 {
		number, kind, size := protowire.ConsumeField(text)
		if size < 0 {
			break
		}
		spare--
		if f := of.Fields().ByNumber(number); kind == protowire.BytesType && f != nil && f.Message() != nil {
			_, _, tag := protowire.ConsumeTag(text)
			inner, _ := protowire.ConsumeBytes(text[tag:])
			spare = spareFields(inner, f.Message(), spare)
		}
		text = text[size:]
	}
	return spare
}

// answer does what Check does.
func (a *Authz) answer(ctx context.Context, m *message) (any, error) {
	s := a.gate.settings.Load()
	q, usual := readCheck(m.text, s)
	if !usual {
		r := &authv3.CheckRequest{}
		if err := unmarshal(m.text, r, maxFields); err != nil {
			return nil, err
		}
		return a.Check(ctx, r)
	}
	v := a.gate.judge(ctx, s, q)
	if v.Outcome == Allowed {
		return &encoded{encodeAllowed(&v, s)}, nil
	}
	return denied(&v, s), nil
}

func readCheck(text string, s *Settings) (q inquiry, usual bool) {
	if len(s.wanted) > maxWanted {
		return q, false
	}
	var c checkCall
	if !c.read(text, s.wanted) {
		return q, false
	}
	return c.inquiry(s)
}

// answer does what ShouldRateLimit does.
func (l *RateLimit) answer(ctx context.Context, m *message) (any, error) {
	s := l.gate.settings.Load()
	var c limitCall
	if !c.read(m.text, &s.RateLimit) || (!c.described.known && s.RateLimit.AllowUnknown) {
		r := &rlsv3.RateLimitRequest{}
		if err := unmarshal(m.text, r, max(maxFields, fieldsOfDescriptor*s.RateLimit.MaxDescriptors)); err != nil {
			return nil, err
		}
		return l.ShouldRateLimit(ctx, r)
	}
	v := l.gate.judge(ctx, s, c.inquiry(&s.RateLimit))
	if v.Outcome == Allowed {
		return &encoded{encodeAnswer(&v, s, c.descriptors)}, nil
	}
	return answer(&v, s, c.descriptors), nil
}

// receiveLog receives a message of access logs, and returns what it reports.
func receiveLog(stream grpc.ServerStream) ([]answered, error) {
	var m message
	if err := stream.RecvMsg(&m); err != nil {
		return nil, err //nolint:wrapcheck // a status, or io.EOF
	}
	all, usual := readLog(m.text)
	if usual {
		return all, nil
	}
	var log alsv3.StreamAccessLogsMessage
	if err := unmarshal(m.text, &log, maxLogFields); err != nil {
		return nil, err
	}
	return reports(&log), nil
}

// reports returns what a message of access logs reports of requests that have a reservation.
func reports(log *alsv3.StreamAccessLogsMessage) (all []answered) {
	for _, e := range log.GetHttpLogs().GetLogEntry() {
		if r, ok := reported(e); ok {
			all = append(all, r)
		}
	}
	return all
}
