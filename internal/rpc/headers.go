package rpc

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// A block is the headers of a call while they come.
type block struct {
	decoder *hpack.Decoder
	most    int  // bytes
	all     bool // whether metadata is wanted

	id       uint32
	last     bool // they end the stream
	selfish  bool // the stream depends on itself
	bytes    int  // compressed
	size     int  // as RFC 9113 6.5.2 counts
	fault    bool // of the protocol
	regular  bool // one that is no pseudo-header has come
	method   string
	path     string
	scheme   bool
	kind     string // content-type
	timeout  string
	encoding string
	length   string // content-length
	host     bool
	metadata metadata.MD
}

func (b *block) begin(id uint32, last, selfish bool) {
	*b = block{decoder: b.decoder, most: b.most, all: b.all, id: id, last: last, selfish: selfish}
}

// entrySize is what a header counts beside its name and value (RFC 9113 6.5.2).
const entrySize = 32

// field takes one header.
func (b *block) field(f hpack.HeaderField) {
	if b.size += len(f.Name) + len(f.Value) + entrySize; b.size > b.most {
		return
	}
	pseudo := strings.HasPrefix(f.Name, ":")
	if b.fault = b.fault || (pseudo && b.regular); !pseudo {
		b.regular = true
	}
	once := func(into *string) {
		b.fault = b.fault || *into != ""
		*into = f.Value
	}
	switch f.Name {
	case ":method":
		once(&b.method)
	case ":path":
		once(&b.path)
	case ":scheme":
		b.fault = b.fault || b.scheme
		b.scheme = true
	case ":authority":
		b.fault = b.fault || b.host
		b.host = true
	case "content-type":
		once(&b.kind)
	case "grpc-timeout":
		once(&b.timeout)
	case "grpc-encoding":
		once(&b.encoding)
	case "content-length":
		once(&b.length)
	case "te":
		b.fault = b.fault || f.Value != "trailers"
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		b.fault = true // RFC 9113 8.2.2
	default:
		b.fault = b.fault || pseudo || !httpguts.ValidHeaderFieldName(f.Name) || !httpguts.ValidHeaderFieldValue(f.Value) || strings.ToLower(f.Name) != f.Name
		if b.all {
			b.keep(f.Name, f.Value)
		}
	}
}

// keep keeps metadata, of which what is binary comes as base64.
func (b *block) keep(name, value string) {
	if strings.HasSuffix(name, "-bin") {
		raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
		if err != nil {
			return
		}
		value = string(raw)
	}
	if b.metadata == nil {
		b.metadata = metadata.MD{}
	}
	b.metadata[name] = append(b.metadata[name], value)
}

// headers takes a part of a block, and when it is the last begins the call.
func (c *conn) headers(fragment []byte, last bool) (*stream, error) {
	b := &c.block
	if b.bytes += len(fragment); b.bytes > 2*b.most {
		return nil, http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	_, err := b.decoder.Write(fragment)
	if err == nil && last {
		err = b.decoder.Close()
	}
	if err != nil {
		return nil, http2.ConnectionError(http2.ErrCodeCompression)
	}
	if !last {
		return nil, nil //nolint:nilnil // there is more to come
	}
	if st := c.streams[b.id]; st != nil {
		return nil, c.trailersOf(st)
	}
	switch {
	case b.id%2 == 0:
		return nil, http2.ConnectionError(http2.ErrCodeProtocol)
	case b.id <= c.last && b.last && c.wasReset(b.id):
		return nil, nil //nolint:nilnil // they were on their way
	case b.id <= c.last:
		return nil, http2.ConnectionError(http2.ErrCodeStreamClosed)
	}
	if c.final {
		c.putReset(b.id, http2.ErrCodeRefusedStream) // it was told so; what comes of it is passed over
		return nil, nil                              //nolint:nilnil // it is not handled
	}
	c.last, c.empty = b.id, 0
	switch {
	case b.size > b.most: // then the others are not known
		return nil, http2.StreamError{StreamID: b.id, Code: http2.ErrCodeEnhanceYourCalm}
	case b.fault || b.selfish || b.method == "" || b.path == "" || !b.scheme:
		return nil, http2.StreamError{StreamID: b.id, Code: http2.ErrCodeProtocol}
	case len(c.streams) >= c.server.options.MaxStreams:
		return nil, http2.StreamError{StreamID: b.id, Code: http2.ErrCodeRefusedStream}
	}
	return c.open(b)
}

// trailersOf takes headers that come after a call's first: they can only end it.
func (c *conn) trailersOf(st *stream) error {
	switch {
	case st.halfClosed:
		return http2.StreamError{StreamID: st.id, Code: http2.ErrCodeStreamClosed}
	case !c.block.last || c.block.fault || c.block.method+c.block.path != "" || c.block.scheme || c.block.host || st.missing > 0:
		return http2.StreamError{StreamID: st.id, Code: http2.ErrCodeProtocol}
	}
	c.halfClose(st)
	return nil
}

// open begins a call. One that cannot be is answered at once. A stream is handled at once; other
// calls are when their message is there.
func (c *conn) open(b *block) (*stream, error) {
	st := &stream{conn: c, id: b.id, window: c.initial, allowed: int64(c.server.options.StreamWindow), halfClosed: b.last, metadata: b.metadata}
	if b.length != "" {
		n, err := strconv.ParseUint(b.length, 10, 62)
		if err != nil || (b.last && n > 0) {
			return nil, http2.StreamError{StreamID: b.id, Code: http2.ErrCodeProtocol}
		}
		st.counted, st.missing = true, int64(n)
	}
	c.streams[b.id] = st
	if b.method != "POST" || !isGRPC(b.kind) {
		c.putHeaders(b.id, notGRPC(b.method), true)
		c.finish(st)
		return nil, nil //nolint:nilnil // it is not handled
	}
	if b.encoding != "" && b.encoding != "identity" {
		c.putHeaders(b.id, notDecompressed, true)
		c.finish(st)
		return nil, nil //nolint:nilnil // it is not handled
	}
	st.method = c.server.methods[b.path]
	if err := c.admissible(st, b); err != nil {
		c.fail(st, err)
		return nil, nil //nolint:nilnil // it is not handled
	}
	c.expireAt(st)
	if st.method.stream != nil {
		st.taken, st.changed = true, sync.NewCond(&c.mu)
		c.running++
		return st, nil
	}
	if st.halfClosed {
		c.fail(st, errNoMessage)
	}
	return nil, nil //nolint:nilnil // its message is to come
}

var errNoMessage = status.Error(codes.Internal, "the call has no message")

// admissible says why a call is not handled, and works out when it ends.
func (c *conn) admissible(st *stream, b *block) error {
	if st.method == nil {
		return status.Errorf(codes.Unimplemented, "unknown method %.100q", b.path)
	}
	if st.method.bound != nil {
		if err := st.method.bound.Enter(); err != nil {
			return err //nolint:wrapcheck // a status
		}
		st.entered = true
	}
	most := c.server.options.CallTimeout
	if st.method.stream != nil {
		most = 0
	}
	if b.timeout != "" {
		timeout, err := parseTimeout(b.timeout)
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		if most == 0 || timeout < most {
			most = timeout
		}
	}
	if most > 0 || b.timeout != "" {
		st.deadline = c.server.options.Now().Add(most)
		st.ends = st.deadline
	}
	return nil
}

func isGRPC(contentType string) bool {
	rest, ok := strings.CutPrefix(contentType, "application/grpc")
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

// parseTimeout reads a grpc-timeout: up to eight digits and a unit.
func parseTimeout(s string) (time.Duration, error) {
	const digits, longest = 8, 1<<63 - 1
	var unit time.Duration
	if len(s) >= 2 && len(s) <= digits+1 {
		unit = unitOf(s[len(s)-1])
	}
	n, err := strconv.ParseUint(s[:max(len(s)-1, 0)], 10, 32)
	switch {
	case unit == 0 || err != nil:
		return 0, fmt.Errorf("malformed grpc-timeout %.20q", s)
	case int64(n) > longest/int64(unit):
		return longest, nil
	}
	return time.Duration(n) * unit, nil
}

// unitOf returns a unit of grpc-timeout; 0: it is none.
func unitOf(c byte) time.Duration {
	switch c {
	case 'H':
		return time.Hour
	case 'M':
		return time.Minute
	case 'S':
		return time.Second
	case 'm':
		return time.Millisecond
	case 'u':
		return time.Microsecond
	case 'n':
		return time.Nanosecond
	}
	return 0
}

// compressed encodes headers so that they change no table, and so go with any connection.
func compressed(fields ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for pair := range slices.Chunk(fields, 2) {
		// Those that are in the static table go by number, others in full.
		_ = e.WriteField(hpack.HeaderField{Name: pair[0], Value: pair[1], Sensitive: pair[1] != "200"}) // a buffer takes all
	}
	return b.Bytes()
}

//nolint:gochecknoglobals // constants in all but name
var (
	beginning = compressed(":status", "200", "content-type", "application/grpc")
	ended     = compressed("grpc-status", "0")

	notDecompressed = slices.Concat(
		refused(status.New(codes.Unimplemented, "messages are not decompressed here: want grpc-encoding identity")), compressed("grpc-accept-encoding", "identity"))
)

// notGRPC is the answer to a request that is no call.
func notGRPC(method string) []byte {
	if method != "POST" {
		return compressed(":status", "405", "allow", "POST")
	}
	return compressed(":status", "415", "accept-post", "application/grpc")
}

// maxText is how much of an error's text is sent, in bytes, so that a block is one frame.
const maxText = 4 << 10

// trailers say how a call has ended.
func trailers(s *status.Status) []byte {
	return compressed("grpc-status", strconv.Itoa(int(s.Code())), "grpc-message", escape(s.Message()))
}

// refused is the whole answer to a call that was not handled.
func refused(s *status.Status) []byte {
	return slices.Concat(beginning, trailers(s)) // one block, since neither changes a table
}

// escape writes a text as grpc-message has it.
func escape(text string) string {
	var b strings.Builder
	for len(text) > 0 && b.Len() < maxText {
		r, n := utf8.DecodeRuneInString(text)
		if r >= ' ' && r <= '~' && r != '%' {
			b.WriteByte(text[0])
		} else {
			for i := range n {
				fmt.Fprintf(&b, "%%%02X", text[i])
			}
		}
		text = text[n:]
	}
	return b.String()
}
