package main

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// TestChains: a closed loop makes all its calls and settles them, also where the server takes
// few of them at a time, calls and settlements are more bytes than its windows, and it is slow to
// read those. Calls that cannot be made any more fail.
func TestChains(t *testing.T) {
	t.Parallel()
	const calls, inFlight, taken = 500, 32, 5
	s := scripted{want: calls, settled: make(chan struct{}), hears: make(chan struct{})}
	ticket := newCanned().allowed.GetDynamicMetadata().GetFields()["reservation"].GetStringValue()
	unread := int64(windowAtOnce / proto.Size(accessLog(check, ticket))) // so many are of one window
	var answered atomic.Int64
	s.check = func(context.Context) (*authv3.CheckResponse, error) {
		if answered.Add(1) == unread+inFlight/2 {
			close(s.hears)
		}
		return s.allowed, nil
	}
	address, server := s.start(t, grpc.MaxConcurrentStreams(taken))
	load := load{protocol: check, keys: []string{strings.Repeat("k", 5000)}, connections: 1, inFlight: inFlight, settle: atOnce}
	g, err := newGenerator(t.Context(), address, load)
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	run := func() *outcome {
		var begun atomic.Int64
		return g.chains(newOutcomes(inFlight), func() (time.Time, bool) { return time.Now(), begun.Add(1) <= calls })
	}
	if o := run(); o.requests != calls || o.admitted != calls || o.settlements != calls || o.failed > 0 {
		t.Errorf("%d calls, %d admitted, %d settled, %d failed (%v): want %d calls, admitted and settled", o.requests, o.admitted, o.settlements, o.failed, o.err, calls)
	}
	select {
	case <-s.settled:
	case <-time.After(longest):
		t.Error("not all settlements came")
	}
	server.Stop()
	if o := run(); o.requests != calls || o.failed != calls {
		t.Errorf("%d calls, %d failed: want %d failed", o.requests, o.failed, calls)
	}
}
