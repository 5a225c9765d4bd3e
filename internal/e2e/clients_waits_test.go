package e2e

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
	"time"
)

// An exchange is a request of a program, as it passed between it and Envoy.
type exchange struct {
	came, answered time.Time
	status         int
	header         http.Header // of the answer
}

// A passage stands between a program and Envoy and notes what passes.
type passage struct {
	url string

	mu        sync.Mutex
	exchanges []exchange
}

// newPassage opens a passage to an API.
func newPassage(t *testing.T, api string) *passage {
	t.Helper()
	p := &passage{}
	server := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: api}) },
		Transport: p,
	})
	t.Cleanup(server.Close)
	p.url = server.URL
	return p
}

// RoundTrip implements [http.RoundTripper].
func (p *passage) RoundTrip(r *http.Request) (*http.Response, error) {
	came := time.Now()
	response, err := http.DefaultTransport.RoundTrip(r)
	if err == nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.exchanges = append(p.exchanges, exchange{came, time.Now(), response.StatusCode, response.Header.Clone()})
	}
	return response, err
}

// checkWaits: each 429 said in milliseconds how long to wait, and the program came
// back in just that time.
func (p *passage) checkWaits(t *testing.T) {
	t.Helper()
	const (
		early = 5 * time.Millisecond // a timer may be
		late  = 4 * time.Second      // a little chance, and a busy machine
	)
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, e := range p.exchanges {
		if e.status != http.StatusTooManyRequests {
			continue
		}
		wait, err := time.ParseDuration(e.header.Get("retry-after-ms") + "ms")
		if err != nil {
			t.Errorf("a 429 without the wait in milliseconds: %v", e.header)
			continue
		}
		if i == len(p.exchanges)-1 {
			t.Errorf("no request came after a 429 that said to retry after %v", wait)
			continue
		}
		if took := p.exchanges[i+1].came.Sub(e.answered); took < wait-early || took > wait+late {
			t.Errorf("request %d came %v after a 429 that said to retry after %v", i+2, took, wait)
		}
	}
}
