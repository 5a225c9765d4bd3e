package web

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// post sends a form as a browser does, from an address.
func post(c *Customers, path string, form url.Values, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	c.Handler().ServeHTTP(w, r)
	return w
}

// signedIn returns the header Cookie of a browser that has signed in with a key.
func signedIn(t *testing.T, c *Customers, secret string) string {
	t.Helper()
	w := post(c, "/dashboard/session", url.Values{"key": {secret}})
	cookies := w.Result().Cookies()
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/dashboard" || len(cookies) != 1 {
		t.Fatalf("sign in: %d %v %s", w.Code, w.Header(), w.Body)
	}
	return cookies[0].Name + "=" + cookies[0].Value
}

// TestSignIn begins a session for one key that may be used, and for nothing else.
func TestSignIn(t *testing.T) {
	t.Parallel()
	now := noon
	c, _, _ := newCustomers(t, func() time.Time { return now })
	for name, want := range map[string]struct {
		keys []string
		code int
		text string
	}{
		"right":          {[]string{"sk-a"}, 303, ""},
		"pasted":         {[]string{" sk-a\r\n"}, 303, ""},
		"twice the same": {[]string{"sk-a", "sk-a"}, 303, ""},
		"none":           {nil, 401, "Please enter your API key."},
		"empty":          {[]string{" "}, 401, "Please enter your API key."},
		"wrong":          {[]string{"sk-nobody"}, 401, "Invalid API key."},
		"no key at all":  {[]string{"<script>"}, 401, "Invalid API key."},
		"malformed":      {[]string{"a b"}, 401, "Invalid API key."},
		"two":            {[]string{"sk-a", "sk-b"}, 401, "carries more than one"},
		"two in one":     {[]string{"sk-a,sk-b"}, 401, "Invalid API key."},
		"demo":           {[]string{"sk-demo"}, 401, "Invalid API key."},
		"expired":        {[]string{"sk-old"}, 401, "This API key has expired."},
		"revoked":        {[]string{"sk-gone"}, 401, "This API key has been revoked."},
		"far too long":   {[]string{strings.Repeat("k", maxForm)}, 400, "cannot be read"},
	} {
		now = now.Add(time.Minute)
		w := post(c, "/dashboard/session", url.Values{"key": want.keys})
		if w.Code != want.code || !strings.Contains(w.Body.String(), want.text) || (len(w.Result().Cookies()) == 1) != (want.code == 303) {
			t.Errorf("%s: %d %v %s", name, w.Code, w.Header(), w.Body)
		}
		for _, secret := range append(want.keys, "<script>") {
			if secret = strings.TrimSpace(secret); secret != "" && strings.Contains(w.Body.String()+w.Header().Get("Location"), secret) {
				t.Errorf("%s: the answer repeats what was sent: %v %s", name, w.Header(), w.Body)
			}
		}
	}
	if w := post(c, "/dashboard/session?key=sk-a", nil); w.Code != http.StatusUnauthorized {
		t.Errorf("a key in the URL: %d", w.Code)
	}
	if w := get(c, "/dashboard/session?key=sk-a"); w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/dashboard/signin" || len(w.Result().Cookies()) != 0 {
		t.Errorf("GET: %d %v", w.Code, w.Header())
	}
}

// TestGuesses: an address that fails too often has to wait to fail again, and others do
// not. Who has the right key need not wait.
func TestGuesses(t *testing.T) {
	t.Parallel()
	now := noon
	c, _, _ := newCustomers(t, func() time.Time { return now })
	try := func(from, key string) *httptest.ResponseRecorder {
		return post(c, "/dashboard/session", url.Values{"key": {key}}, "X-Forwarded-For", "1.2.3.4, "+from)
	}
	for range 3 * guessesAtOnce {
		if w := try("10.0.0.1", "sk-a"); w.Code != http.StatusSeeOther {
			t.Fatalf("the right key: %d", w.Code)
		}
	}
	for range guessesAtOnce {
		if w := try("10.0.0.1", "sk-guess"); w.Code != http.StatusUnauthorized {
			t.Fatalf("a guess: %d", w.Code)
		}
	}
	w := try("10.0.0.1", "sk-guess")
	if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "10" || !strings.Contains(w.Body.String(), "try again in 10 seconds") || len(w.Result().Cookies()) != 0 {
		t.Errorf("one more: %d %v %s", w.Code, w.Header(), w.Body)
	}
	if w := try("10.0.0.1", "sk-a"); w.Code != http.StatusSeeOther {
		t.Errorf("the right key, from the address of the guesses: %d", w.Code)
	}
	if w := try("10.0.0.2", "sk-guess"); w.Code != http.StatusUnauthorized {
		t.Errorf("another address: %d", w.Code)
	}
	now = now.Add(10 * time.Second)
	if w := try("10.0.0.1", "sk-guess"); w.Code != http.StatusUnauthorized {
		t.Errorf("later: %d", w.Code)
	}
	for i := range 2 * visitors {
		c.dashboard.guesses.wait(strconv.Itoa(i), now)
	}
	if n := len(c.dashboard.guesses.who); n != visitors {
		t.Errorf("%d addresses are remembered, want %d", n, visitors)
	}
}

// TestClientAddress is what the nearest proxy has appended.
func TestClientAddress(t *testing.T) {
	t.Parallel()
	for want, from := range map[string][]string{ // the connection, then X-Forwarded-For
		"192.0.2.1":         {"192.0.2.1:1234"},
		"10.0.0.1":          {"192.0.2.1:1234", "10.0.0.1"},
		"10.0.0.2":          {"192.0.2.1:1234", "10.0.0.9, 10.0.0.2"},
		"10.0.0.3":          {"192.0.2.1:1234", "10.0.0.9", "10.0.0.8,10.0.0.3"},
		"10.0.0.4":          {"192.0.2.1:1234", "::ffff:10.0.0.4"},
		"2001:db8:1:2::/64": {"[2001:db8:1:2:3:4:5:6]:1234"},
		"2001:db8:1:3::/64": {"192.0.2.1:1234", "2001:db8:1:3::1%eth0"},
		"unknown":           {"@"},
	} {
		r := httptest.NewRequest(http.MethodPost, "/dashboard/session", nil)
		r.RemoteAddr = from[0]
		r.Header["X-Forwarded-For"] = from[1:]
		if have := clientAddress(r); have != want {
			t.Errorf("%v: %s, want %s", from, have, want)
		}
	}
}

// TestOtherSites cannot sign anyone in or out.
func TestOtherSites(t *testing.T) {
	t.Parallel()
	c, _, _ := newCustomers(t, func() time.Time { return noon })
	for _, path := range []string{"/dashboard/session", "/dashboard/signout"} {
		for _, headers := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "https://evil.example"}, {"Origin", "null"}} {
			w := post(c, path, url.Values{"key": {"sk-a"}}, headers...)
			if w.Code != http.StatusForbidden || len(w.Result().Cookies()) != 0 {
				t.Errorf("%s %v: %d %v", path, headers, w.Code, w.Header())
			}
		}
		for _, headers := range [][]string{{"Sec-Fetch-Site", "same-origin"}, {"Origin", "http://example.com"}} {
			if w := post(c, path, url.Values{"key": {"sk-a"}}, headers...); w.Code != http.StatusSeeOther {
				t.Errorf("%s %v: %d %v", path, headers, w.Code, w.Header())
			}
		}
	}
}

// TestPagesAreSecured: every answer below /dashboard tells browsers to take nothing from
// elsewhere or from within the page, pages are not kept, and files only by their content.
func TestPagesAreSecured(t *testing.T) {
	t.Parallel()
	now := noon
	c, _, _ := newCustomers(t, func() time.Time { return now })
	cookie := signedIn(t, c, "sk-a")
	paths := []string{"/dashboard", "/dashboard/", "/dashboard/signin", "/dashboard/api/limits", "/dashboard/api/usage", "/dashboard/api/refusals", "/dashboard/nothing", "/dashboard/assets/nothing", "/dashboard/assets/signin.html"}
	for name := range c.dashboard.assets {
		paths = append(paths, "/dashboard/assets/"+name)
	}
	for _, path := range paths {
		for _, headers := range [][]string{nil, {"Cookie", cookie}} {
			now = now.Add(time.Second)
			w := get(c, path, headers...)
			h := w.Header()
			policy := strings.Split(h.Get("Content-Security-Policy"), "; ")
			for _, part := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'"} {
				if !slices.Contains(policy, part) {
					t.Errorf("%s: %d: no %s in %v", path, w.Code, part, policy)
				}
			}
			asset := strings.HasPrefix(path, "/dashboard/assets/") && w.Code == http.StatusOK
			caching := map[bool]string{true: "no-cache", false: "no-store"}[asset]
			if strings.Contains(h.Get("Content-Security-Policy"), "unsafe") || h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Referrer-Policy") != "same-origin" || h.Get("Cache-Control") != caching {
				t.Errorf("%s: %d %v", path, w.Code, h)
			}
			if asset && get(c, path, "If-None-Match", h.Get("ETag")).Code != http.StatusNotModified {
				t.Errorf("%s: the same content is sent again", path)
			}
			if strings.Contains(w.Body.String(), "sk-") {
				t.Errorf("%s has a secret: %s", path, w.Body)
			}
		}
	}
}

// TestPagesAreWhole: what they refer to is there, and there is no script or style in
// them, which the browser would refuse.
func TestPagesAreWhole(t *testing.T) {
	t.Parallel()
	c, _, _ := newCustomers(t, func() time.Time { return noon })
	cookie := signedIn(t, c, "sk-a")
	for path, kind := range map[string]string{
		"shared.js": "text/javascript; charset=utf-8", "shared.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml", "uplot/LICENSE": "text/plain; charset=utf-8",
	} {
		if w := get(c, "/dashboard/assets/"+path); w.Code != http.StatusOK || w.Header().Get("Content-Type") != kind || w.Body.Len() == 0 {
			t.Errorf("%s: %d %v", path, w.Code, w.Header())
		}
	}
	for _, path := range []string{"/dashboard", "/dashboard/signin", "/dashboard/signin?over"} {
		text := get(c, path, "Cookie", cookie).Body.String()
		for _, never := range []string{"<style", " style=", "<script>", " onclick=", "http://", "https://", "//"} {
			if strings.Contains(strings.ReplaceAll(text, "w3.org", ""), never) {
				t.Errorf("%s has %s", path, never)
			}
		}
		for part := range strings.SplitSeq(text, `"`) {
			if strings.HasPrefix(part, "/dashboard/assets/") && get(c, part).Code != http.StatusOK {
				t.Errorf("%s: there is no %s", path, part)
			}
		}
	}
	for name, a := range c.dashboard.assets {
		for line := range strings.SplitSeq(string(a.content), "\n") {
			if _, from, ok := strings.Cut(line, ` from "./`); ok && c.dashboard.assets[strings.TrimSuffix(from, `";`)].content == nil {
				t.Errorf("%s: there is no %s", name, from)
			}
		}
	}
}
