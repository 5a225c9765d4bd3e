// Command ratelimit is envoyproxy/ratelimit that decides calls of external authorization, so
// that TierGate's Checks are compared with Checks. Its settings come from the environment, as
// there; it has no statistics and no cache.
package main

import (
	"context"
	"math/rand" //nolint:depguard // as envoyproxy/ratelimit takes it
	"net/http"
	"time"

	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/envoyproxy/ratelimit/src/metrics"
	"github.com/envoyproxy/ratelimit/src/redis"
	"github.com/envoyproxy/ratelimit/src/server"
	"github.com/envoyproxy/ratelimit/src/service"
	"github.com/envoyproxy/ratelimit/src/settings"
	"github.com/envoyproxy/ratelimit/src/stats"
	"github.com/envoyproxy/ratelimit/src/utils"
	gostats "github.com/lyft/gostats"
	"github.com/sirupsen/logrus"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
)

// main serves until the process is ended, as envoyproxy/ratelimit does.
func main() {
	s := settings.NewSettings()
	level, err := logrus.ParseLevel(s.LogLevel)
	if err != nil {
		logrus.Fatalf("read LOG_LEVEL: %v", err)
	}
	logrus.SetLevel(level)
	manager := stats.NewStatManager(gostats.NewStore(gostats.NewNullSink(), false), s)
	reporter := metrics.NewServerReporter(manager.GetStatsStore().ScopeWithTags("ratelimit_server", s.ExtraTags))
	served := server.NewServer(s, "ratelimit", manager, nil, settings.GrpcUnaryInterceptor(reporter.UnaryServerInterceptor()))
	clock := utils.NewTimeSourceImpl()
	chance := rand.New(utils.NewLockedSource(time.Now().Unix()))
	counts, _ := redis.NewRateLimiterCacheImplFromSettings(s, nil, served, clock, chance, s.ExpirationJitterMaxSeconds, manager)
	limits := ratelimit.NewService(counts, served.Provider(), manager, served.HealthChecker(), clock,
		s.GlobalShadowMode, s.ForceStartWithoutInitialConfig, s.HealthyWithAtLeastOneConfigLoaded)
	authv3.RegisterAuthorizationServer(served.GrpcServer(), authorization{limits: limits})
	served.Start()
}

// authorization decides a Check by the limits of its API key.
type authorization struct {
	authv3.UnimplementedAuthorizationServer

	limits rlsv3.RateLimitServiceServer
}

// Check asks the service what Envoy would ask it, with a descriptor for each limit.
func (a authorization) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	key := r.GetAttributes().GetRequest().GetHttp().GetHeaders()["authorization"]
	request := &rlsv3.RateLimitRequest{Domain: "tiergate", Descriptors: make([]*ratelimitv3.RateLimitDescriptor, 0, 3)}
	for _, w := range [...]string{"minute", "hour", "day"} {
		request.Descriptors = append(request.Descriptors, &ratelimitv3.RateLimitDescriptor{Entries: []*ratelimitv3.RateLimitDescriptor_Entry{
			{Key: "api_key", Value: key}, {Key: "window", Value: w},
		}})
	}
	answer, err := a.limits.ShouldRateLimit(ctx, request)
	if err != nil {
		return nil, err //nolint:wrapcheck // a status
	}
	if answer.GetOverallCode() != rlsv3.RateLimitResponse_OK {
		return &authv3.CheckResponse{
			Status: &rpcstatus.Status{Code: int32(codes.ResourceExhausted)},
			HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
				Status: &typev3.HttpStatus{Code: http.StatusTooManyRequests},
			}},
		}, nil
	}
	return &authv3.CheckResponse{
		Status:       &rpcstatus.Status{},
		HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{}},
	}, nil
}
