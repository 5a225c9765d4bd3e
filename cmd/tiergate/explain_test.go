package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tiergate/tiergate/internal/devstack"
	"github.com/tiergate/tiergate/internal/envoyapi"
	"github.com/tiergate/tiergate/internal/web"
)

// explained asks the admin API about a request.
func (r *running) explained(t *testing.T, key string, question map[string]any) (e web.Explanation) {
	t.Helper()
	body, err := json.Marshal(question)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.Post("http://"+r.start.Operator.Address+web.AdminPath+"/keys/"+key+"/explain", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(&e); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %v", response.Status, err)
	}
	return e
}

// answers makes the request that a question is about, and returns what its client gets.
func answers(t *testing.T, conn *grpc.ClientConn, secret string, question map[string]any) web.ResponseParts {
	t.Helper()
	path, _ := question["path"].(string)
	facts := map[string]*structpb.Value{"read": structpb.NewStringValue("yes")}
	if tokens, ok := question["max_tokens"]; ok {
		facts["max_tokens"] = structpb.NewStringValue(fmt.Sprint(tokens))
	}
	response, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Method: "POST", Path: path, Headers: map[string]string{"x-api-key": secret, "content-length": "1000"},
		}},
		MetadataContext: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{envoyapi.RequestNamespace: {Fields: facts}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	parts := web.ResponseParts{Status: http.StatusOK}
	options := response.GetOkResponse().GetResponseHeadersToAdd()
	if denied := response.GetDeniedResponse(); denied != nil {
		parts.Status, parts.Body, options = int(denied.GetStatus().GetCode()), denied.GetBody(), denied.GetHeaders()
	}
	for _, o := range options {
		parts.Headers = append(parts.Headers, web.HeaderView{Name: o.GetHeader().GetKey(), Value: o.GetHeader().GetValue()})
	}
	return parts
}

var waits = regexp.MustCompile(`after \d+ seconds`)

// compared is an answer without what goes on with the clock, and when its window ends.
func compared(r web.ResponseParts) (text, reset string) {
	text = fmt.Sprintln(r.Status, waits.ReplaceAllString(r.Body, "after N seconds"))
	for _, h := range r.Headers {
		switch h.Name {
		case "X-RateLimit-Reset":
			reset = h.Value
		case "Retry-After", "retry-after-ms":
			text += h.Name + "\n"
		default:
			text += h.Name + ": " + h.Value + "\n"
		}
	}
	return text, reset
}

// TestExplainBesideRequests: a server says what the next request gets, counting in memory,
// in Redis, and without Redis; and counts no question.
func TestExplainBesideRequests(t *testing.T) {
	t.Parallel()
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		explainBeside(t, startServer(t, ""), 1)
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		redis, err := devstack.StartRedisServer(t.Context(), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = redis.Stop() }) // it may have been killed
		s := startServer(t, "", "store.type=redis", "store.redis.address="+redis.Address, "store.redis.timeout=2s", "usage.interval=1m")
		explainBeside(t, s, 2)
		held := func() string {
			var text strings.Builder
			for key := range strings.FieldsSeq(send(t, redis, "KEYS", "*{key_demo_*}:[cr]*")) {
				text.WriteString(key + " " + send(t, redis, "DUMP", key) + "\n")
			}
			return text.String()
		}
		var before, after string
		for within := false; !within; { // at the end of the minute, counts end with it
			minute := time.Now().Truncate(time.Minute)
			before = held()
			for _, key := range []string{"free", "basic", "pro", "enterprise"} {
				s.explained(t, "key_demo_"+key, map[string]any{})
			}
			after = held()
			within = time.Now().Truncate(time.Minute).Equal(minute)
		}
		if before == "" || after != before {
			t.Errorf("Redis held\n%s\nand holds\n%s", before, after)
		}
		if err := redis.Stop(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "Redis is missed", func() bool {
			_ = s.explained(t, "key_demo_free", map[string]any{})
			return s.metric(t, "tiergate_degraded", "") == 1
		})
		if e := s.explained(t, "key_demo_free", map[string]any{}); !e.Degraded {
			t.Errorf("%+v: want it to be degraded", e)
		}
		explainBeside(t, s, 3)
		var out bytes.Buffer
		env := environment{getenv: func(string) string { return "" }, stdout: &out, stderr: io.Discard}
		err = run(t.Context(), []string{"explain", "key_demo_pro", "--server", "http://" + s.start.Operator.Address}, env)
		if err != nil || !strings.Contains(out.String(), "degraded  Redis cannot be reached: ") || !strings.Contains(out.String(), "X-RateLimit-Degraded: 1") {
			t.Errorf("%v: %s", err, out.String())
		}
	})
}

// TestExplainCapacity: beside a pool of all keys too, a server says what the next request gets,
// and tells operators what that asks of the pool.
func TestExplainCapacity(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"tiergate.yaml", "keys.yaml"} {
		content, err := os.ReadFile(filepath.Join("../../config", name))
		if err != nil {
			t.Fatal(err)
		}
		if name == "tiergate.yaml" {
			content = append(content, "capacity: {images: {limits: [{metric: requests, per: minute, max: 20}, {metric: tokens, per: minute, max: 50000}]}}\n"...)
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, store := range []string{"memory", "redis"} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			sets := []string{"store.type=" + store, "store.redis.timeout=2s", "usage.interval=1m"}
			if store == "redis" {
				sets = append(sets, "store.redis.address="+startRedis(t).Address)
			}
			s := startServer(t, filepath.Join(dir, "tiergate.yaml"), sets...)
			explainBeside(t, s, 4)
			if n := s.metric(t, "tiergate_decisions_total", "capacity"); n == 0 {
				t.Error("no request was shed")
			}
			var out bytes.Buffer
			env := environment{getenv: func(string) string { return "" }, stdout: &out, stderr: io.Discard}
			err := run(t.Context(), []string{"explain", "key_demo_pro", "--path", "/v1/images", "--max-tokens", "60000", "--server", "http://" + s.start.Operator.Address}, env)
			for _, want := range []string{
				`(?m)^capacity +minute +18 +\d+ +\d+ +1 .* of requests in the pool of images, up to the share of priority high$`,
				`(?m)^capacity +minute +45000 .* of tokens in the pool of images, up to the share of priority high, cut to the share$`,
			} {
				if err != nil || !regexp.MustCompile(want).MatchString(out.String()) {
					t.Errorf("%v: want %s in\n%s", err, want, out.String())
				}
			}
		})
	}
}

// TestExplainDenied: where nothing can be counted, it says why.
func TestExplainDenied(t *testing.T) {
	t.Parallel()
	address, err := devstack.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	s := startServer(t, "", "store.type=redis", "store.redis.address="+address, "on_store_failure=deny")
	e := s.explained(t, "key_demo_free", map[string]any{})
	if e.Verdict != "failed" || e.Code != "limiter_unavailable" || e.Response.Status != 503 || !strings.Contains(e.Reason, "connection refused") || e.Tokens == nil || len(e.Limits) != 0 ||
		!e.Degraded || !slices.Contains(e.Response.Headers, web.HeaderView{Name: "X-RateLimit-Limit", Value: "10"}) {
		t.Errorf("%+v", e)
	}
}

func send(t *testing.T, r *devstack.RedisServer, words ...string) string {
	t.Helper()
	answer, err := r.Do(t.Context(), words...)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// remembered is how many requests were refused without asking Redis.
func (r *running) remembered() int64 {
	if r.stores.fallback == nil {
		return 0
	}
	return r.stores.fallback.Remembered()
}

func explainBeside(t *testing.T, s *running, seed uint64) {
	t.Helper()
	conn := dial(t, s.start.GRPC.Address)
	random := rand.New(rand.NewPCG(seed, seed)) // to be the same each time
	answers(t, conn, "sk-demo-pro", nil)        // so that there is something to count
	before := s.metric(t, "tiergate_decisions_total", "")
	const requests = 120
	late := 0
	for range requests {
		key := []string{"free", "basic", "pro", "enterprise"}[random.IntN(4)]
		question := map[string]any{"path": []string{"/v1/chat/completions", "/v1/images", "/x"}[random.IntN(3)]}
		if random.IntN(2) == 0 {
			question["max_tokens"] = 1 + random.IntN(60_000)
		}
		if f := s.stores.fallback; f != nil {
			f.Drain(t.Context()) // what was answered before Redis counted it is counted
		}
		e := s.explained(t, "key_demo_"+key, question)
		remembered := s.remembered()
		got := answers(t, conn, "sk-demo-"+key, question)
		have, until := compared(e.Response)
		want, end := compared(got)
		switch {
		case until != end:
			late++ // a minute has ended between the two
		case s.remembered() != remembered: // which may show of other limits what was so a second ago
			if e.Response.Status != got.Status || e.RefusedBy == "" || !strings.Contains(want, "X-RateLimit-Limited-By: "+e.RefusedBy+"\n") {
				t.Errorf("%s, %v: explained\n%s\nand got\n%s", key, question, have, want)
			}
		case have != want:
			t.Errorf("%s, %v: explained\n%s\nand got\n%s", key, question, have, want)
		}
	}
	if late > requests/10 {
		t.Errorf("%d of %d requests came in another window", late, requests)
	}
	if decided := s.metric(t, "tiergate_decisions_total", "") - before; decided != requests {
		t.Errorf("%v decisions are counted of %d requests", decided, requests)
	}
}
