package e2e

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
)

// send writes bytes to Envoy as they are, and returns the answers that come until Envoy
// closes the connection, or nothing comes any more. What is no answer is an error.
func send(t *testing.T, s *devstack.Stack, request string) []reply {
	t.Helper()
	conn, err := net.Dial("tcp", s.API)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, request); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Logf("write: %v", err) // Envoy may have had enough before the end
	}
	var answers []reply
	for r := bufio.NewReader(conn); ; {
		wait := 5 * time.Second
		if len(answers) > 0 {
			wait = 300 * time.Millisecond // for another one, which there should not be
		}
		if err := conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Peek(1); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) && len(answers) == 0 {
				t.Errorf("no answer to %.80q", request)
			}
			return answers
		}
		response, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Errorf("%.80q: what follows is no answer: %v", request, err)
			return answers
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			t.Errorf("%.80q: the body: %v", request, err)
		}
		response.Request = &http.Request{}
		answers = append(answers, reply{response, string(body)})
	}
}

// chatHead and auth are the beginning of a good request.
const (
	chatHead = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
	auth     = "Authorization: Bearer sk-demo-pro\r\n"
	noBody   = "Content-Length: 2\r\n\r\n{}"
)

// TestHeaderInjection: whatever stands in a header's value, one well-formed answer comes,
// with the six headers, and nothing of the value.
func TestHeaderInjection(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		s := upTokens(t, devstack.Options{Chain: chain})
		for _, c := range []struct {
			name, request string
			status        int
		}{
			{"a line feed", chatHead + auth + "X-Request-Priority: 4\nX-Evil: 1\r\n" + noBody, 200},
			{"a carriage return", chatHead + auth + "X-Request-Priority: 4\rX-Evil: 1\r\n" + noBody, 200},
			{"a folded line", chatHead + auth + "X-Request-Priority: 4\r\n X-Evil: 1\r\n" + noBody, 200},
			{"NUL", chatHead + auth + "X-Request-Priority: evil\x00\r\n" + noBody, 400},
			{"escapes", chatHead + auth + "X-Request-Priority: 4%0d%0aX-Evil: 1\r\n" + noBody, 200},
			{"UTF-8", chatHead + auth + "X-Request-Priority: 4\u010d\u010aX-Evil: 1\r\n" + noBody, 200}, // their last bytes would be CR and LF
			{"60 KB", chatHead + auth + "X-Request-Priority: " + strings.Repeat("evil", 14_500) + "\r\n" + noBody, 200},
			{"70 KB", chatHead + auth + "X-Request-Priority: " + strings.Repeat("evil", 17_500) + "\r\n" + noBody, 431},
			{"a key with a line feed", chatHead + "X-Api-Key: evil\n X-Evil: 1\r\n" + noBody, 401},
			{"a key with a carriage return", chatHead + "Authorization: Bearer evil\rX-Evil: 1\r\n" + noBody, 401},
			{"a key of 58 KB", chatHead + "Authorization: Bearer " + strings.Repeat("evil", 14_500) + "\r\n" + noBody, 401},
			{"a key with quotes", chatHead + `Api-Key: evil","code":"evil` + "\r\n" + noBody, 401},
			{"a scheme", chatHead + "Authorization: Evil evil\r\n" + noBody, 401},
			{"NUL in the path", "GET /v1/evil%00 HTTP/1.1\r\nHost: x\r\n" + auth + "\r\n", 400},
			{"a line feed in the path", "GET /evil%0d%0aX-Evil:%201 HTTP/1.1\r\nHost: x\r\n" + auth + "\r\n", 404},
			{"a host", "GET /evil HTTP/1.1\r\nHost: evil%0d%0a\r\n" + auth + "\r\n", 404},
			{"a nominated key", chatHead + auth + "Connection: authorization\r\n" + noBody, 401},
			{"a WebSocket", "GET /v1/realtime HTTP/1.1\r\nHost: x\r\n" + auth + "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 403},
			{"HTTP/1.0", "GET /v1/models HTTP/1.0\r\nHost: x\r\n" + auth + "\r\n", 426},
			{"a length", chatHead + auth + "Content-Length: 00000000000000000000000000000002\r\n\r\n{}", 200},
		} {
			wantOne(t, c.name, send(t, s, c.request), c.status)
		}
		// What is no UTF-8 cannot be part of a call of the rate limit service: Envoy's call
		// fails, and the request with it.
		malformed := map[string]int{"ratelimit": 503}[chain]
		wantOne(t, "a key that is no UTF-8", send(t, s, chatHead+"Authorization: Bearer \xff\xc3(evil\r\n"+noBody), cmp.Or(malformed, 401))
		wantOne(t, "a priority that is no UTF-8", send(t, s, chatHead+auth+"X-Request-Priority: \xff\xfe\x80\r\n"+noBody), cmp.Or(malformed, 200))
	})
}

// checkOnce checks that an answer has each of the six headers once.
func checkOnce(t *testing.T, name string, r reply) {
	t.Helper()
	for _, header := range six {
		if values := r.Header.Values(header); len(values) != 1 {
			t.Errorf("%s: %s: %s: %q, want it once", name, r.Status, header, values)
		}
	}
}

// wantOne checks that there is one answer, of that status, that has each of the six
// headers once and nothing of what the client calls evil.
func wantOne(t *testing.T, name string, answers []reply, status int) {
	t.Helper()
	if len(answers) != 1 {
		t.Errorf("%s: %d answers: want one", name, len(answers))
		return
	}
	r := answers[0]
	if r.StatusCode != status {
		t.Errorf("%s: %s %v %s: want %d", name, r.Status, r.Header, r.body, status)
	}
	checkOnce(t, name, r)
	if strings.Contains(strings.ToLower(fmt.Sprint(r.Header, r.body)), "evil") {
		t.Errorf("%s: what was sent comes back: %v %s", name, r.Header, r.body)
	}
}

// TestForgedHeaders: whatever headers a client sends besides, the answer is the same, and
// the upstream sees what TierGate says.
func TestForgedHeaders(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		s := upTokens(t, devstack.Options{Chain: chain})
		freshMinute(t, 15*time.Second)
		const forged = "forged"
		headers := http.Header{}
		for _, name := range []string{
			"X-Tiergate-Key-Id", "X-Tiergate-Tier", "X-Tiergate-Resource", "X-Tiergate-Status", "X-Tiergate-Asked-Priority", "X-Tiergate-Reservation",
			"X_tiergate_key_id", "X_tiergate_tier", "X-Tiergate_tier", "X_api_key", "X_request_priority",
			"X-Ratelimit-Limit", "X-Ratelimit-Remaining", "X-Ratelimit-Used", "X-Ratelimit-Resource", "X-Ratelimit-Degraded", "X-Ratelimit-Limited-By",
			"Ratelimit", "Ratelimit-Policy", "Retry-After", "X-Should-Retry", "X-Envoy-Ratelimited", "X-Envoy-Auth-Partial-Body", "X-Envoy-Original-Path",
			"X-Envoy-Decorator-Operation", "X-Envoy-Internal", "X-Envoy-Force-Trace", "X-Envoy-Upstream-Alt-Stat-Name", "X-Ext-Authz", "Resource", "Tier", "Hits-Addend",
		} {
			headers.Set(name, forged)
		}
		headers["X-Tiergate-Status"] = []string{"200", "503"}
		headers["X-Request-Priority"] = []string{"4", "4"}
		headers["X-Forwarded-For"] = []string{"127.0.0.1"}
		headers["X-Request-Id"] = []string{"the-same"}
		headers["X-Envoy-Upstream-Rq-Timeout-Ms"] = []string{"1"}
		headers["X-Envoy-Expected-Rq-Timeout-Ms"] = []string{"1"}
		headers["X-Envoy-Max-Retries"] = []string{"99"}
		headers["X-Envoy-Retry-On"] = []string{"5xx"}
		headers["X-Http-Method-Override"] = []string{"GET"}
		plain := do(t, s, call{key: "sk-demo-pro"})
		checkSix(t, plain, "100000", "99999", "chat", "1", "3")
		for i := 2; i <= 4; i++ { // with the same request ID, so a repeat of it would be free
			r := do(t, s, call{key: "sk-demo-pro", header: headers})
			checkSix(t, r, "100000", strconv.Itoa(100_000-i), "chat", strconv.Itoa(i), "3")
			if r.StatusCode != plain.StatusCode || strings.Contains(fmt.Sprint(r.Header), forged) {
				t.Errorf("%s %v", r.Status, r.Header)
			}
			for name := range r.Header {
				if _, ok := plain.Header[name]; !ok {
					t.Errorf("the answer has %s, and without forged headers it has not", name)
				}
			}
		}
		r := do(t, s, call{header: headers}) // nor do they stand in for a key
		checkSix(t, r, "0", "0", "chat", "0", "1")
		if r.StatusCode != http.StatusUnauthorized || errorCode(t, r) != "missing_api_key" {
			t.Errorf("without a key: %s %s", r.Status, r.body)
		}
		headers.Set("X-Mock-Echo", "1")
		r = do(t, s, call{key: "sk-demo-pro", header: headers})
		var seen http.Header
		if err := json.Unmarshal([]byte(r.body), &seen); err != nil {
			t.Fatalf("%s: %s", r.Status, r.body)
		}
		ours := map[string]string{"X-Tiergate-Key-Id": "key_demo_pro", "X-Tiergate-Tier": "pro", "X-Tiergate-Resource": "chat", "X-Request-Priority": "3"}
		for name, values := range seen {
			want, said := ours[name]
			like := strings.ReplaceAll(strings.ToLower(name), "_", "-")
			if said && (len(values) != 1 || values[0] != want) {
				t.Errorf("the upstream sees %s: %q, want %q", name, values, want)
			}
			if !said && (strings.HasPrefix(like, "x-tiergate-") || like == "x-request-priority" || like == "authorization" || like == "x-api-key" || like == "api-key") {
				t.Errorf("the upstream sees %s: %q", name, values)
			}
		}
		for name := range ours {
			if seen.Get(name) == "" {
				t.Errorf("the upstream does not see %s", name)
			}
		}
	})
}

// TestForgedHeadersNominated: what a client calls hop-by-hop, hides behind another line
// end, or sends behind the body, takes nothing from the upstream and adds nothing.
func TestForgedHeadersNominated(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		s := up(t, devstack.Options{Chain: chain})
		for name, request := range map[string]string{
			"nominated": chatHead + auth + "X-Mock-Echo: 1\r\nConnection: x-tiergate-key-id, x-tiergate-tier, x-request-priority\r\n" + noBody,
			"trailers":  chatHead + auth + "X-Mock-Echo: 1\r\nTransfer-Encoding: chunked\r\nTrailer: X-Tiergate-Tier\r\n\r\n2\r\n{}\r\n0\r\nX-Tiergate-Tier: enterprise\r\nAuthorization: evil\r\n\r\n",
			"a return":  chatHead + auth + "X-Mock-Echo: 1\r\nX-Other: 4\rX-Tiergate-Tier: enterprise\r\n" + noBody,
			"a feed":    chatHead + auth + "X-Mock-Echo: 1\r\nX-Other: 4\nX-Tiergate-Tier: enterprise\n" + noBody,
			"HTTP/2":    chatHead + auth + "X-Mock-Echo: 1\r\nUpgrade: h2c\r\nConnection: upgrade, http2-settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n" + noBody,
		} {
			answers := send(t, s, request)
			wantOne(t, name, answers, 200)
			for _, r := range answers {
				var seen http.Header
				if err := json.Unmarshal([]byte(r.body), &seen); err != nil {
					t.Fatalf("%s: %s", r.Status, r.body)
				}
				for header, want := range map[string]string{"X-Tiergate-Key-Id": "key_demo_pro", "X-Tiergate-Tier": "pro", "X-Tiergate-Resource": "chat", "X-Request-Priority": "3", "Authorization": ""} {
					if have := strings.Join(seen[header], ", "); have != want {
						t.Errorf("%s: the upstream sees %s: %q, want %q", name, header, have, want)
					}
				}
			}
		}
	})
}

// TestSpellingsOfPaths: what the upstream answers as images is counted as images, and
// nothing of TierGate's own ports can be reached.
func TestSpellingsOfPaths(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		s := up(t, devstack.Options{Chain: chain})
		get := func(method, path, extra string) reply {
			answers := send(t, s, method+" "+path+" HTTP/1.1\r\nHost: x\r\n"+auth+extra+"\r\n")
			if len(answers) != 1 {
				t.Fatalf("%s: %d answers", path, len(answers))
			}
			return answers[0]
		}
		const images, json = "/v1/images/generations", "Content-Type: application/json\r\n" + noBody
		reached := 0
		for _, path := range []string{
			images, "//v1//images//generations", "/v1/./images/generations", "/v1/chat/../images/generations", "/v1/chat/%2e%2e/images/generations", "/v1/chat/%2E./images/generations",
			"/v1/%69mages/generations", "/v1/%2569mages/generations", "/v1%2fimages/generations", "/v1%5cimages/generations", `/v1\images\generations`, "/v1/images;a=b/generations", "/v1/chat/..;/images/generations",
			"/v1/IMAGES/generations", "/v1/images/generations?/v1/chat", "/v1/images/generations;/../../chat/completions", "/v1/images%3f/../chat", "/v1/chat/completions#/v1/images/generations",
			"http://x/v1/images/generations", "http://x//v1/chat/..//images/generations", "/v1/images/generations/", "/v1/images/generations%20", "/v1/images/generations%2e", "/v1/images/..;/images/generations",
		} {
			r := get("POST", path, json)
			resource := r.Header.Get("X-RateLimit-Resource")
			if served := r.StatusCode == http.StatusOK && strings.Contains(r.body, "b64_json"); served {
				reached++
				if resource != "images" {
					t.Errorf("%s is answered as images and counted as %s", path, resource)
				}
			} else if r.StatusCode == http.StatusOK && resource == "models" {
				t.Errorf("%s is counted as %s: %s", path, resource, r.body)
			}
		}
		if reached < 5 {
			t.Errorf("%d spellings reach images: the test proves nothing", reached)
		}
		for _, path := range []string{
			"/admin/v1/keys", "/dashboard/../admin/v1/keys", "/dashboard/..;/admin/v1/keys", "/dashboard/%2e%2e/admin/v1/keys", "/dashboard/..%2fadmin/v1/keys", "/v1/limits/../../metrics", "/metrics", "/readyz",
			"/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit", "/envoy.service.auth.v3.Authorization/Check", "/grpc.health.v1.Health/Check", "http://tiergate:9001/", "http://127.0.0.1:9002/admin/v1/keys",
		} {
			if r := get("GET", path, ""); r.StatusCode != http.StatusNotFound && r.StatusCode != http.StatusBadRequest {
				t.Errorf("%s: %s %s", path, r.Status, r.body)
			}
		}
		if r := get("CONNECT", "127.0.0.1:9001", ""); r.StatusCode != http.StatusNotFound {
			t.Errorf("CONNECT: %s", r.Status)
		}
	})
}

// TestSmuggling: a request whose end can be read in two ways is refused by Envoy, once,
// and nothing of it reaches anybody.
func TestSmuggling(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		s := up(t, devstack.Options{Chain: chain})
		freshMinute(t, 15*time.Second)
		const second = "GET /v1/models HTTP/1.1\r\nHost: x\r\n" + auth + "\r\n"
		for name, rest := range map[string]string{
			"two lengths":              "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}" + second,
			"two lengths alike":        "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}" + second,
			"a list of lengths":        "Content-Length: 2, 3\r\n\r\n{}" + second,
			"a length and chunks":      "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + second,
			"chunks and a length":      "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + second,
			"chunks that are not last": "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + second,
			"twice chunked":            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + second,
			"a blank before the colon": "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + second,
			"a vertical tab":           "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + second,
			"a plus":                   "Content-Length: +2\r\n\r\n{}" + second,
			"hexadecimal":              "Content-Length: 0x2\r\n\r\n{}" + second,
			"negative":                 "Content-Length: -1\r\n\r\n{}" + second,
		} {
			answers := send(t, s, chatHead+auth+rest)
			if len(answers) == 1 && answers[0].StatusCode == http.StatusNotImplemented {
				answers[0].StatusCode = http.StatusBadRequest
			}
			wantOne(t, name, answers, http.StatusBadRequest)
		}
		checkSix(t, do(t, s, call{key: "sk-demo-pro"}), "100", "99", "chat", "1", "3")
	})
}
