package main

import (
	"bytes"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/net/http2/hpack"
)

// headers are those of calls of one method, encoded: once the server has them in its
// table they stay the same.
type headers struct {
	encoder *hpack.Encoder
	encoded bytes.Buffer
	method  string
	steady  bool
}

// of returns the encoded headers of a call.
func (h *headers) of(address, method string, timeout time.Duration) ([]byte, error) {
	if h.steady && h.method == method {
		return h.encoded.Bytes(), nil
	}
	before := h.encoded.String()
	h.encoded.Reset()
	fields := []hpack.HeaderField{
		{Name: ":method", Value: "POST"},
		{Name: ":scheme", Value: "http"},
		{Name: ":path", Value: method},
		{Name: ":authority", Value: address},
		{Name: "te", Value: "trailers"},
		{Name: "content-type", Value: "application/grpc"},
	}
	if timeout > 0 {
		fields = append(fields, hpack.HeaderField{Name: "grpc-timeout", Value: strconv.FormatInt(timeout.Milliseconds(), 10) + "m"})
	}
	for _, f := range fields {
		if err := h.encoder.WriteField(f); err != nil {
			return nil, fmt.Errorf("encode the header %s: %w", f.Name, err)
		}
	}
	h.method, h.steady = method, h.encoded.String() == before
	return h.encoded.Bytes(), nil
}
