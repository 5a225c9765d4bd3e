package main

import (
	"log/slog"
	"strconv"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/config"
	"github.com/tiergate/tiergate/internal/envoyapi"
	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/store"
	"github.com/tiergate/tiergate/internal/usage"
)

// BenchmarkUsage is a whole decision with the memory store, with and without the
// counting for the dashboards: compare with benchstat -col /usage.
func BenchmarkUsage(b *testing.B) {
	for _, counted := range []string{"off", "on"} {
		b.Run("usage="+counted, func(b *testing.B) {
			authz, keys := usageBench(b, counted == "on")
			headers := map[string]string{
				"content-type": "application/json", "user-agent": "OpenAI/Python 2.0", "content-length": "512",
				":path": "/v1/chat/completions", ":method": "POST", ":authority": "api.example.com",
			}
			request := &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
				Http: &authv3.AttributeContext_HttpRequest{Path: "/v1/chat/completions", Method: "POST", Headers: headers},
			}}}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				headers["authorization"] = keys[i%len(keys)]
				request.Attributes.Request.Http.Id = strconv.Itoa(i)
				if r, err := authz.Check(b.Context(), request); err != nil || r.GetOkResponse() == nil {
					b.Fatal("not admitted")
				}
				i += 7919 // a prime, so that all keys have their turn
			}
		})
	}
}

// BenchmarkJudged is what it takes to count a decision in the metrics.
func BenchmarkJudged(b *testing.B) {
	o := newObserver(newMetrics(), nil, slog.New(slog.DiscardHandler))
	v := envoyapi.Verdict{Outcome: envoyapi.Allowed, Tier: "pro", Resource: "chat", Priority: quota.High}
	b.ReportAllocs()
	for b.Loop() {
		o.Judged(b.Context(), v, time.Microsecond)
	}
}

// usageBench returns the service of a server of 1,000 keys, as it is wired, and the
// keys.
func usageBench(b *testing.B, counted bool) (authz *envoyapi.Authz, keys []string) {
	b.Helper()
	loaded, _, err := config.Load(config.Options{File: "../../config/tiergate.yaml"})
	if err != nil {
		b.Fatal(err)
	}
	const most = quota.MaxMax
	loaded.Reload.Plans["pro"] = quota.NewPlan(quota.Tier{Name: "pro", Priority: quota.High, Limits: []quota.Limit{
		{Metric: quota.Requests, Window: quota.Minute, Max: most}, {Metric: quota.Tokens, Window: quota.Minute, Max: most}, {Metric: quota.Requests, Window: quota.Day, Max: most},
	}}, quota.ByKey, loaded.Reload.Resources)
	records := make([]apikey.Record, 1000)
	for i := range records {
		key := apikey.New()
		keys = append(keys, "Bearer "+key.Reveal())
		records[i] = apikey.Record{ID: apikey.NewID(), Hash: key.Hash(), Tier: "pro"}
	}
	directory, faults := apikey.NewDirectory(records, nil)
	if len(faults) > 0 {
		b.Fatal(faults)
	}
	loaded.Reload.Directory = directory
	s, err := newServer(loaded, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.stores.close() })
	o := newObserver(s.metrics, nil, s.log)
	if counted {
		o.usage = s.recorder
		done := make(chan error)
		go func() { done <- s.recorder.Run(b.Context(), s.stores.usage) }()
		b.Cleanup(func() { <-done })
	}
	limiter := quota.NewLimiter(&watchedCounts{Counts: store.NewMemory(time.Now, 20_000_000), metrics: s.metrics, log: s.log})
	return envoyapi.NewAuthz(envoyapi.NewGate(s.settings(loaded.Reload), limiter, usage.NewHistory(historySize), time.Now, o)), keys
}
