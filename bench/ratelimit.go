package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"github.com/tiergate/tiergate/internal/devstack"
	"google.golang.org/protobuf/proto"
)

const unreached = 1_000_000_000 // as a limit

// windows are those of a request's limits in envoyproxy/ratelimit.
func windows() []string { return []string{"minute", "hour", "day"} }

// startRateLimit starts envoyproxy/ratelimit as a target, with three limits and a Redis of its own.
// It has no metrics: without a statsd it would log one for each request. All else is as it
// is by default.
func (b *bed) startRateLimit(ctx context.Context, name, program string) error {
	server, err := devstack.StartRedisServer(ctx, b.dir)
	if err != nil {
		return err
	}
	defer func() { b.stops = append(b.stops, server.Stop) }() // after what uses it
	root := filepath.Join(b.dir, name)
	limits := strings.Builder{}
	limits.WriteString("domain: tiergate\ndescriptors:\n  - key: api_key\n    descriptors:\n")
	for _, w := range windows() {
		fmt.Fprintf(&limits, "      - {key: window, value: %s, rate_limit: {unit: %s, requests_per_unit: %d}}\n", w, w, unreached)
	}
	config := filepath.Join(root, "bench", "config")
	if err := errors.Join(os.MkdirAll(config, 0o700), os.WriteFile(filepath.Join(config, "bench.yaml"), []byte(limits.String()), 0o600)); err != nil {
		return fmt.Errorf("write limits: %w", err)
	}
	environment := []string{
		"BACKEND_TYPE=redis", "REDIS_TYPE=SINGLE", "REDIS_SOCKET_TYPE=tcp", "REDIS_URL=" + server.Address,
		"RUNTIME_ROOT=" + root, "RUNTIME_SUBDIRECTORY=bench", "DISABLE_STATS=true", "LOG_LEVEL=warn",
	}
	address := ""
	for _, name := range []string{"", "DEBUG_", "GRPC_"} {
		if address, err = devstack.FreeAddress(); err != nil {
			return err
		}
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return fmt.Errorf("find a port: %w", err)
		}
		environment = append(environment, name+"HOST="+host, name+"PORT="+port)
	}
	return b.startServer(ctx, name, []string{program}, environment, target{address: address, redis: b.redisAt(server.Address)})
}

// threeLimits is a request for envoyproxy/ratelimit, of one descriptor for each limit.
func threeLimits(authorization string) proto.Message {
	r := &rlsv3.RateLimitRequest{Domain: "tiergate"}
	for _, w := range windows() {
		r.Descriptors = append(r.Descriptors, &ratelimitv3.RateLimitDescriptor{Entries: []*ratelimitv3.RateLimitDescriptor_Entry{
			{Key: "api_key", Value: authorization}, {Key: "window", Value: w},
		}})
	}
	return r
}

// countedEach tells of a run in which it did not count each limit of each request.
func countedEach(u redisUsage, requests int64) error {
	for _, command := range []string{"incrby", "expire"} {
		if want := requests * int64(len(windows())); u.calls[command] != want {
			return fmt.Errorf("%d calls of %s for %d requests: want %d", u.calls[command], command, requests, want)
		}
	}
	return nil
}
