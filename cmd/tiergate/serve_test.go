package main

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/config"
)

// TestDurationsAreText in the log, whatever its format.
func TestDurationsAreText(t *testing.T) {
	t.Parallel()
	for _, asJSON := range []bool{false, true} {
		var text bytes.Buffer
		log := newLogger(&text, config.Start{LogJSON: asJSON})
		log.With("delay", 5*time.Second).WithGroup("g").Info("draining", "timeout", 1500*time.Millisecond, "n", 7)
		want := "delay=5s g.timeout=1.5s g.n=7\n"
		if asJSON {
			want = `"delay":"5s","g":{"timeout":"1.5s","n":7}}`
		}
		if !strings.Contains(text.String(), want) {
			t.Errorf("json %t: %s", asJSON, text.String())
		}
	}
}

// TestNoTokens: where the admin API answers nobody, the log warns of that.
func TestNoTokens(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"127.0.0.1:9002": "level=INFO msg=\"no operator.tokens are configured: the admin API and the operators' dashboard answer this machine only\"",
		":9002":          "level=WARN msg=\"no operator.tokens are configured, and operator.address is not one of this machine alone: ",
		"10.0.0.1:9002":  "level=WARN msg=\"no operator.tokens are configured, and operator.address is not one of this machine alone: ",
	} {
		var log bytes.Buffer
		s := &server{log: slog.New(slog.NewTextHandler(&log, nil)), start: config.Start{Operator: config.Address{Network: "tcp", Address: address}}}
		s.tellNoTokens(t.Context())
		if text := log.String(); !strings.Contains(text, want) {
			t.Errorf("%s: %s", address, text)
		}
	}
}

// TestPanicsAreSurvived: a request whose handler panics gets 500, and what it said is in
// no log.
func TestPanicsAreSurvived(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	s := &server{log: slog.New(slog.NewTextHandler(&log, nil))}
	h := s.httpServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { panic("about " + r.URL.Path) }), time.Second).Handler
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/canary", nil))
	if w.Code != http.StatusInternalServerError || strings.Contains(w.Body.String(), "canary") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if text := log.String(); !strings.Contains(text, "a call panicked") || strings.Contains(text, "canary") {
		t.Errorf("the log: %s", text)
	}
}
