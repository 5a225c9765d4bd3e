package devstack

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/mockai"
)

// TestTrafficBounds: traffic that is out of bounds is refused, and nothing sent.
func TestTrafficBounds(t *testing.T) {
	t.Parallel()
	good := Traffic{Address: "127.0.0.1:1", Rate: 15, Duration: time.Minute, Out: io.Discard}
	for _, address := range []string{"127.0.0.1:10000", "127.9.9.9:1", "[::1]:10000"} {
		good.Address = address
		if err := good.Check(); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
	for _, c := range []struct {
		change func(*Traffic)
		want   string
	}{
		{func(t *Traffic) { t.Address = "192.0.2.1:10000" }, "want an address of this machine alone"},
		{func(t *Traffic) { t.Address = "0.0.0.0:10000" }, "want an address of this machine alone"},
		{func(t *Traffic) { t.Address = "localhost:10000" }, "want an address of this machine alone"},
		{func(t *Traffic) { t.Address = "127.0.0.1.example.com:80" }, "want an address of this machine alone"},
		{func(t *Traffic) { t.Address = "127.0.0.1" }, "want an address of this machine alone"},
		{func(t *Traffic) { t.Address = "127.0.0.1:0" }, "want an address of this machine alone"},
		{func(t *Traffic) { t.Rate = 0 }, "want more than 0 and at most 1000"},
		{func(t *Traffic) { t.Rate = 1001 }, "want more than 0 and at most 1000"},
		{func(t *Traffic) { t.Rate = math.NaN() }, "want more than 0 and at most 1000"},
		{func(t *Traffic) { t.Duration = 0 }, "want more than 0s and at most 1h0m0s"},
		{func(t *Traffic) { t.Duration = time.Hour + 1 }, "want more than 0s and at most 1h0m0s"},
		{func(t *Traffic) { t.Requests = -1 }, "want 1 or more, or 0 for any number"},
	} {
		bad := good
		c.change(&bad)
		if err := bad.Send(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v: %s", bad, err, c.want)
		}
	}
}

// TestNobodyAnswers: traffic to where nobody serves ends at once, and says what to
// start.
func TestNobodyAnswers(t *testing.T) {
	t.Parallel()
	address, err := FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	traffic := Traffic{Address: address, Rate: 0.1, Duration: time.Minute, Out: io.Discard}
	began := time.Now()
	if err := traffic.Send(t.Context()); err == nil || !strings.Contains(err.Error(), "make run") {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
}

// TestTrafficEnds: when ctx is done, here after a hundred requests, sending ends
// without an error and with a summary.
func TestTrafficEnds(t *testing.T) {
	t.Parallel()
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	var requests atomic.Int64
	api := mockai.Handler()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) == 100 {
			interrupt()
		}
		api.ServeHTTP(w, r)
	}))
	defer server.Close()
	var out strings.Builder
	traffic := Traffic{Address: server.Listener.Addr().String(), Rate: 1000, Duration: time.Minute, Out: &out}
	if err := traffic.Send(ctx); err != nil {
		t.Error(err)
	}
	if n := requests.Load(); n < 100 || n > 100+20 {
		t.Errorf("%d requests came, want few after the hundredth", n)
	}
	if !strings.Contains(out.String(), "sk-demo-enterprise") {
		t.Errorf("no summary: %s", &out)
	}
}

// TestTwentyUnderWay: an API that never answers gets twenty requests and no more.
func TestTwentyUnderWay(t *testing.T) {
	t.Parallel()
	var requests atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		_, _ = io.Copy(io.Discard, r.Body) // else the server does not see the client go
		<-r.Context().Done()
	}))
	defer server.Close()
	ctx, interrupt := context.WithTimeout(t.Context(), time.Second)
	defer interrupt()
	traffic := Traffic{Address: server.Listener.Addr().String(), Rate: 1000, Duration: time.Minute, Out: io.Discard}
	if err := traffic.Send(ctx); err != nil {
		t.Error(err)
	}
	if n := requests.Load(); n != 20 {
		t.Errorf("%d requests came, want 20", n)
	}
}

// TestSeed: the same seed sends the same requests, another one others.
func TestSeed(t *testing.T) {
	t.Parallel()
	first := sent(t, 7)
	if len(first) != 200 || !slices.Equal(first, sent(t, 7)) || slices.Equal(first, sent(t, 8)) {
		t.Error("the seed does not decide what is sent")
	}
}

// sent returns what the seed sends, sorted, since it is sent side by side.
func sent(t *testing.T, seed uint64) []string {
	t.Helper()
	var mu sync.Mutex
	var requests []string
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		requests = append(requests, fmt.Sprintf("%s %s %v %s", r.Method, r.URL, r.Header, body))
	}))
	defer server.Close()
	traffic := Traffic{Address: server.Listener.Addr().String(), Rate: 1000, Duration: time.Minute, Requests: 200, Seed: seed, Out: io.Discard}
	if err := traffic.Send(t.Context()); err != nil {
		t.Error(err)
	}
	slices.Sort(requests)
	return requests
}

// TestShares: each hundred requests are shared as the customers say, in an order of
// their own.
func TestShares(t *testing.T) {
	t.Parallel()
	c := newCrowd(rand.New(rand.NewPCG(3, 0)))
	var before []string
	for range 3 {
		var order []string
		have, want := map[string]int{}, map[string]int{}
		for range 100 {
			order = append(order, c.next().customer)
		}
		for _, name := range order {
			have[name]++
		}
		for _, customer := range customers() {
			want[customer.name] = customer.share
		}
		if !maps.Equal(have, want) || slices.Equal(order, before) {
			t.Errorf("shares %v, want %v, in another order than before", have, want)
		}
		before = order
	}
}
