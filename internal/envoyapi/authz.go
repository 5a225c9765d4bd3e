package envoyapi

import (
	"context"
	"net/http"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tiergate/tiergate/internal/quota"
)

// Authz is the external authorization service, envoy.service.auth.v3.
type Authz struct {
	authv3.UnimplementedAuthorizationServer

	gate *Gate
}

// NewAuthz returns the service that asks the gate.
func NewAuthz(g *Gate) *Authz { return &Authz{gate: g} }

// Check decides one HTTP request. It answers every request; a refusal is a
// denied response, never a gRPC error.
func (a *Authz) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	s := a.gate.settings.Load()
	attributes := r.GetAttributes()
	request := attributes.GetRequest().GetHttp()
	q := inquiry{
		resource: attributes.GetContextExtensions()["resource"],
		path:     request.GetPath(),
		priority: headerValue(request, "x-request-priority"),
		id:       request.GetId(),
		hits:     1,
		tokens:   quota.Unknown,
	}
	q.body, q.model = readBody(request.GetMethod(), headerValue(request, "content-length"), checkFacts(attributes))
	q.identify(s, attributes)
	v := a.gate.judge(ctx, s, q)
	if v.Outcome == Allowed {
		return allowed(&v, s), nil
	}
	return denied(&v, s), nil
}

// headerValue returns a request header; name is in lower case. Envoy joins the
// values of a repeated header by commas, or, with encode_raw_headers, sends
// them one by one.
func headerValue(r *authv3.AttributeContext_HttpRequest, name string) string {
	if value, ok := r.GetHeaders()[name]; ok {
		return value
	}
	var values []string
	for _, h := range r.GetHeaderMap().GetHeaders() {
		if strings.EqualFold(h.GetKey(), name) {
			values = append(values, h.GetValue()+string(h.GetRawValue())) // one of the two is set
		}
	}
	return strings.Join(values, ",")
}

func allowed(v *Verdict, s *Settings) *authv3.CheckResponse {
	// In one piece, for the sake of the allocator.
	r := &struct {
		response authv3.CheckResponse
		wrapped  authv3.CheckResponse_OkResponse
		ok       authv3.OkHttpResponse
		values   [5]corev3.HeaderValue // the key ID and at most four counts
		options  [5]corev3.HeaderValueOption
		headers  [10]*corev3.HeaderValueOption
	}{}
	var own [5]header
	hs := v.appendCounts(append(own[:0], v.keyID()), s)
	common := s.ready[v.facet()]
	headers := append(r.headers[:0], common.upstream...)
	for i, h := range hs {
		if i < len(r.options) {
			encode(h, &r.values[i], &r.options[i])
			headers = append(headers, &r.options[i])
		} else { // the sets beside the six
			headers = append(headers, options([]header{h})...)
		}
	}
	headers = append(headers, common.response...)
	upstream := len(common.upstream) + 1
	r.ok.Headers, r.ok.ResponseHeadersToAdd = headers[:upstream], headers[upstream:]
	if !s.ForwardCredentials {
		r.ok.HeadersToRemove = s.KeyHeaders
	}
	if v.Ticket != "" {
		r.response.DynamicMetadata = ticketMetadata(v.Ticket)
	}
	r.wrapped.OkResponse = &r.ok
	r.response.Status, r.response.HttpResponse = common.status, &r.wrapped
	return &r.response
}

// reservationField is what the ticket is called in Envoy's dynamic metadata.
const reservationField = "reservation"

// ticketMetadata is what Envoy keeps for the end of the request.
func ticketMetadata(ticket string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{reservationField: structpb.NewStringValue(ticket)}}
}

// ready are the headers of a facet, encoded once and shared by all its
// responses: encoding them again was half of what a decision allocated.
type ready struct {
	status             *rpcstatus.Status // OK
	upstream, response []*corev3.HeaderValueOption
}

func prepare(s *Settings) map[facet]ready {
	all := map[facet]ready{}
	for tier := range s.Plans {
		for resource := range s.Resources.names {
			for _, priority := range quota.Priorities() {
				f := facet{tier, resource, priority}
				all[f] = ready{&rpcstatus.Status{}, options(f.appendUpstream(nil)), options(f.appendResponse(nil))}
			}
		}
	}
	return all
}

func denied(v *Verdict, s *Settings) *authv3.CheckResponse {
	return &authv3.CheckResponse{
		Status: &rpcstatus.Status{Code: grpcCode(v.status())},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode(v.status())}, //nolint:gosec // one of six statuses
			Headers: options(v.appendResponse(nil, s)),
			Body:    v.problem.Body(),
		}},
	}
}

// grpcCode maps the statuses of refusals; see google/rpc/code.proto.
func grpcCode(status int) int32 {
	switch status {
	case http.StatusTooManyRequests:
		return int32(codes.ResourceExhausted)
	case http.StatusUnauthorized:
		return int32(codes.Unauthenticated)
	case http.StatusForbidden:
		return int32(codes.PermissionDenied)
	case http.StatusRequestEntityTooLarge:
		return int32(codes.InvalidArgument)
	default:
		return int32(codes.Unavailable)
	}
}

// options encodes headers for ext_authz.
func options(hs []header) []*corev3.HeaderValueOption {
	opts := make([]*corev3.HeaderValueOption, len(hs))
	for i, h := range hs {
		opts[i] = &corev3.HeaderValueOption{}
		encode(h, &corev3.HeaderValue{}, opts[i])
	}
	return opts
}

// encode writes a header so that it replaces what is there by its name. Envoy's
// default would append and leave two.
func encode(h header, value *corev3.HeaderValue, option *corev3.HeaderValueOption) {
	value.Key, value.Value = h.name, h.value
	option.Header, option.AppendAction = value, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
}
