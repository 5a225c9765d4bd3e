package main

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

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
