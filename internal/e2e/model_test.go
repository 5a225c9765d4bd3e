package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"github.com/redis/go-redis/v9"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tiergate/tiergate/internal/devstack"
	"github.com/tiergate/tiergate/internal/quota"
)

// modelTiers have limits in windows that do not end during the test; those of
// basic keys are reached.
const modelTiers = `
tiers:
  free: {priority: low, limits: [{metric: requests, per: minute, max: 10}]}
  basic:
    priority: normal
    limits: &limits
    - {metric: requests, per: minute, max: 1000000}
    - {metric: requests, per: month, max: 1000000}
    - {metric: tokens, per: month, max: 400000}
    - {metric: input_tokens, per: week, max: 1000000}
    - {metric: output_tokens, per: week, max: 1000000}
  pro:
    priority: high
    limits:
    - {metric: requests, per: minute, max: 1000000}
    - {metric: requests, per: month, max: 1000000}
    - {metric: tokens, per: month, max: 1000000000}
    - {metric: input_tokens, per: week, max: 1000000000}
    - {metric: output_tokens, per: week, max: 1000000000}
  enterprise: {priority: critical, unlimited: true}
`

// A modelled request is what the model knows of one.
type modelled struct {
	id, key, ticket string
	length, output  int // what it declares
	usedIn, usedOut int
	clean, reported bool
}

// input is what is estimated of the prompt.
func (m *modelled) input() int { return (m.length-1)/4 + 1 }

// final returns what must be charged in the end of tokens, input and output.
func (m *modelled) final(settled bool) [3]int {
	reserved := [3]int{m.input() + m.output, m.input(), m.output}
	if !settled || !m.reported {
		return reserved
	}
	used := [3]int{m.usedIn + m.usedOut, m.usedIn, m.usedOut}
	for i := range used {
		if !m.clean {
			used[i] = max(used[i], reserved[i])
		}
	}
	return used
}

func (m *modelled) details() string {
	if m.clean {
		return "via_upstream"
	}
	return "downstream_remote_disconnect"
}

// A world is a TierGate that is killed and started again, a Redis that stays, and
// the model of what must be in it.
type world struct {
	t     *testing.T
	stack *devstack.Stack
	authz authv3.AuthorizationClient
	rls   rlsv3.RateLimitServiceClient

	mu       sync.Mutex
	requests map[string]int    // by key ID
	tokens   map[string][3]int // the same: tokens, input, output
	late     []*modelled       // to be settled by access log in the end
	refused  int
	counts   map[string]int // of what was done, for the log
}

// TestCountsEqualTheModel: 10,000 requests with repeats, lost answers, lost,
// doubled and forged settlements, while TierGate is killed again and again: what
// Redis holds in the end is what a model says, to the token.
func TestCountsEqualTheModel(t *testing.T) {
	const requests, workers, kills = 10_000, 16, 5
	config, _ := ownConfig(t)
	merge(t, config, modelTiers)
	s := up(t, devstack.Options{Store: "redis", Config: config, Sets: []string{"tokens.settle_by=[access_log, ratelimit]"}})
	for _, w := range []quota.Window{quota.Week, quota.Month} {
		if _, end := w.Bounds(time.Now()); time.Until(end) < 5*time.Minute {
			waitUntil(t, end)
		}
	}
	conn := dial(t, s)
	w := &world{
		t: t, stack: s, authz: authv3.NewAuthorizationClient(conn), rls: rlsv3.NewRateLimitServiceClient(conn),
		requests: map[string]int{}, tokens: map[string][3]int{}, counts: map[string]int{},
	}
	var next atomic.Int64
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for n := next.Add(1); n <= requests && !t.Failed(); n = next.Add(1) {
				w.request(int(n))
			}
		})
	}
	for i := range int64(kills) {
		eventuallyWithin(t, 2*time.Minute, "requests go on", func() bool { return next.Load() > (i+1)*requests/(kills+1) })
		kill(t, s.Server)
		if err := s.StartServer(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	group.Wait()
	w.settleByAccessLog(alsv3.NewAccessLogServiceClient(conn))
	w.compare()
}

// request sends one and does what happens to it.
func (w *world) request(n int) {
	random := rand.New(rand.NewPCG(uint64(n), 7))
	m := &modelled{
		id: strconv.Itoa(1_000_000 + n), key: []string{"basic", "pro"}[n%2], length: 1 + random.IntN(900), output: 1 + random.IntN(700),
		usedIn: random.IntN(300), usedOut: random.IntN(900), clean: random.IntN(5) > 0, reported: random.IntN(6) > 0,
	}
	response := w.check(m)
	if random.IntN(4) == 0 { // Envoy tries again, though it has been answered
		if again := w.check(m); ticketOf(again) != ticketOf(response) && response.GetOkResponse() != nil {
			w.t.Errorf("a repeat of %s got another answer", m.id)
		}
		w.note("repeated")
	}
	if response.GetOkResponse() == nil {
		w.mu.Lock()
		w.refused++
		w.mu.Unlock()
		return
	}
	m.ticket = ticketOf(response)
	settled := true
	switch random.IntN(10) {
	case 0:
		settled = false
		w.note("settlement lost")
	case 1, 2: // by access log, in the end
		w.mu.Lock()
		w.late = append(w.late, m)
		w.mu.Unlock()
	case 3, 4, 5:
		forged := *m
		forged.ticket = strings.Replace(m.ticket, ":", ":x", 3)
		forged.usedIn, forged.usedOut, forged.clean, forged.reported = 0, 0, true, true
		w.settle(&forged)
		w.settle(m)
		w.settle(&modelled{ticket: m.ticket, clean: true, reported: true}) // of nothing used
		w.note("settled twice and forged")
	default:
		w.settle(m)
	}
	final := m.final(settled)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requests[m.key]++
	sum := w.tokens[m.key]
	for i := range sum {
		sum[i] += final[i]
	}
	w.tokens[m.key] = sum
}

func (w *world) note(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[what]++
}

// check asks until there is an answer, as the same request each time; now and then
// it does not wait for the answer.
func (w *world) check(m *modelled) *authv3.CheckResponse {
	request := &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Id: m.id, Method: http.MethodPost, Path: "/v1/chat/completions",
			Headers: map[string]string{"authorization": "Bearer sk-demo-" + m.key, "content-length": strconv.Itoa(m.length)},
		}},
		MetadataContext: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"tiergate.request": {Fields: map[string]*structpb.Value{
			"read": structpb.NewStringValue("yes"), "max_tokens": structpb.NewStringValue(strconv.Itoa(m.output)),
		}}}},
	}}
	if rand.IntN(20) == 0 {
		ctx, cancel := context.WithTimeout(w.t.Context(), time.Duration(rand.IntN(2000))*time.Microsecond)
		_, _ = w.authz.Check(ctx, request) // maybe charged, maybe not
		cancel()
		w.note("answer not waited for")
	}
	for {
		response, err := w.authz.Check(w.t.Context(), request)
		if err == nil && response.GetDeniedResponse().GetStatus().GetCode() != http.StatusServiceUnavailable {
			return response
		}
		if err != nil && status.Code(err) != codes.Unavailable {
			w.t.Errorf("check: %v", err)
			return response
		}
		w.note("tried again")
		waitUntil(w.t, time.Now().Add(5*time.Millisecond))
	}
}

func ticketOf(r *authv3.CheckResponse) string {
	return r.GetDynamicMetadata().GetFields()["reservation"].GetStringValue()
}

// settle reports by a call until it has arrived.
func (w *world) settle(m *modelled) {
	reservation := &ratelimitv3.RateLimitDescriptor_Entry{Key: "reservation", Value: m.ticket}
	count := func(name string, hits int) *ratelimitv3.RateLimitDescriptor {
		return &ratelimitv3.RateLimitDescriptor{
			Entries:    []*ratelimitv3.RateLimitDescriptor_Entry{{Key: "settle", Value: name}, reservation},
			HitsAddend: wrapperspb.UInt64(uint64(hits)),
		}
	}
	done := count("done", 0)
	done.Entries = append(done.Entries, &ratelimitv3.RateLimitDescriptor_Entry{Key: "details", Value: m.details()})
	r := &rlsv3.RateLimitRequest{Domain: "tiergate-settle", Descriptors: []*ratelimitv3.RateLimitDescriptor{done}}
	if m.reported {
		r.Descriptors = append(r.Descriptors, count("input", m.usedIn), count("output", m.usedOut), count("total", m.usedIn+m.usedOut))
	}
	for {
		_, err := w.rls.ShouldRateLimit(w.t.Context(), r)
		if err == nil {
			return
		}
		if status.Code(err) != codes.Unavailable {
			w.t.Errorf("settle: %v", err)
			return
		}
		waitUntil(w.t, time.Now().Add(5*time.Millisecond))
	}
}

// settleByAccessLog reports what is left over one stream, each entry twice.
func (w *world) settleByAccessLog(client alsv3.AccessLogServiceClient) {
	w.t.Helper()
	stream, err := client.StreamAccessLogs(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for i, m := range append(w.late, w.late...) {
		fields := map[string]*structpb.Value{}
		if m.reported {
			fields["input"], fields["output"] = structpb.NewNumberValue(float64(m.usedIn)), structpb.NewNumberValue(float64(m.usedOut))
		}
		entry := &accesslogv3.HTTPAccessLogEntry{
			Response: &accesslogv3.HTTPResponseProperties{ResponseCode: wrapperspb.UInt32(200), ResponseCodeDetails: m.details()},
			CommonProperties: &accesslogv3.AccessLogCommon{Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
				"envoy.filters.http.ext_authz": {Fields: map[string]*structpb.Value{"reservation": structpb.NewStringValue(m.ticket)}},
				"tiergate.usage":               {Fields: fields},
			}}},
		}
		message := &alsv3.StreamAccessLogsMessage{LogEntries: &alsv3.StreamAccessLogsMessage_HttpLogs{
			HttpLogs: &alsv3.StreamAccessLogsMessage_HTTPAccessLogEntries{LogEntry: []*accesslogv3.HTTPAccessLogEntry{entry}},
		}}
		if err := stream.Send(message); err != nil {
			w.t.Fatalf("entry %d: %v", i, err)
		}
	}
	if _, err := stream.CloseAndRecv(); err != nil { // it answers when all is settled
		w.t.Fatal(err)
	}
}

// compare reads the counters out of Redis.
func (w *world) compare() {
	w.t.Helper()
	client := redis.NewClient(&redis.Options{Addr: w.stack.Options.RedisAddress})
	defer client.Close()
	for _, key := range []string{"basic", "pro"} {
		counters := client.HGetAll(w.t.Context(), "tiergate:{key_demo_"+key+"}:counts").Val()
		have := func(counter string) (n int) {
			var start int64
			if _, err := fmt.Sscanf(counters[counter], "%d %d", &start, &n); err != nil {
				w.t.Errorf("%s: %q: %v", counter, counters[counter], err)
			}
			return n
		}
		tokens := w.tokens[key]
		for _, c := range []struct {
			counter string
			want    int
		}{
			{"requests/month", w.requests[key]}, {"tokens/month", tokens[0]}, {"input_tokens/week", tokens[1]}, {"output_tokens/week", tokens[2]},
		} {
			w.t.Logf("%s %s: Redis %d, model %d", key, c.counter, have(c.counter), c.want)
			if have(c.counter) != c.want {
				w.t.Errorf("%s %s: Redis has %d, the model %d", key, c.counter, have(c.counter), c.want)
			}
		}
	}
	w.t.Logf("refused: %d, by access log: %d, %v", w.refused, len(w.late), w.counts)
	if w.refused == 0 || w.counts["tried again"] == 0 {
		w.t.Error("nothing was refused, or TierGate was never away: this proves too little")
	}
}
