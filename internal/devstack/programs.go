package devstack

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/tiergate/tiergate/internal/mockai"
)

// StartRedis starts a Redis server, which keeps on disk what it is to keep.
func (s *Stack) StartRedis(ctx context.Context) error {
	if _, err := exec.LookPath("redis-server"); err != nil {
		return fmt.Errorf("find redis-server: %w: install it (Debian: apt-get install redis-server; macOS: brew install redis)", err)
	}
	host, port, err := net.SplitHostPort(s.Options.RedisAddress)
	if err != nil {
		return fmt.Errorf("start Redis at %q: %w", s.Options.RedisAddress, err)
	}
	appendOnly := "no"
	if s.Options.Keep {
		appendOnly = "yes"
	}
	words := []string{"redis-server", "--bind", host, "--port", port, "--save", "", "--appendonly", appendOnly, "--dir", s.Options.Dir}
	if s.Redis, err = s.start("redis", words, nil); err != nil {
		return err
	}
	return s.await(ctx, "redis-server", s.Redis, func(ctx context.Context) error {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", s.Options.RedisAddress)
		if err != nil {
			return fmt.Errorf("reach Redis: %w", err)
		}
		return conn.Close()
	})
}

// StartUpstream serves the mock AI API.
func (s *Stack) StartUpstream(ctx context.Context) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.Upstream)
	if err != nil {
		return fmt.Errorf("listen for the mock upstream: %w", err)
	}
	server := &http.Server{Handler: mockai.Handler(), ReadHeaderTimeout: 5 * time.Second}
	s.upstream = server
	go func() { _ = server.Serve(l) }() // ends by Close
	return nil
}

// StopUpstream makes the upstream refuse connections.
func (s *Stack) StopUpstream() error {
	if s.upstream == nil {
		return nil
	}
	if err := s.upstream.Close(); err != nil {
		return fmt.Errorf("stop the mock upstream: %w", err)
	}
	return nil
}

// StartServer starts TierGate and waits until it is healthy.
func (s *Stack) StartServer(ctx context.Context) error {
	sets, err := s.sets()
	if err != nil {
		return err
	}
	words := []string{s.Options.TierGate, "serve", "--config", s.Options.Config}
	for _, set := range sets {
		words = append(words, "--set", set)
	}
	if s.Server, err = s.start("tiergate", words, s.Options.Log); err != nil {
		return err
	}
	return s.await(ctx, "TierGate", s.Server, s.healthy)
}

// sets are the settings that TierGate has in a stack.
func (s *Stack) sets() ([]string, error) {
	o := s.Options
	token, err := s.secretFile("admin-token")
	if err != nil {
		return nil, err
	}
	session, err := s.secretFile("session-secret")
	if err != nil {
		return nil, err
	}
	sets := []string{
		"allow_demo_keys=true", "grpc.address=" + o.TierGateAddress, "operator.address=" + o.Operator,
		"operator.tokens=[{name: developer, file: " + strconv.Quote(token) + "}]",
		"customer.address=" + o.CustomerAddress, "customer.session_secret_file=" + session,
		"store.type=" + o.Store, "store.redis.address=" + o.RedisAddress,
	}
	if o.Keep && o.Store == "memory" {
		file, err := filepath.Abs(filepath.Join(o.Dir, "tiergate.db"))
		if err != nil {
			return nil, fmt.Errorf("name the file of keys and usage: %w", err)
		}
		sets = append(sets, "store.memory.file="+file)
	}
	return append(sets, o.Sets...), nil
}

// healthy asks TierGate by the gRPC health protocol.
func (s *Stack) healthy(ctx context.Context) error {
	transport := insecure.NewCredentials()
	if s.Options.ServerTLS != nil {
		transport = credentials.NewTLS(s.Options.ServerTLS)
	}
	conn, err := grpc.NewClient(s.TierGate, grpc.WithTransportCredentials(transport))
	if err != nil {
		return fmt.Errorf("reach TierGate: %w", err)
	}
	defer conn.Close()
	response, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		return fmt.Errorf("ask TierGate for its health: %w", err)
	}
	if status := response.GetStatus(); status != healthpb.HealthCheckResponse_SERVING {
		return fmt.Errorf("TierGate answers %s", status)
	}
	return nil
}

// StartProxy starts Envoy with the chain's shipped file, set to the stack's
// addresses, and waits until it is ready.
func (s *Stack) StartProxy(ctx context.Context) error {
	file, err := envoyFile(s.Options.Chain)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(filepath.Join(s.Options.Root, file))
	if err != nil {
		return fmt.Errorf("read the Envoy file: %w", err)
	}
	if s.Options.EditEnvoy != nil {
		content = s.Options.EditEnvoy(content)
	}
	if content, err = setAddresses(content, s.Addresses); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	path := filepath.Join(s.Options.Dir, "envoy.yaml")
	if err := os.WriteFile(path, content, 0o644); err != nil { // Envoy may run as another user
		return fmt.Errorf("write the Envoy file: %w", err)
	}
	words := s.Options.Envoy.Command(s.Options.Dir, "--config-path", path, "--log-level", "warning", "--concurrency", "2")
	if s.Proxy, err = s.start("envoy", words, nil); err != nil {
		return err
	}
	return s.await(ctx, "Envoy", s.Proxy, func(ctx context.Context) error {
		return getOK(ctx, "http://"+s.Admin+"/ready")
	})
}

func getOK(ctx context.Context, url string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("get %s: %w", url, err)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return fmt.Errorf("get %s: %w", url, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", url, response.Status)
	}
	return nil
}
