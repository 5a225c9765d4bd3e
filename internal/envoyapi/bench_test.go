package envoyapi

import (
	"context"
	"fmt"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/store"
)

type noObserver struct{}

func (noObserver) Judged(context.Context, *Verdict, time.Duration) {}

// BenchmarkCheck is the whole decision in the process, from CheckRequest to
// CheckResponse, over many keys, with the memory store.
func BenchmarkCheck(b *testing.B) {
	for _, keys := range []int{1_000, 100_000} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			authz, requests := benchSetup(b, keys)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				i := 0
				for pb.Next() {
					response, err := authz.Check(b.Context(), requests[i%len(requests)])
					if err != nil || response.GetOkResponse() == nil {
						b.Fatal("not admitted")
					}
					i += 7919 // a prime, so that all keys have their turn
				}
			})
		})
	}
}

func benchSetup(b *testing.B, keys int) (*Authz, []*authv3.CheckRequest) {
	b.Helper()
	resources := []quota.Resource{{Name: "chat", PathPrefixes: []string{"/v1/chat"}}}
	tier := quota.Tier{Name: "pro", Priority: quota.High, Limits: []quota.Limit{
		{Metric: quota.Requests, Window: quota.Minute, Max: quota.MaxMax},
		{Metric: quota.Tokens, Window: quota.Minute, Max: quota.MaxMax},
		{Metric: quota.Requests, Window: quota.Day, Max: quota.MaxMax},
	}}
	records := make([]apikey.Record, keys)
	requests := make([]*authv3.CheckRequest, keys)
	for i := range keys {
		key := apikey.New()
		records[i] = apikey.Record{ID: fmt.Sprintf("key_%d", i), Hash: key.Hash(), Tier: "pro"}
		requests[i] = checkRequest("/v1/chat/completions", map[string]string{
			"authorization": "Bearer " + key.Reveal(), "content-type": "application/json", "user-agent": "OpenAI/Python 2.0",
			":path": "/v1/chat/completions", ":method": "POST", ":authority": "api.example.com", "content-length": "512",
		})
	}
	directory, faults := apikey.NewDirectory(records, nil)
	if len(faults) > 0 {
		b.Fatal(faults)
	}
	settings := &Settings{
		KeyHeaders: []string{"authorization", "x-api-key", "api-key"},
		Resources:  NewClassifier(resources),
		Plans:      map[string]*quota.Plan{"pro": quota.NewPlan(tier, quota.ByKey, resources)},
		Directory:  directory,
	}
	limiter := quota.NewLimiter(store.NewMemory(time.Now, 2*keys))
	return NewAuthz(NewGate(settings, limiter, time.Now, noObserver{})), requests
}

func checkRequest(path string, headers map[string]string) *authv3.CheckRequest {
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
		Http: &authv3.AttributeContext_HttpRequest{Id: "1", Method: "POST", Path: path, Headers: headers},
	}}}
}
