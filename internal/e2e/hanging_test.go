package e2e

import (
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/tiergate/tiergate/internal/devstack"
)

// mute is an address where nobody takes what connects.
func mute(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

// TestHangingInstancesAreNotAsked, though they are most of the fleet: what Envoy has found out,
// it goes by, at both ports.
func TestHangingInstancesAreNotAsked(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		hanging := []string{mute(t), mute(t)}
		s := up(t, devstack.Options{Chain: chain, EditEnvoy: func(file []byte) []byte {
			return withEndpoints(t, withEndpoints(t, file, 9001, hanging), 9003, hanging)
		}})
		for _, cluster := range []string{"tiergate", "tiergate_customers"} {
			eventually(t, cluster+": the one that answers is taken for healthy", func() bool { return envoyStat(t, s, "cluster."+cluster+".membership_healthy") == 1 })
		}
		together(12, func(int) {
			if r := do(t, s, call{key: "sk-demo-enterprise"}); r.StatusCode != http.StatusOK {
				t.Errorf("%s %s", r.Status, r.body)
			}
			if r := do(t, s, call{method: http.MethodGet, path: "/v1/limits"}); r.StatusCode != http.StatusUnauthorized {
				t.Errorf("/v1/limits without a key: %s %s", r.Status, r.body)
			}
		})
		for _, name := range []string{"tiergate.upstream_rq_timeout", "tiergate.upstream_rq_retry", "tiergate_customers.upstream_rq_per_try_timeout"} {
			if n := envoyStat(t, s, "cluster."+name); n != 0 {
				t.Errorf("%s: %d, want none", name, n)
			}
		}
	})
}

// TestTheOnlyInstanceIsAsked however it fares: what fails may work again at once.
func TestTheOnlyInstanceIsAsked(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		s := up(t, devstack.Options{Chain: chain})
		if err := s.Server.Stop(10 * time.Second); err != nil {
			t.Fatal(err)
		}
		for _, cluster := range []string{"tiergate", "tiergate_customers"} {
			eventually(t, cluster+" is found to be away", func() bool { return envoyStat(t, s, "cluster."+cluster+".membership_healthy") == 0 })
		}
		if r := do(t, s, call{key: "sk-demo-pro"}); r.StatusCode != http.StatusServiceUnavailable || errorCode(t, r) != "limiter_unavailable" {
			t.Errorf("without TierGate: %s %s", r.Status, r.body)
		}
		if err := s.StartServer(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r := do(t, s, call{key: "sk-demo-pro"}); r.StatusCode != http.StatusOK {
			t.Errorf("at once when it is back: %s %s", r.Status, r.body)
		}
		if r := do(t, s, call{method: http.MethodGet, path: "/v1/limits", key: "sk-demo-pro"}); r.StatusCode != http.StatusOK {
			t.Errorf("/v1/limits at once when it is back: %s %s", r.Status, r.body)
		}
	})
}

// TestTheOnlyInstanceIsNotEjected, though it hangs: it may go on at once.
func TestTheOnlyInstanceIsNotEjected(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		s := upAsShipped(t, devstack.Options{Chain: chain})
		freeze(t, s.Server)
		together(60, func(int) { do(t, s, call{key: "sk-demo-enterprise"}) })
		if err := s.Server.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		const outlier = "cluster.tiergate.outlier_detection."
		if found, ejected := envoyStat(t, s, outlier+"ejections_overflow"), envoyStat(t, s, outlier+"ejections_enforced_total"); found == 0 || ejected != 0 {
			t.Errorf("found out %d times, ejected %d times: want some, and none", found, ejected)
		}
	})
}

// TestRefusalsEjectNobody: what TierGate answers by a refusal, or cannot read, is no failure of its.
func TestRefusalsEjectNobody(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		f := newTrialBehindOne(t, devstack.Options{Chain: chain, Sets: []string{"on_store_failure=deny"}}, 2)
		s := f.edges[0]
		none := func(what string) {
			t.Helper()
			if n := envoyStat(t, s, "cluster.tiergate.outlier_detection.ejections_detected_consecutive_gateway_failure"); n != 0 {
				t.Errorf("%s: an instance is taken for one that fails, %d times", what, n)
			}
		}
		together(4, func(int) {
			for range 40 {
				do(t, s, call{key: "sk-nobody"})
				do(t, s, call{key: countedKey(0), header: http.Header{"X-Request-Priority": {"\xff"}}})
			}
		})
		none("401, and what is no UTF-8")
		kill(t, f.stacks[0].Redis)
		together(4, func(int) {
			for range 40 {
				do(t, s, call{key: countedKey(0)})
			}
		})
		none("503 by deny")
	})
}

// TestHungInstanceIsLeft as soon as 50 calls in a row have run out of time there, before any
// health check has failed twice.
func TestHungInstanceIsLeft(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		hung := healthy(t, nil)
		s := up(t, devstack.Options{Chain: chain, EditEnvoy: func(file []byte) []byte {
			file = []byte(replaced(t, string(file), "unhealthy_threshold: 2, healthy_threshold: 1, grpc", "unhealthy_threshold: 100, healthy_threshold: 1, grpc"))
			return withEndpoints(t, file, 9001, []string{hung})
		}})
		together(150, func(int) { do(t, s, call{key: "sk-demo-enterprise"}) }) // half of them ask the one that hangs
		eventually(t, "it is left", func() bool { return envoyStat(t, s, "cluster.tiergate.membership_healthy") == 1 })
		before := envoyStat(t, s, "cluster.tiergate.upstream_rq_timeout")
		for range 20 {
			do(t, s, call{key: "sk-demo-enterprise"})
		}
		if n := envoyStat(t, s, "cluster.tiergate.upstream_rq_timeout") - before; n != 0 {
			t.Errorf("%d of 20 calls ran out of time, want none", n)
		}
	})
}

// TestLateInstanceIsLeft: who answers too late for every call is not asked, though it answers.
func TestLateInstanceIsLeft(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		proxy := before(t, up(t, devstack.Options{ServerOnly: true}).TierGate)
		s := up(t, devstack.Options{Chain: chain, EditEnvoy: func(file []byte) []byte {
			return withEndpoints(t, file, 9001, []string{proxy.Listen})
		}})
		left := func(want int) func() bool {
			return func() bool { return envoyStat(t, s, "cluster.tiergate.membership_healthy") == want }
		}
		eventually(t, "both are healthy", left(2))
		if _, err := proxy.Toxics.AddToxicJson(strings.NewReader(`{"name": "late", "type": "latency", "stream": "downstream", "attributes": {"latency": 350}}`)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the late one is left", left(1))
		if err := proxy.Toxics.RemoveToxic(t.Context(), "late"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is asked again", left(2))
	})
}

// TestBusyInstancesAreAsked: those that have as many calls as they may refuse more in a row than one
// that hangs misses. Half of them stay at the least: a few could not do the work of all.
func TestBusyInstancesAreAsked(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		full := status.Error(codes.Unavailable, "too many calls are under way")
		others := []string{healthy(t, full), healthy(t, full), healthy(t, full)}
		s := up(t, devstack.Options{Chain: chain, Sets: []string{"grpc.max_calls=1"}, EditEnvoy: func(file []byte) []byte {
			file = []byte(replaced(t, string(file), "interval: 2s, no_traffic_interval: 2s, unhealthy_threshold: 2, healthy_threshold: 1, grpc", "interval: 60s, no_traffic_interval: 60s, unhealthy_threshold: 2, healthy_threshold: 1, grpc"))
			return withEndpoints(t, file, 9001, others)
		}})
		eventually(t, "all are healthy", func() bool { return envoyStat(t, s, "cluster.tiergate.membership_healthy") == 4 })
		busy(t, s)
		together(20, func(int) {
			for range 30 {
				do(t, s, call{key: "sk-demo-enterprise"})
			}
		})
		if refused := envoyStat(t, s, "cluster.tiergate.outlier_detection.ejections_detected_consecutive_gateway_failure"); refused == 0 {
			t.Error("none has refused 50 in a row")
		}
		if n := envoyStat(t, s, "cluster.tiergate.membership_healthy"); n < 2 {
			t.Errorf("%d of 4 that are busy are asked, want 2", n)
		}
	})
}

// healthy is the address of a server that answers this error whatever else it is asked. Where that
// is nil it hangs for good as soon as it is asked.
func healthy(t *testing.T, answer error) string {
	t.Helper()
	var hangs atomic.Bool
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		if method, _ := grpc.MethodFromServerStream(stream); method == healthpb.Health_Check_FullMethodName && !hangs.Load() {
			return stream.SendMsg(&healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING})
		}
		if answer != nil {
			return answer
		}
		hangs.Store(true)
		<-stream.Context().Done()
		return stream.Context().Err() //nolint:wrapcheck // nobody waits for it
	}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return l.Addr().String()
}
