package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
)

// A stream is one call: open to send on while it is in its connection's streams.
type stream struct {
	id     uint32
	window int64
	due    time.Time // zero: it may take for ever
	answer []byte
	status int    // of gRPC
	text   string // grpc-message
	http   string // :status
	err    error
	done   chan struct{} // of 1: it is over
	then   func()        // says so; called as a rule by who reads the connection, which it is not to hold up
}

func newStream() *stream {
	done := make(chan struct{}, 1)
	return &stream{done: done, then: func() { done <- struct{}{} }}
}

// result is the answer of a call that is over.
func (s *stream) result() ([]byte, error) {
	switch {
	case s.err != nil:
		return nil, s.err
	case s.http != "200":
		return nil, fmt.Errorf("the answer has the HTTP status %q: want 200", s.http)
	case s.status == noStatus:
		return nil, errors.New("the answer has no status")
	case s.status != statusOK:
		return nil, fmt.Errorf("the call failed: %s: %s", codes.Code(s.status), s.text)
	case len(s.answer) < prefixBytes || s.answer[0] != 0 || int(binary.BigEndian.Uint32(s.answer[1:])) != len(s.answer)-prefixBytes:
		return nil, fmt.Errorf("the answer of %d bytes is not one message, uncompressed", len(s.answer))
	}
	return s.answer[prefixBytes:], nil
}
