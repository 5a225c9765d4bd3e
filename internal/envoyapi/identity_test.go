package envoyapi

import (
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tiergate/tiergate/internal/apikey"
)

const jwtNamespace = "envoy.filters.http.jwt_authn"

// believing takes key ID and tier from a JWT.
func believing(s *Settings) {
	s.Identity = Identity{
		KeyID: MetadataPath{jwtNamespace, []string{"claims", "sub"}},
		Tier:  MetadataPath{jwtNamespace, []string{"claims", "plan", "name"}},
	}
}

// withMetadata is a request with a key among its headers, of which a filter says some.
func withMetadata(t *testing.T, namespace string, fields map[string]any) *authv3.CheckRequest {
	t.Helper()
	r := checkRequest("/v1/chat", map[string]string{"authorization": "Bearer sk-free", "x-api-key": "sk-free", "x-tiergate-key-id": "key_pro"})
	if fields != nil {
		said, err := structpb.NewStruct(fields)
		if err != nil {
			t.Fatal(err)
		}
		r.Attributes.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{namespace: said}}
	}
	return r
}

// TestIdentity: another filter is believed where the configuration says so, and then
// nobody else is.
func TestIdentity(t *testing.T) {
	t.Parallel()
	claims := func(sub, plan any) map[string]any {
		return map[string]any{"claims": map[string]any{"sub": sub, "plan": map[string]any{"name": plan}}}
	}
	onlyID := func(s *Settings) { believing(s); s.Identity.Tier = MetadataPath{} }
	for name, c := range map[string]struct {
		change    func(*Settings)
		namespace string
		fields    map[string]any
		want      string // key ID, tier and limit, or the code of a refusal
	}{
		"not configured":              {fields: claims("key_pro", "pro"), want: "key_free free 2"},
		"on record":                   {change: believing, fields: claims("key_pro", nil), want: "key_pro pro 100"},
		"on record, another tier":     {change: believing, fields: claims("key_pro", "free"), want: "key_pro free 2"},
		"on record, unknown tier":     {change: believing, fields: claims("key_pro", "gold"), want: "key_pro pro 100"},
		"a tier that is not believed": {change: onlyID, fields: claims("key_pro", "free"), want: "key_pro pro 100"},
		"not on record":               {change: believing, fields: claims("user-7", "pro"), want: "user-7 pro 100"},
		"not on record, unknown tier": {change: believing, fields: claims("user-7", "gold"), want: "invalid_api_key"},
		"not on record, no tier":      {change: onlyID, fields: claims("user-7", "pro"), want: "invalid_api_key"},
		"braces":                      {change: believing, fields: claims("{a}:counts", "pro"), want: "invalid_api_key"},
		"an address":                  {change: believing, fields: claims("ada@example.com", "pro"), want: "invalid_api_key"},
		"a key":                       {change: believing, fields: claims("tg_live_IFP7XUOITS3HEPTZAMG2QDSWQG3cpu2n", "pro"), want: "invalid_api_key"},
		"a line end":                  {change: believing, fields: claims("user-7\n", "pro"), want: "invalid_api_key"},
		"too long":                    {change: believing, fields: claims(strings.Repeat("u", 65), "pro"), want: "invalid_api_key"},
		"a number":                    {change: believing, fields: claims(7, "pro"), want: "missing_api_key"},
		"an object":                   {change: believing, fields: claims(map[string]any{"sub": "key_pro"}, "pro"), want: "missing_api_key"},
		"empty":                       {change: believing, fields: claims("", "pro"), want: "missing_api_key"},
		"no claims":                   {change: believing, fields: map[string]any{"claims": "sub"}, want: "missing_api_key"},
		"another namespace":           {change: believing, namespace: "envoy.lua", fields: claims("key_pro", "pro"), want: "missing_api_key"},
		"nothing":                     {change: believing, want: "missing_api_key"},
		"revoked":                     {change: believing, fields: claims("key_revoked", "pro"), want: "revoked_api_key"},
		"revoked, another tier":       {change: believing, fields: claims("key_revoked", "free"), want: "revoked_api_key"},
		"expired":                     {change: believing, fields: claims("key_expired", "pro"), want: "expired_api_key"},
		"a demo key":                  {change: believing, fields: claims("key_demo", "pro"), want: "invalid_api_key"},
		"a demo key, another tier":    {change: believing, fields: claims("key_demo", "free"), want: "invalid_api_key"},
	} {
		namespace := jwtNamespace
		if c.namespace != "" {
			namespace = c.namespace
		}
		response, err := NewAuthz(newGate(t, c.change)).Check(t.Context(), withMetadata(t, namespace, c.fields))
		if err != nil {
			t.Fatal(err)
		}
		if have := summary(response); have != c.want {
			t.Errorf("%s: %s, want %s", name, have, c.want)
		}
	}
}

// TestNobodyIsNamed: who is known to nobody is not told to send what nobody looks at.
func TestNobodyIsNamed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*Settings)
		want   string
	}{
		"a key":          {nil, "Send it in a header: Authorization: Bearer YOUR_API_KEY."},
		"another filter": {believing, "an API key in a header is not accepted here"},
	} {
		g := newGate(t, c.change)
		a := check(t, g, "/v1/chat", nil)
		checkRefusal(t, name, a, "missing_api_key")
		if a.status != 401 || !strings.Contains(a.body, c.want) {
			t.Errorf("%s: %d %s, want %q", name, a.status, a.body, c.want)
		}
		a = limit(t, g, entry("path", "/v1/chat")) // where keys are a way in as ever
		if a.status != 401 || !strings.Contains(a.body, "Send it in a header") {
			t.Errorf("%s, ratelimit: %d %s", name, a.status, a.body)
		}
	}
}

// summary is the key ID, the tier and the limit of an answer, or the code of a refusal.
func summary(r *authv3.CheckResponse) string {
	if denied := r.GetDeniedResponse(); denied != nil {
		_, code, _ := strings.Cut(denied.GetBody(), `"code": "`)
		code, _, _ = strings.Cut(code, `"`)
		return code
	}
	values := map[string]string{}
	for _, list := range [][]*corev3.HeaderValueOption{r.GetOkResponse().GetHeaders(), r.GetOkResponse().GetResponseHeadersToAdd()} {
		for _, o := range list {
			values[o.GetHeader().GetKey()] = o.GetHeader().GetValue() + string(o.GetHeader().GetRawValue())
		}
	}
	return values["x-tiergate-key-id"] + " " + values["x-tiergate-tier"] + " " + values["X-RateLimit-Limit"]
}

// TestIdentityWithoutDirectory: while the store's keys have not been read, an ID that is
// not known is no fault of the caller, but one that can never be known is.
func TestIdentityWithoutDirectory(t *testing.T) {
	t.Parallel()
	unread := func(s *Settings) { believing(s); s.Keys.Stored = apikey.NewStored(nil) }
	for sub, want := range map[string]string{"user-7": "limiter_unavailable", "user 7": "invalid_api_key", "tg_live_7": "invalid_api_key", "key_pro": "key_pro pro 100"} {
		r := withMetadata(t, jwtNamespace, map[string]any{"claims": map[string]any{"sub": sub}})
		response, err := NewAuthz(newGate(t, unread)).Check(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if have := summary(response); have != want {
			t.Errorf("%s: %s, want %s", sub, have, want)
		}
	}
}
