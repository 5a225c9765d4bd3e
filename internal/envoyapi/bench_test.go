package envoyapi

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/store"
	"github.com/tiergate/tiergate/internal/usage"
)

type noObserver struct{}

func (noObserver) Judged(context.Context, Verdict, time.Duration) {}
func (noObserver) Settled(context.Context, SettlementReport)      {}

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

func benchSetup(b *testing.B, keys int) (*Authz, []string) {
	b.Helper()
	resources := []quota.Resource{{Name: "chat", PathPrefixes: []string{"/v1/chat"}}}
	tier := quota.Tier{Name: "pro", Priority: quota.High, Limits: []quota.Limit{
		{Metric: quota.Requests, Window: quota.Minute, Max: quota.MaxMax},
		{Metric: quota.Tokens, Window: quota.Minute, Max: quota.MaxMax},
		{Metric: quota.Requests, Window: quota.Day, Max: quota.MaxMax},
	}}
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
		Plans:      map[string]*quota.Plan{"pro": quota.NewPlan(tier, quota.ByKey, resources)},
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
