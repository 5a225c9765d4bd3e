package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// An operatorPort is the operators' port of a fixture, and why it is not ready.
type operatorPort struct {
	*fixture

	handler http.Handler
	note    string // on how it serves
	trouble error
}

func newOperator(t *testing.T, tokens ...AdminToken) *operatorPort {
	t.Helper()
	registry := prometheus.NewRegistry()
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "things", Help: "Things."})
	registry.MustRegister(gauge)
	gauge.Set(3)
	o := &operatorPort{fixture: newAdmin(t, tokens...)}
	var err error
	o.handler, err = Operator(OperatorOptions{Metrics: registry, Ready: func(context.Context) (string, error) { return o.note, o.trouble }, Admin: o.Admin})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// ask sends what a browser of this machine does; a form where there is one.
func (o *operatorPort) ask(method, path string, form url.Values, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://localhost:9002"+path, strings.NewReader(form.Encode()))
	r.RemoteAddr = "127.0.0.1:50000"
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "RemoteAddr" {
			r.RemoteAddr = headers[i+1]
			continue
		}
		r.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	o.handler.ServeHTTP(w, r)
	return w
}

// signIn returns the header Cookie of a browser that has signed in with a token.
func (o *operatorPort) signIn(secret string) string {
	o.t.Helper()
	w := o.ask("POST", "/dashboard/session", url.Values{"token": {secret}})
	if w.Code != 303 || w.Header().Get("Location") != "/dashboard" || len(w.Result().Cookies()) != 2 {
		o.t.Fatalf("sign in: %d %v %s", w.Code, w.Header(), w.Body)
	}
	k := w.Result().Cookies()[0]
	return k.Name + "=" + k.Value
}

// TestOperator: metrics are there, a live process is healthy whether or not it is ready,
// readiness tells why not, nothing can be written, and all of it without a token. Who
// comes to / is led to the dashboard.
func TestOperator(t *testing.T) {
	t.Parallel()
	o := newOperator(t, token("ada", "token of ada"))
	for _, c := range []struct {
		method, path string
		trouble      error
		status       int
		body         string
	}{
		{"GET", "/metrics", nil, 200, "things 3\n"},
		{"GET", "/healthz", nil, 200, "ok\n"},
		{"GET", "/readyz", nil, 200, "ready\n"},
		{"GET", "/healthz", errors.New("ping Redis: refused"), 200, "ok\n"},
		{"GET", "/readyz", errors.New("ping Redis: refused"), 503, "not ready: ping Redis: refused\n"},
		{"POST", "/metrics", nil, 405, ""},
		{"DELETE", "/readyz", nil, 405, ""},
		{"GET", "/", nil, 303, `href="/dashboard"`},
		{"GET", "/nothing", nil, 404, ""},
		{"GET", "/admin/v1/openapi.yaml", nil, 200, "openapi: 3.1.0"},
	} {
		o.trouble = c.trouble
		w := o.ask(c.method, c.path, nil, "RemoteAddr", "192.0.2.1:5")
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.body) {
			t.Errorf("%s %s with trouble %v: %d %q, want %d %q", c.method, c.path, c.trouble, w.Code, w.Body, c.status, c.body)
		}
	}
	o.trouble, o.note = nil, "degraded: alone"
	if w := o.ask("GET", "/readyz", nil, "RemoteAddr", "192.0.2.1:5"); w.Code != 200 || w.Body.String() != "ready, degraded: alone\n" {
		t.Errorf("degraded: %d %q", w.Code, w.Body)
	}
}

// TestOperatorSignIn begins a session for a configured token, and for nothing else.
func TestOperatorSignIn(t *testing.T) {
	t.Parallel()
	o := newOperator(t, token("ada", "token of ada"), token("ci", "token of ci"))
	for name, c := range map[string]struct {
		tokens []string
		code   int
		text   string
	}{
		"right":        {[]string{"token of ada"}, 303, ""},
		"pasted":       {[]string{" token of ci\r\n"}, 303, ""},
		"none":         {nil, 401, "Please enter a token."},
		"empty":        {[]string{" "}, 401, "Please enter a token."},
		"wrong":        {[]string{"token of eve"}, 401, "none of the configured tokens"},
		"an API key":   {[]string{"sk-in-file"}, 401, "none of the configured tokens"},
		"a script":     {[]string{"<script>"}, 401, "none of the configured tokens"},
		"far too long": {[]string{strings.Repeat("k", maxForm)}, 400, "cannot be read"},
	} {
		w := o.ask("POST", "/dashboard/session", url.Values{"token": c.tokens})
		if w.Code != c.code || !strings.Contains(w.Body.String(), c.text) || (len(w.Result().Cookies()) == 2) != (c.code == 303) {
			t.Errorf("%s: %d %v %s", name, w.Code, w.Header(), w.Body)
		}
		for _, secret := range append(c.tokens, "<script>") {
			if secret = strings.TrimSpace(secret); secret != "" && strings.Contains(w.Body.String()+fmt.Sprint(w.Header()), secret) {
				t.Errorf("%s: the answer repeats what was sent: %v %s", name, w.Header(), w.Body)
			}
		}
	}
	if w := o.ask("POST", "/dashboard/session?token=token+of+ada", nil); w.Code != 401 {
		t.Errorf("a token in the URL: %d", w.Code)
	}
	if w := o.ask("GET", "/dashboard/session?token=token+of+ada", nil); w.Code != 303 || w.Header().Get("Location") != "/dashboard/signin" || len(w.Result().Cookies()) != 0 {
		t.Errorf("GET: %d %v", w.Code, w.Header())
	}
}

// TestOperatorCookie goes to the pages and the admin API and nowhere else, cannot be read
// by scripts or sent from other sites, nor over plain HTTP where there is TLS, and tells
// neither the token nor its hash.
func TestOperatorCookie(t *testing.T) {
	t.Parallel()
	o := newOperator(t, token("ada", "token of ada"))
	for proto, secure := range map[string]bool{"https": true, "http": false} {
		w := o.ask("POST", "/dashboard/session", url.Values{"token": {"token of ada"}}, "X-Forwarded-Proto", proto)
		var paths []string
		for _, k := range w.Result().Cookies() {
			paths = append(paths, k.Path)
			if k.Name != "tiergate_operator" || !k.HttpOnly || k.SameSite != http.SameSiteStrictMode || k.Secure != secure || k.MaxAge != 12*3600 {
				t.Errorf("%s: %+v", proto, k)
			}
			var s operatorSession
			r := httptest.NewRequest(http.MethodGet, "/dashboard", nil)
			r.AddCookie(k)
			if !o.sessions.api.read(r, &s) || s.Name != "ada" || len(s.Opened) != 32 || strings.Contains(fmt.Sprintf("%x", token("", "token of ada").Hash), s.Opened) {
				t.Errorf("the session is %+v", s)
			}
		}
		if slices.Sort(paths); !slices.Equal(paths, []string{"/admin/v1", "/dashboard"}) {
			t.Errorf("paths %q", paths)
		}
	}
}

// TestOperatorSessions see the pages and use the admin API under the name of the token,
// until they are signed out.
func TestOperatorSessions(t *testing.T) {
	t.Parallel()
	o := newOperator(t, token("ada", "token of ada"), token("ci", "token of ci"))
	cookie := o.signIn("token of ci")
	for path, text := range map[string]string{"/dashboard": "overview.js", "/dashboard/keys": "keys.js", "/dashboard/keys/key_file": "key.js"} {
		if w := o.ask("GET", path, nil, "Cookie", cookie); w.Code != 200 || !strings.Contains(w.Body.String(), text) || !strings.Contains(w.Body.String(), ">ci<") {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	if w := o.ask("GET", "/dashboard/", nil, "Cookie", cookie); w.Code != 303 || w.Header().Get("Location") != "/dashboard" {
		t.Errorf("with a slash: %d %v", w.Code, w.Header())
	}
	const body = `{"tier":"free","id":"key_new"}`
	if w := o.do("POST", "/keys", body, "Cookie", cookie, "Sec-Fetch-Site", "same-origin"); w.Code != 201 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if events, err := o.keys.Events(t.Context(), "key_new", "", 10); err != nil || len(events) != 1 || events[0].By != "ci" {
		t.Errorf("%v %v", events, err)
	}
	if w := o.do("GET", "/keys", "", "Cookie", cookie, "Authorization", "Bearer token of eve"); w.Code != 401 {
		t.Errorf("a wrong token beside the cookie: %d", w.Code)
	}
	w := o.ask("POST", "/dashboard/signout", nil, "Cookie", cookie)
	if w.Code != 303 || w.Header().Get("Location") != "/dashboard/signin" || len(w.Result().Cookies()) != 2 {
		t.Errorf("sign out: %d %v", w.Code, w.Header())
	}
	for _, k := range w.Result().Cookies() {
		if k.MaxAge >= 0 || k.Value != "" || (k.Path != "/dashboard" && k.Path != "/admin/v1") {
			t.Errorf("sign out: %+v", k)
		}
	}
	if w := o.ask("GET", "/dashboard/signin?over", nil); w.Code != 200 || !strings.Contains(w.Body.String(), "Your session is over.") {
		t.Errorf("the sign-in: %d %s", w.Code, w.Body)
	}
}

// TestOperatorSessionsOfOthers: a forged cookie, one of another process and one of the
// holder of a key open nothing here, nor does an operator's at the customers'.
func TestOperatorSessionsOfOthers(t *testing.T) {
	t.Parallel()
	ada := token("ada", "token of ada")
	o, other := newOperator(t, ada), newOperator(t, ada)
	customers, _, _ := newCustomers(t, func() time.Time { return noon })
	right := o.signIn("token of ada")
	_, value, _ := strings.Cut(right, "=")
	_, ofCustomer, _ := strings.Cut(signedIn(t, customers, "sk-a"), "=")
	for name, cookie := range map[string]string{
		"another process":           other.signIn("token of ada"),
		"a customer's":              "tiergate_session=" + ofCustomer,
		"a customer's, renamed":     operatorCookie + "=" + ofCustomer,
		"under the customers' name": "tiergate_session=" + value,
		"shortened":                 right[:len(right)-2],
		"not a cookie of ours":      operatorCookie + "=x",
	} {
		if w := o.do("GET", "/keys", "", "Cookie", cookie); w.Code != 401 {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
		if w := o.ask("GET", "/dashboard", nil, "Cookie", cookie); w.Code != 303 || !strings.HasPrefix(w.Header().Get("Location"), "/dashboard/signin") {
			t.Errorf("%s: %d %v", name, w.Code, w.Header())
		}
	}
	for _, cookie := range []string{right, "tiergate_session=" + value} {
		if w := get(customers, "/dashboard/api/limits", "Cookie", cookie); w.Code != 401 {
			t.Errorf("an operator's cookie at the customers': %d", w.Code)
		}
	}
	if w := o.do("GET", "/keys", "", "Cookie", right); w.Code != 200 {
		t.Errorf("the right one: %d", w.Code)
	}
}

// TestSessionsEndWithTheToken at the next request: when it is taken away, and when
// another has taken its name. New tokens work at once.
func TestSessionsEndWithTheToken(t *testing.T) {
	t.Parallel()
	o := newOperator(t, token("ada", "token of ada"), token("ci", "token of ci"))
	ada, ci := o.signIn("token of ada"), o.signIn("token of ci")
	for i, tokens := range [][]AdminToken{{token("ci", "token of ci")}, {token("ada", "new token of ada"), token("ci", "token of ci")}} {
		name := [...]string{"taken away", "renewed"}[i]
		changed := *o.accounts
		changed.Tokens = tokens
		o.Use(&changed)
		if w := o.do("GET", "/keys", "", "Cookie", ada); w.Code != 401 {
			t.Errorf("%s: the API: %d", name, w.Code)
		}
		w := o.ask("GET", "/dashboard/keys", nil, "Cookie", ada)
		if w.Code != 303 || w.Header().Get("Location") != "/dashboard/signin?over" || len(w.Result().Cookies()) != 2 {
			t.Errorf("%s: the page: %d %v", name, w.Code, w.Header())
		}
		if w := o.do("GET", "/keys", "", "Authorization", "Bearer token of ada"); w.Code != 401 {
			t.Errorf("%s: the token: %d", name, w.Code)
		}
		if w := o.do("GET", "/keys", "", "Cookie", ci); w.Code != 200 {
			t.Errorf("%s: another's session: %d", name, w.Code)
		}
	}
	o.signIn("new token of ada")
}

// TestOperatorCrossSite: another site's page changes nothing with the session of the one
// who looks at it, and signs nobody in.
func TestOperatorCrossSite(t *testing.T) {
	t.Parallel()
	o := newOperator(t, token("ada", "token of ada"))
	cookie := o.signIn("token of ada")
	for _, header := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "http://evil.example"}} {
		w := o.do("POST", "/keys/key_x/revoke", "", "Cookie", cookie, header[0], header[1])
		if w.Code != 403 || !strings.Contains(w.Body.String(), "problem:other-site") {
			t.Errorf("%v: %d %s", header, w.Code, w.Body)
		}
		w = o.ask("POST", "/dashboard/session", url.Values{"token": {"token of ada"}}, header...)
		if w.Code != 403 || len(w.Result().Cookies()) != 0 {
			t.Errorf("sign in, %v: %d %v", header, w.Code, w.Header())
		}
		if w = o.ask("POST", "/dashboard/signout", nil, append(header, "Cookie", cookie)...); w.Code != 403 || len(w.Result().Cookies()) != 0 {
			t.Errorf("sign out, %v: %d %v", header, w.Code, w.Header())
		}
	}
	if w := o.do("POST", "/keys", `{"tier":"free"}`, "Authorization", "Bearer token of ada", "Origin", "http://tools.example"); w.Code != 201 {
		t.Errorf("a token, which no site has by itself: %d", w.Code)
	}
}

// TestOperatorNeedsAToken for every page and all data, whoever asks; without any
// configured, only this machine is answered, at the pages too.
func TestOperatorNeedsAToken(t *testing.T) {
	t.Parallel()
	guarded, open := newOperator(t, token("ada", "token of ada")), newOperator(t)
	for _, e := range guarded.endpoints() {
		path := AdminPath + strings.ReplaceAll(e.path, "{id}", "key_file")
		for _, from := range []string{"127.0.0.1:5", "192.0.2.1:5"} {
			if w := guarded.ask(e.method, path, nil, "RemoteAddr", from); w.Code != 401 {
				t.Errorf("%s %s from %s without a token: %d", e.method, path, from, w.Code)
			}
		}
		if w := open.ask(e.method, path, nil, "RemoteAddr", "192.0.2.1:5"); w.Code != 403 {
			t.Errorf("%s %s from elsewhere: %d", e.method, path, w.Code)
		}
	}
	for _, path := range []string{"/dashboard", "/dashboard/keys", "/dashboard/keys/key_file"} {
		if w := guarded.ask("GET", path, nil); w.Code != 303 || w.Header().Get("Location") != "/dashboard/signin" {
			t.Errorf("%s without a session: %d %v", path, w.Code, w.Header())
		}
		if w := open.ask("GET", path, nil); w.Code != 200 || strings.Contains(w.Body.String(), "Sign out") {
			t.Errorf("%s on this machine: %d %s", path, w.Code, w.Body)
		}
		for _, header := range [][]string{{"RemoteAddr", "192.0.2.1:5"}, {"X-Forwarded-For", "192.0.2.1"}} {
			if w := open.ask("GET", path, nil, header...); w.Code != 403 || !strings.Contains(w.Body.String(), "configure a token") || strings.Contains(w.Body.String(), "<form") {
				t.Errorf("%s, %v: %d %s", path, header, w.Code, w.Body)
			}
		}
	}
	for method, path := range map[string]string{"GET": "/dashboard/signin", "POST": "/dashboard/session"} {
		if w := open.ask(method, path, nil); w.Code != 303 || w.Header().Get("Location") != "/dashboard" || len(w.Result().Cookies()) != 0 {
			t.Errorf("%s %s, without any token configured: %d %v", method, path, w.Code, w.Header())
		}
		if w := open.ask(method, path, nil, "RemoteAddr", "192.0.2.1:5"); w.Code != 403 {
			t.Errorf("%s %s from elsewhere: %d", method, path, w.Code)
		}
	}
}

// TestWrongSignInsCountAsWrongTokens, and the other way round. A session goes on.
func TestWrongSignInsCountAsWrongTokens(t *testing.T) {
	t.Parallel()
	o := newOperator(t, token("ada", "token of ada"))
	cookie := o.signIn("token of ada")
	for i := range wrongTokensAtOnce {
		if i%2 == 0 {
			o.ask("POST", "/dashboard/session", url.Values{"token": {"wrong"}})
		} else {
			o.do("GET", "/keys", "", "Authorization", "Bearer wrong")
		}
	}
	w := o.ask("POST", "/dashboard/session", url.Values{"token": {"wrong"}})
	if w.Code != 429 || w.Header().Get("Retry-After") != "6" || !strings.Contains(w.Body.String(), "try again in 6 seconds") {
		t.Errorf("sign in: %d %v %s", w.Code, w.Header(), w.Body)
	}
	if w := o.do("GET", "/keys", "", "Authorization", "Bearer wrong"); w.Code != 429 {
		t.Errorf("a token: %d", w.Code)
	}
	if w := o.do("GET", "/keys", "", "Cookie", cookie); w.Code != 200 {
		t.Errorf("a session: %d", w.Code)
	}
	o.signIn("token of ada")
}

// TestOperatorPagesAreSecured: every page and every file comes with the policy, has
// nothing from elsewhere or within, and what it names is there. No answer has a secret.
func TestOperatorPagesAreSecured(t *testing.T) {
	t.Parallel()
	o := newOperator(t, token("ada", "token of ada"))
	cookie := o.signIn("token of ada")
	pages := []string{"/dashboard", "/dashboard/keys", "/dashboard/keys/key_file", "/dashboard/signin", "/dashboard/signin?over", "/dashboard/nothing"}
	names, err := newOperatorPages(o.Admin)
	if err != nil {
		t.Fatal(err)
	}
	paths := slices.Clone(pages)
	for name := range names.assets {
		paths = append(paths, "/dashboard/assets/"+name)
	}
	for _, path := range paths {
		w := o.ask("GET", path, nil, "Cookie", cookie)
		policy := w.Header().Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none'; script-src 'self'; style-src 'self';") || w.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %v", path, w.Header())
		}
		if (w.Code != 200) != (path == "/dashboard/nothing") {
			t.Errorf("%s: %d", path, w.Code)
		}
		for _, secret := range []string{"token of ada", fmt.Sprintf("%x", token("", "token of ada").Hash), hashOf(t, "sk-in-file").String(), "sk-in-file"} {
			if strings.Contains(w.Body.String()+fmt.Sprint(w.Header()), secret) {
				t.Errorf("%s has a secret", path)
			}
		}
	}
	for _, path := range pages {
		text := o.ask("GET", path, nil, "Cookie", cookie).Body.String()
		for _, never := range []string{"<style", " style=", "<script>", " onclick=", "http://", "https://", "//"} {
			if strings.Contains(text, never) {
				t.Errorf("%s has %s", path, never)
			}
		}
		for part := range strings.SplitSeq(text, `"`) {
			if strings.HasPrefix(part, "/dashboard/assets/") && o.ask("GET", part, nil).Code != 200 {
				t.Errorf("%s: there is no %s", path, part)
			}
		}
	}
	for name, a := range names.assets {
		for line := range strings.SplitSeq(string(a.content), "\n") {
			if _, from, ok := strings.Cut(line, ` from "./`); ok && names.assets[strings.TrimSuffix(from, `";`)].content == nil {
				t.Errorf("%s: there is no %s", name, from)
			}
		}
	}
}
