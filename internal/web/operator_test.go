package web

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// TestOperator: metrics are there, a live process is healthy whether or not it
// is ready, readiness tells why not, and nothing can be written.
func TestOperator(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "things", Help: "Things."})
	registry.MustRegister(gauge)
	gauge.Set(3)
	var trouble error
	h := Operator(registry, func(context.Context) error { return trouble })
	for _, c := range []struct {
		method, path string
		trouble      error
		status       int
		body         string
	}{
		{"GET", "/metrics", nil, 200, "things 3\n"},
		{"GET", "/healthz", nil, 200, "ok\n"},
		{"GET", "/readyz", nil, 200, "ready\n"},
		{"GET", "/healthz", errors.New("ping Redis: refused"), 200, "ok\n"},
		{"GET", "/readyz", errors.New("ping Redis: refused"), 503, "not ready: ping Redis: refused\n"},
		{"POST", "/metrics", nil, 405, ""},
		{"DELETE", "/readyz", nil, 405, ""},
		{"GET", "/", nil, 404, ""},
	} {
		trouble = c.trouble
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), c.method, c.path, http.NoBody))
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.body) {
			t.Errorf("%s %s with trouble %v: %d %q, want %d %q", c.method, c.path, c.trouble, w.Code, w.Body, c.status, c.body)
		}
	}
}
