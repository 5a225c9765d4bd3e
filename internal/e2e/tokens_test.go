package e2e

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tiergate/tiergate/internal/devstack"
)

// chains are all that settle.
var chains = []string{"ext_authz", "ratelimit", "ai-protocol"}

// eachChain runs a test on every chain, side by side.
func eachChain(t *testing.T, test func(t *testing.T, chain string)) {
	t.Helper()
	t.Parallel()
	for _, chain := range chains {
		t.Run(chain, func(t *testing.T) {
			t.Parallel()
			test(t, chain)
		})
	}
}

// upTokens starts a stack whose responses tell how many tokens remain, and whose
// pro keys may ask as often as a test needs.
func upTokens(t *testing.T, o devstack.Options) *devstack.Stack {
	t.Helper()
	if o.Config == "" {
		o.Config, _ = ownConfig(t)
		edit(t, o.Config, "per: minute, max: 100}", "per: minute, max: 100000}")
	}
	o.Sets = append(o.Sets, "headers.per_metric=true")
	return up(t, o)
}

// tokensUsed returns how many tokens a key has used in this minute, by a request
// that takes none.
func tokensUsed(t *testing.T, s *devstack.Stack, key string) int {
	t.Helper()
	r := do(t, s, call{method: http.MethodGet, path: "/v1/models", key: key})
	if r.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", r.Status, r.body)
	}
	return number(t, r, "X-Ratelimit-Limit-Tokens") - number(t, r, "X-Ratelimit-Remaining-Tokens")
}

func number(t *testing.T, r reply, header string) int {
	t.Helper()
	n, err := strconv.Atoi(r.Header.Get(header))
	if err != nil {
		t.Fatalf("%s: %v: %v", header, err, r.Header)
	}
	return n
}

// TestCountingPrompts: what only has a prompt counted takes no tokens, whatever else its body says.
func TestCountingPrompts(t *testing.T) {
	both(t, func(t *testing.T, chain string) {
		s := upTokens(t, devstack.Options{Chain: chain})
		freshMinute(t, 5*time.Second)
		r := do(t, s, call{key: "sk-demo-pro", path: "/v1/messages/count_tokens", body: `{"model": "m", "max_tokens": 1000, "messages": [{"role": "user", "content": "Hi"}]}`})
		checkSix(t, r, "100000", "99999", "counting", "1", "3")
		if used := tokensUsed(t, s, "sk-demo-pro"); used != 0 {
			t.Errorf("%d tokens are used, want none", used)
		}
		if r := do(t, s, call{key: "sk-demo-pro", path: "/v1/messages"}); r.Header.Get("X-RateLimit-Resource") != "chat" {
			t.Errorf("a message is for %q", r.Header.Get("X-RateLimit-Resource"))
		}
	})
}

// TestSettles: whatever shape an answer has, the charge becomes what it says was
// used; where it says nothing, or ended badly, the reservation stands.
func TestSettles(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		s := upTokens(t, devstack.Options{Chain: chain})
		const declares = `{"model": "m", "max_tokens": 1000, "messages": []}`
		const streams = `{"model": "m", "max_tokens": 1000, "stream": true}`
		const ignored = `{"model": "m", "max_output_tokens": 1, "stream": true}`
		const background, backgroundDeclared, foreground = `{"background": true}`, `{"background": true, "max_output_tokens": 300}`, `{"background": false}`
		input := func(body string) int { return (len(body)-1)/4 + 1 }
		usage := func(pairs ...string) http.Header {
			h := http.Header{"X-Mock-Usage": {"120,340"}}
			for i := 0; i < len(pairs); i += 2 {
				h.Set(pairs[i], pairs[i+1])
			}
			return h
		}
		for _, c := range []struct {
			name string
			call call
			want int
			skip string        // a chain that cannot
			time time.Duration // that the minute is to have left; 0: 5 s
		}{
			{name: "JSON", call: call{body: declares, header: usage()}, want: 460},
			{name: "JSON with a charset", call: call{body: declares, header: usage("X-Mock-Charset", "1")}, want: 460},
			{name: "the names of two APIs", call: call{body: declares, header: usage("X-Mock-Both", "1")}, want: 460},
			{name: "the names of two APIs, a stream", call: call{body: streams, header: usage("X-Mock-Both", "1")}, want: 460},
			{name: "brotli asked for", call: call{body: declares, header: usage("Accept-Encoding", "br")}, want: 460},
			{name: "a stream, usage at its end", call: call{body: streams, header: usage("X-Mock-Chunks", "20")}, want: 460},
			{name: "a stream, usage in every chunk", call: call{body: `{"stream": true, "max_tokens": 1000, "stream_options": {"continuous_usage_stats": true}}`, header: usage("X-Mock-Chunks", "20")}, want: 460},
			{name: "more than was declared", call: call{body: `{"max_tokens": 5}`, header: usage()}, want: 460},
			{name: "a large answer", call: call{body: declares, header: usage("X-Mock-Bytes", "20000000")}, want: 460, skip: "ai-protocol", time: 20 * time.Second},
			{name: "a large stream", call: call{body: streams, header: usage("X-Mock-Bytes", "20000000", "X-Mock-Chunks", "20000")}, want: 460, time: 20 * time.Second},
			{name: "compressed", call: call{body: declares, header: usage("Accept-Encoding", "gzip")}, want: 460},
			{name: "a compressed stream", call: call{body: streams, header: usage("Accept-Encoding", "gzip")}, want: 460},
			{name: "OpenAI responses", call: call{path: "/v1/responses", body: `{"max_output_tokens": 1000}`, header: usage()}, want: 460},
			{name: "OpenAI responses, a stream", call: call{path: "/v1/responses", body: `{"max_output_tokens": 1000, "stream": true}`, header: usage()}, want: 460},
			{name: "Anthropic messages", call: call{path: "/v1/messages", body: declares, header: usage()}, want: 460},
			{name: "Anthropic messages, cached", call: call{path: "/v1/messages", body: declares, header: usage("X-Mock-Usage", "120,340,100")}, want: 460},
			{name: "Anthropic messages, a stream", call: call{path: "/v1/messages", body: streams, header: usage()}, want: 460},
			{name: "images", call: call{path: "/v1/images/generations", body: `{}`, header: usage()}, want: 460},
			{name: "audio", call: call{path: "/v1/audio/transcriptions", body: `{}`, header: usage()}, want: 460},
			{name: "embeddings", call: call{path: "/v1/embeddings", body: `{}`, header: usage()}, want: 120},
			{name: "no usage", call: call{body: declares, header: usage("X-Mock-Usage", "none")}, want: 1000 + input(declares)},
			{name: "a stream without usage", call: call{body: streams, header: usage("X-Mock-Usage", "none")}, want: 1000 + input(streams)},
			{name: "a name that the endpoint ignores, a stream without usage", call: call{body: ignored, header: usage("X-Mock-Usage", "none")}, want: 1000 + input(ignored)},
			{name: "a name that images ignore", call: call{path: "/v1/images/generations", body: declares, header: usage("X-Mock-Usage", "none")}, want: 1500 + input(declares)},
			{name: "in the background", call: call{path: "/v1/responses", body: background, header: usage("X-Mock-Usage", "none")}, want: 16_000 + input(background)},
			{name: "in the background, declared", call: call{path: "/v1/responses", body: backgroundDeclared, header: usage("X-Mock-Usage", "none")}, want: 300 + input(backgroundDeclared)},
			{name: "not in the background", call: call{path: "/v1/responses", body: foreground, header: usage("X-Mock-Usage", "none")}, want: 1000 + input(foreground)},
			{name: "500 of the upstream", call: call{body: declares, header: usage("X-Mock-Status", "500")}, want: 1000 + input(declares)},
		} {
			if c.skip == chain {
				continue
			}
			freshMinute(t, cmp.Or(c.time, 5*time.Second))
			before := tokensUsed(t, s, "sk-demo-pro")
			c.call.key = "sk-demo-pro"
			if r := do(t, s, c.call); r.StatusCode != http.StatusOK && c.call.header.Get("X-Mock-Status") == "" {
				t.Errorf("%s: %s: %s", c.name, r.Status, r.body)
			}
			have := 0
			settled := trueWithin(2*time.Second, func() bool { have = tokensUsed(t, s, "sk-demo-pro") - before; return have == c.want })
			if !settled {
				t.Errorf("%s: %d tokens charged in the end, want %d", c.name, have, c.want)
			}
		}
	})
}

// startStream starts a stream of so many events, 50 ms apart, and returns when the
// first one has come.
func startStream(ctx context.Context, t *testing.T, s *devstack.Stack, body, usage, events string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.API+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{
		"Content-Type": {"application/json"}, "Authorization": {"Bearer sk-demo-pro"},
		"X-Mock-Chunks": {events}, "X-Mock-Chunk-Delay": {"50ms"}, "X-Mock-Usage": {usage},
	}
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(response.Body, make([]byte, 10)); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %v", response.Status, err)
	}
	return response
}

// openStream starts a stream that goes on for a long time.
func openStream(t *testing.T, s *devstack.Stack, body string) (hangUp func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	response := startStream(ctx, t, s, body, "120,340000", "1000") //nolint:bodyclose // hangUp closes it
	return func() {
		cancel()
		response.Body.Close()
	}
}

// TestHangingUpGainsNothing: who closes the connection early pays the reservation,
// or what was used by then where that is more; and the next reservations do not
// become smaller.
func TestHangingUpGainsNothing(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		s := upTokens(t, devstack.Options{Chain: chain})
		freshMinute(t, 20*time.Second)
		const declared, undeclared = `{"stream": true, "max_tokens": 1000}`, `{"stream": true}`
		cost := func(body string, answer int) int { return (len(body)-1)/4 + 1 + answer }
		settlements := func() float64 { return metric(t, s, "tiergate_settlements_total", `result="settled"`) }
		want := 0
		for i, c := range []struct {
			body string
			cost int
		}{
			{declared, cost(declared, 1000)},
			{undeclared, cost(undeclared, 1000)},
			{undeclared, cost(undeclared, 1000)},
			{undeclared, cost(undeclared, 1000)},
			{undeclared, cost(undeclared, 1000)},
			{undeclared, cost(undeclared, 1000)},
		} {
			openStream(t, s, c.body)()
			want += c.cost
			eventually(t, "it is settled", func() bool { return settlements() == float64(i+1) })
			if have := tokensUsed(t, s, "sk-demo-pro"); have != want {
				t.Errorf("%s, hung up: %d tokens used, want %d", c.body, have, want)
			}
		}
		// By history now; six answers of the default size are on record.
		openStream(t, s, undeclared)()
		eventually(t, "it is settled", func() bool { return settlements() == 7 })
		if have := tokensUsed(t, s, "sk-demo-pro") - want; have < cost(undeclared, 1000) {
			t.Errorf("after hanging up often: %d tokens are reserved, want at least %d", have, cost(undeclared, 1000))
		}
		if chain == "ai-protocol" {
			return // it reports nothing of an answer that is cut off
		}
		// Usage so far is in every chunk, 340 more each time, and more than was reserved.
		before := tokensUsed(t, s, "sk-demo-pro")
		hangUp := openStream(t, s, `{"stream": true, "max_tokens": 1, "stream_options": {"continuous_usage_stats": true}}`)
		hangUp()
		eventually(t, "it is settled", func() bool { return settlements() == 8 })
		if have := tokensUsed(t, s, "sk-demo-pro") - before; have < 120+340 {
			t.Errorf("used before hanging up: %d tokens charged, want at least 460", have)
		}
	})
}

// TestWhatIsNotReadReservesTheMaximum: a body that is no JSON, or said not to be,
// declares nothing, and neither does padding help; it reserves the most, until it is
// settled.
func TestWhatIsNotReadReservesTheMaximum(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		s := upTokens(t, devstack.Options{Chain: chain})
		const small = `{"max_tokens": 1}`
		long := `{"max_tokens": 1, "padding": "` + strings.Repeat("x", 3_000_000) + `"}`
		for _, c := range []struct {
			name, body, contentType string
			want                    int
		}{
			{"JSON", small, "application/json", 5 + 1},
			{"JSON with a charset", small, "application/json; charset=utf-8", 5 + 1},
			{"JSON of a kind", small, "application/vnd.api+json", 5 + 1},
			{"JSON called text", small, "text/plain", 5 + 16_000},
			{"JSON called nothing", small, "", 5 + 16_000},
			{"no JSON", `{"max_tokens": 1,`, "application/json", 5 + 16_000},
			{"a list", `[{"max_tokens": 1}]`, "application/json", 5 + 1000},
			{"a form", "max_tokens=1", "application/x-www-form-urlencoded", 3 + 16_000},
			{"padded", long, "application/json", 128_000 + 16_000},
			{"a number as text", `{"max_tokens": "7"}`, "application/json", 5 + 7},
			{"the largest holds", `{"max_tokens": 1, "max_completion_tokens": 9000}`, "application/json", 12 + 9000},
			{"a number with a blank", `{"max_tokens": " 7"}`, "application/json", 5 + 7},
			{"nothing is no declaration", `{"max_tokens": 0}`, "application/json", 5 + 1000},
			{"several answers", `{"max_tokens": 10, "n": 3, "best_of": 5}`, "application/json", 10 + 50},
			{"nonsense", `{"max_tokens": "many", "n": {}, "model": []}`, "application/json", 11 + 1000},
			{"twice", `{"max_tokens": 9000, "max_tokens": 1}`, "application/json", 10 + 1},
			{"the name of our own mark", `{"max_tokens": 1, "tiergate.read": "no"}`, "application/json", 10 + 1},
		} {
			freshMinute(t, 5*time.Second)
			before := tokensUsed(t, s, "sk-demo-pro")
			r := do(t, s, call{key: "sk-demo-pro", body: c.body, header: http.Header{"Content-Type": {c.contentType}, "X-Mock-Status": {"500"}}})
			if have := tokensUsed(t, s, "sk-demo-pro") - before; have != c.want || r.StatusCode < 400 {
				t.Errorf("%s: %s: %d tokens reserved, want %d", c.name, r.Status, have, c.want)
			}
		}
		// Of what length it is told: a body in chunks, and one that is longer than any
		// buffer, which passes unread.
		before := tokensUsed(t, s, "sk-demo-pro")
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.API+"/v1/chat/completions", io.MultiReader(strings.NewReader(small)))
		if err != nil {
			t.Fatal(err)
		}
		r.Header = http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer sk-demo-pro"}, "X-Mock-Usage": {"120,340"}}
		chunked, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if answer := read(t, chunked); answer.StatusCode != http.StatusOK || number(t, answer, "X-Ratelimit-Limit-Tokens")-number(t, answer, "X-Ratelimit-Remaining-Tokens")-before != 128_000+16_000 {
			t.Errorf("in chunks: %s %v", answer.Status, answer.Header)
		}
		big := do(t, s, call{key: "sk-demo-pro", body: `{"padding": "` + strings.Repeat("x", 40<<20) + `"}`, header: http.Header{"X-Mock-Usage": {"120,340"}}})
		if big.StatusCode != http.StatusOK {
			t.Errorf("40 MiB: %s %v %s", big.Status, big.Header, big.body)
		}
		eventually(t, "both are settled", func() bool { return tokensUsed(t, s, "sk-demo-pro")-before == 2*460 })
	})
}

// TestTooLarge: what a request declares beyond the whole of a limit is refused for
// good, in words after which no client tries again.
func TestTooLarge(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		s := upTokens(t, devstack.Options{Chain: chain})
		freshMinute(t, 5*time.Second)
		r := do(t, s, call{key: "sk-demo-free", body: `{"max_tokens": 40001}`})
		if r.StatusCode != http.StatusRequestEntityTooLarge || errorCode(t, r) != "request_too_large" || r.Header.Get("X-Should-Retry") != "false" ||
			r.Header.Get("X-RateLimit-Limited-By") != "tokens_per_minute" || !strings.Contains(r.body, "40001") || !strings.Contains(r.body, "40000") || strings.Contains(r.body, "rate_limit") {
			t.Errorf("%s %v %s", r.Status, r.Header, r.body)
		}
		checkSix(t, r, "10", "10", "chat", "0", "1")
		// The first call of a fresh key passes, whatever is guessed beside what it declares.
		r = do(t, s, call{key: "sk-demo-free", body: `{"max_tokens": 40000, "padding": "` + strings.Repeat("x", 1_000_000) + `"}`})
		if r.StatusCode != http.StatusOK {
			t.Errorf("a declaration that fits: %s %s", r.Status, r.body)
		}
		checkSix(t, r, "10", "9", "chat", "1", "1")
	})
}

// TestTokensUnderConcurrency: 40 streams at once, each declaring and using 20,000
// tokens, never use more than the limit, and most of it.
func TestTokensUnderConcurrency(t *testing.T) {
	alone(t, func(t *testing.T, chain string) {
		s := upTokens(t, devstack.Options{Chain: chain, Store: "redis"})
		freshMinute(t, 30*time.Second)
		const limit, each = 200_000, 20_000
		var mu sync.Mutex
		status := map[int]int{}
		together(40, func(int) {
			r := do(t, s, call{
				key: "sk-demo-basic", body: `{"stream": true, "max_tokens": 20000}`,
				header: http.Header{"X-Mock-Usage": {fmt.Sprintf("12,%d", each)}, "X-Mock-Delay": {"300ms"}},
			})
			mu.Lock()
			defer mu.Unlock()
			status[r.StatusCode]++
			if r.StatusCode == http.StatusTooManyRequests && r.Header.Get("X-RateLimit-Limited-By") != "tokens_per_minute" {
				t.Errorf("refused by %s", r.Header.Get("X-RateLimit-Limited-By"))
			}
		})
		used := 0
		trueWithin(5*time.Second, func() bool { used = tokensUsed(t, s, "sk-demo-basic"); return used == status[200]*(each+12) })
		t.Logf("%s: 40 at once: %v; %d tokens used of %d (%.1f %%)", chain, status, used, limit, 100*float64(used)/limit)
		if used > limit || used != status[200]*(each+12) || used < limit*9/10 || status[200]+status[429] != 40 {
			t.Errorf("want most of the limit used, and no more")
		}
	})
}

// TestTokensOneAfterTheOther: 40 calls without pauses that declare 20,000 and use
// 500 all pass, since each is settled before the reservations are too many.
func TestTokensOneAfterTheOther(t *testing.T) {
	alone(t, func(t *testing.T, chain string) {
		s := upTokens(t, devstack.Options{Chain: chain, Store: "redis"})
		freshMinute(t, 30*time.Second)
		const limit, calls = 200_000, 40
		passed := 0
		for range calls {
			r := do(t, s, call{key: "sk-demo-basic", body: `{"max_tokens": 20000}`, header: http.Header{"X-Mock-Usage": {"100,400"}}})
			if r.StatusCode == http.StatusOK {
				passed++
			}
		}
		used := 0
		trueWithin(5*time.Second, func() bool { used = tokensUsed(t, s, "sk-demo-basic"); return used == passed*500 })
		// What is left can be had.
		rest := limit - used - 100
		r := do(t, s, call{key: "sk-demo-basic", body: fmt.Sprintf(`{"max_tokens": %d}`, rest), header: http.Header{"X-Mock-Usage": {fmt.Sprintf("0,%d", rest)}}})
		trueWithin(5*time.Second, func() bool { used = tokensUsed(t, s, "sk-demo-basic"); return used == passed*500+rest })
		t.Logf("%s: %d of %d passed; then one of %d: %s; %d tokens used of %d (%.1f %%)", chain, passed, calls, rest, r.Status, used, limit, 100*float64(used)/limit)
		if passed != calls || r.StatusCode != http.StatusOK || used < limit*9/10 || used > limit {
			t.Errorf("want all to pass, and at least 90 %% of the limit")
		}
	})
}

// bySettleFilter adds the documents' filter that settles by a call.
func bySettleFilter(t *testing.T, chain string) func([]byte) []byte {
	t.Helper()
	return func(file []byte) []byte {
		file = settleFilter(t, file)
		if chain == "ratelimit" {
			file = bytes.ReplaceAll(file, []byte("metadata_key: {key: envoy.filters.http.ext_authz"), []byte("metadata_key: {key: envoy.filters.http.ratelimit"))
		}
		return file
	}
}

// settleFilter puts the documents' filter before the router.
func settleFilter(tb testing.TB, file []byte) []byte {
	tb.Helper()
	router := []byte("          - name: envoy.filters.http.router\n")
	filter := "          - " + strings.ReplaceAll(strings.TrimRight(block(tb, "yaml settle"), "\n"), "\n", "\n            ") + "\n"
	changed := bytes.Replace(file, router, append([]byte(filter), router...), 1)
	if bytes.Equal(changed, file) {
		tb.Fatal("the shipped file has no router")
	}
	return changed
}

// TestSettlesByCall alone, and beside the access log; then each reservation is
// settled once all the same.
func TestSettlesByCall(t *testing.T) {
	both(t, func(t *testing.T, chain string) {
		for _, c := range []struct {
			by                 string
			settled, duplicate float64
		}{
			{"[ratelimit]", 5, 0}, {"[ratelimit, access_log]", 5, 5}, {"[access_log]", 5, 0}, {"[]", 0, 0},
		} {
			s := upTokens(t, devstack.Options{Chain: chain, EditEnvoy: bySettleFilter(t, chain), Sets: []string{"tokens.settle_by=" + c.by}})
			freshMinute(t, 10*time.Second)
			want := 0
			for _, r := range []struct {
				body, usage string
				used        int
			}{
				{`{"max_tokens": 1000}`, "120,340", 460}, {`{"max_tokens": 1000, "stream": true}`, "120,340", 460}, {`{"max_tokens": 1000}`, "none", 1005},
			} {
				do(t, s, call{key: "sk-demo-pro", body: r.body, header: http.Header{"X-Mock-Usage": {r.usage}}})
				if c.settled == 0 {
					r.used = 1000 + (len(r.body)-1)/4 + 1
				}
				want += r.used
			}
			openStream(t, s, `{"max_tokens": 1000, "stream": true}`)()
			do(t, s, call{key: "sk-demo-pro", path: "/v1/messages", body: `{"max_tokens": 1000, "stream": true}`, header: http.Header{"X-Mock-Usage": {"120,340,100"}}})
			want += 1000 + 9 + 460
			if c.settled == 0 {
				want += 1000 + 9 - 460
			}
			settlements := func(result string) float64 { return metric(t, s, "tiergate_settlements_total", `result="`+result+`"`) }
			if !trueWithin(5*time.Second, func() bool { return settlements("settled") == c.settled && settlements("duplicate") == c.duplicate }) {
				t.Errorf("%s: %v settled, %v duplicates: want %v and %v", c.by, settlements("settled"), settlements("duplicate"), c.settled, c.duplicate)
			}
			if have := tokensUsed(t, s, "sk-demo-pro"); have != want {
				t.Errorf("%s: %d tokens used, want %d", c.by, have, want)
			}
			if failed := settlements("failed") + settlements("invalid") + settlements("not_found"); failed != 0 {
				t.Errorf("%s: %v settlements failed", c.by, failed)
			}
		}
	})
}

// TestSettlesOverARestart: a stream that outlives its TierGate is settled by the
// next one, in Redis; and Envoy ends a stream when it is stopped itself, which
// leaves the reservation or what was used.
func TestSettlesOverARestart(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ chain, by string }{
		{"ext_authz", "access_log"}, {"ratelimit", "access_log"}, {"ai-protocol", "access_log"}, {"ext_authz", "ratelimit"}, {"ratelimit", "ratelimit"},
	} {
		t.Run(c.chain+" by "+c.by, func(t *testing.T) {
			t.Parallel()
			o := devstack.Options{Chain: c.chain, Store: "redis", Sets: []string{"tokens.settle_by=[" + c.by + "]"}}
			if c.by == "ratelimit" {
				o.EditEnvoy = bySettleFilter(t, c.chain)
			}
			s := upTokens(t, o)
			freshMinute(t, 30*time.Second)
			body := `{"stream": true, "max_tokens": 1000}`
			response := startStream(t.Context(), t, s, body, "120,340", "40") //nolint:bodyclose // read closes it
			if used := tokensUsed(t, s, "sk-demo-pro"); used != 1009 {
				t.Errorf("%d tokens are reserved, want 1009", used)
			}
			kill(t, s.Server)
			if err := s.StartServer(t.Context()); err != nil {
				t.Fatal(err)
			}
			if r := read(t, response); !strings.Contains(r.body, "[DONE]") {
				t.Errorf("the stream ends with %q", r.body[max(0, len(r.body)-100):])
			}
			eventually(t, "it is settled", func() bool { return tokensUsed(t, s, "sk-demo-pro") == 460 })

			openStream(t, s, body)
			if err := s.Proxy.Stop(10 * time.Second); err != nil {
				t.Fatal(err)
			}
			if err := s.StartProxy(t.Context()); err != nil {
				t.Fatal(err)
			}
			if have := tokensUsed(t, s, "sk-demo-pro"); have != 460+1009 {
				t.Errorf("Envoy stopped: %d tokens used, want %d", have, 460+1009)
			}
		})
	}
}

// everySetting has each setting of tokens and of the rate limit service away from
// its default.
const everySetting = `
tokens:
  settle_by: [access_log, ratelimit]
  keep: 20m
  cached_input: 0.5
  models: {"big*": 2}
  refunds: {statuses: [503], max_share: 0.5}
resources:
  chat: {paths: [/v1/chat], tokens: {max_input: 100, output: 200, max_output: 400, cap: 300}}
  models: {paths: [/v1/models]}
headers: {unlimited: unlimited, per_metric: true, ietf: true}
ratelimit:
  domain: quotas
  settlement_domain: quotas-settle
  hits: tokens
  negative_hits: true
  limit_override: true
  unknown: allow
  entries: {api_key: key, resource: what, path: where, priority: how, fact_prefix: "fact.", key_id: who, tier: plan}
`

// TestEverySettingTakesEffect from the file to the answer.
func TestEverySettingTakesEffect(t *testing.T) {
	t.Parallel()
	config, _ := ownConfig(t)
	edit(t, config, "per: minute, max: 100}", "per: minute, max: 100000}")
	merge(t, config, everySetting)
	s := up(t, devstack.Options{Config: config})
	freshMinute(t, 20*time.Second)
	ask := func(body string, header http.Header) reply {
		return do(t, s, call{key: "sk-demo-pro", body: body, header: header})
	}
	steps := func(what string, reserved, settled int, body string, header http.Header) {
		t.Helper()
		before := tokensUsed(t, s, "sk-demo-pro")
		r := ask(body, header)
		if have := number(t, r, "X-Ratelimit-Limit-Tokens") - number(t, r, "X-Ratelimit-Remaining-Tokens") - before; have != reserved {
			t.Errorf("%s: %d reserved, want %d", what, have, reserved)
		}
		have := 0
		if !trueWithin(5*time.Second, func() bool { have = tokensUsed(t, s, "sk-demo-pro") - before; return have == settled }) {
			t.Errorf("%s: settled to %d, want %d", what, have, settled)
		}
	}
	usage := func(text string) http.Header { return http.Header{"X-Mock-Usage": {text}} }
	steps("a cap", 300+7, 460, `{"max_tokens": 1000, "x":1}`, usage("120,340"))
	steps("the resource's own", 200+4, 460, `{"model": "m"}`, usage("120,340"))
	steps("a model and a cache", 2*(200+5), 2*(20+50+30), `{"model": "big-1"}`, usage("120,30,100"))
	steps("not read", 2*(400+5), 460, `{"model": "big-1"}`, http.Header{"Content-Type": {"text/plain"}, "X-Mock-Usage": {"60,170"}})
	steps("a refund", 200+4, 0, `{"model": "m"}`, http.Header{"X-Mock-Status": {"503"}})
	if r := ask(`{}`, nil); !strings.Contains(r.Header.Get("Ratelimit-Policy"), `"tokens_per_minute";q=1000000;w=60`) || r.Header.Get("Ratelimit") == "" {
		t.Errorf("the IETF's headers: %v", r.Header)
	}

	rls := rlsv3.NewRateLimitServiceClient(dial(t, s))
	entries := func(pairs ...string) *ratelimitv3.RateLimitDescriptor {
		d := &ratelimitv3.RateLimitDescriptor{}
		for i := 0; i < len(pairs); i += 2 {
			d.Entries = append(d.Entries, &ratelimitv3.RateLimitDescriptor_Entry{Key: pairs[i], Value: pairs[i+1]})
		}
		return d
	}
	call := func(domain string, d *ratelimitv3.RateLimitDescriptor) *rlsv3.RateLimitResponse {
		t.Helper()
		response, err := rls.ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: domain, Descriptors: []*ratelimitv3.RateLimitDescriptor{d}})
		if err != nil {
			t.Fatal(err)
		}
		return response
	}
	header := func(r *rlsv3.RateLimitResponse, name string) string {
		for _, h := range r.GetResponseHeadersToAdd() {
			if h.GetKey() == name {
				return h.GetValue()
			}
		}
		return ""
	}
	said := entries("who", "user-7", "plan", "pro", "what", "chat", "how", "low", "fact.max_tokens", "250", "fact.content_length", "40", "fact.method", "POST")
	r := call("quotas", said)
	if header(r, "x-ratelimit-remaining-tokens") != "999740" || header(r, "X-RateLimit-Resource") != "chat" || header(r, "X-Request-Priority") != "1" {
		t.Errorf("entries by other names: %v", r)
	}
	ticket := r.GetDynamicMetadata().GetFields()["reservation"].GetStringValue()
	done := entries("settle", "total", "reservation", ticket, "details", "via_upstream")
	done.HitsAddend = wrapperspb.UInt64(60)
	call("quotas-settle", done)
	hits := func(n uint64, change func(*ratelimitv3.RateLimitDescriptor)) *ratelimitv3.RateLimitDescriptor {
		d := entries("who", "user-7", "plan", "pro", "where", "/v1/chat")
		d.HitsAddend = wrapperspb.UInt64(n)
		change(d)
		return d
	}
	r = call("quotas", hits(40, func(*ratelimitv3.RateLimitDescriptor) {}))
	if header(r, "x-ratelimit-remaining-tokens") != "999900" {
		t.Errorf("60 settled and hits of 40 tokens: %v", r)
	}
	r = call("quotas", hits(30, func(d *ratelimitv3.RateLimitDescriptor) { d.IsNegativeHits = true }))
	if header(r, "x-ratelimit-remaining-tokens") != "999930" {
		t.Errorf("30 given back: %v", r)
	}
	r = call("quotas", hits(1, func(d *ratelimitv3.RateLimitDescriptor) {
		d.Limit = &ratelimitv3.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: 70, Unit: typev3.RateLimitUnit_MINUTE}
	}))
	if r.GetOverallCode() != rlsv3.RateLimitResponse_OVER_LIMIT {
		t.Errorf("a limit of the descriptor's own: %v", r)
	}
	if r = call("quotas", entries("nobody", "knows")); r.GetOverallCode() != rlsv3.RateLimitResponse_OK || len(r.GetResponseHeadersToAdd()) != 0 {
		t.Errorf("an unknown entry: %v", r)
	}
}
