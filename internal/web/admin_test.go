package web

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/envoyapi"
	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/store"
	"github.com/tiergate/tiergate/internal/usage"
)

// A fixture is an admin API with real parts around it.
type fixture struct {
	*Admin

	t        *testing.T
	file     *store.File
	kept     *store.FileUsage
	accounts *AdminAccounts
	clock    time.Time
	limits   *quota.Limiter
}

const pepperSecret = "a pepper of thirty bytes or so"

// newAdmin returns an API: the file of keys has key_file, with the secret sk-in-file,
// and a demo key; the store has none.
func newAdmin(t *testing.T, tokens ...AdminToken) *fixture {
	t.Helper()
	pepper, err := apikey.NewPepper("p1", pepperSecret)
	if err != nil {
		t.Fatal(err)
	}
	directory, faults := apikey.NewDirectory([]apikey.Record{
		{ID: "key_file", Name: "Of the file", Hash: hashOf(t, "sk-in-file"), Tier: "free"},
		{ID: "key_demo", Hash: hashOf(t, "sk-demo-free"), Tier: "free", Demo: true},
	}, nil)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	file, err := store.OpenFile(filepath.Join(t.TempDir(), "keys.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	f := &fixture{t: t, file: file, clock: noon}
	stored := apikey.NewStored([]apikey.Pepper{pepper})
	stored.Replace(nil)
	f.accounts = &AdminAccounts{
		Tokens: tokens, Keys: apikey.Keyring{File: directory, Stored: stored}, Plans: plans(), Peppers: []apikey.Pepper{pepper}, Resources: []quota.Resource{{Name: "chat"}, {Name: "images"}},
	}
	f.limits = quota.NewLimiter(store.NewMemory(f.now, 1000))
	gate := envoyapi.NewGate(&envoyapi.Settings{
		Resources: envoyapi.NewClassifier([]quota.Resource{{Name: "chat", PathPrefixes: []string{"/v1/chat"}}, {Name: "images"}}),
		Plans:     f.accounts.Plans, Keys: f.accounts.Keys, UnlimitedText: "unlimited",
		Tokens: envoyapi.TokenSettings{Rules: map[string]quota.TokenRules{"chat": {MaxInput: 500, Output: 100, MaxOutput: 800}}},
	}, f.limits, usage.NewHistory(10), f.now, nil)
	f.kept = store.NewFileUsage(file, f.now)
	f.Admin = NewAdmin(AdminOptions{
		Accounts: f.accounts, Keys: store.NewFileKeys(file, store.KeyNotices{}), Stored: stored, Usage: f.kept, Fleet: f.kept, Limiter: f.limits, Explainer: explainer{gate}, Loopback: true, Now: f.now,
	})
	return f
}

// used puts usage into the store.
func (f *fixture) used(accounts ...usage.Account) {
	f.t.Helper()
	err := f.kept.Add(f.t.Context(), usage.Batch{ID: "batch", Instance: "one", Made: f.clock, Accounts: accounts})
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) now() time.Time { return f.clock }

func plans() map[string]*quota.Plan {
	resources := []quota.Resource{{Name: "chat"}, {Name: "images"}}
	plans := map[string]*quota.Plan{}
	for _, tier := range []quota.Tier{
		{Name: "free", Priority: quota.Low, Limits: []quota.Limit{{Metric: quota.Requests, Window: quota.Minute, Max: 10}, {Metric: quota.Requests, Window: quota.Minute, Max: 5, Resource: "images"}}},
		{Name: "pro", Priority: quota.High, Limits: []quota.Limit{{Metric: quota.Requests, Window: quota.Minute, Max: 100}}},
		{Name: "enterprise", Priority: quota.Critical, Unlimited: true},
	} {
		plans[tier.Name] = quota.NewPlan(tier, quota.ByKey, resources)
	}
	return plans
}

func hashOf(t *testing.T, secret string) apikey.Hash {
	t.Helper()
	key, err := apikey.Parse(secret)
	if err != nil {
		t.Fatal(err)
	}
	return key.Hash()
}

// local is a request of this machine.
func local(method, path, body string, headers ...string) *http.Request {
	r := httptest.NewRequest(method, "http://localhost:9002"+AdminPath+path, strings.NewReader(body))
	r.RemoteAddr = "127.0.0.1:50000"
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	return r
}

// do asks, and checks the answer against openapi.yaml.
func (f *fixture) do(method, path, body string, headers ...string) *httptest.ResponseRecorder {
	f.t.Helper()
	return f.serve(local(method, path, body, headers...), body)
}

func (f *fixture) serve(r *http.Request, body string) *httptest.ResponseRecorder {
	f.t.Helper()
	w := httptest.NewRecorder()
	f.Handler().ServeHTTP(w, r)
	conforms(f.t, r.Pattern, body, w)
	if w.Header().Get("Cache-Control") != "no-store" {
		f.t.Errorf("%s %s may be kept by caches", r.Method, r.URL)
	}
	return w
}

// ok asks for what must go well, and reads the answer.
func ok[T any](f *fixture, method, path, body string) (answer T) {
	f.t.Helper()
	w := f.do(method, path, body)
	if w.Code >= 300 {
		f.t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
	}
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		f.t.Fatal(err)
	}
	return answer
}

// refused asks for what must not be done.
func (f *fixture) refused(method, path, body string, k kind, detail string) Problem {
	f.t.Helper()
	w := f.do(method, path, body)
	var p Problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		f.t.Fatal(err)
	}
	if want := problem(k, ""); w.Code != want.Status || p.Type != want.Type || !strings.Contains(p.Detail, detail) {
		f.t.Errorf("%s %s %s: %d %s\nwant %s: %s", method, path, body, w.Code, w.Body, k, detail)
	}
	return p
}

// faults asks for what has exactly these faults, as "field: problem".
func (f *fixture) faults(method, path, body string, want ...string) {
	f.t.Helper()
	p := f.refused(method, path, body, kindInvalid, strings.TrimPrefix(want[0], ": ")) // the first of them, and how many
	if several := fmt.Sprintf("; faults: %d, see errors", len(p.Errors)); strings.HasSuffix(p.Detail, several) != (len(p.Errors) > 1) {
		f.t.Errorf("%s %s %s: %d faults: %s", method, path, body, len(p.Errors), p.Detail)
	}
	var have []string
	for _, fault := range p.Errors {
		have = append(have, fault.Field+": "+fault.Problem)
	}
	if strings.Join(have, "\n") != strings.Join(want, "\n") {
		f.t.Errorf("%s %s %s:\n%s\nwant\n%s", method, path, body, strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
}

// opens reports which key a secret opens, as the edge asks; "" and why not.
func (f *fixture) opens(secret string) (string, error) {
	f.t.Helper()
	r, err := f.accounts.Keys.Authenticate([]string{secret}, false, f.clock)
	if err != nil {
		return "", err
	}
	return r.ID, nil
}

func token(name, secret string) AdminToken { return AdminToken{name, sha256.Sum256([]byte(secret))} }

// TestAdminTokens: each token has its name in the audit log; none and a wrong one are
// told so, whatever they ask for, and only the description is for all.
func TestAdminTokens(t *testing.T) {
	t.Parallel()
	f := newAdmin(t, token("ada", "token of ada"), token("ci", "token of ci"))
	for header, want := range map[string]int{
		"Bearer token of ada": 200, "bearer  token of ci ": 200, "Bearer token of eve": 401, "Basic token of ada": 401, "token of ada": 401,
		"Bearer ": 401, "": 401,
	} {
		w := f.do("GET", "/keys", "", "Authorization", header)
		if w.Code != want || (want == 401) != (w.Header().Get("WWW-Authenticate") == "Bearer") || strings.Contains(w.Body.String(), "token of") {
			t.Errorf("%q: %d %v %s", header, w.Code, w.Header(), w.Body)
		}
	}
	for _, path := range []string{"/nothing", "/keys/import"} {
		if w := f.do("GET", path, ""); w.Code != 401 {
			t.Errorf("%s without a token: %d", path, w.Code)
		}
	}
	r := local("GET", "/openapi.yaml", "")
	w := httptest.NewRecorder()
	if f.Handler().ServeHTTP(w, r); w.Code != 200 || !strings.HasPrefix(w.Body.String(), "openapi: 3.1.0") || w.Header().Get("Content-Type") != "application/yaml" {
		t.Errorf("the description: %d %s", w.Code, w.Body)
	}
	for who, secret := range map[string]string{"ada": "token of ada", "ci": "token of ci"} {
		body := fmt.Sprintf(`{"tier":"free","id":"key_%s"}`, who)
		if w := f.do("POST", "/keys", body, "Authorization", "Bearer "+secret); w.Code != 201 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		events, err := f.keys.Events(t.Context(), "key_"+who, "", 10)
		if err != nil || len(events) != 1 || events[0].By != who {
			t.Errorf("%v %v, want by %s", events, err, who)
		}
	}
}

// TestAdminIsLocalWithoutTokens: who is elsewhere, comes through a proxy, by a foreign
// name or from another site's page is refused.
func TestAdminIsLocalWithoutTokens(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	for name, c := range map[string]struct {
		change func(*http.Request)
		want   int
	}{
		"this machine":         {func(*http.Request) {}, 201},
		"IPv6":                 {func(r *http.Request) { r.RemoteAddr, r.Host = "[::1]:50000", "[::1]:9002" }, 201},
		"IPv4 in IPv6":         {func(r *http.Request) { r.RemoteAddr, r.Host = "[::ffff:127.0.0.1]:50000", "127.0.0.1" }, 201},
		"own page":             {func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-origin") }, 201},
		"elsewhere":            {func(r *http.Request) { r.RemoteAddr = "192.0.2.1:50000" }, 403},
		"no address":           {func(r *http.Request) { r.RemoteAddr = "@" }, 403},
		"through a proxy":      {func(r *http.Request) { r.Header.Set("X-Forwarded-For", "192.0.2.1") }, 403},
		"a name that leads us": {func(r *http.Request) { r.Host = "rebound.example:9002" }, 403},
		"another address":      {func(r *http.Request) { r.Host = "192.0.2.1:9002" }, 403},
		"another of IPv6":      {func(r *http.Request) { r.Host = "[2001:db8::1]" }, 403},
		"no host":              {func(r *http.Request) { r.Host = "" }, 403},
		"another site's page":  {func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }, 403},
		"another origin":       {func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }, 403},
	} {
		body := `{"tier":"free"}`
		r := local("POST", "/keys", body)
		c.change(r)
		w := f.serve(r, body)
		if w.Code != c.want || (c.want == 403 && !strings.Contains(w.Body.String(), "local-only")) {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	events, err := f.keys.Events(t.Context(), "", "", 10)
	if err != nil || len(events) != 4 || events[0].By != "loopback" {
		t.Errorf("%v %v", events, err)
	}
}

// TestWrongTokensAreLimited for each caller. A right one is let in whatever others have
// guessed, from the same address too.
func TestWrongTokensAreLimited(t *testing.T) {
	t.Parallel()
	f := newAdmin(t, token("ada", "right"))
	ask := func(from, secret string) *httptest.ResponseRecorder {
		t.Helper()
		r := local("GET", "/keys", "", "Authorization", "Bearer "+secret)
		r.RemoteAddr = from
		return f.serve(r, "")
	}
	for i := range wrongTokensAtOnce {
		if w := ask("198.51.100.7:"+jsonNumber(i+1), "wrong"); w.Code != 401 {
			t.Errorf("wrong token %d: %d", i, w.Code)
		}
	}
	w := ask("198.51.100.7:9", "wrong")
	if w.Code != 429 || w.Header().Get("Retry-After") != "6" {
		t.Errorf("after too many: %d %v", w.Code, w.Header())
	}
	if w := ask("198.51.100.7:9", "right"); w.Code != 200 {
		t.Errorf("a right one: %d", w.Code)
	}
	if w := ask("198.51.100.8:9", "wrong"); w.Code != 401 {
		t.Errorf("another caller: %d", w.Code)
	}
	for i := range wrongTokensAtOnce {
		ask(fmt.Sprintf("[2001:db8::%x]:1", i+1), "wrong")
	}
	if w := ask("[2001:db8::ffff]:1", "wrong"); w.Code != 429 {
		t.Errorf("another address of the same network: %d", w.Code)
	}
	f.clock = f.clock.Add(6 * time.Second)
	if w := ask("198.51.100.7:9", "wrong"); w.Code != 401 {
		t.Errorf("later: %d", w.Code)
	}
}

// TestTokensTakenAway: nobody is answered, until there are tokens again.
func TestTokensTakenAway(t *testing.T) {
	t.Parallel()
	f := newAdmin(t, token("ada", "right"))
	with := *f.accounts
	without := with
	without.Tokens = nil
	f.Use(&without)
	if w := f.serve(local("GET", "/keys", ""), ""); w.Code != 403 || !strings.Contains(w.Body.String(), "all have been taken away") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	f.Use(&without)
	if w := f.serve(local("GET", "/keys", ""), ""); w.Code != 403 {
		t.Errorf("after another reload: %d", w.Code)
	}
	f.Use(&with)
	if w := f.serve(local("GET", "/keys", "", "Authorization", "Bearer right"), ""); w.Code != 200 {
		t.Errorf("with tokens again: %d", w.Code)
	}
}

// TestAdminRefusesWhatItCannotRead in one shape, whatever it is.
func TestAdminRefusesWhatItCannotRead(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	f.refused("GET", "/nothing", "", kindNoPage, "openapi.yaml")
	f.refused("GET", "/", "", kindNoPage, "")
	f.refused("PUT", "/keys/key_file", "{}", kindMethod, "it knows GET, HEAD, PATCH")
	if w := f.do("DELETE", "/keys", ""); w.Header().Get("Allow") != "GET, HEAD, POST" {
		t.Errorf("Allow: %v", w.Header())
	}
	f.faults("POST", "/keys", "{", ": the body is not one JSON object")
	f.faults("POST", "/keys", "[]", ": the body is not one JSON object")
	f.faults("POST", "/keys", "null", ": the body is not one JSON object")
	f.faults("POST", "/keys", `{"tier":"free"} {}`, ": the body is not one JSON object")
	f.faults("POST", "/keys", "{\"tier\":\"free\",\"name\":\"\xff\"}", ": the body is not UTF-8")
	f.faults("GET", "/keys?limit=0&state=dead&colour=red&tier=a&tier=b", "",
		"tier: given twice", "limit: want 1 to 1000", "state: want active, revoked, expired or disabled", "colour: unknown parameter")
	f.faults("GET", "/keys/key_file?x=1", "", "x: unknown parameter")
	f.faults("GET", "/audit?key=a+b&before=x", "", "key: want the ID of a key", "before: want what an earlier answer said under next")
	f.refused("POST", "/keys", `{"name":"`+strings.Repeat("x", maxBody)+`"}`, kindTooLarge, "at most 1 MiB")
	f.refused("POST", "/keys/import", `{"keys":"`+strings.Repeat("x", maxImportBody)+`"}`, kindTooLarge, "at most 4 MiB")
	if w := f.do("POST", "/keys", `{"tier":"free"}`, "Content-Type", "text/plain"); w.Code != 415 {
		t.Errorf("text/plain: %d", w.Code)
	}
	f.refused("GET", "/keys/tg_live_nobody", "", kindNoKey, "")
	f.refused("GET", "/keys/a%2Fb", "", kindNoKey, "")
	for _, path := range []string{"/keys/nobody/revoke", "/keys/nobody/rotate", "/keys/a%2Fb/rotate"} {
		f.refused("POST", path, "", kindNoKey, "no key has this ID")
	}
}

// TestStoreUnread: what the store's keys are is not said before they have been read, least
// of all by an export without them.
func TestStoreUnread(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	f.accounts.Keys.Stored = apikey.NewStored(nil)
	for _, path := range []string{"/keys/export", "/keys/key_stored", "/keys/key_stored/usage", "/keys/key_stored/limits"} {
		f.refused("GET", path, "", kindStoreAway, "has not been read yet")
	}
	ok[KeyView](f, "GET", "/keys/key_file", "")
}

// TestStoreAway: what this instance knows is shown all the same; a change says that it
// was not, or may not have been, made.
func TestStoreAway(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	created := ok[NewKey](f, "POST", "/keys", `{"tier":"free"}`)
	f.file.Close()
	for _, c := range []struct {
		method, path, body string
		perhaps            bool
	}{
		{"POST", "/keys", `{"tier":"free"}`, true},
		{"POST", "/keys/" + created.Record.ID + "/rotate", "", false}, // the key could not even be read
		{"GET", "/keys/key_file/usage", "", false},
		{"GET", "/audit", "", false},
	} {
		w := f.do(c.method, c.path, c.body)
		if w.Code != 503 || w.Header().Get("Retry-After") != "1" || strings.Contains(w.Body.String(), "may have been done all the same") != c.perhaps {
			t.Errorf("%s %s: %d %v %s", c.method, c.path, w.Code, w.Header(), w.Body)
		}
	}
	f.refused("POST", "/keys", `{"tier":"free"}`, kindStoreAway, "write keys to the file")
	f.refused("POST", "/keys/"+created.Key+"/revoke", "", kindNoKey, "") // the store has not seen it
	f.refused("GET", "/audit", "", kindStoreAway, "")
	f.refused("GET", "/keys/key_file/usage", "", kindStoreAway, "")
	if list := ok[KeyList](f, "GET", "/keys", ""); len(list.Keys) != 3 || list.Keys[0].LastUsed != nil {
		t.Errorf("%+v", list)
	}
	if p := problemOf(fmt.Errorf("write: %w", apikey.ErrLost)); p.Type != "urn:tiergate:problem:store-emptied" || p.Status != 503 ||
		!strings.Contains(p.Detail, "export the keys from an instance that runs and import them through an extra one") || !strings.Contains(p.Detail, "restart no instance before") {
		t.Errorf("an emptied store: %+v", p)
	}
}
