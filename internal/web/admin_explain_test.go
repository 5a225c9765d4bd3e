package web

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/envoyapi"
	"github.com/tiergate/tiergate/internal/quota"
)

// An explainer asks a gate, as the program does.
type explainer struct{ gate *envoyapi.Gate }

func (e explainer) Explain(ctx context.Context, q Question) Explained {
	return Explained(e.gate.Explain(ctx, envoyapi.Question(q)))
}

// TestExplain: what a request would get, without a body about an ordinary one.
func TestExplain(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	e := ok[Explanation](f, "POST", "/keys/key_file/explain", "")
	if e.Key.ID != "key_file" || e.Key.State != KeyActive || e.Key.Source != "file" || e.Verdict != "allowed" || e.Code != "" || e.Response.Status != 200 || e.Now != noon.Unix() ||
		e.Resource != (ResourceRule{"chat", "/v1/chat"}) || e.Priority != (PriorityRule{1, 1, "tier"}) ||
		*e.Tokens != (Reserved{250, quota.ByLength, 100, quota.ByDefault, 1}) || len(e.Limits) != 1 || e.Limits[0].Asks != 1 || *e.Limits[0].Remaining != 10 {
		t.Errorf("%+v", e)
	}
	ok[NewKey](f, "POST", "/keys", `{"id":"key_a","tier":"pro","priority":4,"resources":["chat","images"]}`)
	ok[KeyView](f, "POST", "/keys/key_a/overrides", `{"metric":"requests","per":"minute","max":0}`)
	e = ok[Explanation](f, "POST", "/keys/key_a/explain", `{"method":"GET","path":"/elsewhere","resource":"images","priority":"high","content_length":null,"max_tokens":null,"choices":2,"model":"m","body_unread":true}`)
	if e.Verdict != "limited" || e.Code != "rate_limit_exceeded" || e.RefusedBy != "requests_per_minute" || e.Wait != 0 || e.Resource != (ResourceRule{"images", "named"}) ||
		e.Priority != (PriorityRule{3, 4, "key"}) || e.Tokens.OutputFrom != quota.ByNothing || !e.Limits[0].Refuses || !e.Limits[0].Override || !strings.Contains(e.Response.Body, "after 30 seconds") {
		t.Errorf("%+v", e)
	}
	ok[KeyView](f, "POST", "/keys/key_a/revoke", `{}`)
	e = ok[Explanation](f, "POST", "/keys/key_a/explain", `{}`)
	if e.Verdict != "unauthenticated" || e.Code != "revoked_api_key" || e.Key.State != KeyRevoked || e.Tokens != nil || len(e.Limits) != 0 || e.Response.Status != 401 || e.Priority != (PriorityRule{1, 0, ""}) {
		t.Errorf("%+v", e)
	}
	soon := Explained{Decision: quota.Decision{RefusedBy: quota.Limit{Metric: quota.Requests, Window: quota.Minute, Max: 1}, Wait: time.Microsecond}}
	if e := soon.view(); e.Wait != 1 { // 0 is never
		t.Errorf("in less than a millisecond: %+v", e)
	}
	if e := ok[Explanation](f, "POST", "/keys/key_demo/explain", ""); e.Code != "invalid_api_key" || e.Key.State != KeyDisabled {
		t.Errorf("a demo key: %+v", e)
	}
	for body, want := range map[string]Reserved{
		`{"method":"GET"}`:         {0, quota.ByNothing, 0, quota.ByNothing, 1},
		`{"content_length":0}`:     {0, quota.ByNothing, 0, quota.ByNothing, 1},
		`{"content_length":5}`:     {2, quota.ByLength, 100, quota.ByDefault, 1},
		`{"method":"PUT"}`:         {250, quota.ByLength, 100, quota.ByDefault, 1},
		`{"max_tokens":7}`:         {250, quota.ByLength, 7, quota.ByDeclaration, 1},
		`{"choices":3}`:            {250, quota.ByLength, 300, quota.ByDefault, 1},
		`{"body_unread":true}`:     {250, quota.ByLength, 800, quota.ByMaximum, 1},
		`{"content_length":10000}`: {500, quota.ByMaximum, 100, quota.ByDefault, 1},
	} {
		if e := ok[Explanation](f, "POST", "/keys/key_file/explain", body); *e.Tokens != want {
			t.Errorf("%s: %+v, want %+v", body, *e.Tokens, want)
		}
	}
}

// TestExplainNothing: what cannot be asked is told, and no secret is repeated.
func TestExplainNothing(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	secret := apikey.New().Reveal()
	f.refused("POST", "/keys/key_nobody/explain", "", kindNoKey, "no key has this ID")
	f.refused("POST", "/keys/"+secret+"/explain", "", kindNoKey, "no key has this ID")
	f.faults("POST", "/keys/key_file/explain", `{"path":1,"content_length":-1,"max_tokens":0,"choices":1.5,"body_unread":"`+secret+`","key":"`+secret+`"}`,
		"path: want a text", "content_length: want a whole number, 0 or more", "max_tokens: want a whole number, 1 or more",
		"choices: want a whole number, 1 or more", "body_unread: want true or false", "key: unknown field")
	f.faults("POST", "/keys/key_file/explain", `{"path":"v1/chat"}`, "path: want one that begins with /, such as /v1/chat/completions")
	for _, field := range []string{"method", "path", "resource", "priority", "model"} {
		if w := f.do("POST", "/keys/key_file/explain", fmt.Sprintf("{%q:%q}", field, "/"+secret)); w.Code != 200 || strings.Contains(w.Body.String(), secret) {
			t.Errorf("%s: %d %s", field, w.Code, w.Body)
		}
	}
	if w := newAdmin(t, token("ada", "token of ada")).do("POST", "/keys/key_file/explain", ""); w.Code != 401 {
		t.Errorf("without a token: %d", w.Code)
	}
}
