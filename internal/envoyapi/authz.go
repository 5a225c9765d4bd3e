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
	v := a.gate.judge(ctx, s, fieldsOf(r).inquiry(s))
	if v.Outcome == Allowed {
		return allowed(&v, s), nil
	}
	return denied(&v, s), nil
}

// checkFields are what a CheckRequest says, in whichever form it came.
type checkFields struct {
	resource         string // that the route names
	id, method, path string
	metadata         *corev3.Metadata
	facts            facts                    // in the metadata
	header           func(name string) string // of the request; name is in lower case
}

func fieldsOf(r *authv3.CheckRequest) checkFields {
	attributes := r.GetAttributes()
	request := attributes.GetRequest().GetHttp()
	return checkFields{
		resource: attributes.GetContextExtensions()["resource"], id: request.GetId(), method: request.GetMethod(), path: request.GetPath(),
		metadata: attributes.GetMetadataContext(), facts: metadataFacts(attributes.GetMetadataContext()),
		header: func(name string) string { return headerValue(request, name) },
	}
}

// The headers that are read of every request, beside those that carry keys.
const (
	priorityHeader = "x-request-priority"
	lengthHeader   = "content-length"
)

func (f checkFields) inquiry(s *Settings) inquiry {
	q := inquiry{resource: f.resource, path: f.path, priority: f.header(priorityHeader), id: f.id, hits: 1, tokens: quota.Unknown}
	q.body, q.model = readBody(f.method, f.path, f.header(lengthHeader), f.facts)
	q.identify(s, &f)
	return q
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

// allowed is said by encodeAllowed too.
func allowed(v *Verdict, s *Settings) *authv3.CheckResponse {
	ok := &authv3.OkHttpResponse{Headers: options(v.appendUpstream(nil)), ResponseHeadersToAdd: options(v.response(s))}
	if !s.ForwardCredentials {
		ok.HeadersToRemove = s.KeyHeaders
	}
	r := &authv3.CheckResponse{Status: &rpcstatus.Status{}, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: ok}}
	if v.Ticket != "" {
		r.DynamicMetadata = ticketMetadata(v.Ticket)
	}
	return r
}

// reservationField is what the ticket is called in Envoy's dynamic metadata.
const reservationField = "reservation"

// ticketMetadata is what Envoy keeps for the end of the request.
func ticketMetadata(ticket string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{reservationField: structpb.NewStringValue(ticket)}}
}

func denied(v *Verdict, s *Settings) *authv3.CheckResponse {
	return &authv3.CheckResponse{
		Status: &rpcstatus.Status{Code: grpcCode(v.status())},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode(v.status())}, //nolint:gosec // one of six statuses
			Headers: options(v.response(s)),
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

// options encodes headers for ext_authz. Each replaces what is there by its name; Envoy's
// default would append and leave two.
func options(hs []header) []*corev3.HeaderValueOption {
	opts := make([]*corev3.HeaderValueOption, len(hs))
	for i, h := range hs {
		opts[i] = &corev3.HeaderValueOption{
			Header: &corev3.HeaderValue{Key: h.name, Value: h.value}, AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		}
	}
	return opts
}
