package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// What the load is made of.
const (
	countedKeys = 50              // share four fifths of the requests and are never refused
	narrowKeys  = 40              // are asked one after the other
	narrowFor   = 4 * time.Second // how long each of them is asked
	loadWorkers = 200             // connections to Envoy at the most
	usageTokens = 30              // that each answer says it has used
)

// An outcome is what became of one request of the load.
type outcome struct {
	due      time.Duration // when it was to be sent, since the load began
	took     time.Duration // from then until its answer was read
	edge     int           // which Envoy was asked
	key      string
	status   int   // 0: no answer
	window   int64 // when the window of its limit ends, Unix seconds
	used     int64 // of its limit
	degraded bool
	err      error
}

func (o outcome) failed() bool {
	return o.status != http.StatusOK && o.status != http.StatusTooManyRequests
}

// A steadyLoad sends requests at a steady rate, whatever becomes of those before: a
// request that has to wait for a connection is late from the moment at which it was to
// be sent.
type steadyLoad struct {
	edges  []string // of Envoys, host:port
	rate   int      // requests per second
	narrow int      // requests per second for the narrow key whose turn it is
	client *http.Client
	began  time.Time
	halt   context.CancelFunc
	ended  chan struct{}

	mu       sync.Mutex
	outcomes []outcome
}

// startLoad starts a load that ends with the test, if not before.
func startLoad(t *testing.T, edges []string, rate int) *steadyLoad {
	t.Helper()
	ctx, halt := context.WithCancel(t.Context())
	l := &steadyLoad{
		edges: edges, rate: rate, narrow: rate / 5, halt: halt, began: time.Now(), ended: make(chan struct{}),
		client: &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: loadWorkers, DisableCompression: true}},
	}
	due := make(chan int, 1<<17)
	go l.pace(ctx, due)
	go func() {
		together(loadWorkers, func(int) {
			for n := range due {
				l.send(n)
			}
		})
		close(l.ended)
	}()
	t.Cleanup(func() { l.stop(); l.client.CloseIdleConnections() })
	return l
}

// pace says when it is each request's turn.
func (l *steadyLoad) pace(ctx context.Context, due chan<- int) {
	defer close(due)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for n := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for ; l.due(n) <= time.Since(l.began); n++ {
			due <- n
		}
	}
}

func (l *steadyLoad) due(n int) time.Duration {
	return time.Duration(n) * time.Second / time.Duration(l.rate)
}

// stop ends the load and returns what became of all requests.
func (l *steadyLoad) stop() []outcome {
	l.halt()
	<-l.ended
	return l.outcomes
}

// now is the time since the load began.
func (l *steadyLoad) now() time.Duration { return time.Since(l.began) }

// choose returns the key of a request and the Envoy that is asked. Every key is used
// at every Envoy.
func (l *steadyLoad) choose(n int) (key string, edge int) {
	if n%5 == 0 {
		return narrowKey(int(l.due(n)/narrowFor) % narrowKeys), n / 5 % len(l.edges)
	}
	return countedKey((n + n/countedKeys) % countedKeys), n % len(l.edges)
}

func countedKey(i int) string { return fmt.Sprintf("sk-counted-%02d", i) }
func narrowKey(i int) string  { return fmt.Sprintf("sk-narrow-%02d", i) }

func (l *steadyLoad) send(n int) {
	o := outcome{due: l.due(n)}
	o.key, o.edge = l.choose(n)
	o.ask(l.client, l.edges[o.edge])
	o.took = time.Since(l.began) - o.due
	l.mu.Lock()
	l.outcomes = append(l.outcomes, o)
	l.mu.Unlock()
}

// ask sends the request and notes what came back. Its context is no test's: a request
// that is under way at the end is to be answered.
func (o *outcome) ask(client *http.Client, address string) {
	const body = `{"model": "mock-1", "max_tokens": 50, "messages": []}`
	r, err := http.NewRequest(http.MethodPost, "http://"+address+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		o.err = err
		return
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+o.key)
	r.Header.Set("X-Mock-Usage", "10,20")
	response, err := client.Do(r)
	if err != nil {
		o.err = err
		return
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		o.err = err
		return
	}
	o.status, o.degraded = response.StatusCode, response.Header.Get("X-Ratelimit-Degraded") == "1"
	if o.window, err = strconv.ParseInt(response.Header.Get("X-Ratelimit-Reset"), 10, 64); err != nil {
		o.err = errors.New("no X-RateLimit-Reset in an answer")
	}
	o.used, _ = strconv.ParseInt(response.Header.Get("X-Ratelimit-Used"), 10, 64) // read where there is a window
	if o.failed() {
		by := "TierGate"
		if response.Header.Get("X-Ratelimit-Resource") == "default" { // it names what the path is for
			by = "Envoy itself"
		}
		o.err = fmt.Errorf("%s by %s: %s", response.Status, by, text)
	}
}

// A stretch is what clients saw in a stretch of time.
type stretch struct {
	requests, degraded, failed int
	p50, p99, longest          time.Duration // of the times to an answer
	gap                        time.Duration // the longest time without any good answer
	firstFailure               error
}

// summarize looks at the requests that were due from one moment until another.
func summarize(outcomes []outcome, from, until time.Duration) stretch {
	var s stretch
	var took, answered []time.Duration
	for _, o := range outcomes {
		if end := o.due + o.took; !o.failed() && end >= from && end < until {
			answered = append(answered, end)
		}
		if o.due < from || o.due >= until {
			continue
		}
		s.requests++
		took = append(took, o.took)
		if o.degraded {
			s.degraded++
		}
		if o.failed() {
			s.failed++
			if s.firstFailure == nil {
				s.firstFailure = o.err
			}
		}
	}
	slices.Sort(took)
	if n := len(took); n > 0 {
		s.p50, s.p99, s.longest = took[n/2], took[n*99/100], took[n-1]
	}
	slices.Sort(answered)
	last := from
	for _, end := range append(answered, until) {
		s.gap, last = max(s.gap, end-last), end
	}
	return s
}
