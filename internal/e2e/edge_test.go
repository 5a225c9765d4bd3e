package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/tiergate/tiergate/internal/devstack"
)

// errorCode returns the code of an error in the contract's shape.
func errorCode(t *testing.T, r reply) string {
	t.Helper()
	var body struct {
		Error struct{ Type, Message, Code string }
	}
	if err := json.Unmarshal([]byte(r.body), &body); err != nil || body.Error.Type == "" || body.Error.Message == "" {
		t.Errorf("%s: the body is no error of the contract's shape: %q", r.Status, r.body)
	}
	if r.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s: content type %q", r.Status, r.Header.Get("Content-Type"))
	}
	return body.Error.Code
}

// TestSixHeadersOnEveryAnswer: from TierGate, from the upstream, and from Envoy
// itself, each header exactly once.
func TestSixHeadersOnEveryAnswer(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		slow := func(file []byte) []byte { // 504: the shipped routes wait for ever
			return bytes.ReplaceAll(file, []byte("cluster: upstream, timeout: 0s"), []byte("cluster: upstream, timeout: 2s"))
		}
		s := up(t, devstack.Options{Chain: chain, EditEnvoy: slow})
		freshMinute(t, 20*time.Second)
		header := func(pairs ...string) http.Header {
			h := http.Header{}
			for i := 0; i < len(pairs); i += 2 {
				h.Add(pairs[i], pairs[i+1])
			}
			return h
		}
		pro := func(n int) [5]string { return [5]string{"100", strconv.Itoa(100 - n), "chat", strconv.Itoa(n), "3"} }
		none := [5]string{"0", "0", "default", "0", "1"}
		refused := [5]string{"0", "0", "chat", "0", "1"}
		for _, c := range []struct {
			name   string
			call   call
			status int
			code   string
			six    [5]string // limit, remaining, resource, used, priority
		}{
			{"200", call{key: "sk-demo-pro"}, 200, "", pro(1)},
			{"a stream", call{key: "sk-demo-pro", body: `{"model": "m", "stream": true}`}, 200, "", pro(2)},
			{"500 of the upstream", call{key: "sk-demo-pro", header: header("X-Mock-Status", "500")}, 500, "", pro(3)},
			{"429 of the upstream", call{key: "sk-demo-pro", header: header("X-Mock-Status", "429")}, 429, "", pro(4)},
			{"404 of the upstream", call{key: "sk-demo-pro", path: "/v1/chat/nothing"}, 404, "", pro(5)},
			{"504", call{key: "sk-demo-pro", header: header("X-Mock-Delay", "5s")}, 504, "", pro(6)},
			{"a lower priority", call{key: "sk-demo-pro", header: header("X-Request-Priority", "low")}, 200, "", [5]string{"100", "93", "chat", "7", "1"}},
			{"a higher priority", call{key: "sk-demo-pro", header: header("X-Request-Priority", "4")}, 200, "", pro(8)},
			{"images", call{key: "sk-demo-pro", path: "/v1/images/generations"}, 200, "", [5]string{"100", "91", "images", "9", "3"}},
			{"no key", call{}, 401, "missing_api_key", refused},
			{"an unknown key", call{key: "sk-nobody"}, 401, "invalid_api_key", refused},
			{"two keys", call{key: "sk-demo-pro", header: header("X-Api-Key", "sk-demo-free")}, 401, "invalid_api_key", refused},
			{"one header, two keys", call{header: header("Api-Key", "sk-demo-pro", "Api-Key", "sk-demo-free")}, 401, "invalid_api_key", refused},
			{"no scheme", call{header: header("Authorization", "sk-demo-pro")}, 401, "missing_api_key", refused},
			{"a scheme elsewhere", call{header: header("X-Api-Key", "Bearer sk-demo-pro")}, 401, "invalid_api_key", refused},
			{"a long key", call{key: strings.Repeat("k", 30_000)}, 401, "invalid_api_key", refused},
			{"no route", call{key: "sk-demo-pro", path: "/nowhere"}, 404, "", none},
			{"an escaped slash", call{key: "sk-demo-pro", path: "/v1%2fchat"}, 400, "", none},
			{"dots and slashes", call{key: "sk-demo-pro", path: "/v1/images/..//%63hat/completions"}, 200, "", pro(10)},
			{"parameters in the path", call{key: "sk-demo-pro", path: "/v1/chat;a=b/completions"}, 404, "", pro(11)},
		} {
			r := do(t, s, c.call)
			if r.StatusCode != c.status {
				t.Errorf("%s: %s: %s", c.name, r.Status, r.body)
			}
			if c.code != "" && errorCode(t, r) != c.code {
				t.Errorf("%s: %s, want %s", c.name, r.body, c.code)
			}
			checkSix(t, r, c.six[0], c.six[1], c.six[2], c.six[3], c.six[4])
			for name := range r.Header {
				if strings.HasPrefix(name, "X-Tiergate-") {
					t.Errorf("%s: the client sees %s", c.name, name)
				}
			}
		}
		if err := s.StopUpstream(); err != nil {
			t.Fatal(err)
		}
		r := do(t, s, call{key: "sk-demo-pro"})
		checkSix(t, r, "100", "88", "chat", "12", "3")
		if r.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("without the upstream: %s", r.Status)
		}
		if err := s.Server.Stop(10 * time.Second); err != nil {
			t.Error(err)
		}
		r = do(t, s, call{key: "sk-demo-pro"})
		checkSix(t, r, "0", "0", "default", "0", "1")
		if r.StatusCode != http.StatusServiceUnavailable || errorCode(t, r) != "limiter_unavailable" || r.Header.Get("Retry-After") != "1" {
			t.Errorf("without TierGate: %s %v %s", r.Status, r.Header, r.body)
		}
	})
}

// TestSixHeadersOnBrokenAnswers: where a JSON answer ends before it is whole, what Envoy
// says in its place has what the answer would have had.
func TestSixHeadersOnBrokenAnswers(t *testing.T) {
	both(t, func(t *testing.T, chain string) {
		const route = "- match: {prefix: /v1/}\n                route: {cluster: upstream, timeout: 0s}"
		impatient := func(file []byte) []byte { // the shipped routes wait for ever, and streams five minutes
			timed := func(prefix, timeout string) string {
				return strings.NewReplacer("/v1/}", prefix+"}", "timeout: 0s", timeout).Replace(route) + "\n              "
			}
			routes := timed("/v1/images/", "timeout: 0s, idle_timeout: 1s") + timed("/v1/audio/", "timeout: 1s") + route
			if !bytes.Contains(file, []byte(route)) {
				t.Errorf("the Envoy file has no such route: %s", route)
			}
			return bytes.Replace(file, []byte(route), []byte(routes), 1)
		}
		s := up(t, devstack.Options{Chain: chain, EditEnvoy: impatient})
		freshMinute(t, 20*time.Second)
		used := 0
		for _, c := range []struct {
			name, path, header, value string
			status                    int
		}{
			{"before it begins", "chat/completions", "X-Mock-Break", "start", 503},
			{"before its length", "chat/completions", "X-Mock-Break", "length", 502},
			{"within its chunks", "chat/completions", "X-Mock-Break", "chunks", 502},
			{"the route's timeout", "audio/transcriptions", "X-Mock-Break", "stall", 504},
			{"nothing moves", "images/generations", "X-Mock-Break", "stall", 504},
			{"longer than Envoy holds", "chat/completions", "X-Mock-Bytes", "40000000", 500},
			{"a whole one", "chat/completions", "X-Mock-Bytes", "4", 200},
		} {
			r := do(t, s, call{key: "sk-demo-pro", path: "/v1/" + c.path, header: http.Header{c.header: {c.value}}})
			used++
			if r.StatusCode != c.status {
				t.Errorf("%s: %s: %s, want %d", c.name, r.Status, r.body, c.status)
			}
			resource, _, _ := strings.Cut(c.path, "/")
			checkSix(t, r, "100", strconv.Itoa(100-used), resource, strconv.Itoa(used), "3")
			if next := time.Now().Truncate(time.Minute).Add(time.Minute).Unix(); reset(t, r) != next {
				t.Errorf("%s: Reset %d, want the end of the minute %d", c.name, reset(t, r), next)
			}
		}
	})
}

// TestSlowReaders: who wants the connection closed behind the answer, and reads nothing of it for
// longer than the second that Envoy waits by default, gets all of it.
func TestSlowReaders(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		s := up(t, devstack.Options{Chain: chain})
		conn, err := net.Dial("tcp", s.API)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		const size = 20_000_000 // more than sockets hold
		if _, err := fmt.Fprintf(conn, "%s%sConnection: close\r\nX-Mock-Bytes: %d\r\n%s", chatHead, auth, size, noBody); err != nil {
			t.Fatal(err)
		}
		do(t, s, call{key: "sk-demo-pro", header: http.Header{"X-Mock-Delay": {"3s"}}}) // nothing is read meanwhile
		if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if n, err := io.Copy(io.Discard, response.Body); err != nil || n < size {
			t.Errorf("%s: %d bytes of more than %d: %v", response.Status, n, size, err)
		}
	})
}

// TestHTTP10: who speaks HTTP/1.0 gets 426 from Envoy, unless it is told what the document says.
func TestHTTP10(t *testing.T) {
	both(t, func(t *testing.T, chain string) {
		const first, accept = "stat_prefix: api\n", "http_protocol_options: {accept_http_10: true}"
		if guide, err := os.ReadFile(root + "/docs/envoy.md"); err != nil || !strings.Contains(string(guide), "`"+accept+"`") {
			t.Errorf("the document does not say %s: %v", accept, err)
		}
		logging := func(file []byte) []byte { return prepended(t, file, "access_log", block(t, "yaml access_log")) }
		accepting := func(file []byte) []byte {
			return []byte(replaced(t, string(file), first, first+"          "+accept+"\n"))
		}
		for _, c := range []struct {
			edit     func([]byte) []byte
			status   int
			resource string
		}{{logging, http.StatusUpgradeRequired, "default"}, {accepting, http.StatusOK, "chat"}} {
			s := up(t, devstack.Options{Chain: chain, EditEnvoy: c.edit})
			answers := send(t, s, strings.Replace(chatHead, "HTTP/1.1", "HTTP/1.0", 1)+auth+noBody)
			if wantOne(t, "HTTP/1.0", answers, c.status); t.Failed() {
				return
			}
			if have := answers[0].Header.Get("X-RateLimit-Resource"); have != c.resource {
				t.Errorf("%d: the resource is %q, want %q", c.status, have, c.resource)
			}
			if c.status == http.StatusOK {
				continue
			}
			if err := s.Proxy.Stop(10 * time.Second); err != nil { // it writes its log
				t.Fatal(err)
			}
			if log, err := os.ReadFile(filepath.Join(s.Options.Dir, "envoy.log")); err != nil || !strings.Contains(string(log), " low_version\n") {
				t.Errorf("%v: Envoy's log has no low_version:\n%s", err, log)
			}
		}
	})
}

// TestFloodGuard: far more requests from one address than any tier allows are
// refused by Envoy itself, in the words of the contract.
func TestFloodGuard(t *testing.T) {
	alone(t, func(t *testing.T, chain string) {
		s := up(t, devstack.Options{Chain: chain})
		const connections, rounds, streams = 16, 20, 100
		answers := make(chan map[string]int, connections)
		floods := make(chan reply, connections*rounds) // one of each batch
		began := time.Now()
		together(connections, func(int) {
			c := dialHTTP2(t, s.API)
			count := map[string]int{}
			for range rounds {
				for i, r := range c.get("/nowhere", streams) {
					count[r.Status]++
					if r.Status == "429" && i == streams-1 {
						floods <- r
					}
				}
			}
			answers <- count
		})
		took := time.Since(began)
		total := map[string]int{}
		for range connections {
			for status, n := range <-answers {
				total[status] += n
			}
		}
		t.Logf("%v in %s", total, took)
		// A full bucket, and what flowed in meanwhile.
		most := 5000 * (2 + int(took/time.Second))
		if total["404"]+total["429"] != connections*rounds*streams || total["404"] < 5000 || total["404"] > most {
			t.Errorf("answers by status: %v in %s: want 5000 to %d served and the others refused", total, took, most)
		}
		close(floods)
		if len(floods) == 0 {
			t.Error("nothing was refused")
		}
		for r := range floods {
			checkSix(t, r, "0", "0", "default", "0", "1")
			if want := fmt.Sprintf(limitBody, 1); r.body != want || r.Header.Get("Retry-After") != "1" || errorCode(t, r) != "rate_limit_exceeded" {
				t.Errorf("%v %s", r.Header, r.body)
			}
			date, err := http.ParseTime(r.Header.Get("Date")) // Envoy looks at its clock twice a second
			if after := reset(t, r) - date.Unix(); err != nil || after < 1 || after > 3 {
				t.Errorf("Reset is %d s after the answer (%v), want the second in N and what the date lags", after, err)
			}
		}
	})
}

// TestUpstreamSees who calls, from TierGate alone, and no credentials.
func TestUpstreamSees(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		s := up(t, devstack.Options{Chain: chain})
		forged := http.Header{
			"X-Mock-Echo": {"1"}, "X-Tiergate-Key-Id": {"key_evil"}, "X-Tiergate-Tier": {"enterprise"}, "X-Tiergate-Resource": {"free"},
			"X-Tiergate-Other": {"x"}, "X-Tiergate-Asked-Priority": {"4"}, "X-Request-Priority": {"4", "9"}, "X-Tiergate-Status": {"401"},
		}
		for _, h := range []http.Header{{"Authorization": {"Bearer sk-demo-basic"}}, {"X-Api-Key": {"sk-demo-basic"}}, {"Api-Key": {"sk-demo-basic"}, "Authorization": {"Basic eDp5"}}} {
			maps.Copy(h, forged)
			r := do(t, s, call{header: h})
			var seen http.Header
			if err := json.Unmarshal([]byte(r.body), &seen); err != nil {
				t.Fatalf("%s: %s", r.Status, r.body)
			}
			for name, want := range map[string]string{
				"X-Tiergate-Key-Id": "key_demo_basic", "X-Tiergate-Tier": "basic", "X-Tiergate-Resource": "chat", "X-Request-Priority": "2",
			} {
				if have := seen[name]; len(have) != 1 || have[0] != want {
					t.Errorf("the upstream sees %s: %q, want %q", name, have, want)
				}
			}
			for _, name := range []string{"Authorization", "X-Api-Key", "Api-Key", "X-Tiergate-Other", "X-Tiergate-Asked-Priority", "X-Tiergate-Status"} {
				if have, ok := seen[name]; ok {
					t.Errorf("the upstream sees %s: %q", name, have)
				}
			}
		}
	})
}

// TestUpstreamsOwnCredential reaches it in the place of the client's: by the route where external
// authorization takes that away, else behind what is removed.
func TestUpstreamsOwnCredential(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		old, added := "request_headers_to_remove: [accept-encoding]", `
              request_headers_to_add: [{header: {key: authorization, value: Bearer of-the-upstream}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]
             `
		if chain == "ratelimit" {
			old, added = "- {remove: x-tiergate-asked-priority}", `
                    - {append: {header: {key: authorization, value: Bearer of-the-upstream}}}`
		}
		s := up(t, devstack.Options{Chain: chain, EditEnvoy: func(file []byte) []byte {
			return bytes.Replace(file, []byte(old), []byte(old+added), 1)
		}})
		r := do(t, s, call{key: "sk-demo-basic", header: http.Header{"X-Mock-Echo": {"1"}}})
		var seen http.Header
		if err := json.Unmarshal([]byte(r.body), &seen); err != nil || len(seen["Authorization"]) != 1 || seen["Authorization"][0] != "Bearer of-the-upstream" {
			t.Errorf("%s: the upstream sees %v: %v", r.Status, seen, err)
		}
	})
}

// TestGRPCCallers get the status that goes with each refusal, in all chains; others get no
// such header.
func TestGRPCCallers(t *testing.T) {
	t.Parallel()
	for _, chain := range []string{"ext_authz", "ratelimit", "ai-protocol"} {
		t.Run(chain, func(t *testing.T) {
			t.Parallel()
			config, keys := ownConfig(t)
			edit(t, keys, "id: key_demo_pro\n", "id: key_demo_pro\n    resources: [chat]\n")
			s := up(t, devstack.Options{Chain: chain, Config: config, Sets: []string{"allow_demo_keys=true"}})
			freshMinute(t, 5*time.Second)
			ask := func(contentType string, c call) reply {
				c.header = http.Header{"Content-Type": {contentType}, "X-Mock-Usage": {"1,1"}}
				return do(t, s, c)
			}
			for range 30 { // some may be refused by tokens at first: such bodies are not read
				ask("application/grpc", call{key: "sk-demo-free"})
			}
			for name, c := range map[string]struct {
				call
				grpc, status string
			}{
				"429": {call{key: "sk-demo-free"}, "8", "429"},
				"401": {call{}, "16", "401"},
				"403": {call{key: "sk-demo-pro", path: "/v1/images/generations"}, "7", "403"},
			} {
				for _, contentType := range []string{"application/grpc", "application/grpc+proto"} {
					if r := ask(contentType, c.call); r.StatusCode != http.StatusOK || r.Header.Get("Grpc-Status") != c.grpc || r.Header.Get("X-Tiergate-Status") != "" {
						t.Errorf("%s, %s: %s, grpc-status %q, want %s: %v", name, contentType, r.Status, r.Header.Get("Grpc-Status"), c.grpc, r.Header)
					}
				}
				if r := ask("application/json", c.call); r.Header["Grpc-Status"] != nil || !strings.HasPrefix(r.Status, c.status) {
					t.Errorf("%s, not by gRPC: %s %v", name, r.Status, r.Header)
				}
			}
			checkSix(t, ask("application/grpc", call{key: "sk-demo-free"}), "10", "0", "chat", "10", "1")
			conn, err := grpc.NewClient(s.API, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for _, c := range []struct {
				key, method string
				want        codes.Code
			}{
				{"sk-demo-free", "/v1/chat/completions", codes.ResourceExhausted},
				{"sk-nobody", "/v1/chat/completions", codes.Unauthenticated},
				{"sk-demo-pro", "/v1/images/generations", codes.PermissionDenied},
				{"sk-demo-pro", "/nowhere", codes.Unimplemented},
			} {
				var header metadata.MD
				err := conn.Invoke(metadata.AppendToOutgoingContext(t.Context(), "x-api-key", c.key), c.method, &emptypb.Empty{}, &emptypb.Empty{}, grpc.Header(&header), grpc.Trailer(&header))
				if status.Code(err) != c.want {
					t.Errorf("a client of gRPC, %s: %v, want %s", c.method, err, c.want)
				}
				for _, name := range six {
					if len(header.Get(name)) != 1 {
						t.Errorf("a client of gRPC, %s: %s: %q, want one value", c.method, name, header.Get(name))
					}
				}
			}
			large := call{key: "sk-demo-basic", body: `{"model": "mock-1", "messages": [], "max_tokens": 900000}`}
			if r := ask("application/grpc+json", large); r.Header.Get("Grpc-Status") != "3" {
				t.Errorf("413: %s %v", r.Status, r.Header)
			}
			if r := ask("application/grpc; charset=utf-8", call{}); r.StatusCode != http.StatusUnauthorized || r.Header["Grpc-Status"] != nil { // no gRPC, says Envoy
				t.Errorf("another type: %s %v", r.Status, r.Header)
			}
		})
	}
}

// TestFloodGuardForGRPC: its status is that of other 429s.
func TestFloodGuardForGRPC(t *testing.T) {
	t.Parallel()
	for _, chain := range []string{"ext_authz", "ratelimit", "ai-protocol"} {
		s := up(t, devstack.Options{Chain: chain, EditEnvoy: func(file []byte) []byte {
			return bytes.Replace(file, []byte("{max_tokens: 5000, tokens_per_fill: 5000, fill_interval: 1s}"), []byte("{max_tokens: 1, tokens_per_fill: 1, fill_interval: 600s}"), 1)
		}})
		do(t, s, call{})
		r := do(t, s, call{header: http.Header{"Content-Type": {"application/grpc"}}})
		if r.Header.Get("Grpc-Status") != "8" || r.Header.Get("X-Ratelimit-Limited-By") != "flood" {
			t.Errorf("%s: %s %v", chain, r.Status, r.Header)
		}
	}
}

// TestUnixSocket: the whole way works over one, and a socket file left by a
// killed server is no hindrance.
func TestUnixSocket(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := up(t, devstack.Options{
		Dir: dir, TierGateAddress: "unix:" + dir + "/tiergate.sock", EditEnvoy: inCluster(t, block(t, "yaml cluster socket")), Sets: []string{"grpc.socket_mode=0600"},
	})
	if info, err := os.Stat(dir + "/tiergate.sock"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	freshMinute(t, 10*time.Second)
	checkSix(t, do(t, s, call{key: "sk-demo-basic"}), "50", "49", "chat", "1", "2")
	kill(t, s.Server)
	if err := s.StartServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, err := tiergate(t, "health", "--address", s.TierGate); err != nil || out != "SERVING\n" {
		t.Errorf("health: %q, %v", out, err)
	}
}
