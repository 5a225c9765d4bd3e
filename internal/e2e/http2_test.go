package e2e

import (
	"bytes"
	"net"
	"net/http"
	"net/url"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// An http2Conn sends many requests at once over one connection, by frames: an
// ordinary client is too slow to be a flood.
type http2Conn struct {
	t      *testing.T
	framer *http2.Framer
	conn   net.Conn
	next   uint32
}

func dialHTTP2(t *testing.T, address string) *http2Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Error(err)
		return nil
	}
	t.Cleanup(func() { conn.Close() })
	c := &http2Conn{t: t, framer: http2.NewFramer(conn, conn), conn: conn, next: 1}
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_, err = conn.Write([]byte(http2.ClientPreface))
	c.check(err)
	c.check(c.framer.WriteSettings())
	c.check(c.framer.WriteWindowUpdate(0, 1<<30))
	return c
}

func (c *http2Conn) check(err error) {
	if err != nil {
		c.t.Errorf("HTTP/2: %v", err)
	}
}

// get sends n requests at once and returns their answers; Status is the number
// alone.
func (c *http2Conn) get(path string, n int) []reply {
	var requests, block bytes.Buffer
	writer, encoder := http2.NewFramer(&requests, nil), hpack.NewEncoder(&block)
	for range n {
		block.Reset()
		for _, h := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "x"}, {":path", path}} {
			c.check(encoder.WriteField(hpack.HeaderField{Name: h[0], Value: h[1], Sensitive: true})) // in no table
		}
		c.check(writer.WriteHeaders(http2.HeadersFrameParam{
			StreamID: c.next, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true,
		}))
		c.next += 2
	}
	_, err := c.conn.Write(requests.Bytes())
	c.check(err)
	open := map[uint32]*reply{}
	var ended []reply
	for len(ended) < n {
		frame, err := c.framer.ReadFrame()
		if err != nil {
			c.check(err)
			return ended
		}
		id := frame.Header().StreamID
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			open[id] = answered(f, path)
		case *http2.DataFrame:
			open[id].body += string(f.Data())
		case *http2.SettingsFrame:
			if !f.IsAck() {
				c.check(c.framer.WriteSettingsAck())
			}
		}
		if r := open[id]; r != nil && frame.Header().Flags.Has(http2.FlagDataEndStream) {
			ended = append(ended, *r)
			delete(open, id)
		}
	}
	return ended
}

// answered starts an answer from its headers.
func answered(f *http2.MetaHeadersFrame, path string) *reply {
	r := &reply{Response: &http.Response{Header: http.Header{}, Request: &http.Request{URL: &url.URL{Path: path}}}}
	r.Status = f.PseudoValue("status")
	for _, h := range f.RegularFields() {
		r.Header.Add(h.Name, h.Value)
	}
	return r
}
