package e2e

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
)

// An issuer signs tokens.
type issuer struct{ key *rsa.PrivateKey }

func newIssuer(t *testing.T) issuer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return issuer{key}
}

// jwks is the file by which Envoy knows the issuer.
func (i issuer) jwks(t *testing.T) string {
	t.Helper()
	number := func(n *big.Int) string { return base64.RawURLEncoding.EncodeToString(n.Bytes()) }
	content := `{"keys": [{"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "one", "n": "` +
		number(i.key.N) + `", "e": "` + number(big.NewInt(int64(i.key.E))) + `"}]}`
	file := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// token signs claims, over those that every token has.
func (i issuer) token(t *testing.T, claims map[string]any) string {
	t.Helper()
	whole := map[string]any{"iss": "https://accounts.example.com", "aud": "api.example.com", "exp": time.Now().Add(time.Hour).Unix()}
	maps.Copy(whole, claims)
	part := func(v any) string {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(text)
	}
	signed := part(map[string]string{"alg": "RS256", "typ": "JWT", "kid": "one"}) + "." + part(whole)
	sum := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, i.key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// authenticatedBy puts the guide's parts into the shipped Envoy file. Tokens are asked
// for below a path only.
func authenticatedBy(t *testing.T, jwks, below string) func([]byte) []byte {
	t.Helper()
	filter := strings.Replace(block(t, "yaml filter jwt"), "/etc/envoy/jwks.json", jwks, 1)
	filter = strings.Replace(filter, "{prefix: /v1/}", "{prefix: "+below+"}", 1)
	part := mapping(t, filter)
	return func(file []byte) []byte {
		return edited(t, string(file), func(doc map[string]any) {
			prepend(t, doc, "mappers", block(t, "yaml mapper jwt"))
			walk(doc, func(name string, list []any) []any {
				if name == "metadata_context_namespaces" {
					return append(list, part["name"])
				}
				return list
			})
			insertBeside(doc, "envoy.filters.http.set_metadata", 0, part)
		})
	}
}

// TestAuthenticationElsewhere: Envoy's JWT filter says who calls, and nobody else can.
func TestAuthenticationElsewhere(t *testing.T) {
	t.Parallel()
	accounts, other := newIssuer(t), newIssuer(t)
	config, _ := ownConfig(t)
	merge(t, config, block(t, "yaml identity"))
	s := up(t, devstack.Options{Config: config, EditEnvoy: authenticatedBy(t, accounts.jwks(t), "/v1/chat")})
	freshMinute(t, 15*time.Second)
	claims := func(sub, tier any) map[string]any { return map[string]any{"sub": sub, "tier": tier} }
	bearer := func(token string, more ...string) http.Header {
		h := http.Header{"Authorization": {"Bearer " + token}, "X-Mock-Echo": {"1"}}
		for i := 0; i < len(more); i += 2 {
			h.Set(more[i], more[i+1])
		}
		return h
	}
	pretending := []string{
		"X-Api-Key", "sk-demo-enterprise", "X-Tiergate-Key-Id", "key_demo_enterprise", "X-Tiergate-Tier", "enterprise",
		"X-Envoy-Filters-Http-Jwt-Authn", `{"claims": {"sub": "key_demo_enterprise"}}`, "X-Jwt-Payload", "eyJzdWIiOiJrZXlfZGVtb19lbnRlcnByaXNlIn0",
	}
	unsigned := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." +
		base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"https://accounts.example.com","aud":"api.example.com","sub":"key_demo_pro"}`)) + "."
	for _, c := range []struct {
		name   string
		path   string
		header http.Header
		want   string // status, and the key ID and tier that the upstream sees, or the code
	}{
		{"not on record", "", bearer(accounts.token(t, claims("user-7", "basic"))), "200 user-7 basic"},
		{"not on record, and pretending", "", bearer(accounts.token(t, claims("user-7", "basic")), pretending...), "200 user-7 basic"},
		{"on record", "", bearer(accounts.token(t, claims("key_demo_pro", nil))), "200 key_demo_pro pro"},
		{"on record, another tier", "", bearer(accounts.token(t, claims("key_demo_pro", "basic"))), "200 key_demo_pro basic"},
		{"not on record, no tier", "", bearer(accounts.token(t, claims("user-8", nil))), "401 invalid_api_key"},
		{"no name of a key", "", bearer(accounts.token(t, claims("auth0|user{7}", "basic"))), "401 invalid_api_key"},
		{"no subject", "", bearer(accounts.token(t, map[string]any{"tier": "basic"}), pretending...), "401 missing_api_key"},
		{"no token", "", bearer("", pretending...), "401 invalid_token"},
		{"an API key", "", bearer("sk-demo-pro"), "401 invalid_token"},
		{"another issuer's key", "", bearer(other.token(t, claims("key_demo_pro", "pro")), pretending...), "401 invalid_token"},
		{"no signature", "", bearer(unsigned), "401 invalid_token"},
		{"expired", "", bearer(accounts.token(t, map[string]any{"sub": "user-7", "tier": "basic", "exp": time.Now().Add(-time.Hour).Unix()})), "401 invalid_token"},
		{"another audience", "", bearer(accounts.token(t, map[string]any{"sub": "user-7", "tier": "basic", "aud": "b"})), "403 invalid_token"},
		{"a route without tokens", "/v1/images/generations", bearer("sk-demo-pro", pretending...), "401 missing_api_key"},
		{"a route without tokens, a token", "/v1/images/generations", bearer(accounts.token(t, claims("user-7", "basic")), pretending...), "401 missing_api_key"},
	} {
		r := do(t, s, call{path: c.path, header: c.header})
		have := r.Status[:3] + " "
		if r.StatusCode == http.StatusOK {
			var seen http.Header
			if err := json.Unmarshal([]byte(r.body), &seen); err != nil {
				t.Fatalf("%s: %s", c.name, r.body)
			}
			have += strings.Join(seen["X-Tiergate-Key-Id"], ",") + " " + strings.Join(seen["X-Tiergate-Tier"], ",")
			if len(seen["Authorization"])+len(seen["X-Api-Key"]) > 0 {
				t.Errorf("%s: the upstream sees credentials: %v", c.name, seen)
			}
		} else {
			have += errorCode(t, r)
		}
		if have != c.want {
			t.Errorf("%s: %s, want %s (%s)", c.name, have, c.want, r.body)
		}
		checkOnce(t, c.name, r)
	}
	// Two requests of user-7 so far; the key on record has its own count.
	checkSix(t, do(t, s, call{header: bearer(accounts.token(t, claims("user-7", "basic")))}), "50", "47", "chat", "3", "2")
}
