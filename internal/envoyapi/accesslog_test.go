package envoyapi

import (
	"context"
	"testing"

	"google.golang.org/grpc"
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
