package envoyapi

import (
	"strconv"
	"strings"
	"testing"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/store"
)

// TestGuesses: an answer that does not say what it used, to a request that declared
// nothing, is charged as an ordinary one at least, and a stream by its length.
func TestGuesses(t *testing.T) {
	t.Parallel()
	g := newGate(t, withTokens) // chat: 100 ordinarily, 800 at the most
	_, client := accessLog(t, g)
	charged := func(change func(*accesslogv3.HTTPAccessLogEntry)) string {
		t.Helper()
		before, _ := strconv.Atoi(remaining(t, g))
		e := entryOf(admit(t, g, declaring("")), 200, viaUpstream, nil)
		change(e)
		log(t, client, e)
		after, _ := strconv.Atoi(remaining(t, g))
		g.limiter = quota.NewLimiter(store.NewMemory(func() time.Time { return noon }, 100)) // another minute
		return strconv.Itoa(before - after)
	}
	small := func(e *accesslogv3.HTTPAccessLogEntry) {
		e.CommonProperties.Metadata.FilterMetadata[UsageNamespace].Fields = usageOf(10, 10)
	}
	for range 10 {
		charged(small)
	}
	stream := func(bytes uint64) func(*accesslogv3.HTTPAccessLogEntry) {
		return func(e *accesslogv3.HTTPAccessLogEntry) {
			e.Response.ResponseHeaders, e.Response.ResponseBodyBytes = map[string]string{"content-type": "text/event-stream; charset=utf-8"}, bytes
		}
	}
	hungUp := func(e *accesslogv3.HTTPAccessLogEntry) {
		e.Response.ResponseCodeDetails, e.Response.ResponseBodyBytes = "downstream_remote_disconnect", 30_000
	}
	andSaid := func(input, output float64) func(*accesslogv3.HTTPAccessLogEntry) {
		return func(e *accesslogv3.HTTPAccessLogEntry) {
			hungUp(e)
			e.CommonProperties.Metadata.FilterMetadata[UsageNamespace].Fields = usageOf(input, output)
		}
	}
	for _, c := range []struct {
		name   string
		change func(*accesslogv3.HTTPAccessLogEntry)
		want   string
	}{
		{"small again", small, "20"},
		{"nothing said", func(*accesslogv3.HTTPAccessLogEntry) {}, "110"},
		{"a short stream", stream(500), "110"},
		{"a long stream", stream(40_000), "410"},
		{"a very long stream", stream(1 << 40), "810"},
		{"hung up", hungUp, "310"},
		{"hung up, little said", andSaid(10, 10), "310"},
		{"hung up, more said", andSaid(10, 500), "510"},
		{"hung up, a long prompt", andSaid(500, 10), "510"},
	} {
		for range 60 { // the history of one who has always asked for little
			g.history.Add("key_pro", "chat", 10)
		}
		if have := charged(c.change); have != c.want {
			t.Errorf("%s: %s charged, want %s", c.name, have, c.want)
		}
	}
	for range 300 { // of one who has asked for much a smaller guess lowers nothing
		g.history.Add("key_pro", "chat", 400)
	}
	reserved := strconv.FormatInt(10+g.history.High("key_pro", "chat"), 10)
	if have := charged(func(*accesslogv3.HTTPAccessLogEntry) {}); have != reserved {
		t.Errorf("nothing said after long answers: %s charged, want %s", have, reserved)
	}
	// The history learns the same of answers that say nothing, or were cut short.
	for name, c := range map[string]struct {
		change func(*accesslogv3.HTTPAccessLogEntry)
		least  int64
	}{
		"nothing said": {func(*accesslogv3.HTTPAccessLogEntry) {}, 100},
		"hung up": {func(e *accesslogv3.HTTPAccessLogEntry) {
			e.Response.ResponseCodeDetails = "downstream_remote_disconnect"
			small(e)
		}, 100},
		"hung up, more said": {andSaid(10, 500), 500},
	} {
		for range 300 { // whatever was before is forgotten
			g.history.Add("key_pro", "chat", 10)
		}
		for range 60 {
			charged(c.change)
		}
		if high := g.history.High("key_pro", "chat"); high < c.least {
			t.Errorf("%s: the history says %d, want %d at least", name, high, c.least)
		}
	}
	for range 200 {
		g.history.Add("key_pro", "chat", 50)
	}
	many := declaring("")
	many.Attributes.MetadataContext.FilterMetadata[RequestNamespace].Fields["n"] = structpb.NewNumberValue(1000)
	before := g.history.High("key_pro", "chat")
	for name, r := range map[string]*authv3.CheckRequest{
		"for many answers": many, // whether the upstream gives as many answers as n says is not known
		"that declare":     declaring("900"),
	} {
		for range 60 {
			g.limiter = quota.NewLimiter(store.NewMemory(func() time.Time { return noon }, 100))
			log(t, client, entryOf(admit(t, g, r), 200, viaUpstream, usageOf(10, 700)))
		}
		if high := g.history.High("key_pro", "chat"); high != before {
			t.Errorf("requests %s change the history from %d to %d", name, before, high)
		}
	}
}

// TestGuessesOfOutput: a limit on output tokens is charged the same guess.
func TestGuessesOfOutput(t *testing.T) {
	t.Parallel()
	g := newGate(t, func(s *Settings) {
		s.IETF = true
		s.Plans["pro"] = quota.NewPlan(quota.Tier{Name: "pro", Limits: []quota.Limit{
			{Metric: quota.Requests, Window: quota.Minute, Max: 100}, {Metric: quota.OutputTokens, Window: quota.Minute, Max: 1000},
		}}, quota.ByKey, nil)
	})
	_, client := accessLog(t, g)
	for _, c := range []struct {
		usage     map[string]*structpb.Value
		remaining string
	}{{nil, "700"}, {usageOf(10, 500), "200"}} {
		e := entryOf(admit(t, g, declaring("")), 200, "downstream_remote_disconnect", c.usage)
		e.Response.ResponseBodyBytes = 30_000
		log(t, client, e)
		get := checkRequest("/v1/chat", map[string]string{"api-key": "sk-pro"})
		get.Attributes.Request.Http.Method = "GET"
		if have := ask(t, g, get).headers["RateLimit"]; !strings.Contains(have, `"output_tokens_per_minute";r=`+c.remaining+`;`) {
			t.Errorf("%s: want %s output tokens to remain", have, c.remaining)
		}
	}
}

// TestUnreadCountsAsTheDearest model, which it may be.
func TestUnreadCountsAsTheDearest(t *testing.T) {
	t.Parallel()
	g := newGate(t, func(s *Settings) {
		withTokens(s)
		s.Tokens.Models = NewModelWeights(map[string]float64{"big*": 2})
		s.Tokens.Rules = map[string]quota.TokenRules{"chat": {MaxInput: 50, Output: 10, MaxOutput: 100}}
	})
	r := declaring("7")
	r.Attributes.MetadataContext.FilterMetadata[RequestNamespace].Fields["read"] = structpb.NewStringValue("no")
	admit(t, g, r)
	if have := remaining(t, g); have != "780" { // 1000 - 2 · (10 + 100)
		t.Errorf("%s tokens remain, want 780", have)
	}
}
