package rpc

import (
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
)

// A client that lets the table of headers be smaller than usual must be told that it is, in the
// first block that follows (RFC 9113 4.3.1): Envoy ends the connection else.
func TestSmallerTableIsTold(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := start(t, nil)
		p := r.connect(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
		p.ask(1, "Echo", "x")
		p.ask(3, "Echo", "x")
		var first []byte
		for len(first) < 3 {
			f, err := p.ReadFrame()
			p.must(err)
			if h, ok := f.(*http2.HeadersFrame); ok {
				first = append(first, h.HeaderBlockFragment()[0])
			}
		}
		const toNothing = 0x20 // RFC 7541 6.3
		if first[0] != toNothing || first[1] == toNothing || first[2] == toNothing {
			t.Errorf("the blocks begin with %x: want the first alone to say that the table has no entries, 20", first)
		}
	})
}

// What changes the windows of all calls costs as much as there are calls, so that a client may
// not do it as often as it likes: 2700 settings go in a frame.
func TestFloodOfSettings(t *testing.T) {
	window := func(size uint32) http2.Setting {
		return http2.Setting{ID: http2.SettingInitialWindowSize, Val: size}
	}
	bubble(t, func(t *testing.T) {
		r := start(t, nil)
		p := r.connect()
		p.sink()
		for i := range 3 * maxSettings { // each counts twice
			p.must(p.WriteSettings(window(uint32(i))))
			time.Sleep(3 * time.Second / maxSettings)
		}
		synctest.Wait()
		r.look(func(c *conn) {
			if c.err != nil {
				t.Errorf("a client that changes its window now and then: %v", c.err)
			}
		})
	})
	for name, send := range map[string]func(p *peer){
		"frames": func(p *peer) {
			for i := range uint32(maxSettings + 1) {
				_ = p.WriteSettings(window(i)) // it may be closed
			}
		},
		"in a frame": func(p *peer) {
			var all []http2.Setting
			for i := range uint32(maxSettings + 1) {
				all = append(all, window(i))
			}
			p.must(p.WriteSettings(all...))
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := start(t, nil).connect()
				send(p)
				if e := p.next(); e.kind != "goaway" || e.code != int(http2.ErrCodeEnhanceYourCalm) {
					t.Errorf("%+v: want GOAWAY with ENHANCE_YOUR_CALM", e)
				}
			})
		})
	}
}

// Deadlines of many calls, each at another time, do not have all calls looked at for each: that
// takes as long as there are calls.
func TestManyDeadlines(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const calls = 2000
		r := start(t, func(o *Options) { o.MaxStreams = 2 * calls })
		p := r.connect()
		for i := range uint32(calls) {
			p.begin(2*i+1, "Echo")
		}
		synctest.Wait()
		began := time.Now()
		for i := range uint32(10) {
			p.begin(2*calls+2*i+1, "Echo", "grpc-timeout", "0n")
			if e := p.next(); e.kind != "status" || e.code != int(codes.DeadlineExceeded) {
				t.Fatalf("%+v: want DEADLINE_EXCEEDED", e)
			}
			if e := p.next(); e.kind != "reset" {
				t.Fatalf("%+v: want a reset", e)
			}
		}
		if took, want := time.Since(began), 9*calls*time.Microsecond; took < want || took > 2*want {
			t.Errorf("ten deadlines among %d calls took %v: want them %v apart", calls, took, want/9)
		}
	})
}
