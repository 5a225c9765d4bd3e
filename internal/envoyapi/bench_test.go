package envoyapi

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/protobuf/proto"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/store"
	"github.com/tiergate/tiergate/internal/usage"
)

type noObserver struct{}

func (noObserver) Judged(context.Context, Verdict, time.Duration) {}
func (noObserver) Settled(context.Context, SettlementReport)      {}
func (noObserver) Used(Use)                                       {}
func (noObserver) Invalid(context.Context, time.Time, string)     {}

// BenchmarkCheck is the whole decision in the process, from CheckRequest to
// CheckResponse, over many keys, with the memory store: on one core, what it
// costs; on all, whether they get in each other's way.
func BenchmarkCheck(b *testing.B) {
	for _, keys := range []int{1_000, 100_000} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			authz, credentials := benchSetup(b, keys)
			b.Run("one", func(b *testing.B) {
				b.ReportAllocs()
				next := admitted(b, authz, credentials)
				for b.Loop() {
					next()
				}
			})
			b.Run("all", func(b *testing.B) {
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					next := admitted(b, authz, credentials)
					for pb.Next() {
						next()
					}
				})
			})
		})
	}
}

// BenchmarkMessage is a decision from the message that came to the one that goes, as
// Envoy's are, with the memory store: by the protobuf types and by the codec. Run it
// -benchtime 20000x, for whose reservations there is room, and compare with benchstat -col
// /codec.
func BenchmarkMessage(b *testing.B) {
	type answerer = func(context.Context, *message) (any, error)
	request := fullCheck("sk-pro")
	request.Attributes.Request.Http.Id = "" // else all but the first would be repeats
	check, limit := &message{string(wire(b, request))}, &message{string(wire(b, fullLimit("sk-pro")))}
	checkByTypes := func(g *Gate) answerer {
		return func(ctx context.Context, m *message) (any, error) {
			r := &authv3.CheckRequest{}
			if err := unmarshal(m.text, r, maxFields); err != nil {
				return nil, err
			}
			answer, err := NewAuthz(g).Check(ctx, r)
			if err != nil {
				return nil, err
			}
			return proto.Marshal(answer)
		}
	}
	limitByTypes := func(g *Gate) answerer {
		return func(ctx context.Context, m *message) (any, error) {
			r := &rlsv3.RateLimitRequest{}
			if err := unmarshal(m.text, r, maxFields); err != nil {
				return nil, err
			}
			answer, err := NewRateLimit(g).ShouldRateLimit(ctx, r)
			if err != nil {
				return nil, err
			}
			return proto.Marshal(answer)
		}
	}
	for _, c := range []struct {
		name   string
		answer func(*Gate) answerer
		m      *message
	}{
		{"call=check/codec=types", checkByTypes, check},
		{"call=check/codec=own", func(g *Gate) answerer { return NewAuthz(g).answer }, check},
		{"call=ratelimit/codec=types", limitByTypes, limit},
		{"call=ratelimit/codec=own", func(g *Gate) answerer { return NewRateLimit(g).answer }, limit},
	} {
		b.Run(c.name, func(b *testing.B) {
			// Of its own: another's reservations would leave no room for these.
			answer := c.answer(newGate(b, func(s *Settings) {
				s.Plans["pro"] = quota.NewPlan(benchTier(), quota.ByKey, []quota.Resource{{Name: "chat"}, {Name: "images"}})
			}))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := answer(b.Context(), c.m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkLog reads an entry of the access log, by the protobuf types and by the codec.
func BenchmarkLog(b *testing.B) {
	m := &message{string(wire(b, logOf(fullEntry())))}
	for name, read := range map[string]func() []answered{
		"codec=types": func() []answered {
			var log alsv3.StreamAccessLogsMessage
			if err := unmarshal(m.text, &log, maxFields); err != nil {
				b.Fatal(err)
			}
			return reports(&log)
		},
		"codec=own": func() []answered {
			all, _ := readLog(m.text)
			return all
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if len(read()) != 1 {
					b.Fatal("no report")
				}
			}
		})
	}
}

// TestAllocations bounds what it allocates to decide a request, from message to message. Those
// of unlimited keys, whose tickets are sealed, are 15 and 10; under the race detector a pool
// loses some of what it is given, and they are up to four more.
func TestAllocations(t *testing.T) { //nolint:paralleltest // others would be counted too
	g := newGate(t, func(s *Settings) {
		withTokens(s)
		s.PerMetric = false
		s.Plans["pro"] = quota.NewPlan(benchTier(), quota.ByKey, []quota.Resource{{Name: "chat"}, {Name: "images"}})
	})
	authz, limits := NewAuthz(g), NewRateLimit(g)
	check := func(key string) *authv3.CheckRequest {
		r := fullCheck(key)
		r.Attributes.Request.Http.Id = "" // else it would be a repeat
		return r
	}
	for name, c := range map[string]struct {
		most   float64
		answer func(context.Context, *message) (any, error)
		m      proto.Message
	}{
		"check":                 {17, authz.answer, check("sk-pro")},
		"rate limit":            {13, limits.answer, fullLimit("sk-pro")},
		"check, unlimited":      {19, authz.answer, check("sk-enterprise")},
		"rate limit, unlimited": {14, limits.answer, fullLimit("sk-enterprise")},
	} {
		m := &message{string(wire(t, c.m))}
		n := testing.AllocsPerRun(40, func() {
			if r, err := c.answer(t.Context(), m); err != nil {
				t.Fatal(err)
			} else if _, ok := r.(*encoded); !ok {
				t.Fatalf("%s: not allowed", name)
			}
		})
		if n > c.most+1 { // the race detector adds one
			t.Errorf("%s: %v allocations, want at most %v", name, n, c.most)
		}
	}
	// A report, its ticket, a text for each count that is a number, and one that is no whole one.
	log := string(wire(t, logOf(fullEntry())))
	if n := testing.AllocsPerRun(40, func() { readLog(log) }); n > 6 {
		t.Errorf("an entry of the access log: %v allocations, want at most 6", n)
	}
}

// admitted returns a function that has the next key's request decided. The
// request is in the processor's cache, as one that was just received is; the
// keys' records and counters are not.
func admitted(b *testing.B, authz *Authz, credentials []string) func() {
	b.Helper()
	headers := map[string]string{
		"content-type": "application/json", "user-agent": "OpenAI/Python 2.0", "content-length": "512",
		":path": "/v1/chat/completions", ":method": "POST", ":authority": "api.example.com",
	}
	request := checkRequest("/v1/chat/completions", headers)
	ctx, i := b.Context(), 0
	return func() {
		headers["authorization"] = credentials[i]
		request.Attributes.Request.Http.Id = newID()
		response, err := authz.Check(ctx, request)
		if err != nil || response.GetOkResponse() == nil {
			b.Fatal("not admitted")
		}
		i = (i + 7919) % len(credentials) // a prime, so that all keys have their turn
	}
}

// benchTier has the usual limits, and refuses nobody.
func benchTier() quota.Tier {
	return quota.Tier{Name: "pro", Priority: quota.High, Limits: []quota.Limit{
		{Metric: quota.Requests, Window: quota.Minute, Max: quota.MaxMax},
		{Metric: quota.Tokens, Window: quota.Minute, Max: quota.MaxMax},
		{Metric: quota.Requests, Window: quota.Day, Max: quota.MaxMax},
	}}
}

func benchSetup(b *testing.B, keys int) (*Authz, []string) {
	b.Helper()
	resources := []quota.Resource{{Name: "chat", PathPrefixes: []string{"/v1/chat"}}}
	records := make([]apikey.Record, keys)
	credentials := make([]string, keys)
	for i := range keys {
		key := apikey.New()
		records[i] = apikey.Record{ID: fmt.Sprintf("key_%d", i), Hash: key.Hash(), Tier: "pro"}
		credentials[i] = "Bearer " + key.Reveal()
	}
	directory, faults := apikey.NewDirectory(records, nil)
	if len(faults) > 0 {
		b.Fatal(faults)
	}
	settings := &Settings{
		KeyHeaders: []string{"authorization", "x-api-key", "api-key"},
		Resources:  NewClassifier(resources),
		Plans:      map[string]*quota.Plan{"pro": quota.NewPlan(benchTier(), quota.ByKey, resources)},
		Keys:       apikey.Keyring{File: directory},
	}
	limiter := quota.NewLimiter(store.NewMemory(time.Now, 2*keys))
	return NewAuthz(NewGate(settings, limiter, usage.NewHistory(1000), time.Now, noObserver{})), credentials
}

// lastID makes the IDs of requests; each is one of its own, as Envoy's are.
var lastID atomic.Int64

func newID() string { return strconv.FormatInt(lastID.Add(1), 10) }

func checkRequest(path string, headers map[string]string) *authv3.CheckRequest {
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
		Http: &authv3.AttributeContext_HttpRequest{Id: newID(), Method: "POST", Path: path, Headers: headers},
	}}}
}
