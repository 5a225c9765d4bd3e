package e2e

import (
	"net"
	"net/http"
	"testing"
	"time"

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
