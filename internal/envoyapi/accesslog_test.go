package envoyapi

import (
	"context"
	"testing"
	"testing/synctest"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// A stoppedStream has been reset, after so many messages had arrived.
type stoppedStream struct {
	grpc.ServerStream

	ctx     context.Context //nolint:containedctx // grpc.ServerStream has it
	arrived int
}

func (s *stoppedStream) Context() context.Context { return s.ctx }

func (s *stoppedStream) RecvMsg(m any) error {
	if s.arrived == 0 {
		return s.ctx.Err()
	}
	s.arrived--
	into, _ := m.(*message)
	into.text = ""
	return nil
}

// What has arrived of access logs is settled though Envoy has closed the stream since, as it
// does when it stops.
func TestWhatHasArrivedIsHandedOn(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	const arrived = 50
	left := make(chan struct{})
	defer close(left)
	messages, ended := incoming(&stoppedStream{ctx: ctx, arrived: arrived}, left)
	n := 0
	for {
		select {
		case <-messages:
			n++
		case <-ended:
			if n != arrived {
				t.Errorf("%d messages were handed on: want %d", n, arrived)
			}
			return
		}
	}
}

// A busyStream is that of an Envoy that has sent another message when it hears of the answer,
// and then goes away; or goes away before, and hears of none.
type busyStream struct {
	grpc.ServerStream

	ctx     context.Context //nolint:containedctx // grpc.ServerStream has it
	message string
	heard   chan struct{} // closed by the answer
	gone    context.CancelFunc
	deaf    bool
	sent    bool
}

func (s *busyStream) Context() context.Context { return s.ctx }

func (s *busyStream) SendMsg(any) error {
	if s.deaf {
		s.gone()
	}
	close(s.heard)
	return s.ctx.Err()
}

func (s *busyStream) RecvMsg(m any) error {
	<-s.heard
	if s.sent {
		s.gone()
		return s.ctx.Err()
	}
	s.sent = true
	into, _ := m.(*message)
	into.text = s.message
	return nil
}

// What was on its way when the service drained is settled too: Envoy would not send it again,
// whether it is there to be answered or not.
func TestWhatIsOnItsWayIsSettled(t *testing.T) {
	t.Parallel()
	for name, deaf := range map[string]bool{"answered": false, "gone before": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { whatIsOnItsWayIsSettled(t, deaf) })
		})
	}
}

func whatIsOnItsWayIsSettled(t *testing.T, deaf bool) {
	t.Helper()
	g := newGate(t, withTokens)
	log, err := proto.Marshal(&alsv3.StreamAccessLogsMessage{LogEntries: &alsv3.StreamAccessLogsMessage_HttpLogs{
		HttpLogs: &alsv3.StreamAccessLogsMessage_HTTPAccessLogEntries{
			LogEntry: []*accesslogv3.HTTPAccessLogEntry{entryOf(admit(t, g, declaring("200")), 200, viaUpstream, usageOf(10, 20))},
		},
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	service := NewAccessLog(g)
	service.Drain()
	if err := service.stream(&busyStream{ctx: ctx, message: string(log), heard: make(chan struct{}), gone: cancel, deaf: deaf}); err != nil {
		t.Errorf("the stream ended with %v", err)
	}
	if have := remaining(t, g); have != "970" {
		t.Errorf("%s tokens remain, want 970", have)
	}
}

// TestContradictoryEntries: of several entries of one ticket the first is settled, and the others are
// repetitions, though those of different tickets are settled at the same time.
func TestContradictoryEntries(t *testing.T) {
	t.Parallel()
	g := newGate(t, withTokens)
	_, client := accessLog(t, g)
	const tickets, times = 4, 20
	var entries []*accesslogv3.HTTPAccessLogEntry
	for range tickets {
		ticket := admit(t, g, declaring("200"))
		for n := range times {
			entries = append(entries, entryOf(ticket, 200, viaUpstream, usageOf(10, float64(20+n))))
		}
	}
	log(t, client, entries...)
	if have := remaining(t, g); have != "880" {
		t.Errorf("%s tokens remain of 1,000: want 880, as the first entries of %d answers say", have, tickets)
	}
}
