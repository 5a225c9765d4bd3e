package e2e

import (
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/tiergate/tiergate/internal/devstack"
)

// TestDegraded: a Redis that stands still for a while is seen in the headers, in
// readiness, in the metrics and in two lines of the log; the limit holds, and no request
// fails or waits.
func TestDegraded(t *testing.T) {
	t.Parallel()
	s := upAsShipped(t, devstack.Options{Store: "redis"})
	eventually(t, "the instance is counted", func() bool { return metric(t, s, "tiergate_instances") == 1 })
	freshMinute(t, 30*time.Second)
	admitted := 0
	once := func() (degraded bool) {
		t.Helper()
		r := do(t, s, call{key: "sk-demo-basic"})
		degraded = r.Header.Get("X-RateLimit-Degraded") == "1"
		if r.StatusCode != http.StatusOK || len(r.Header.Values("X-RateLimit-Degraded")) > 1 {
			t.Errorf("%s: %v %s", r.Status, r.Header, r.body)
		}
		admitted++
		checkSix(t, r, "50", strconv.Itoa(50-admitted), "chat", strconv.Itoa(admitted), "2")
		return degraded
	}
	for range 5 {
		once()
	}
	freeze(t, s.Redis)
	for range 20 {
		if !once() {
			t.Error("an answer without Redis does not say so")
		}
	}
	if status, body := operator(t, s, "/readyz"); status != http.StatusOK || !strings.HasPrefix(body, "ready, degraded: counting by this instance alone: Redis is not reached since ") {
		t.Errorf("readyz: %d %s", status, body)
	}
	if response, err := healthpb.NewHealthClient(dial(t, s)).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil || response.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v %v", response, err)
	}
	if metric(t, s, "tiergate_degraded") != 1 || metric(t, s, "tiergate_degraded_decisions_total", `mode="local"`) < 20 {
		t.Error("the metrics do not say so")
	}
	if r := do(t, s, call{method: http.MethodGet, path: "/v1/limits", key: "sk-demo-basic"}); r.StatusCode != http.StatusOK || r.Header.Get("X-RateLimit-Degraded") != "1" {
		t.Errorf("limits: %s %v %s", r.Status, r.Header, r.body)
	}
	if err := s.Redis.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Redis is reached again", func() bool { return metric(t, s, "tiergate_degraded") == 0 })
	eventually(t, "the log says that it is over", func() bool {
		log, err := os.ReadFile(s.LogFile("tiergate"))
		return err == nil && strings.Contains(string(log), "Redis is back, and counts are shared again")
	})
	once()
	if status, body := operator(t, s, "/readyz"); status != http.StatusOK || body != "ready\n" {
		t.Errorf("readyz: %d %s", status, body)
	}
	for admitted < 50 {
		once()
	}
	if r := do(t, s, call{key: "sk-demo-basic"}); r.StatusCode != http.StatusTooManyRequests {
		t.Errorf("after 50: %s", r.Status)
	}
	log, err := os.ReadFile(s.LogFile("tiergate"))
	if err != nil || strings.Count(string(log), "Redis cannot be reached") != 1 || strings.Count(string(log), "Redis is back") != 1 {
		t.Errorf("want a line when it begins and one when it ends: %v\n%s", err, log)
	}
}
