package rpc

import (
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/test/bufconn"
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

// What settings allow is used after they have been acknowledged, as grpc-go's server does: a client
// may go by its former ones until then (RFC 9113 6.5.3), and that of Python's h2 ends the
// connection where more comes. Frames do not become larger: it does not expect that of those that
// come together with the acknowledgment.
func TestSettingsAreAcknowledgedBeforeTheyAreUsed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for whose, l := range map[string]*bufconn.Listener{"ours": start(t, nil).listener, "theirs": theirs(t)} {
			p := (&rig{t: t, listener: l}).connect(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			p.begin(1, "Echo")
			request := message(string(make([]byte, 30_000)))
			p.must(p.WriteData(1, false, request[:15_000]))
			p.must(p.WriteData(1, true, request[15_000:]))
			go func() {
				synctest.Wait() // until the answer waits for the window
				_ = p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 40_000}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: 32 << 10})
			}()
			acks, first := 0, uint32(0)
			for first == 0 {
				f, err := p.ReadFrame()
				p.must(err)
				switch f := f.(type) {
				case *http2.SettingsFrame:
					if f.IsAck() {
						acks++
					}
				case *http2.DataFrame:
					first = f.Length
				}
			}
			if acks != 2 || first != 16<<10 {
				t.Errorf("%s: %d bytes came after %d acknowledgments: want both before, and the smallest largest frame", whose, first, acks)
			}
		}
	})
}

// What changes the windows of all calls costs as much as there are calls, so that a client may
// not do it as often as it likes. Of many in a frame the last holds, and costs no more.
func TestFloodOfSettings(t *testing.T) {
	var all []http2.Setting
	for i := range uint32(2 * maxSettings) {
		all = append(all, http2.Setting{ID: http2.SettingInitialWindowSize, Val: i})
	}
	bubble(t, func(t *testing.T) {
		r := start(t, nil)
		p := r.connect(all...)
		p.sink()
		for i := range all {
			p.must(p.WriteSettings(all[i:]...))
			time.Sleep(2 * time.Second / maxSettings)
		}
		synctest.Wait()
		r.look(func(c *conn) {
			if c.err != nil || c.initial != 2*maxSettings-1 {
				t.Errorf("a client that changes its window now and then: window %d, error %v", c.initial, c.err)
			}
		})
	})
	bubble(t, func(t *testing.T) {
		p := start(t, nil).connect()
		for i := range all {
			_ = p.WriteSettings(all[i]) // it may be closed
		}
		if e := p.next(); e.kind != "goaway" || e.code != int(http2.ErrCodeEnhanceYourCalm) {
			t.Errorf("%+v: want GOAWAY with ENHANCE_YOUR_CALM", e)
		}
	})
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
