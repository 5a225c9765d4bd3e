package rpc

import (
	"cmp"
	"io"
	"net"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
)

// A connection that has been ended before it began does not wait for the client's handshake.
func TestStopAtTheBeginning(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		c := newConn(NewServer(Options{Now: time.Now, HandshakeTimeout: time.Minute}), ours)
		c.abandon()
		began := time.Now()
		c.run()
		if took := time.Since(began); took > lastWord {
			t.Errorf("it took %v", took)
		}
	})
}

// A socket that is closed with bytes unread is reset, and the client may lose what it was
// answered: so it is read on, until the client has closed it, but not for ever.
func TestLastWordIsHeard(t *testing.T) {
	for _, name := range []string{"drained", "at fault", "stopped"} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := start(t, nil)
				p := r.connect()
				want := event{kind: "goaway", code: int(http2.ErrCodeProtocol)}
				synctest.Wait()
				if name == "at fault" {
					p.must(p.WriteRawFrame(http2.FramePing, 0, 1, make([]byte, 8)))
				} else {
					go r.server.GracefulStop()
					p.next() // it makes no more calls
					p.next() // and knows which was the last
					want = event{kind: "closed"}
				}
				if name != "drained" {
					if e := p.next(); e != want && name != "stopped" {
						t.Errorf("%+v: want %+v", e, want)
					}
				}
				began := time.Now()
				if name == "stopped" {
					r.server.Stop()
				}
				for range 20 { // more than is taken in between
					_ = p.WriteData(3, false, make([]byte, 16<<10)) // it may be closed
				}
				if e := p.next(); e.kind != "closed" {
					t.Errorf("%+v", e)
				}
				if took := time.Since(began); (name == "stopped") != (took == 0) || took > lastWord {
					t.Errorf("the connection was closed after %v", took)
				}
			})
		})
	}
}

// The end of a connection does not lose what had arrived of a stream before: access logs are
// sent, and then their connection is closed.
func TestWhatHasArrivedOfAStreamIsHeard(t *testing.T) {
	for _, name := range []string{"closed", "reset"} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := start(t, nil)
				p := r.connect()
				p.begin(1, "Listen")
				p.sink()
				for range 100 {
					p.must(p.WriteData(1, false, message("entry")))
				}
				if name == "closed" {
					_ = p.Close()
				} else {
					p.must(p.WriteRSTStream(1, http2.ErrCodeCancel))
				}
				synctest.Wait()
				if n := r.service.heard.Load(); n != 100 {
					t.Errorf("%d messages were heard: want 100", n)
				}
				if n := r.places.taken.Load(); n != 0 {
					t.Errorf("%d places are taken", n)
				}
			})
		})
	}
}

// The one answer of a call of many messages ends what the server says, and not what it hears:
// access logs that were on their way when their stream ended are not lost.
func TestWhatComesAfterTheAnswerIsHeard(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(p *peer) error
		want []event // after the status
	}{
		{"reset", func(p *peer) error { return p.WriteRSTStream(1, http2.ErrCodeNo) }, nil},
		{"ended", func(p *peer) error { return p.WriteData(1, true, nil) }, nil},
		{"enough", func(p *peer) error { return p.WriteData(1, false, message("enough")) }, []event{{kind: "reset", id: 1}}},
		{"at fault", func(p *peer) error { return p.WriteData(1, false, []byte{1, 0, 0, 0, 0}) }, []event{{kind: "reset", id: 1}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := start(t, nil)
				p := r.connect()
				p.begin(1, "Report")
				p.must(p.WriteData(1, false, message("entry")))
				if e := p.next(); e != (event{kind: "status", id: 1}) {
					t.Fatalf("%+v: want the answer", e)
				}
				for range 100 {
					p.must(p.WriteData(1, false, message("late entry")))
				}
				synctest.Wait()
				if n := r.service.heard.Load(); n != 101 {
					t.Errorf("%d messages were heard: want 101", n)
				}
				p.must(c.end(p))
				synctest.Wait()
				p.ask(3, "Echo", "x")
				for _, want := range append(c.want, event{kind: "status", id: 3}) {
					if e := p.next(); e != want {
						t.Errorf("%+v: want %+v", e, want)
					}
				}
				synctest.Wait()
				if n := r.places.taken.Load(); n != 0 {
					t.Errorf("%d places are taken", n)
				}
			})
		})
	}
}

// A client that is told to make no more calls and does not answer is taken to have heard; its
// calls are answered, and calls that it begins yet are refused, so that it makes them elsewhere.
func TestDrainWithAClientThatDoesNotAnswer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := start(t, nil)
		p := r.connect()
		p.ask(1, "Wait", "x")
		synctest.Wait()
		stopped := make(chan struct{})
		go func() {
			r.server.GracefulStop()
			close(stopped)
		}()
		synctest.Wait()
		p.ask(3, "Echo", "x") // it may not have heard yet
		time.Sleep(2 * lastWord)
		p.ask(5, "Echo", "x")
		synctest.Wait()
		select {
		case <-stopped:
			t.Fatal("it has stopped with a call open")
		default:
		}
		close(r.service.release)
		for _, want := range []event{
			{kind: "goaway", id: maxID},
			{kind: "status", id: 3},
			{kind: "goaway", id: 3},
			{kind: "reset", id: 5, code: int(http2.ErrCodeRefusedStream)},
			{kind: "status", id: 1},
			{kind: "closed"},
		} {
			if e := p.next(); e != want {
				t.Errorf("%+v: want %+v", e, want)
			}
		}
		<-stopped
	})
}

// Calls that end only when their clients like are not waited for: they end when their client has
// heard to make no more, and no sooner, or it would make the next on the same connection.
func TestDrainEndsWhatHasNoEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := start(t, func(o *Options) { o.Endless = func(method string) bool { return method != "/T/Wait" } })
		p := r.connect()
		p.begin(1, "Talk") // its handler receives
		p.begin(3, "Rest") // and this one does not
		p.ask(5, "Wait", "x")
		synctest.Wait()
		go r.server.GracefulStop()
		gone := func(id uint32) event {
			return event{kind: "status", id: id, code: int(codes.Unavailable), message: "the server stops"}
		}
		if e := p.next(); e != (event{kind: "goaway", id: maxID}) {
			t.Errorf("%+v: want to be told first", e)
		}
		var have []event
		for range 5 {
			have = append(have, p.next())
		}
		slices.SortFunc(have[1:], func(a, b event) int { return cmp.Compare(a.id, b.id) })
		if want := []event{{kind: "goaway", id: 5}, gone(1), {kind: "reset", id: 1}, gone(3), {kind: "reset", id: 3}}; !reflect.DeepEqual(have, want) {
			t.Errorf("%+v: want %+v", have, want)
		}
		synctest.Wait()
		if n := r.places.taken.Load(); n != 1 {
			t.Errorf("%d places are taken: want that of Wait", n)
		}
		close(r.service.release)
		if e := p.next(); e != (event{kind: "status", id: 5}) {
			t.Errorf("%+v: want the answer to what ends", e)
		}
		if e := p.next(); e.kind != "closed" {
			t.Errorf("%+v", e)
		}
	})
}

// Nor does a client keep such a call that does not read what was sent to it: it cannot be told why.
func TestDrainEndsWhatNobodyReads(t *testing.T) {
	for name, window := range map[string]uint32{"none of it": 0, "a part of it": 1 << 20} { // all streams share 64 KiB
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := start(t, func(o *Options) { o.Endless = func(string) bool { return true } })
				p := r.connect(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
				p.begin(1, "Pour")
				p.must(p.WriteData(1, false, message("100")))
				synctest.Wait()
				began := time.Now()
				go r.server.GracefulStop()
				for _, want := range []event{
					{kind: "goaway", id: maxID},
					{kind: "goaway", id: 1},
					{kind: "reset", id: 1, code: int(http2.ErrCodeCancel)},
					{kind: "closed"},
				} {
					if e := p.next(); e != want {
						t.Errorf("%+v: want %+v", e, want)
					}
				}
				synctest.Wait()
				if n, took := r.places.taken.Load(), time.Since(began); n != 0 || took > lastWord {
					t.Errorf("%d places are taken after %v", n, took)
				}
			})
		})
	}
}

// Trailers may come of a call that was answered before: they were on their way. They do not end
// the connection, as do those of a call that the client had ended.
func TestTrailersOfAnsweredCalls(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := start(t, nil).connect()
		trailers := func(id uint32) {
			p.must(p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, EndStream: true, BlockFragment: p.encode("a", "b")}))
		}
		expect := func(all ...event) {
			t.Helper()
			for _, want := range all {
				e := p.next()
				if e.message = ""; e != want {
					t.Errorf("%+v: want %+v", e, want)
				}
			}
		}
		p.begin(1, "Nothing")
		p.must(p.WriteData(1, false, message("x")))
		trailers(1)
		p.ask(3, "Echo", "x")
		expect(event{kind: "status", id: 1, code: 12}, event{kind: "reset", id: 1}, event{kind: "status", id: 3})
		p.begin(5, "Nothing")
		expect(event{kind: "status", id: 5, code: 12}, event{kind: "reset", id: 5})
		p.must(p.WriteRSTStream(5, http2.ErrCodeNo))
		trailers(5)
		expect(event{kind: "goaway", id: 5, code: int(http2.ErrCodeStreamClosed)})
	})
}

// Trailers of a call that the client has ended are a fault of the connection.
func TestTrailersOfEndedCalls(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := start(t, nil).connect()
		p.ask(1, "Echo", "x")
		if e := p.next(); e != (event{kind: "status", id: 1}) {
			t.Errorf("%+v", e)
		}
		p.must(p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: p.encode("a", "b")}))
		if e, want := p.next(), (event{kind: "goaway", id: 1, code: int(http2.ErrCodeStreamClosed)}); e != want {
			t.Errorf("%+v: want %+v", e, want)
		}
	})
}

// A server stops with calls open, handlers that do not end, and connections that have said
// nothing or not enough.
func TestStopEndsEverything(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := start(t, nil)
		p := r.connect()
		p.sink()
		p.ask(1, "Hold", "x")
		p.begin(3, "Rest")
		p.begin(5, "Echo")
		silent := r.dial()
		half := r.dial()
		_, err := io.WriteString(half.Conn, http2.ClientPreface[:10])
		p.must(err)
		synctest.Wait()
		began := time.Now()
		go r.server.GracefulStop()
		synctest.Wait()
		r.server.Stop()
		if took := time.Since(began); took > 0 {
			t.Errorf("it took %v", took)
		}
		if e := silent.next(); e.kind != "closed" {
			t.Errorf("%+v", e)
		}
		synctest.Wait()
		if n := r.places.taken.Load(); n != 1 { // its handler has not ended
			t.Errorf("%d places are taken: want that of Hold alone", n)
		}
		close(r.service.release)
		synctest.Wait()
		if n := r.places.taken.Load(); n != 0 {
			t.Errorf("%d places are taken", n)
		}
	})
}
