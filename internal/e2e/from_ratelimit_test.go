package e2e

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tiergate/tiergate/internal/devstack"
)

// A formerLimiter answers as envoyproxy/ratelimit does, of one limit.
type formerLimiter struct {
	rlsv3.UnimplementedRateLimitServiceServer

	address string
	over    atomic.Bool
}

func newFormerLimiter(t *testing.T) *formerLimiter {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &formerLimiter{address: listener.Addr().String()}
	server := grpc.NewServer()
	rlsv3.RegisterRateLimitServiceServer(server, l)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return l
}

// ShouldRateLimit refuses while it is over.
func (l *formerLimiter) ShouldRateLimit(_ context.Context, r *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
	code := rlsv3.RateLimitResponse_OK
	if l.over.Load() {
		code = rlsv3.RateLimitResponse_OVER_LIMIT
	}
	answer := &rlsv3.RateLimitResponse{OverallCode: code}
	for range r.GetDescriptors() {
		answer.Statuses = append(answer.Statuses, &rlsv3.RateLimitResponse_DescriptorStatus{
			Code: code, CurrentLimit: &rlsv3.RateLimitResponse_RateLimit{RequestsPerUnit: 5, Unit: rlsv3.RateLimitResponse_RateLimit_MINUTE},
			DurationUntilReset: durationpb.New(7 * time.Second),
		})
	}
	return answer, nil
}

// cluster is how an Envoy reaches it, in the words of the documents.
func (l *formerLimiter) cluster(t *testing.T) string {
	t.Helper()
	return strings.ReplaceAll(at(t, block(t, "yaml cluster"), "127.0.0.1, port_value: 9001", l.address), "tiergate", "ratelimit")
}

// at puts an address in the place of another, in a part of an Envoy file.
func at(t *testing.T, text, former, address string) string {
	t.Helper()
	host, port, _ := strings.Cut(address, ":")
	return replaced(t, text, former, host+", port_value: "+port)
}

const formerEnvoy = `
admin: {address: {socket_address: {address: 127.0.0.1, port_value: ADMIN}}}
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: API}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: api
          use_remote_address: true
          http_filters:
          - name: envoy.filters.http.ratelimit
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit
              domain: edge
              timeout: 5s
              failure_mode_deny: true
              rate_limit_service: {transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: ratelimit}}}
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            virtual_hosts:
            - name: api
              domains: ["*"]
              rate_limits: [{actions: [{generic_key: {descriptor_value: all}}]}]
              routes: [{match: {prefix: /v1/}, route: {cluster: upstream, timeout: 0s}}]
  clusters:
  - name: upstream
    type: STATIC
    load_assignment: {cluster_name: upstream, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: UPSTREAM}}}}]}]}
`

// startFormer starts the Envoy that asks the former limiter, with a route of the guide before
// its own. What it returns stands for it in do, and has its admin interface.
func startFormer(t *testing.T, s *devstack.Stack, l *formerLimiter, route string) *devstack.Stack {
	t.Helper()
	first := &devstack.Stack{}
	text := formerEnvoy
	for name, address := range map[string]*string{"API": &first.API, "ADMIN": &first.Admin} {
		free, err := devstack.FreeAddress()
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := strings.Cut(free, ":")
		text, *address = strings.Replace(text, "port_value: "+name, "port_value: "+port, 1), free
	}
	content := edited(t, at(t, text, "UPSTREAM", s.Upstream), func(doc map[string]any) {
		maps.Copy(doc, mapping(t, block(t, "yaml layered_runtime")))
		prepend(t, doc, "routes", route)
		prepend(t, doc, "clusters", l.cluster(t))
		prepend(t, doc, "clusters", at(t, block(t, "yaml cluster second"), "127.0.0.1, port_value: 10001", s.API))
	})
	dir := t.TempDir()
	path := filepath.Join(dir, "envoy.yaml")
	log, err := os.Create(filepath.Join(dir, "envoy.log"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil { // Envoy may run as another user
		t.Fatal(err)
	}
	process, err := devstack.Start("the first Envoy", envoy.Command(dir, "--config-path", path, "--log-level", "warning", "--concurrency", "1"), nil, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := process.Stop(10 * time.Second); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			showLogs(t, dir)
		}
		log.Close()
	})
	eventually(t, "the first Envoy is ready", func() bool {
		response, err := client.Get("http://" + first.Admin + "/ready")
		return err == nil && read(t, response).StatusCode == http.StatusOK
	})
	return first
}

// behindAnother is the second Envoy as the guide has it, with another route to the upstream if
// one is given.
func behindAnother(t *testing.T, route string) func([]byte) []byte {
	t.Helper()
	return func(file []byte) []byte {
		const own = "use_remote_address: true\n"
		return edited(t, replaced(t, string(file), own, own+"          xff_num_trusted_hops: 1\n"), func(doc map[string]any) {
			if route != "" {
				withoutRoute(doc, "upstream")
				prepend(t, doc, "routes", route)
			}
		})
	}
}

// TestBesideTheFormerLimiter: TierGate decides copies of requests, of which neither the client
// nor the upstream sees anything.
func TestBesideTheFormerLimiter(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{EditEnvoy: behindAnother(t, block(t, "yaml route answer"))})
	first := startFormer(t, s, newFormerLimiter(t), block(t, "yaml route mirror"))
	freshMinute(t, 15*time.Second)
	ask := func(key string) {
		t.Helper()
		r := do(t, first, call{key: key, header: http.Header{"X-Mock-Echo": {"1"}}})
		if r.StatusCode != http.StatusOK || !strings.Contains(r.body, "Bearer "+key) || strings.Contains(strings.ToLower(r.body), "x-tiergate") || r.Header.Get("X-RateLimit-Used") != "" {
			t.Errorf("%s: %s, headers %v: %s", key, r.Status, r.Header, r.body)
		}
	}
	for range 12 {
		ask("sk-demo-free")
	}
	ask("sk-of-nobody")
	eventually(t, "TierGate has decided the copies", func() bool {
		return metric(t, s, "tiergate_decisions_total", `outcome="allowed"`, `tier="free"`, `resource="chat"`) == 10 &&
			metric(t, s, "tiergate_decisions_total", `limit="requests_per_minute"`, `outcome="limited"`) == 2 &&
			metric(t, s, "tiergate_decisions_total", `code="invalid_api_key"`) == 1
	})
	if err := s.Proxy.Stop(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	ask("sk-demo-free")
}

// TestMoveAndBack: a share of the requests goes by the second Envoy, and none again.
func TestMoveAndBack(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{EditEnvoy: behindAnother(t, "")})
	l := newFormerLimiter(t)
	l.over.Store(true)
	first := startFormer(t, s, l, block(t, "yaml route share"))
	freshMinute(t, 15*time.Second)
	if r := do(t, first, call{key: "sk-demo-pro"}); r.StatusCode != http.StatusTooManyRequests || r.Header.Get("X-RateLimit-Used") != "" {
		t.Errorf("%s, %v: want the former limiter's 429", r.Status, r.Header)
	}
	set := func(commands string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "bash", "-exc", strings.ReplaceAll(commands, "127.0.0.1:9901", first.Admin)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	commands := block(t, "sh share")
	set(commands)
	eventually(t, "TierGate decides", func() bool {
		r := do(t, first, call{key: "sk-demo-pro"})
		if r.StatusCode == http.StatusOK {
			used := number(t, r, "X-RateLimit-Used")
			checkSix(t, r, "100", strconv.Itoa(100-used), "chat", strconv.Itoa(used), "3")
		}
		return r.StatusCode == http.StatusOK
	})
	_, last, _ := strings.Cut(commands, "\n")
	set(strings.Replace(last, "second.share=100", "second.share=0", 1))
	eventually(t, "the former limiter decides again", func() bool {
		return do(t, first, call{key: "sk-demo-pro"}).StatusCode == http.StatusTooManyRequests
	})
}

// withFormer puts the filter of the former limiter into the shipped Envoy file, as the guide has
// it, and the route that needs no key.
func withFormer(t *testing.T, chain string, l *formerLimiter) func([]byte) []byte {
	t.Helper()
	open := block(t, "yaml route open")
	if chain == "ratelimit" {
		open = open[:strings.LastIndex(strings.TrimSpace(open), "\n")+1] + block(t, "yaml route open ratelimit")
	}
	const domains = "              domains: [\"*\"]\n"
	return func(file []byte) []byte {
		text := replaced(t, string(file), domains, domains+"              rate_limits: [{actions: [{generic_key: {descriptor_value: all}}]}]\n")
		return edited(t, text, func(doc map[string]any) {
			prepend(t, doc, "routes", open)
			prepend(t, doc, "mappers", block(t, "yaml mapper ratelimit"))
			prepend(t, doc, "clusters", l.cluster(t))
			insertBeside(doc, "envoy.filters.http.local_ratelimit", 1, mapping(t, replaced(t, block(t, "yaml filter ratelimit"), "0.02s", "5s")))
		})
	}
}

// TestFormerLimiterStays: its filter stands before that of TierGate. What it refuses has
// TierGate's form, and the route that needs no key is open.
func TestFormerLimiterStays(t *testing.T) {
	both(t, func(t *testing.T, chain string) {
		l := newFormerLimiter(t)
		s := up(t, devstack.Options{Chain: chain, EditEnvoy: withFormer(t, chain, l)})
		freshMinute(t, 10*time.Second)
		r := do(t, s, call{key: "sk-demo-pro"})
		if r.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", r.Status, r.body)
		}
		checkSix(t, r, "100", "99", "chat", "1", "3")
		if r := do(t, s, call{key: "sk-of-nobody"}); r.StatusCode != http.StatusUnauthorized || !strings.Contains(r.body, "invalid_api_key") {
			t.Errorf("%s: %s", r.Status, r.body)
		}
		r = do(t, s, call{method: http.MethodGet, path: "/healthz"})
		if r.StatusCode == http.StatusUnauthorized || r.Header.Get("X-Envoy-Upstream-Service-Time") == "" {
			t.Errorf("%s, %v: want the upstream's answer", r.Status, r.Header)
		}
		checkSix(t, r, "0", "0", "default", "0", "1")

		l.over.Store(true)
		r = do(t, s, call{key: "sk-demo-pro"})
		checkSix(t, r, "0", "0", "default", "0", "1")
		if r.StatusCode != http.StatusTooManyRequests || r.body != fmt.Sprintf(limitBody, 7) {
			t.Errorf("%s: %s", r.Status, r.body)
		}
		for name, want := range map[string]string{"Retry-After": "7", "X-RateLimit-Limited-By": "edge", "Content-Type": "application/json", "Cache-Control": "no-store"} {
			if have := r.Header.Values(name); !slices.Equal(have, []string{want}) {
				t.Errorf("%s: %q, want %q once", name, have, want)
			}
		}
		if left := time.Until(time.Unix(reset(t, r), 0)); left < 3*time.Second || left > 8*time.Second {
			t.Errorf("it resets in %s, want 7 s", left)
		}
	})
}
