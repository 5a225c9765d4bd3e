package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/tiergate/tiergate/internal/devstack"
)

// TestTwoInstancesNeverOverTheLimit: two TierGates, each behind its own Envoy,
// share one Redis; 64 clients at once, across a minute's edge, get exactly the
// limit in each minute. It loads the machine, so it runs alone.
func TestTwoInstancesNeverOverTheLimit(t *testing.T) {
	one := up(t, devstack.Options{Store: "redis"})
	two := up(t, devstack.Options{Store: "redis", RedisRunning: true, RedisAddress: one.Options.RedisAddress, Chain: "ratelimit"})
	edge := time.Now().Truncate(time.Minute).Add(time.Minute)
	waitUntil(t, edge.Add(-3*time.Second))
	var mu sync.Mutex
	admitted := map[int64]map[*devstack.Stack]int{} // by the end of the minute
	refused := 0
	together(64, func(i int) {
		s := []*devstack.Stack{one, two}[i%2]
		for time.Now().Before(edge.Add(3 * time.Second)) {
			r := do(t, s, call{key: "sk-demo-pro"})
			mu.Lock()
			switch r.StatusCode {
			case http.StatusOK:
				end := reset(t, r)
				if admitted[end] == nil {
					admitted[end] = map[*devstack.Stack]int{}
				}
				admitted[end][s]++
			case http.StatusTooManyRequests:
				refused++
			default:
				t.Errorf("%s: %s", r.Status, r.body)
			}
			mu.Unlock()
		}
	})
	for _, end := range []int64{edge.Unix(), edge.Unix() + 60} {
		by := admitted[end]
		t.Logf("in the minute until %d: %d admitted by one instance, %d by the other", end, by[one], by[two])
		if by[one]+by[two] != 100 || by[one] == 0 || by[two] == 0 {
			t.Errorf("want exactly 100 in each minute, by both instances")
		}
	}
	if len(admitted) != 2 || refused < 100 {
		t.Errorf("%d minutes, %d refused", len(admitted), refused)
	}
}

// together runs f in n goroutines at once.
func together(n int, f func(i int)) {
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() { f(i) })
	}
	group.Wait()
}

func kill(t *testing.T, p *devstack.Process) {
	t.Helper()
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
}

// freeze stops a program where it is, and returns when all its threads stand
// still.
func freeze(t *testing.T, p *devstack.Process) {
	t.Helper()
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the program stands still", func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.PID()))
		if err != nil || len(threads) == 0 {
			t.Fatalf("no threads of %d: %v", p.PID(), err)
		}
		for _, thread := range threads {
			stat, err := os.ReadFile(thread)
			// The state follows the name, which is in parentheses.
			if err != nil || !strings.HasPrefix(string(stat[bytes.LastIndexByte(stat, ')')+1:]), " T") {
				return false
			}
		}
		return true
	})
}

// TestCountsSurviveARestart with Redis, even when TierGate is killed.
func TestCountsSurviveARestart(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{Store: "redis"})
	freshMinute(t, 20*time.Second)
	for range 7 {
		do(t, s, call{key: "sk-demo-basic"})
	}
	kill(t, s.Server)
	if err := s.StartServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Envoy reaches the new TierGate", func() bool { return do(t, s, call{key: "sk-demo-free"}).StatusCode == http.StatusOK })
	checkSix(t, do(t, s, call{key: "sk-demo-basic"}), "50", "42", "chat", "8", "2")
}

// TestRedisAwayDenied: where that is configured requests get a 503 that says to come
// back, readiness tells, and all is well by itself when Redis is back.
func TestRedisAwayDenied(t *testing.T) {
	both(t, func(t *testing.T, chain string) {
		s := upAsShipped(t, devstack.Options{Chain: chain, Store: "redis", Sets: []string{"on_store_failure=deny"}})
		if r := do(t, s, call{key: "sk-demo-pro"}); r.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s", r.Status, r.body)
		}
		kill(t, s.Redis)
		r := do(t, s, call{key: "sk-demo-pro"})
		if r.StatusCode != http.StatusServiceUnavailable || errorCode(t, r) != "limiter_unavailable" || r.Header.Get("Retry-After") != "1" {
			t.Errorf("without Redis: %s %v %s", r.Status, r.Header, r.body)
		}
		checkSix(t, r, "100", "0", "chat", "100", "3")
		checkSix(t, do(t, s, call{key: "sk-demo-enterprise"}), "unlimited", "unlimited", "chat", "0", "4")
		if r := do(t, s, call{key: "sk-demo-pro", header: http.Header{"Content-Type": {"application/grpc"}}}); r.Header.Get("Grpc-Status") != "14" {
			t.Errorf("by gRPC: %v, want UNAVAILABLE", r.Header)
		}
		if r.Header.Get("X-RateLimit-Degraded") != "1" {
			t.Errorf("not marked: %v", r.Header)
		}
		if status, body := operator(t, s, "/readyz"); status != http.StatusServiceUnavailable || !strings.HasPrefix(body, "not ready: Redis is not reached since ") {
			t.Errorf("readyz: %d %s", status, body)
		}
		if err := s.StartRedis(t.Context()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "requests pass again", func() bool { return do(t, s, call{key: "sk-demo-pro"}).StatusCode == http.StatusOK })
		if status, body := operator(t, s, "/readyz"); status != http.StatusOK || body != "ready\n" {
			t.Errorf("readyz: %d %s", status, body)
		}
		if n := metric(t, s, "tiergate_degraded_decisions_total", `mode="deny"`); n < 1 {
			t.Errorf("denied: %v", n)
		}
	})
}

// TestEnvoyWaits for a slow answer as long as the shipped files say, a quarter
// of a second, and no longer. (Envoy has taken other settings for this time.)
func TestEnvoyWaits(t *testing.T) {
	both(t, func(t *testing.T, chain string) {
		s := upAsShipped(t, devstack.Options{Chain: chain})
		eventually(t, "a request passes", func() bool { return do(t, s, call{key: "sk-demo-enterprise"}).StatusCode == http.StatusOK })
		freeze(t, s.Server)
		began := time.Now()
		r := do(t, s, call{key: "sk-demo-enterprise"})
		if took := time.Since(began); r.StatusCode != http.StatusServiceUnavailable || took < 240*time.Millisecond || took > 2*time.Second {
			t.Errorf("TierGate hangs: %s after %s, want 503 after 250 ms", r.Status, took)
		}
		if err := s.Server.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	})
}

// TestStartsWithoutRedis: TierGate comes up, serves degraded, and shares its counts when
// Redis is there.
func TestStartsWithoutRedis(t *testing.T) {
	t.Parallel()
	address, err := devstack.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	s := upAsShipped(t, devstack.Options{Store: "redis", RedisRunning: true, RedisAddress: address})
	if r := do(t, s, call{key: "sk-demo-pro"}); r.StatusCode != http.StatusOK || r.Header.Get("X-RateLimit-Degraded") != "1" {
		t.Errorf("without Redis: %s %v", r.Status, r.Header)
	}
	if err := s.StartRedis(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "counts are shared", func() bool { return do(t, s, call{key: "sk-demo-pro"}).Header.Get("X-RateLimit-Degraded") == "" })
}

// dial connects to TierGate itself.
func dial(t *testing.T, s *devstack.Stack) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(s.TierGate, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestGracefulStop: on SIGTERM health says NOT_SERVING at once and /readyz that it stops,
// requests in flight are answered, who watches is not waited for, and the process ends with 0.
func TestGracefulStop(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{Store: "redis", Sets: []string{"store.redis.timeout=9s", "shutdown.delay=1s", "shutdown.timeout=1m"}})
	conn := dial(t, s)
	watch, err := healthpb.NewHealthClient(conn).Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if said, err := watch.Recv(); err != nil || said.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Fatalf("watched: %v, %v", said, err)
	}
	reflection, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	freeze(t, s.Redis)
	type result struct {
		response *authv3.CheckResponse
		err      error
	}
	results := make(chan result, 8)
	for range cap(results) {
		go func() {
			response, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), checkRequest("sk-demo-pro"))
			results <- result{response, err}
		}()
	}
	eventually(t, "the requests are in flight", func() bool {
		return metric(t, s, "go_goroutines") > 0 && openRedisCalls(t, s) >= 1
	})
	if err := s.Server.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "health says NOT_SERVING", func() bool {
		response, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
		return err == nil && response.GetStatus() == healthpb.HealthCheckResponse_NOT_SERVING
	})
	if status, body := operator(t, s, "/readyz"); status != http.StatusServiceUnavailable || body != "not ready: stopping\n" {
		t.Errorf("/readyz of one that stops: %d %q", status, body)
	}
	if said, err := watch.Recv(); err != nil || said.GetStatus() != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Errorf("watched: %v, %v", said, err)
	}
	if err := s.Redis.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for range cap(results) {
		if r := <-results; r.err != nil || r.response.GetOkResponse() == nil {
			t.Errorf("in flight at the stop: %v, %v", r.response, r.err)
		}
	}
	select {
	case <-s.Server.Done():
	case <-time.After(15 * time.Second):
		t.Error("TierGate did not end")
	}
	_, watched := watch.Recv()
	if _, err := reflection.Recv(); status.Code(watched) != codes.Unavailable || status.Code(err) != codes.Unavailable {
		t.Errorf("the streams end with %v and %v: want UNAVAILABLE", watched, err)
	}
	log, err := os.ReadFile(s.LogFile("tiergate"))
	if err != nil || !strings.Contains(string(log), "msg=stopped") {
		t.Errorf("the log does not end with stopped: %v\n%s", err, log)
	}
}

// TestReplacingInstances: two instances behind one Envoy are replaced one after the other, as a
// rolling update does it. No client gets an error, and all that is admitted is counted, once.
func TestReplacingInstances(t *testing.T) {
	alone(t, func(t *testing.T, chain string) {
		// The delay is longer than two checks.
		f := newTrialBehindOne(t, devstack.Options{Chain: chain, Sets: []string{"shutdown.delay=2s"}, EditEnvoy: func(file []byte) []byte {
			return bytes.ReplaceAll(file, []byte("interval: 2s, no_traffic_interval: 2s"), []byte("interval: 0.25s, no_traffic_interval: 0.25s"))
		}}, 2)
		replace := func(s *devstack.Stack) {
			if err := s.Server.Stop(15 * time.Second); err != nil {
				t.Error(err)
			}
			if err := s.StartServer(t.Context()); err != nil {
				t.Fatal(err)
			}
			eventually(t, "Envoy has asked the new one", func() bool { return envoyStat(t, f.edges[0], "cluster.tiergate.membership_healthy") == 2 })
		}
		n := 0
		stop := sync.OnceFunc(regularly(20*time.Millisecond, func() {
			n++
			if r := do(t, f.edges[0], call{method: http.MethodGet, path: "/v1/limits", key: countedKey(n % countedKeys)}); r.StatusCode != http.StatusOK {
				t.Errorf("/v1/limits: %s %s", r.Status, r.body)
			}
		}))
		defer stop()
		r := f.run("Both instances replaced", 0, func() { replace(f.stacks[0]) }, func() { replace(f.stacks[1]) })
		stop()
		f.check(r, promise{})
		if n := envoyStat(t, f.edges[0], "cluster_manager.cluster_updated_via_merge"); n != 0 {
			t.Errorf("what Envoy found out waited %d times for what else it would find", n)
		}
		for _, s := range f.stacks {
			kill(t, s.Server) // the delay of its stop would be waited for
		}
	})
}

// openRedisCalls tells from Redis' socket whether TierGate is connected.
func openRedisCalls(t *testing.T, s *devstack.Stack) int {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", s.Server.PID()))
	if err != nil {
		t.Fatal(err)
	}
	sockets := 0
	for _, f := range files {
		if target, err := os.Readlink(f); err == nil && strings.HasPrefix(target, "socket:") {
			sockets++
		}
	}
	return sockets - 3 // two listeners and the test's own connection
}

func checkRequest(key string) *authv3.CheckRequest {
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
		Http: &authv3.AttributeContext_HttpRequest{
			Method: http.MethodPost, Path: "/v1/chat/completions",
			Headers: map[string]string{"authorization": "Bearer " + key, "content-length": "100"},
		},
	}}}
}

// eventually asks until the answer is true, for ten seconds.
func eventually(t *testing.T, what string, ask func() bool) {
	t.Helper()
	eventuallyWithin(t, 10*time.Second, what, ask)
}
