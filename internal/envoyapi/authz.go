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
	}
	for _, name := range s.KeyHeaders {
		q.credentials = appendCredentials(q.credentials, headerValue(request, name), name == "authorization")
	}
	v := a.gate.judge(ctx, s, q)
	if v.Outcome == Allowed {
		return allowed(v, s), nil
	}
	return denied(v, s), nil
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
		status   rpcstatus.Status // zero: OK
		wrapped  authv3.CheckResponse_OkResponse
		ok       authv3.OkHttpResponse
	}{}
	var hs [16]header
	upstream := v.appendUpstream(hs[:0])
	opts := options(v.appendResponse(upstream, s))
	r.ok.Headers, r.ok.ResponseHeadersToAdd = opts[:len(upstream)], opts[len(upstream):]
	if !s.ForwardCredentials {
		r.ok.HeadersToRemove = s.KeyHeaders
	}
	r.wrapped.OkResponse = &r.ok
	r.response.Status, r.response.HttpResponse = &r.status, &r.wrapped
	return &r.response
}

func denied(v *Verdict, s *Settings) *authv3.CheckResponse {
	return &authv3.CheckResponse{
		Status: &rpcstatus.Status{Code: grpcCode(v.status())},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode(v.status())}, //nolint:gosec // one of five statuses
			Headers: options(v.appendResponse(nil, s)),
			Body:    v.problem.body(),
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
	default:
		return int32(codes.Unavailable)
	}
}

// options encodes headers so that each replaces what is there by its name.
// Envoy's default would append and leave two.
func options(hs []header) []*corev3.HeaderValueOption {
	// Three allocations for any number of headers.
	values := make([]corev3.HeaderValue, len(hs))
	opts := make([]corev3.HeaderValueOption, len(hs))
	pointers := make([]*corev3.HeaderValueOption, len(hs))
	for i, h := range hs {
		values[i].Key, values[i].Value = h.name, h.value
		opts[i].Header = &values[i]
		opts[i].AppendAction = corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
		pointers[i] = &opts[i]
	}
	return pointers
}
