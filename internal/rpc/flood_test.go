package rpc

import (
	"cmp"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

// A flood is what a hostile client sends as fast as it can, in rounds.
type flood struct {
	name string
	// send sends one round. IDs of streams that it begins come from id.
	send func(p *peer, id func() uint32) error
	// ends is the code by which the connection ends. 0: it need not, and nothing more is read
	// when the client reads nothing of what it has provoked.
	ends http2.ErrCode
	// quiet: nothing is provoked, so that it only takes as long as reading does.
	quiet  bool
	rounds int // 0: 1200
}

func floods() []flood {
	headers := func(p *peer, id uint32, fields ...string) error {
		return p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, BlockFragment: p.encode(fields...)})
	}
	return []flood{
		{name: "rapid reset", quiet: true, send: func(p *peer, id func() uint32) error {
			i := id()
			_ = headers(p, i, call("Hold")...)
			return p.WriteRSTStream(i, http2.ErrCodeCancel)
		}},
		{name: "rapid reset of handled calls", send: func(p *peer, id func() uint32) error {
			i := id()
			_ = headers(p, i, call("Hold")...)
			_ = p.WriteData(i, true, message("x"))
			return p.WriteRSTStream(i, http2.ErrCodeCancel)
		}},
		{name: "rapid reset of streams", send: func(p *peer, id func() uint32) error {
			i := id()
			_ = headers(p, i, call("Rest")...)
			return p.WriteRSTStream(i, http2.ErrCodeCancel)
		}},
		{name: "made you reset: window", send: func(p *peer, id func() uint32) error {
			i := id()
			_ = headers(p, i, call("Hold")...)
			_ = p.WriteData(i, true, message("x"))
			return p.WriteWindowUpdate(i, 0)
		}},
		{name: "made you reset: overflow", send: func(p *peer, id func() uint32) error {
			i := id()
			_ = headers(p, i, call("Hold")...)
			_ = p.WriteData(i, true, message("x"))
			return p.WriteWindowUpdate(i, maxWindow)
		}},
		{name: "made you reset: half-closed", send: func(p *peer, id func() uint32) error {
			i := id()
			_ = headers(p, i, call("Hold")...)
			_ = p.WriteData(i, true, message("x"))
			return p.WriteData(i, true, message("x"))
		}},
		{name: "made you reset: priority", send: func(p *peer, id func() uint32) error {
			i := id()
			_ = headers(p, i, call("Hold")...)
			_ = p.WriteData(i, true, message("x"))
			return p.WritePriority(i, http2.PriorityParam{StreamDep: i})
		}},
		{name: "many streams", send: func(p *peer, id func() uint32) error { return headers(p, id(), call("Echo")...) }},
		{name: "malformed", send: func(p *peer, id func() uint32) error { return headers(p, id(), "a", "b") }},
		{name: "unknown method", rounds: 40_000, send: func(p *peer, id func() uint32) error { return headers(p, id(), call("Nothing")...) }},
		{name: "pings", ends: http2.ErrCodeEnhanceYourCalm, send: func(p *peer, _ func() uint32) error { return p.WritePing(false, [8]byte{}) }},
		{name: "settings", ends: http2.ErrCodeEnhanceYourCalm, send: func(p *peer, _ func() uint32) error { return p.WriteSettings() }},
		{name: "empty data", ends: http2.ErrCodeEnhanceYourCalm, send: func(p *peer, _ func() uint32) error { return p.WriteData(1, false, nil) }},
		{name: "empty padded data", ends: http2.ErrCodeEnhanceYourCalm, send: func(p *peer, _ func() uint32) error {
			return p.WriteDataPadded(1, false, nil, make([]byte, 255))
		}},
		{name: "empty continuations", rounds: 3, ends: http2.ErrCodeEnhanceYourCalm, send: func(p *peer, id func() uint32) error {
			i := id()
			_ = p.WriteRawFrame(http2.FrameHeaders, 0, i, nil)
			var err error
			for range 2 * maxEmpty {
				err = p.WriteContinuation(i, false, nil)
			}
			return err
		}},
		{name: "continuations", rounds: 3, ends: http2.ErrCodeEnhanceYourCalm, send: func(p *peer, id func() uint32) error {
			i := id()
			_ = p.WriteRawFrame(http2.FrameHeaders, 0, i, p.encode(call("Echo")...))
			var err error
			for range 50 {
				err = p.WriteContinuation(i, false, p.encode("a", string(make([]byte, 4<<10))))
			}
			return err
		}},
		{name: "entries of the table", rounds: 3, ends: http2.ErrCodeEnhanceYourCalm, send: func(p *peer, id func() uint32) error {
			i := id()
			_ = p.WriteRawFrame(http2.FrameHeaders, 0, i, p.encode("a", string(make([]byte, 3<<10))))
			bomb := make([]byte, 16<<10)
			for j := range bomb {
				bomb[j] = 0x80 | 62 // the latest entry
			}
			var err error
			for range 20 {
				err = p.WriteContinuation(i, false, bomb)
			}
			return err
		}},
		{name: "sizes of the table", ends: http2.ErrCodeCompression, send: func(p *peer, id func() uint32) error {
			return p.WriteHeaders(http2.HeadersFrameParam{StreamID: id(), EndHeaders: true, BlockFragment: []byte{0x3f, 0xff, 0xff, 0xff, 0x7f}})
		}},
		{name: "windows", quiet: true, send: func(p *peer, _ func() uint32) error {
			_ = p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
			return p.WriteWindowUpdate(1, 1)
		}, ends: http2.ErrCodeEnhanceYourCalm},
		{name: "priorities", quiet: true, send: func(p *peer, _ func() uint32) error { return p.WritePriority(1, http2.PriorityParam{StreamDep: 3}) }},
		{name: "unknown frames", quiet: true, send: func(p *peer, _ func() uint32) error { return p.WriteRawFrame(0x99, 0xff, 1, []byte("x")) }},
		{name: "acknowledgments", quiet: true, send: func(p *peer, _ func() uint32) error { return p.WriteSettingsAck() }},
	}
}

// A client that looks for signs of life is early now and then, since its timers are: on a
// connection without calls, too, nobody takes that for a flood.
func TestKeepaliveIsNoFlood(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := start(t, nil).connect()
		for i := range 60 {
			p.must(p.WritePing(false, [8]byte{}))
			time.Sleep([]time.Duration{999 * time.Millisecond, 999 * time.Millisecond, time.Second}[i%3])
		}
		p.ask(1, "Echo", "x")
		if e := p.next(); e.kind != "status" {
			t.Errorf("%+v: want the answer to a call", e)
		}
	})
}

// No flood has a connection keep more memory, places or goroutines than it is allowed, whether
// its client reads nothing or all.
func TestFloods(t *testing.T) {
	for _, f := range floods() {
		for name, reads := range map[string]bool{"reads nothing": false, "reads all": true} {
			t.Run(f.name+"/"+name, func(t *testing.T) {
				bubble(t, func(t *testing.T) { f.run(t, reads) })
			})
		}
	}
}

func (f *flood) run(t *testing.T, reads bool) {
	const streams = 50
	rounds := cmp.Or(f.rounds, 1200)
	r := start(t, func(o *Options) { o.MaxStreams = streams })
	p := r.connect()
	last := uint32(1)
	p.begin(1, "Listen")
	var c *conn
	synctest.Wait()
	r.look(func(of *conn) { c = of })
	if reads {
		p.sink()
	}
	sent := make(chan int, 1)
	go func() {
		n := 0
		for n < rounds && f.send(p, func() uint32 { last += 2; return last }) == nil {
			n++
		}
		sent <- n
	}()
	synctest.Wait()
	c.mu.Lock()
	if most := 2 * maxUnwritten; len(c.out) > most || cap(c.out) > 2*most {
		t.Errorf("%d bytes wait for the client: want %d at most", len(c.out), most)
	}
	if len(c.streams) > streams || c.running > streams+2 || len(c.blocked) > streams {
		t.Errorf("%d streams are open, %d handled, %d wait: want %d", len(c.streams), c.running, len(c.blocked), streams)
	}
	if n := r.places.most.Load(); n > streams+2 {
		t.Errorf("%d places were taken: want %d", n, streams)
	}
	if want := (http2.ConnectionError(f.ends)); f.ends != 0 && !errors.Is(c.err, want) && !errors.Is(c.err, goingAway{f.ends, "too_many_pings"}) {
		t.Errorf("the connection: %v, want %v", c.err, want)
	}
	c.mu.Unlock()
	close(r.service.release)
	time.Sleep(time.Minute) // who reads nothing is taken for gone
	_ = p.Close()
	if n := <-sent; n < rounds && f.ends == 0 && (reads || f.quiet) {
		t.Errorf("the connection ended after %d rounds", n)
	}
	synctest.Wait()
	if n := r.places.taken.Load(); n != 0 {
		t.Errorf("%d places are taken yet", n)
	}
	r.server.mu.Lock()
	defer r.server.mu.Unlock()
	if n := len(r.server.conns); n != 0 {
		t.Errorf("%d connections are kept", n)
	}
}

// Clients that say little, slowly, are ended by the time that each part may take.
func TestSlowClients(t *testing.T) {
	trickle := func(p *peer, b []byte) {
		go func() {
			for i := range b {
				if _, err := p.Write(b[i : i+1]); err != nil {
					return
				}
				select {
				case <-time.After(5 * time.Second):
				case <-p.t.Context().Done():
					return
				}
			}
		}()
	}
	greeted := append([]byte(http2.ClientPreface), 0, 0, 0, 4, 0, 0, 0, 0, 0)
	for name, test := range map[string]struct {
		begin func(p *peer)
		want  event
		after time.Duration
	}{
		"nothing":     {func(*peer) {}, event{kind: "closed"}, 10 * time.Second},
		"a preface":   {func(p *peer) { trickle(p, greeted) }, event{kind: "closed"}, 10 * time.Second},
		"no settings": {func(p *peer) { _, _ = io.WriteString(p.Conn, http2.ClientPreface) }, event{kind: "closed"}, 10 * time.Second},
		"a frame": {func(p *peer) {
			_, _ = p.Write(greeted)
			trickle(p, append([]byte{0, 16, 0}, make([]byte, 1000)...))
		}, event{kind: "closed"}, 40 * time.Second},
		"half a block": {func(p *peer) {
			_, _ = p.Write(greeted)
			_ = p.WriteRawFrame(http2.FrameHeaders, 0, 1, []byte{0x88})
		}, event{kind: "closed"}, 70 * time.Second},
		"a message":     {func(p *peer) { _, _ = p.Write(greeted); p.begin(1, "Echo") }, event{kind: "status", id: 1, code: 4}, 10 * time.Second},
		"its own time":  {func(p *peer) { _, _ = p.Write(greeted); p.begin(1, "Echo", "grpc-timeout", "3S") }, event{kind: "status", id: 1, code: 4}, 3 * time.Second},
		"a stream's":    {func(p *peer) { _, _ = p.Write(greeted); p.begin(1, "Rest", "grpc-timeout", "20S") }, event{kind: "status", id: 1, code: 4}, 20 * time.Second},
		"gone in a way": {func(p *peer) { _, _ = p.Write(greeted) }, event{kind: "closed"}, 40 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := start(t, nil).dial()
				p.acks = http2.NewFramer(io.Discard, nil) // it gives no sign of life
				began := time.Now()
				test.begin(p)
				e := outcome(p)
				if took := time.Since(began); e != test.want || took != test.after {
					t.Errorf("%+v after %v: want %+v after %v", e, took, test.want, test.after)
				}
			})
		})
	}
}
