package rpc

import (
	"context"
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// Calls whose answers the connection's window holds up are forgotten when they end. A client
// that never widens it and resets its calls would else have them all kept.
func TestCallsThatWaitedForTheWindowAreForgotten(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := start(t, nil)
		p := r.connect()
		p.sink()
		id := uint32(1)
		for range 70 { // 64 KiB is what the connection takes
			p.ask(id, "Echo", string(make([]byte, 1<<10)))
			id += 2
		}
		for range 5000 {
			p.ask(id, "Echo", "x")
			synctest.Wait()
			p.must(p.WriteRSTStream(id, http2.ErrCodeCancel))
			id += 2
		}
		synctest.Wait()
		r.look(func(c *conn) {
			if most := 300; len(c.blocked) > most || len(c.streams) > 100 {
				t.Errorf("%d calls wait for the window and %d are open: want %d at most", len(c.blocked), len(c.streams), most)
			}
		})
	})
}

// A call whose answer nobody takes keeps its place, and ends by the time that a call may take:
// else a connection could hold as many answers as it has streams, of which each had given its
// place to the next.
func TestAnswersThatNobodyTakesKeepTheirPlaces(t *testing.T) {
	for _, c := range []struct{ name, method, timeout string }{
		{"Echo", "Echo", "9H"}, {"Talk", "Talk", ""}, {"a stream that may last", "Talk", "9H"}, {"one answer", "Listen", "9H"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := start(t, nil)
				p := r.connect(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
				for i := range uint32(50) {
					if c.timeout != "" {
						p.begin(2*i+1, c.method, "grpc-timeout", c.timeout)
					} else {
						p.begin(2*i+1, c.method)
					}
					p.must(p.WriteData(2*i+1, true, message("an answer")))
				}
				synctest.Wait()
				if n := r.places.taken.Load(); n != 50 {
					t.Errorf("%d places are taken: want that of each answer, 50", n)
				}
				for i := range uint32(50) {
					if e := p.next(); e != (event{kind: "reset", id: e.id, code: int(http2.ErrCodeCancel)}) {
						t.Fatalf("answer %d: %+v", i, e)
					}
				}
				synctest.Wait()
				if n := r.places.taken.Load(); n != 0 {
					t.Errorf("%d places are taken when all have ended", n)
				}
			})
		})
	}
}

// What a handler does with the context of a stream leaves nothing behind, however long the
// stream lasts.
func TestContextsOfAStreamAreForgotten(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := start(t, nil)
		r.server.RegisterService(&grpc.ServiceDesc{ServiceName: "C", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{{
			StreamName: "Stream", ClientStreams: true,
			Handler: func(_ any, stream grpc.ServerStream) error {
				for range 1000 {
					_, cancel := context.WithCancel(stream.Context())
					cancel()
				}
				ctx, cancel := context.WithCancel(stream.Context())
				defer cancel()
				<-ctx.Done()
				return ctx.Err()
			},
		}}}, nil)
		p := r.connect()
		p.sink()
		fields := call("")
		fields[5] = "/C/Stream"
		p.must(p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: p.encode(fields...)}))
		synctest.Wait()
		r.look(func(c *conn) {
			if n := len(c.streams[1].after); n != 1 {
				t.Errorf("the stream remembers %d contexts: want 1", n)
			}
		})
		p.must(p.WriteRSTStream(1, http2.ErrCodeCancel))
		synctest.Wait()
		if n := r.places.taken.Load(); n != 0 {
			t.Errorf("%d places are taken: the handler does not know that its stream has ended", n)
		}
	})
}

// A handler that has more to say than the client reads waits, whatever window the client
// has: what is out has a bound.
func TestStreamsWaitUntilTheClientReads(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := start(t, nil)
		p := r.connect(http2.Setting{ID: http2.SettingInitialWindowSize, Val: maxWindow})
		p.must(p.WriteWindowUpdate(0, maxWindow-usual))
		for i := range uint32(10) {
			p.ask(2*i+1, "Pour", "1024")
		}
		synctest.Wait()
		r.look(func(c *conn) {
			if len(c.out) > 2*maxUnwritten {
				t.Errorf("%d bytes wait for the client to read: want %d at most", len(c.out), 2*maxUnwritten)
			}
		})
		p.sinkStatuses(10, codes.OK)
	})
}

// sinkStatuses reads until so many calls have ended, all in one way.
func (p *peer) sinkStatuses(n int, want codes.Code) {
	p.t.Helper()
	for range n {
		if e := p.next(); e.kind != "status" || e.code != int(want) {
			p.t.Fatalf("%+v: want %v", e, want)
		}
	}
}
