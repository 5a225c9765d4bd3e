package main

import (
	"context"
	"fmt"
	"net"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
)

// Services are what a server that is compared with TierGate serves.
type services interface {
	authv3.AuthorizationServer
	rlsv3.RateLimitServiceServer
	alsv3.AccessLogServiceServer
}

// serve serves by a gRPC server as it is by default, until ctx is done.
func serve(ctx context.Context, address string, s services) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen at %s: %w", address, err)
	}
	server := grpc.NewServer()
	authv3.RegisterAuthorizationServer(server, s)
	rlsv3.RegisterRateLimitServiceServer(server, s)
	alsv3.RegisterAccessLogServiceServer(server, s)
	healthpb.RegisterHealthServer(server, health.NewServer())
	context.AfterFunc(ctx, server.Stop)
	if err := server.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve at %s: %w", address, err)
	}
	return nil
}

// canned answers everything with what TierGate answered once. It decides nothing, so it
// is what gRPC and the protobufs cost: the floor.
type canned struct {
	authv3.UnimplementedAuthorizationServer
	rlsv3.UnimplementedRateLimitServiceServer
	alsv3.UnimplementedAccessLogServiceServer

	allowed *authv3.CheckResponse
	ok      *rlsv3.RateLimitResponse
}

func newCanned() *canned {
	response := [][2]string{
		{"X-RateLimit-Limit", "100"},
		{"X-RateLimit-Remaining", "99"},
		{"X-RateLimit-Reset", "1795890540"},
		{"X-RateLimit-Used", "1"},
		{"X-RateLimit-Resource", "chat"},
		{"X-Request-Priority", "3"},
	}
	upstream := [][2]string{
		{"x-tiergate-key-id", "key_demo_pro"}, {"x-tiergate-tier", "pro"}, {"x-tiergate-resource", "chat"}, {"X-Request-Priority", "3"},
	}
	reservation := &structpb.Struct{Fields: map[string]*structpb.Value{
		"reservation": structpb.NewStringValue("1:key_demo_pro:1684767892331790285:APUV47ZG3JMWDGH5PKWAUCWW6Z:chat:declaration:1:1:136:100"),
	}}
	return &canned{
		allowed: &authv3.CheckResponse{
			Status: &rpcstatus.Status{},
			HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
				Headers: options(upstream), HeadersToRemove: []string{"authorization", "x-api-key", "api-key"}, ResponseHeadersToAdd: options(response),
			}},
			DynamicMetadata: reservation,
		},
		ok: &rlsv3.RateLimitResponse{
			OverallCode: rlsv3.RateLimitResponse_OK,
			Statuses: []*rlsv3.RateLimitResponse_DescriptorStatus{
				status("requests_per_minute", 100, rlsv3.RateLimitResponse_RateLimit_MINUTE, 99),
			},
			ResponseHeadersToAdd: values(response), RequestHeadersToAdd: values(upstream), DynamicMetadata: reservation,
		},
	}
}

func status(name string, limit uint32, unit rlsv3.RateLimitResponse_RateLimit_Unit, remaining uint32) *rlsv3.RateLimitResponse_DescriptorStatus {
	return &rlsv3.RateLimitResponse_DescriptorStatus{
		Code:           rlsv3.RateLimitResponse_OK,
		CurrentLimit:   &rlsv3.RateLimitResponse_RateLimit{Name: name, RequestsPerUnit: limit, Unit: unit},
		LimitRemaining: remaining, DurationUntilReset: &durationpb.Duration{Seconds: 52, Nanos: 1892719},
	}
}

func values(headers [][2]string) []*corev3.HeaderValue {
	all := make([]*corev3.HeaderValue, len(headers))
	for i, h := range headers {
		all[i] = &corev3.HeaderValue{Key: h[0], Value: h[1]}
	}
	return all
}

func options(headers [][2]string) []*corev3.HeaderValueOption {
	all := make([]*corev3.HeaderValueOption, len(headers))
	for i, v := range values(headers) {
		all[i] = &corev3.HeaderValueOption{Header: v, AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD}
	}
	return all
}

// Check allows everything.
func (c *canned) Check(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return c.allowed, nil
}

// ShouldRateLimit allows everything.
func (c *canned) ShouldRateLimit(context.Context, *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
	return c.ok, nil
}

// StreamAccessLogs reads what comes.
func (c *canned) StreamAccessLogs(stream alsv3.AccessLogService_StreamAccessLogsServer) error {
	for {
		if _, err := stream.Recv(); err != nil {
			return err
		}
	}
}
