package web

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
)

// TestSessionCookie cannot be read by scripts, sent from other sites or over plain HTTP
// where the site has TLS, and tells neither the key nor its hash.
func TestSessionCookie(t *testing.T) {
	t.Parallel()
	c, _, accounts := newCustomers(t, func() time.Time { return noon })
	for proto, secure := range map[string]bool{"https": true, "http": false} {
		w := post(c, "/dashboard/session", url.Values{"key": {"sk-a"}}, "X-Forwarded-Proto", proto)
		k := w.Result().Cookies()[0]
		if k.Name != "tiergate_session" || k.Path != "/dashboard" || !k.HttpOnly || k.SameSite != http.SameSiteStrictMode || k.Secure != secure || k.MaxAge != 12*3600 {
			t.Errorf("%s: %+v", proto, k)
		}
		var s keySession
		r := httptest.NewRequest(http.MethodGet, "/dashboard", nil)
		r.AddCookie(k)
		hash := accounts.Keys.ByID("key_a").Hash.String()
		if !c.dashboard.sessions.read(r, &s) || s.KeyID != "key_a" || len(s.Opened) != 32 || strings.Contains(hash, s.Opened) {
			t.Errorf("%+v of %s", s, hash)
		}
	}
}

// TestSessionsEndByThemselves: a cookie that a browser has kept for longer opens nothing.
func TestSessionsEndByThemselves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSessions("tiergate_session", "/dashboard", []byte(strings.Repeat("x", 32)))
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/dashboard", nil)
		if err := s.begin(w, r, keySession{"key_a", "x"}); err != nil {
			t.Fatal(err)
		}
		r.AddCookie(w.Result().Cookies()[0])
		time.Sleep(12 * time.Hour)
		if !s.read(r, new(keySession)) {
			t.Error("it is over before 12 hours are")
		}
		time.Sleep(time.Second)
		if s.read(r, new(keySession)) {
			t.Error("it is good after 12 hours")
		}
	})
}

// TestSessions see what is their own key's, until they are signed out.
func TestSessions(t *testing.T) {
	t.Parallel()
	c, _, _ := newCustomers(t, func() time.Time { return noon })
	c.kept = someUsage()
	cookie := signedIn(t, c, "sk-a")
	if w := get(c, "/dashboard", "Cookie", cookie); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "customer.js") {
		t.Errorf("the page: %d %s", w.Code, w.Body)
	}
	for path, want := range map[string]string{
		"/dashboard/api/limits?key_id=key_b": `{"key_id":"key_a","name":"Ada"`,
		"/dashboard/api/usage":               `{"key_id":"key_a","from":1772280000`,
		"/dashboard/api/refusals": `{"key_id":"key_a","refusals":[` +
			`{"at":1772366430,"status":429,"resource":"chat","limit":"requests_per_minute","used":10,"max":10,"asked":1,"fits_at":1772366460},` +
			`{"at":1772362830,"status":413,"resource":"chat","limit":"tokens_per_minute","used":3,"max":1000,"asked":2000,"fits_at":null}]}`,
	} {
		// The key of a header is no matter here: the page belongs to the session.
		w := get(c, path, "Cookie", cookie, "X-Api-Key", "sk-b")
		if w.Code != http.StatusOK || !strings.HasPrefix(w.Body.String(), want) || strings.Contains(w.Body.String(), "key_b") || strings.Contains(w.Body.String(), "7777") {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	if w := get(c, "/dashboard/api/usage?key_id=key_b", "Cookie", cookie); w.Code != http.StatusBadRequest {
		t.Errorf("asking for another key: %d %s", w.Code, w.Body)
	}
	if w := get(c, "/v1/limits", "Cookie", cookie); w.Code != http.StatusUnauthorized {
		t.Errorf("a session at the API: %d", w.Code)
	}
	w := post(c, "/dashboard/signout", nil, "Cookie", cookie)
	if k := w.Result().Cookies(); w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/dashboard/signin" || len(k) != 1 || k[0].MaxAge >= 0 || k[0].Value != "" || k[0].Path != "/dashboard" {
		t.Errorf("sign out: %d %v", w.Code, w.Header())
	}
	if w := get(c, "/dashboard/signin?over"); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "Your session is over.") {
		t.Errorf("the sign-in: %d %s", w.Code, w.Body)
	}
}

// wantOver checks that a cookie opens nothing, and is taken back.
func wantOver(t *testing.T, c *Customers, what, cookie string) {
	t.Helper()
	for path, code := range map[string]int{
		"/dashboard": http.StatusSeeOther, "/dashboard/api/limits": http.StatusUnauthorized, "/dashboard/api/usage": http.StatusUnauthorized, "/dashboard/api/refusals": http.StatusUnauthorized,
	} {
		w := get(c, path, "Cookie", cookie)
		k := w.Result().Cookies()
		if w.Code != code || strings.Contains(w.Body.String(), "key_") || len(k) != 1 || k[0].MaxAge >= 0 {
			t.Errorf("%s: %s: %d %v %s", what, path, w.Code, w.Header(), w.Body)
		}
		if to := w.Header().Get("Location"); code == http.StatusSeeOther && to != "/dashboard/signin?over" {
			t.Errorf("%s leads to %s", what, to)
		}
	}
}

// TestForgedSessions open nothing: unsigned, changed, of another secret, of another
// cookie, and one that names a key but not what opens it.
func TestForgedSessions(t *testing.T) {
	t.Parallel()
	c, _, accounts := newCustomers(t, func() time.Time { return noon })
	good := signedIn(t, c, "sk-a")
	sign := func(s *sessions, session keySession) string {
		w := httptest.NewRecorder()
		if err := s.begin(w, httptest.NewRequest(http.MethodPost, "/", nil), session); err != nil {
			t.Fatal(err)
		}
		return "tiergate_session=" + w.Result().Cookies()[0].Value
	}
	ofA := keySession{"key_a", c.dashboard.fingerprint(accounts.Keys.ByID("key_a").Hash)}
	own := c.dashboard.sessions
	if w := get(c, "/dashboard", "Cookie", sign(own, ofA)); w.Code != http.StatusOK {
		t.Fatalf("a good one: %d", w.Code)
	}
	for what, cookie := range map[string]string{
		"empty":               "tiergate_session=",
		"a key":               "tiergate_session=sk-a",
		"changed":             good[:len(good)-6] + "AAAAAA",
		"of another secret":   sign(newSessions("tiergate_session", "/dashboard", []byte(strings.Repeat("x", 32))), ofA),
		"of another cookie":   sign(newSessions("tiergate_operator", "/dashboard", c.dashboard.secret), ofA),
		"another key":         sign(own, keySession{"key_b", ofA.Opened}),
		"without fingerprint": sign(own, keySession{"key_a", ""}),
		"of no key":           sign(own, keySession{"key_nobody", ofA.Opened}),
		"of the hash itself":  sign(own, keySession{"key_a", accounts.Keys.ByID("key_a").Hash.String()}),
	} {
		wantOver(t, c, what, cookie)
	}
	w := get(c, "/dashboard")
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/dashboard/signin" || len(w.Result().Cookies()) != 0 {
		t.Errorf("nobody: %d %v", w.Code, w.Header())
	}
}

// TestSessionsEndWithTheKey: at once when it is revoked, expires, is no demo key that
// is allowed, or is gone, and when the secret that opened it is rotated out.
func TestSessionsEndWithTheKey(t *testing.T) {
	t.Parallel()
	hash := func(secret string) apikey.Hash {
		key, err := apikey.Parse(secret)
		if err != nil {
			t.Fatal(err)
		}
		return key.Hash()
	}
	grace := noon.Add(time.Hour)
	plain := apikey.Record{ID: "key_x", Hash: hash("sk-x"), Tier: "free", Revision: 1}
	for what, change := range map[string]func(*apikey.Record){
		"revoked": func(r *apikey.Record) { r.Revoked = true },
		"expired": func(r *apikey.Record) { r.Expires = noon },
		"demo":    func(r *apikey.Record) { r.Demo = true },
		"rotated": func(r *apikey.Record) { r.Hash = hash("sk-new") },
		"rotated long ago": func(r *apikey.Record) {
			r.Hash, r.Former = hash("sk-new"), &apikey.Former{Hash: hash("sk-x"), Until: noon}
		},
	} {
		c, _, accounts := newCustomers(t, func() time.Time { return noon })
		stored := apikey.NewStored(nil)
		accounts.Keys.Stored = stored // before anyone asks
		stored.Apply([]apikey.Record{plain})
		cookie := signedIn(t, c, "sk-x")
		if w := get(c, "/dashboard/api/limits", "Cookie", cookie); w.Code != http.StatusOK {
			t.Errorf("before it is %s: %d", what, w.Code)
		}
		changed := plain
		changed.Revision = 2
		change(&changed)
		stored.Apply([]apikey.Record{changed})
		wantOver(t, c, what, cookie)
		stored.Replace(nil)
		wantOver(t, c, "gone", cookie)
	}

	now := noon
	c, _, accounts := newCustomers(t, func() time.Time { return now })
	accounts.Keys.Stored = apikey.NewStored(nil)
	accounts.Keys.Stored.Apply([]apikey.Record{plain})
	old := signedIn(t, c, "sk-x")
	rotated := plain
	rotated.Revision, rotated.Hash, rotated.Former = 2, hash("sk-new"), &apikey.Former{Hash: plain.Hash, Until: grace}
	accounts.Keys.Stored.Apply([]apikey.Record{rotated})
	fresh := signedIn(t, c, "sk-new")
	for _, cookie := range []string{old, fresh} {
		if w := get(c, "/dashboard/api/limits", "Cookie", cookie); w.Code != http.StatusOK {
			t.Errorf("in the time of grace: %d %s", w.Code, w.Body)
		}
	}
	now = grace
	wantOver(t, c, "after the time of grace", old)
	if w := get(c, "/dashboard/api/limits", "Cookie", fresh); w.Code != http.StatusOK {
		t.Errorf("of the new secret: %d %s", w.Code, w.Body)
	}
	file, faults := apikey.NewDirectory([]apikey.Record{{ID: "key_y", Hash: hash("sk-new"), Tier: "free"}}, nil)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	changed := *accounts
	changed.Keys.File = file
	c.Use(&changed)
	wantOver(t, c, "the file says that the secret is another key's", fresh)
}

// TestKeysAreUnread: until the store's keys have been read, whoever has one is told to
// come again, and stays signed in.
func TestKeysAreUnread(t *testing.T) {
	t.Parallel()
	c, _, accounts := newCustomers(t, func() time.Time { return noon })
	key := apikey.New()
	read := apikey.NewStored(nil)
	if faults := read.Replace([]apikey.Record{{ID: "key_stored", Hash: key.Hash(), Tier: "free", Revision: 1}}); len(faults) > 0 {
		t.Fatal(faults)
	}
	use := func(stored *apikey.Stored) {
		changed := *accounts
		changed.Keys.Stored = stored
		c.Use(&changed)
	}
	use(read)
	cookie := signedIn(t, c, key.Reveal())
	use(apikey.NewStored(nil))
	for what, w := range map[string]*httptest.ResponseRecorder{
		"the API":        get(c, "/v1/limits", "X-Api-Key", key.Reveal()),
		"the sign-in":    post(c, "/dashboard/session", url.Values{"key": {key.Reveal()}}),
		"the page":       get(c, "/dashboard", "Cookie", cookie),
		"the page's own": get(c, "/dashboard/api/limits", "Cookie", cookie),
	} {
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "1" || len(w.Result().Cookies()) > 0 {
			t.Errorf("%s: %d %v %s", what, w.Code, w.Header(), w.Body)
		}
	}
	if w := get(c, "/v1/limits", "X-Api-Key", "sk-a"); w.Code != http.StatusOK {
		t.Errorf("a key of the file: %d %s", w.Code, w.Body)
	}
	use(read)
	if w := get(c, "/dashboard/api/limits", "Cookie", cookie); w.Code != http.StatusOK {
		t.Errorf("when they have been read: %d %s", w.Code, w.Body)
	}
}
