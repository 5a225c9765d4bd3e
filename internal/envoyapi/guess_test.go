package envoyapi

import (
	"strconv"
	"testing"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
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
	} {
		for range 60 { // the history of one who has always asked for little
			g.history.Add("key_pro", "chat", 10)
		}
		if have := charged(c.change); have != c.want {
			t.Errorf("%s: %s charged, want %s", c.name, have, c.want)
		}
	}
	// The history learns the same of answers that say nothing, or were cut short.
	for name, change := range map[string]func(*accesslogv3.HTTPAccessLogEntry){
		"nothing said": func(*accesslogv3.HTTPAccessLogEntry) {},
		"hung up": func(e *accesslogv3.HTTPAccessLogEntry) {
			e.Response.ResponseCodeDetails = "downstream_remote_disconnect"
			small(e)
		},
	} {
		for range 300 { // whatever was before is forgotten
			g.history.Add("key_pro", "chat", 10)
		}
		for range 60 {
			charged(change)
		}
		if high := g.history.High("key_pro", "chat"); high < 100 {
			t.Errorf("%s: the history says %d, want an ordinary answer at least", name, high)
		}
	}
	for range 200 {
		g.history.Add("key_pro", "chat", 50)
	}
	many := declaring("")
	many.Attributes.MetadataContext.FilterMetadata[RequestNamespace].Fields["n"] = structpb.NewNumberValue(1000)
	before := g.history.High("key_pro", "chat")
	for range 60 { // whether the upstream gives as many answers as n says is not known
		g.limiter = quota.NewLimiter(store.NewMemory(func() time.Time { return noon }, 100))
		log(t, client, entryOf(admit(t, g, many), 200, viaUpstream, usageOf(10, 700)))
	}
	if high := g.history.High("key_pro", "chat"); high != before {
		t.Errorf("requests for many answers change the history from %d to %d", before, high)
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
