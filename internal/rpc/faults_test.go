package rpc

import (
	"io"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Faults end the connection or the call alone, as RFC 9113 has it, or nothing: then the call
// that follows is answered.
func TestFaults(t *testing.T) {
	block := func(p *peer, id uint32, end bool, fields ...string) {
		_ = p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, EndStream: end, BlockFragment: p.encode(fields...)})
	}
	goaway := func(code http2.ErrCode) event { return event{kind: "goaway", code: int(code)} }
	reset := func(code http2.ErrCode) event { return event{kind: "reset", id: 1, code: int(code)} }
	fine := event{kind: "status", id: 99}
	const protocol, flow, closed, size = http2.ErrCodeProtocol, http2.ErrCodeFlowControl, http2.ErrCodeStreamClosed, http2.ErrCodeFrameSize
	for name, test := range map[string]struct {
		send func(p *peer)
		want event
	}{
		"data of no stream":            {func(p *peer) { _ = p.WriteData(0, false, []byte("x")) }, goaway(protocol)},
		"data of a stream to come":     {func(p *peer) { _ = p.WriteData(1, false, []byte("x")) }, goaway(protocol)},
		"data of a stream of ours":     {func(p *peer) { _ = p.WriteData(2, false, []byte("x")) }, goaway(protocol)},
		"data after its end":           {func(p *peer) { p.ask(1, "Wait", "x"); _ = p.WriteData(1, false, []byte("x")) }, reset(closed)},
		"data beyond its window":       {func(p *peer) { p.begin(1, "Rest"); p.pour(1, 256<<10+1) }, reset(flow)},
		"data beyond the connection's": {func(p *peer) { p.pourFrame(1 << 15) }, goaway(size)},
		"headers of a stream of ours":  {func(p *peer) { block(p, 2, true, call("Echo")...) }, goaway(protocol)},
		"headers of an older stream":   {func(p *peer) { p.begin(5, "Wait"); p.begin(3, "Wait") }, event{kind: "goaway", id: 5, code: int(closed)}},
		"headers that do not end":      {func(p *peer) { p.begin(1, "Wait"); block(p, 1, false, "a", "b") }, reset(protocol)},
		"trailers with a path":         {func(p *peer) { p.begin(1, "Wait"); block(p, 1, true, ":path", "b") }, reset(protocol)},
		"trailers after its end":       {func(p *peer) { p.ask(1, "Wait", "x"); block(p, 1, true, "a", "b") }, reset(closed)},
		"trailers after a message": {func(p *peer) {
			p.begin(1, "Listen")
			_ = p.WriteData(1, false, message("x"))
			block(p, 1, true, "a", "b")
		}, event{kind: "status", id: 1}},
		"more padding than there is":   {func(p *peer) { p.begin(1, "Wait"); _ = p.WriteRawFrame(http2.FrameHeaders, 0xc, 1, []byte{9, 0}) }, event{kind: "goaway", id: 1, code: int(protocol)}},
		"more padding than data":       {func(p *peer) { p.begin(1, "Wait"); _ = p.WriteRawFrame(http2.FrameData, 8, 1, []byte{9, 0}) }, event{kind: "goaway", id: 1, code: int(protocol)}},
		"a block within a block":       {func(p *peer) { _ = p.WriteRawFrame(http2.FrameHeaders, 0, 1, nil); p.begin(3, "Echo") }, goaway(protocol)},
		"a block's rest alone":         {func(p *peer) { _ = p.WriteContinuation(1, true, nil) }, goaway(protocol)},
		"a block that is none":         {func(p *peer) { _ = p.WriteRawFrame(http2.FrameHeaders, 4, 1, []byte{0xff, 0xff}) }, goaway(http2.ErrCodeCompression)},
		"a block with half an entry":   {func(p *peer) { _ = p.WriteRawFrame(http2.FrameHeaders, 4, 1, []byte{0x40, 5, 'a'}) }, goaway(http2.ErrCodeCompression)},
		"headers in capitals":          {func(p *peer) { block(p, 1, true, call("Echo", "A", "b")...) }, reset(protocol)},
		"headers of a connection":      {func(p *peer) { block(p, 1, true, call("Echo", "connection", "b")...) }, reset(protocol)},
		"a pseudo-header at the end":   {func(p *peer) { block(p, 1, true, append(call("Echo")[2:], ":method", "POST")...) }, reset(protocol)},
		"too many headers":             {func(p *peer) { p.large(1) }, reset(http2.ErrCodeEnhanceYourCalm)},
		"a header too large":           {func(p *peer) { p.long(1, 100<<10) }, reset(http2.ErrCodeEnhanceYourCalm)},
		"a header far too large":       {func(p *peer) { p.long(1, 130<<10) }, goaway(http2.ErrCodeEnhanceYourCalm)},
		"a message longer than told":   {func(p *peer) { p.begin(1, "Wait", "content-length", "5"); _ = p.WriteData(1, true, message("x")) }, reset(protocol)},
		"a message shorter than told":  {func(p *peer) { p.begin(1, "Wait", "content-length", "7"); _ = p.WriteData(1, true, message("x")) }, reset(protocol)},
		"a message torn by trailers":   {func(p *peer) { p.begin(1, "Rest", "content-length", "7"); block(p, 1, true, "a", "b") }, reset(protocol)},
		"a message as long as told":    {func(p *peer) { p.begin(1, "Echo", "content-length", "6"); _ = p.WriteData(1, true, message("x")) }, event{kind: "status", id: 1}},
		"no length":                    {func(p *peer) { p.begin(1, "Wait", "content-length", "-1") }, reset(protocol)},
		"a window of nothing":          {func(p *peer) { p.begin(1, "Wait"); _ = p.WriteWindowUpdate(1, 0) }, reset(protocol)},
		"the window of nothing":        {func(p *peer) { _ = p.WriteWindowUpdate(0, 0) }, goaway(protocol)},
		"a window too large":           {func(p *peer) { p.begin(1, "Wait"); _ = p.WriteWindowUpdate(1, maxWindow) }, reset(flow)},
		"the window too large":         {func(p *peer) { _ = p.WriteWindowUpdate(0, maxWindow) }, goaway(flow)},
		"windows too large":            {func(p *peer) { p.begin(1, "Wait"); _ = p.WriteWindowUpdate(1, maxWindow-usual); p.window(usual + 1) }, event{kind: "goaway", id: 1, code: int(flow)}},
		"a window of a stream to come": {func(p *peer) { _ = p.WriteWindowUpdate(1, 1) }, goaway(protocol)},
		"a reset of a stream to come":  {func(p *peer) { _ = p.WriteRSTStream(1, http2.ErrCodeCancel) }, goaway(protocol)},
		"a reset of no stream":         {func(p *peer) { _ = p.WriteRSTStream(0, http2.ErrCodeCancel) }, goaway(protocol)},
		"a short reset":                {func(p *peer) { _ = p.WriteRawFrame(http2.FrameRSTStream, 0, 1, nil) }, goaway(size)},
		"a promise": {func(p *peer) {
			_ = p.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
		}, goaway(protocol)},
		"settings of a stream":          {func(p *peer) { _ = p.WriteRawFrame(http2.FrameSettings, 0, 1, nil) }, goaway(protocol)},
		"an acknowledgment that says":   {func(p *peer) { _ = p.WriteRawFrame(http2.FrameSettings, 1, 0, make([]byte, 6)) }, goaway(size)},
		"a window of settings":          {func(p *peer) { p.window(maxWindow + 1) }, goaway(flow)},
		"a frame of settings too small": {func(p *peer) { _ = p.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1}) }, goaway(protocol)},
		"a ping of a stream":            {func(p *peer) { _ = p.WriteRawFrame(http2.FramePing, 0, 1, make([]byte, 8)) }, goaway(protocol)},
		"a short ping":                  {func(p *peer) { _ = p.WriteRawFrame(http2.FramePing, 0, 0, nil) }, goaway(size)},
		"a priority of a stream itself": {func(p *peer) { p.begin(1, "Wait"); _ = p.WritePriority(1, http2.PriorityParam{StreamDep: 1}) }, reset(protocol)},
		"a priority to come":            {func(p *peer) { _ = p.WritePriority(9, http2.PriorityParam{StreamDep: 1}) }, fine},
		"an unknown frame":              {func(p *peer) { _ = p.WriteRawFrame(0xee, 0xff, 77, make([]byte, 100)) }, fine},
		"an unknown setting":            {func(p *peer) { _ = p.WriteSettings(http2.Setting{ID: 0xee, Val: 1}) }, fine},
		"a farewell":                    {func(p *peer) { _ = p.WriteGoAway(0, http2.ErrCodeNo, nil) }, fine},
		"a reset twice":                 {func(p *peer) { p.begin(1, "Wait"); _ = p.WriteRSTStream(1, 8); _ = p.WriteRSTStream(1, 8) }, fine},
		"data after a reset":            {func(p *peer) { p.begin(1, "Wait"); _ = p.WriteRSTStream(1, 8); _ = p.WriteData(1, true, message("x")) }, fine},
		"no call":                       {func(p *peer) { block(p, 1, true, ":method", "GET", ":scheme", "http", ":path", "/") }, event{kind: "http", id: 1, code: 405}},
		"another type": {func(p *peer) {
			block(p, 1, true, ":method", "POST", ":scheme", "http", ":path", "/", "content-type", "application/grpcx")
		}, event{kind: "http", id: 1, code: 415}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := start(t, nil).connect()
				p.acks = http2.NewFramer(io.Discard, nil) // they would come between parts of a block
				go func() {
					test.send(p)
					if test.want != fine {
						return
					}
					_ = p.WriteHeaders(http2.HeadersFrameParam{StreamID: 99, EndHeaders: true, BlockFragment: p.encode(call("Echo")...)})
					_ = p.WriteData(99, true, message("x"))
				}()
				if e := outcome(p); e != test.want {
					t.Errorf("%+v: want %+v", e, test.want)
				}
			})
		})
	}
}

// Who compresses messages is told what is taken instead, as gRPC's "compression.md" has it.
func TestWhatIsTakenOfCompressions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := start(t, nil).connect()
		p.begin(1, "Echo", "grpc-encoding", "gzip")
		for {
			f, err := p.ReadFrame()
			p.must(err)
			if f, ok := f.(*http2.HeadersFrame); ok {
				fields, err := p.decoder.DecodeFull(f.HeaderBlockFragment())
				p.must(err)
				if !slices.ContainsFunc(fields, func(f hpack.HeaderField) bool { return f.Name == "grpc-accept-encoding" && f.Value == "identity" }) {
					t.Errorf("%v: want grpc-accept-encoding: identity", fields)
				}
				return
			}
		}
	})
}

// pour sends so many bytes of a call's messages.
func (p *peer) pour(id uint32, n int) {
	text := message(string(make([]byte, n)))[:n]
	text[1], text[2] = 0, 0 // it is short, and others follow
	for len(text) > 0 {
		part := text[:min(len(text), 16<<10)]
		if p.WriteData(id, false, part) != nil {
			return
		}
		text = text[len(part):]
	}
}

func (p *peer) pourFrame(n int) { _ = p.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, n)) }

func (p *peer) window(size uint32) {
	_ = p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: size})
}

// long begins a call with a header of so many bytes, which Huffman's code does not make fewer.
func (p *peer) long(id uint32, size int) {
	block := p.encode(call("Echo", "a", strings.Repeat("#", size))...)
	_ = p.WriteRawFrame(http2.FrameHeaders, 0, id, nil)
	for part := range slices.Chunk(block, 16<<10) {
		_ = p.WriteContinuation(id, false, part)
	}
	_ = p.WriteContinuation(id, true, nil)
}

// large begins a call with more headers than are taken.
func (p *peer) large(id uint32) {
	_ = p.WriteRawFrame(http2.FrameHeaders, 0, id, p.encode(call("Echo")...))
	for i := range 3 {
		_ = p.WriteContinuation(id, i == 2, p.encode("a", strings.Repeat("a", 24<<10)))
	}
}
