package rpc

import (
	"bytes"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// FuzzConnection sends anything after the preface: the server does not crash, and when the
// client has gone nothing of it is left, not a goroutine (the bubble would not end), a call or a
// place. What it sends are frames.
func FuzzConnection(f *testing.F) {
	var seed bytes.Buffer
	frames := http2.NewFramer(&seed, nil)
	frames.AllowIllegalWrites = true
	add := func(write func()) {
		seed.Reset()
		_ = frames.WriteSettings() // a buffer takes all
		write()
		f.Add(bytes.Clone(seed.Bytes()))
	}
	begin := func(id uint32, end bool, fields ...string) {
		var block bytes.Buffer
		e := hpack.NewEncoder(&block)
		for i := 0; i < len(fields); i += 2 {
			_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
		}
		_ = frames.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, EndStream: end, BlockFragment: block.Bytes()})
	}
	for _, method := range []string{"Echo", "Fail", "Wait", "Hold", "Talk", "Listen", "Pour", "Rest", "Report", "Nothing"} {
		add(func() {
			begin(1, false, call(method)...)
			_ = frames.WriteData(1, false, message("9"))
			_ = frames.WriteDataPadded(1, true, message("9"), make([]byte, 3))
			begin(3, false, call(method, "grpc-timeout", "1m", "content-length", "6")...)
			_ = frames.WriteData(3, true, message("9"))
			_ = frames.WriteRSTStream(3, http2.ErrCodeCancel)
			begin(1, true, "a", "b")
		})
	}
	add(func() {
		_ = frames.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}, http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
		begin(1, false, call("Pour")...)
		_ = frames.WriteData(1, true, message("99"))
		begin(3, false, call("Echo")...)
		_ = frames.WriteData(3, false, message("x"))
		_ = frames.WriteWindowUpdate(1, 7)
		_ = frames.WriteWindowUpdate(0, 7)
		_ = frames.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 9})
		_ = frames.WriteWindowUpdate(3, maxWindow)
		_ = frames.WritePing(false, drainPing)
		_ = frames.WritePing(true, drainPing)
		_ = frames.WriteGoAway(0, http2.ErrCodeNo, nil)
		_ = frames.WritePriority(3, http2.PriorityParam{StreamDep: 3})
		_ = frames.WriteContinuation(3, true, nil)
	})
	add(func() { // what comes after the answer, which the client takes late
		_ = frames.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 2})
		for id := uint32(1); id < 7; id += 2 {
			begin(id, false, call("Report", "grpc-timeout", "2S")...)
			_ = frames.WriteData(id, false, message("entry"))
			_ = frames.WriteData(id, false, message("late entry"))
			_ = frames.WriteWindowUpdate(id, id+3)
			_ = frames.WriteData(id, false, message("later entry"))
		}
		_ = frames.WriteData(1, false, message("enough"))
		_ = frames.WriteData(3, true, nil)
		_ = frames.WriteRSTStream(5, http2.ErrCodeNo)
		_ = frames.WritePing(true, drainPing)
	})
	f.Fuzz(func(t *testing.T, data []byte) {
		synctest.Test(t, func(t *testing.T) { fuzzed(t, data) })
	})
}

// fuzzed sends the data on a connection, half of it while the server drains if it says so.
func fuzzed(t *testing.T, data []byte) {
	r := start(t, func(o *Options) { o.MaxStreams = 4 })
	p := r.dial()
	p.sink()
	go func() {
		_, _ = io.WriteString(p.Conn, http2.ClientPreface+string(data)) // it may be closed
	}()
	synctest.Wait()
	if len(data)%2 == 1 {
		go r.server.GracefulStop()
		synctest.Wait()
	}
	time.Sleep(time.Second)
	close(r.service.release)
	time.Sleep(time.Second)
	_ = p.Close()
	synctest.Wait()
	r.server.mu.Lock()
	left := fmt.Sprintf("%d connections, %d places, %d handlers", len(r.server.conns), r.places.taken.Load(), r.service.waiting.Load())
	r.server.mu.Unlock()
	if want := "0 connections, 0 places, 0 handlers"; left != want {
		t.Errorf("%s are left: want %s", left, want)
	}
}
