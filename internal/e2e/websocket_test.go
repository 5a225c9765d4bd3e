package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
)

// TestWebSockets: with the document's route a WebSocket is one request. Its 101 has the six
// headers, what passes in it passes as it is, and it ends with its time; over the limit it is refused
// like any other.
func TestWebSockets(t *testing.T) {
	both(t, func(t *testing.T, chain string) {
		s := up(t, devstack.Options{Chain: chain, EditEnvoy: func(file []byte) []byte {
			return prepended(t, file, "routes", replaced(t, block(t, "yaml route websocket"), "3600s", "3s"))
		}})
		if err := s.StopUpstream(); err != nil {
			t.Fatal(err)
		}
		echoing(t, s.Upstream)
		freshMinute(t, 10*time.Second)
		before := time.Now()
		var first *bufio.Reader
		for used := range 11 {
			conn, err := net.Dial("tcp", s.API)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(conn, "GET /v1/realtime HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer sk-demo-free\r\nConnection: Upgrade\r\n"+
				"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
			from := bufio.NewReader(conn)
			if used == 0 {
				first = from
			}
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/realtime", nil)
			if err != nil {
				t.Fatal(err)
			}
			response, err := http.ReadResponse(from, request)
			if err != nil {
				t.Fatal(err)
			}
			if used == 10 {
				checkLimited(t, read(t, response), before)
				if _, err := first.ReadByte(); !errors.Is(err, io.EOF) {
					t.Errorf("the first one has not ended with its time: %v", err)
				}
				return
			}
			r := reply{response, ""}
			if r.StatusCode != http.StatusSwitchingProtocols {
				t.Fatalf("%s, want 101", r.Status)
			}
			checkSix(t, r, "10", strconv.Itoa(9-used), "default", strconv.Itoa(used+1), "1")
			fmt.Fprint(conn, "hello")
			if _, err := io.ReadFull(from, make([]byte, len("hello"))); err != nil {
				t.Errorf("nothing comes back: %v", err)
			}
		}
	})
}

// echoing serves at an address what takes every request for that of a WebSocket, and sends back
// what it gets.
func echoing(t *testing.T, address string) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: 20 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, buffer, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-RateLimit-Limit: 999\r\n\r\n")
		_, _ = io.Copy(conn, buffer) // until the client has gone
	})}
	go func() { _ = server.Serve(l) }() // until the test ends
	t.Cleanup(func() { server.Close() })
}
