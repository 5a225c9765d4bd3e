package main

import (
	"bufio"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// A reader reads what the server sends.
type reader struct {
	*connection

	frames  *http2.Framer
	headers *hpack.Decoder
	unread  uint32 // bytes read, that the server was not told of
	id      uint32 // of the stream whose headers come
	last    bool   // they end it
}

// read reads until the end.
func (c *connection) read(settled chan<- struct{}) {
	buffer := bufio.NewReaderSize(c.socket, bufferBytes)
	r := &reader{connection: c, frames: http2.NewFramer(nil, buffer)}
	r.frames.SetReuseFrames()
	r.headers = hpack.NewDecoder(tableBytes, r.header)
	for {
		f, err := r.frames.ReadFrame()
		if err != nil {
			c.end(fmt.Errorf("read: %w", err))
			return
		}
		c.mu.Lock()
		c.reading = true
		err = r.frame(f)
		c.unlock()
		if buffer.Buffered() == 0 {
			c.writeAll()
		}
		if err != nil {
			c.end(err)
			return
		}
		if s, ok := f.(*http2.SettingsFrame); ok && !s.IsAck() && settled != nil {
			close(settled)
			settled = nil
		}
	}
}

func (r *reader) frame(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.DataFrame:
		return r.data(f)
	case *http2.HeadersFrame:
		r.id, r.last = f.StreamID, f.StreamEnded()
		return r.block(f.HeaderBlockFragment(), f.HeadersEnded())
	case *http2.ContinuationFrame:
		return r.block(f.HeaderBlockFragment(), f.HeadersEnded())
	case *http2.WindowUpdateFrame:
		if f.StreamID == 0 {
			r.window += int64(f.Increment)
		} else if s := r.streams[f.StreamID]; s != nil {
			s.window += int64(f.Increment)
		}
		r.changed.Broadcast()
	case *http2.SettingsFrame:
		return r.settings(f)
	case *http2.PingFrame:
		if f.IsAck() {
			return nil
		}
		r.flush()
		return r.connection.frames.WritePing(true, f.Data)
	case *http2.RSTStreamFrame:
		if s := r.streams[f.StreamID]; s != nil {
			r.finish(s, fmt.Errorf("the server has reset the call: %s", f.ErrCode))
		}
	case *http2.GoAwayFrame:
		return fmt.Errorf("the server goes away: %s %q", f.ErrCode, f.DebugData())
	}
	return nil
}

// settings are what the server takes.
func (r *reader) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	err := f.ForeachSetting(func(s http2.Setting) error {
		switch s.ID { //nolint:exhaustive // the others change nothing that is sent
		case http2.SettingMaxConcurrentStreams:
			r.most = s.Val
		case http2.SettingInitialWindowSize:
			for _, open := range r.streams {
				open.window += int64(s.Val) - r.initial
			}
			r.initial = int64(s.Val)
		case http2.SettingHeaderTableSize:
			r.connection.headers.encoder.SetMaxDynamicTableSizeLimit(s.Val)
			r.connection.headers.steady = false
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the settings: %w", err)
	}
	r.changed.Broadcast()
	r.flush()
	return r.connection.frames.WriteSettingsAck()
}

// data takes a part of an answer.
func (r *reader) data(f *http2.DataFrame) error {
	if r.unread += f.Length; r.unread >= unreadBytes {
		if err := r.connection.frames.WriteWindowUpdate(0, r.unread); err != nil {
			return err
		}
		r.unread = 0
		r.flush()
	}
	s := r.streams[f.StreamID]
	if s == nil {
		return nil
	}
	s.answer = append(s.answer, f.Data()...)
	switch {
	case f.StreamEnded():
		r.finish(s, errors.New("the answer has no status"))
	case len(s.answer) >= answerBytes: // the server would wait for ever
		r.finish(s, fmt.Errorf("the answer has %d bytes or more", answerBytes))
	}
	return nil
}

// block takes a part of headers: of a stream that is over too, for the table is that of
// all.
func (r *reader) block(fragment []byte, last bool) error {
	_, err := r.headers.Write(fragment)
	if err == nil && last {
		err = r.headers.Close()
	}
	if err != nil {
		return fmt.Errorf("read headers: %w", err)
	}
	if s := r.streams[r.id]; last && r.last && s != nil {
		r.finish(s, nil)
	}
	return nil
}

// header takes one header.
func (r *reader) header(f hpack.HeaderField) {
	s := r.streams[r.id]
	if s == nil {
		return
	}
	switch f.Name {
	case ":status":
		s.http = f.Value
	case "grpc-status":
		if n, err := strconv.ParseUint(f.Value, 10, 16); err == nil {
			s.status = int(n)
		}
	case "grpc-message":
		s.text = f.Value
	}
}
