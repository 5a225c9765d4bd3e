package envoyapi

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

// of returns the CheckRequest that a question is about, with a key.
func (q Question) of(secret string) *authv3.CheckRequest {
	r := checkRequest(q.Path, map[string]string{"api-key": secret})
	r.Attributes.ContextExtensions = map[string]string{"resource": q.Resource}
	http := r.Attributes.Request.Http
	http.Method = q.Method
	for name, value := range map[string]string{priorityHeader: q.Priority, lengthHeader: q.ContentLength} {
		if value != "" {
			http.Headers[name] = value
		}
	}
	fields := map[string]*structpb.Value{}
	for name, value := range q.Body {
		fields[name] = structpb.NewStringValue(value)
	}
	r.Attributes.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{RequestNamespace: {Fields: fields}}}
	return r
}

func anyQuestion(random *rand.Rand, key string) Question {
	one := func(texts ...string) string { return texts[random.IntN(len(texts))] }
	return Question{
		KeyID: "key_" + key, Resource: one("", "", "images", "nonsense"), Method: one("POST", "POST", "GET"),
		Path: one("/v1/chat/completions", "/v1/images/a?b=c", "/elsewhere", "//V1/chat"), Priority: one("", "", "low", "2", "4", "nonsense"),
		ContentLength: one("", "0", "40", "900", "1000000"),
		Body: map[string]string{
			"read": one("yes", "yes", "no", ""), "max_tokens": one("", "", "90", "5000"), "n": one("", "2"), "model": one("", "dear-1"),
		},
	}
}

// TestExplanationsComeTrue: what is explained is what the next such request gets, to the
// letter, and nobody is told of a question.
func TestExplanationsComeTrue(t *testing.T) {
	t.Parallel()
	notes := &notebook{}
	g := newGate(t, func(s *Settings) {
		withTokens(s)
		s.IETF, s.Tokens.Models = true, NewModelWeights(map[string]float64{"dear*": 2})
		free := s.Plans["free"].Tier
		free.Limits = append(slices.Clip(free.Limits), quota.Limit{Metric: quota.OutputTokens, Window: quota.Day, Max: 300, Resource: "images"})
		s.Plans["free"] = quota.NewPlan(free, quota.ByKey, []quota.Resource{{Name: "chat"}, {Name: "images"}})
		s.Tokens.Rules["images"] = quota.TokenRules{MaxInput: 500, Output: 100, MaxOutput: 800, Cap: 50}
	})
	g.observer = notes
	random := rand.New(rand.NewPCG(3, 3)) // to be the same each time
	keys := []string{"free", "pro", "high", "chat", "enterprise", "demo", "revoked", "expired"}
	statuses := map[int]int{}
	for i := range 2000 {
		key := keys[random.IntN(len(keys))]
		q := anyQuestion(random, key)
		if random.IntN(4) == 0 {
			g.history.Add(q.KeyID, "chat", random.Int64N(300))
		}
		told := len(notes.lines)
		e := g.Explain(t.Context(), q)
		if again := g.Explain(t.Context(), q); fmt.Sprint(again) != fmt.Sprint(e) || len(notes.lines) != told {
			t.Fatalf("%+v: asked twice:\n%+v\n%+v; told of it: %q", q, e, again, notes.lines[told:])
		}
		a := answerText{status: e.Status, headers: map[string]string{}, body: e.Body}
		for _, h := range e.Headers {
			a.headers[h[0]] = h[1]
		}
		got := ask(t, g, q.of("sk-"+key))
		if a.status != got.status || a.body != got.body || !maps.Equal(a.headers, got.headers) || len(e.Headers) != len(got.headers) {
			t.Fatalf("request %d, %+v: explained\n%+v\nand got\n%+v", i, q, a, got)
		}
		if len(notes.lines) != told+1 {
			t.Fatal("nobody was told of a request")
		}
		statuses[a.status]++
	}
	for _, status := range []int{200, 401, 403, 413, 429} {
		if statuses[status] < 20 {
			t.Errorf("answers by status: %v: want all of them", statuses)
		}
	}
}

// TestExplanation says where everything is from.
func TestExplanation(t *testing.T) {
	t.Parallel()
	g := newGate(t, withTokens)
	chat := Question{KeyID: "key_pro", Method: "POST", Path: "/v1/chat/completions", ContentLength: "400", Body: map[string]string{"read": "yes"}}
	summary := func(change func(*Question)) string {
		q := chat
		q.Body = maps.Clone(chat.Body)
		change(&q)
		e := g.Explain(t.Context(), q)
		var text strings.Builder
		fmt.Fprintf(&text, "%s %s: %s by %s, priority %d of %d, %d %s + %d %s × %g;", e.Outcome, e.Code, e.Resource, e.Rule, e.Priority, e.Granted,
			e.Input, e.InputFrom, e.Output, e.OutputFrom, e.Weight)
		for _, d := range e.Demands {
			fmt.Fprintf(&text, " %s %d+%d/%d", d.Limit.Name(), d.Used, d.Asks, d.Limit.Max)
			for mark, so := range map[string]bool{"!": d.Refuses, "~": d.Cut} {
				if so {
					text.WriteString(mark)
				}
			}
		}
		return text.String()
	}
	for _, c := range []struct {
		change func(*Question)
		want   string
	}{
		{func(*Question) {}, "allowed : chat by /v1/chat, priority 3 of 3, 100 length + 100 default × 1; requests_per_minute 0+1/100 tokens_per_minute 0+200/1000"},
		{func(q *Question) { q.Resource, q.Priority = "images", "low" }, "allowed : images by named, priority 1 of 3, 0 maximum + 0 default × 1; requests_per_minute 0+1/100 tokens_per_minute 0+0/1000"},
		{func(q *Question) { q.Path = "/x" }, "allowed : default by default, priority 3 of 3, 0 maximum + 0 default × 1; requests_per_minute 0+1/100 tokens_per_minute 0+0/1000"},
		{func(q *Question) { q.Body["max_tokens"] = "700" }, "allowed : chat by /v1/chat, priority 3 of 3, 100 length + 700 declaration × 1; requests_per_minute 0+1/100 tokens_per_minute 0+800/1000"},
		{func(q *Question) { q.Body["max_tokens"] = "1001" }, "too_large request_too_large: chat by /v1/chat, priority 3 of 3, 100 length + 1001 declaration × 1; requests_per_minute 0+1/100 tokens_per_minute 0+1001/1000!"},
		{func(q *Question) { q.Body["read"], q.ContentLength = "no", "" }, "allowed : chat by /v1/chat, priority 3 of 3, 500 maximum + 800 maximum × 1; requests_per_minute 0+1/100 tokens_per_minute 0+1000/1000~"},
		{func(q *Question) { q.Method, q.ContentLength = "GET", "" }, "allowed : chat by /v1/chat, priority 3 of 3, 0 nothing + 0 nothing × 1; requests_per_minute 0+1/100 tokens_per_minute 0+0/1000"},
		{func(q *Question) { q.KeyID, q.Path = "key_chat", "/v1/images" }, "forbidden resource_not_allowed: images by /v1/images, priority 3 of 3, 0 maximum + 0 default × 1; requests_per_minute 0+0/100 tokens_per_minute 0+0/1000"},
		{func(q *Question) { q.KeyID = "key_revoked" }, "unauthenticated revoked_api_key: chat by /v1/chat, priority 1 of 0, 0  + 0  × 0;"},
		{func(q *Question) { q.KeyID = "key_expired" }, "unauthenticated expired_api_key: chat by /v1/chat, priority 1 of 0, 0  + 0  × 0;"},
		{func(q *Question) { q.KeyID = "key_high" }, "allowed : chat by /v1/chat, priority 4 of 4, 100 length + 100 default × 1; requests_per_minute 0+1/2 requests_per_day 0+1/3"},
	} {
		if have := summary(c.change); have != c.want {
			t.Errorf("%s\nwant %s", have, c.want)
		}
	}
	for range 10 {
		g.history.Add("key_pro", "chat", 20)
	}
	want := "allowed : chat by /v1/chat, priority 3 of 3, 100 length + " + strconv.FormatInt(g.history.High("key_pro", "chat"), 10) + " history × 1;"
	if have := summary(func(*Question) {}); have[:len(want)] != want {
		t.Errorf("%s\nwant %s", have, want)
	}
}

// TestExplainedKeyWithoutItsPepper: no key finds its record, so a request gets 401, unless another
// filter of Envoy says whose it is.
func TestExplainedKeyWithoutItsPepper(t *testing.T) {
	t.Parallel()
	pepper, err := apikey.NewPepper("p1", "0123456789abcdef")
	if err != nil {
		t.Fatal(err)
	}
	stored := apikey.NewStored([]apikey.Pepper{pepper})
	stored.Replace([]apikey.Record{{ID: "key_peppered", Hash: apikey.Redacting("sk-peppered").HashWith(pepper), Tier: "pro", Revision: 1}})
	g := newGate(t, func(s *Settings) { s.Keys.Stored = stored })
	question := Question{KeyID: "key_peppered", Method: "GET", Path: "/v1/models"}
	want := func(status int, code, reason string) {
		t.Helper()
		e := g.Explain(t.Context(), question)
		if told := fmt.Sprint(e.Err); e.Status != status || e.Code != code || !strings.Contains(told, reason) {
			t.Errorf("%d %s, %s: want %d %s, %s", e.Status, e.Code, told, status, code, reason)
		}
		if got := ask(t, g, question.of("sk-peppered")); got.status != status || got.body != e.Body {
			t.Errorf("explained %d %s, and got %d %s", e.Status, e.Body, got.status, got.body)
		}
	}
	want(200, "", "<nil>")
	stored.UsePeppers(nil)
	want(401, "invalid_api_key", `pepper "p1" is not configured: add it to keys.peppers`)

	g = newGate(t, func(s *Settings) {
		s.Keys.Stored = stored
		s.Identity.KeyID = MetadataPath{Namespace: "jwt", Fields: []string{"sub"}}
	})
	if e := g.Explain(t.Context(), question); e.Status != 200 {
		t.Errorf("%d %s: want 200, where Envoy says whose the request is", e.Status, e.Code)
	}
}

// TestExplainedFormerSecret: where the pepper of a key is not configured, a former secret may still
// pass. It is told of where it does, and only there.
func TestExplainedFormerSecret(t *testing.T) {
	t.Parallel()
	pepper, err := apikey.NewPepper("p1", "0123456789abcdef")
	if err != nil {
		t.Fatal(err)
	}
	rotated := apikey.Record{ID: "key_rotated", Hash: apikey.Redacting("sk-present").HashWith(pepper), Tier: "pro", Revision: 1}
	former, until := apikey.Redacting("sk-former").Hash(), time.Date(2100, 1, 2, 3, 4, 5, 0, time.UTC)
	const missing = `pepper "p1" is not configured: add it to keys.peppers`
	for name, c := range map[string]struct {
		hash   apikey.Hash
		until  time.Time
		change func(*apikey.Record)
		status int
		reason string
	}{
		"passes":         {former, until, nil, 200, missing + "; a request with its former secret is decided as ever until 2100-01-02T03:04:05Z"},
		"is over":        {former, time.Unix(1, 0), nil, 401, missing},
		"lacks a pepper": {apikey.Redacting("sk-former").HashWith(pepper), until, nil, 401, missing},
		"is revoked":     {former, until, func(r *apikey.Record) { r.Revoked = true }, 401, missing},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rotated
			r.Former = &apikey.Former{Hash: c.hash, Until: c.until}
			if c.change != nil {
				c.change(&r)
			}
			stored := apikey.NewStored(nil)
			stored.Replace([]apikey.Record{r})
			g := newGate(t, func(s *Settings) { s.Keys.Stored = stored })
			question := Question{KeyID: r.ID, Method: "GET", Path: "/v1/models"}
			if e := g.Explain(t.Context(), question); e.Status != 401 || e.Err == nil || e.Err.Error() != c.reason {
				t.Errorf("%d, %v: want 401, %s", e.Status, e.Err, c.reason)
			}
			if got := ask(t, g, question.of("sk-former")); got.status != c.status {
				t.Errorf("the former secret gets %d: want %d", got.status, c.status)
			}
		})
	}
}
