package e2e

import (
	"context"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/tiergate/tiergate/internal/devstack"
)

// view opens one of the dashboard's views.
func (b *tab) view(name string) {
	b.t.Helper()
	b.do("open "+name, chromedp.Click(`nav a[href="#`+name+`"]`), chromedp.WaitVisible("#view-"+name+" .body"))
}

// dark chooses how the page looks.
func (b *tab) dark(on bool) {
	b.t.Helper()
	scheme := "light"
	if on {
		scheme = "dark"
	}
	b.media("prefers-color-scheme", scheme)
}

// media says how the page's reader wants to see it: the one feature that the page may ask for.
func (b *tab) media(feature, value string) {
	b.t.Helper()
	b.do("choose "+value, chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: feature, Value: value}},
		})
		return err
	}))
}

// pictures saves the view as it is on a desk and on a phone, in light and in dark. None
// keeps anybody out, and a phone need not be pushed aside.
func (b *tab) pictures(name string) {
	b.t.Helper()
	look := func(name string) {
		b.t.Helper()
		b.save(name)
		for _, barrier := range b.barriers() {
			b.t.Errorf("%s: %s", name, barrier)
		}
	}
	look(name)
	b.dark(true)
	b.save(name + "-dark")
	b.size(390, 844)
	wide := 0
	if !trueWithin(browserPatience, func() bool { wide = evaluate[int](b, "document.documentElement.scrollWidth"); return wide <= 390 }) {
		b.t.Errorf("%s: %d pixels wide on a phone of 390", name, wide)
	}
	look(name + "-phone-dark")
	b.dark(false)
	b.save(name + "-phone")
	b.size(1280, 900)
}

// TestCustomersDashboard: a person signs in with a key, sees its calls appear, meets a
// 429 and finds it listed. An operator revokes the key: the next call is refused, and
// the page leads to the sign-in. Nothing is asked of anybody else.
func TestCustomersDashboard(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{Store: "redis"})
	secret, id := createKey(t, s, "--tier", "free", "--name", "Ada's laptop", "--resources", "chat,images")
	b := browse(t)

	b.do("open the dashboard", chromedp.Navigate("http://"+s.API+"/dashboard"), chromedp.WaitVisible("input[name=key]"))
	b.pictures("customer-sign-in")
	b.do("try a wrong key", chromedp.SendKeys("input[name=key]", "sk-wrong-key"), chromedp.Submit("input[name=key]"), chromedp.WaitVisible("#problem"))
	b.awaitText("#problem", "Invalid API key.")
	b.save("customer-sign-in-wrong")
	b.signIn(s, secret)
	b.do("open what a failed sign-in leaves in the address bar", chromedp.Navigate("http://"+s.API+"/dashboard/session"), chromedp.WaitVisible("#view-now .body"))
	b.awaitText("#account", "Ada's laptop")
	b.awaitText("#account", "chat, images")
	b.awaitText("#limits", "0 of 10 used")
	b.pictures("customer-now-empty")
	b.view("usage")
	b.awaitText("#no-usage", "No requests yet")
	b.pictures("customer-usage-empty")
	b.view("refused")
	b.awaitText("#refusals", "No request got 429 or 413 lately.")
	b.pictures("customer-refused-empty")

	freshMinute(t, 25*time.Second)
	refused := 0
	for range 13 {
		if do(t, s, call{key: secret, header: http.Header{"X-Mock-Usage": {"700,1300"}}}).StatusCode == http.StatusTooManyRequests {
			refused++
		}
	}
	if refused != 3 {
		t.Errorf("%d refused, want 3", refused)
	}
	if r := do(t, s, call{key: secret, path: "/v1/audio/speech"}); r.StatusCode != http.StatusForbidden {
		t.Errorf("a resource that the key may not use: %s", r.Status)
	}
	do(t, s, call{key: secret, body: `{"model": "mock-1", "max_tokens": 99999999}`})
	b.view("now")
	b.awaitText("#limits", "10 of 10 used")
	b.awaitText("#limits", "20,000 of 40,000 used")
	b.pictures("customer-now")
	b.view("refused")
	b.awaitText("#refusals", "Requests per minute")
	b.awaitText("#refusals", "The latest 4 requests")
	b.awaitText("#refusals", "1 request was refused for other reasons: 1 × No leave for the resource (403).")
	rows := evaluate[string](b, `[...document.querySelectorAll("#refusals tbody tr")].map((r) => [...r.cells].map((c) => c.innerText).join("|")).join("\n")`)
	want413, want429 := regexp.MustCompile(`(?m)\|Tokens per minute \(413\)\|–\|[\d,]+\|Never: the whole limit is 40,000$`), regexp.MustCompile(`(?m)^3 × .*\|chat\|Requests per minute \(429\)\|10 of 10\|1\|`)
	if !want413.MatchString(rows) || !want429.MatchString(rows) || strings.Count(rows, "\n") != 1 {
		t.Errorf("refusals are listed as\n%s", rows)
	}
	b.pictures("customer-refused")
	b.view("usage")
	want := map[string]int64{"Requests": 15, "Admitted": 10, "Over a limit (429)": 3, "Refused otherwise": 2, "Input tokens": 7000, "Output tokens": 13000}
	if !trueWithin(browserPatience, func() bool { return equal(b.totals(), want) }) {
		t.Errorf("totals %v, want %v", b.totals(), want)
	}
	for _, step := range []string{"minute", "hour", "day"} {
		b.do("by "+step, chromedp.Click(`input[name=step][value=`+step+`]`))
		if !trueWithin(browserPatience, func() bool { return equal(b.totals(), want) }) {
			t.Errorf("by %s: totals %v, want %v", step, b.totals(), want)
		}
		b.awaitText("#totals", "1 × No leave for the resource (403)\n1 × Too large for the limit (413)")
		b.pictures("customer-usage-" + step)
	}
	b.checkCookie("tiergate_session", secret)

	b.view("now")
	admin(t, s, "keys", "revoke", id)
	revoked := time.Now()
	if r := do(t, s, call{key: secret}); r.StatusCode != http.StatusUnauthorized {
		t.Errorf("after the revocation: %s", r.Status)
	}
	b.awaitText("body", "Your session is over")
	t.Logf("the page left %s after the revocation", time.Since(revoked))
	b.save("customer-session-over")
	if hosts := b.hosts(); !slices.Equal(hosts, []string{s.API}) {
		t.Errorf("asked %q, want %s alone", hosts, s.API)
	}
}

func equal(a, b map[string]int64) bool {
	if len(a) != len(b) {
		return false
	}
	for name, n := range a {
		if b[name] != n {
			return false
		}
	}
	return true
}

// checkCookie: scripts cannot see the session, and it is not the secret.
func (b *tab) checkCookie(name, secret string) {
	b.t.Helper()
	if seen := evaluate[string](b, "document.cookie + location.href + JSON.stringify(localStorage)"); strings.Contains(seen, name) || strings.Contains(seen, secret) {
		b.t.Errorf("scripts see %s", seen)
	}
}

// cookie signs in by the form and returns the session's cookie.
func cookie(t *testing.T, s *devstack.Stack, key string) *http.Cookie {
	t.Helper()
	form := strings.NewReader(url.Values{"key": {key}}.Encode())
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.API+"/dashboard/session", form)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := (&http.Transport{}).RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	answer := read(t, response)
	for _, c := range answer.Cookies() {
		if c.Name == "tiergate_session" && c.HttpOnly && c.SameSite == http.SameSiteStrictMode && c.Path == "/dashboard" {
			return c
		}
	}
	t.Fatalf("no session: %s %v %s", answer.Status, answer.Header, answer.body)
	return nil
}

// TestOnlyOneself: with another's key one sees the other's and nothing else, without a
// key or with a forged session nothing, and the operators' side not at all.
func TestOnlyOneself(t *testing.T) {
	t.Parallel()
	one, two := fleet(t, devstack.Options{})
	ada, adaID := createKey(t, one, "--tier", "pro", "--id", "key_ada")
	bob, _ := createKey(t, one, "--tier", "free", "--id", "key_bob")
	inForce(t, two, bob, http.StatusOK)
	for range 3 {
		do(t, one, call{key: ada})
	}
	session, others := cookie(t, one, ada), cookie(t, one, bob)

	get := func(s *devstack.Stack, path, key string, c *http.Cookie) reply {
		h := http.Header{}
		if c != nil {
			h.Set("Cookie", c.Name+"="+c.Value)
		}
		return do(t, s, call{method: http.MethodGet, path: path, key: key, header: h})
	}
	// A session is good at every instance, and shows its own key.
	for _, path := range []string{"/dashboard/api/limits", "/dashboard/api/usage", "/dashboard/api/refusals"} {
		for _, s := range []*devstack.Stack{one, two} {
			if r := get(s, path, "", session); r.StatusCode != http.StatusOK || !strings.Contains(r.body, `"key_id":"key_ada"`) {
				t.Errorf("%s with one's own session: %s %s", path, r.Status, r.body)
			}
			if r := get(s, path, "", others); r.StatusCode != http.StatusOK || strings.Contains(r.body, "key_ada") {
				t.Errorf("%s with another's session: %s %s", path, r.Status, r.body)
			}
		}
		forged := *session
		forged.Value = session.Value[:len(session.Value)-4] + "AAAA"
		spliced := *session
		spliced.Value = session.Value[:len(session.Value)/2] + others.Value[len(others.Value)/2:]
		for what, c := range map[string]*http.Cookie{"none": nil, "forged": &forged, "spliced": &spliced, "the key itself": {Name: session.Name, Value: ada}, "the ID": {Name: session.Name, Value: adaID}} {
			if r := get(one, path, "", c); r.StatusCode != http.StatusUnauthorized || strings.Contains(r.body, "key_ada") {
				t.Errorf("%s with session %s: %s %s", path, what, r.Status, r.body)
			}
		}
		if r := get(one, path, ada, nil); r.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s with a key and no session: %s", path, r.Status)
		}
	}
	for _, path := range []string{"/v1/limits", "/v1/usage"} {
		if r := get(one, path, bob, nil); r.StatusCode != http.StatusOK || strings.Contains(r.body, "key_ada") {
			t.Errorf("%s with another's key: %s %s", path, r.Status, r.body)
		}
		for what, r := range map[string]reply{"no key": get(one, path, "", nil), "a wrong key": get(one, path, "sk-nobody", nil), "a session": get(one, path, "", session)} {
			if r.StatusCode != http.StatusUnauthorized {
				t.Errorf("%s with %s: %s", path, what, r.Status)
			}
		}
		if r := get(one, path+"?key_id=key_ada", bob, nil); strings.Contains(r.body, "key_ada") {
			t.Errorf("%s of another: %s", path, r.body)
		}
	}
	// The operators' side: not through Envoy, and not with a customer's key or session.
	if r := get(one, "/admin/v1/keys", ada, session); r.StatusCode != http.StatusNotFound {
		t.Errorf("the admin API through Envoy: %s", r.Status)
	}
	for _, path := range []string{
		"/admin/v1/keys", "/admin/v1/keys/key_ada", "/admin/v1/keys/key_ada/usage", "/admin/v1/keys/key_ada/limits",
		"/admin/v1/keys/key_ada/refusals", "/admin/v1/keys/export", "/admin/v1/audit", "/admin/v1/tiers",
		"/admin/v1/instances", "/admin/v1/top", "/admin/v1/near", "/admin/v1/fleet/usage",
	} {
		for _, h := range []http.Header{{}, {"Authorization": {"Bearer " + ada}}, {"Cookie": {session.Name + "=" + session.Value}}, {"Cookie": {"tiergate_operator=" + session.Value}}} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+one.Options.Operator+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header = h
			response, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			if answer := read(t, response); answer.StatusCode != http.StatusUnauthorized && answer.StatusCode != http.StatusTooManyRequests {
				t.Errorf("%s with %v: %s", path, h, answer.Status)
			}
		}
	}
}

// operate opens a page of the operators' dashboard.
func (b *tab) operate(s *devstack.Stack, path, wait string) {
	b.t.Helper()
	b.do("open "+path, chromedp.Navigate("http://"+s.Options.Operator+path), chromedp.WaitVisible(wait))
}

// TestOperatorsDashboard: an operator signs in with the admin token, sees the fleet's
// requests, finds a key and revokes it on its page: the key's next call is refused.
func TestOperatorsDashboard(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{Store: "redis"})
	secret, id := createKey(t, s, "--tier", "free", "--name", "Bob's robot", "--owner", "ACME", "--resources", "chat,images")
	b := browse(t)
	b.operate(s, "/", "input[name=token]")
	b.pictures("operator-sign-in")
	b.do("sign in with a key of the API", chromedp.SendKeys("input[name=token]", secret), chromedp.Submit("input[name=token]"), chromedp.WaitVisible("#problem"))
	token := b.enterToken(s)
	b.awaitText("#top", "No") // requests yet
	b.pictures("operator-overview-empty")
	b.operate(s, "/dashboard/keys/"+id, "#record .body")
	b.awaitText("#key-title", "Bob's robot")
	b.awaitText("#no-usage", "No requests")
	b.pictures("operator-key-empty")

	freshMinute(t, 35*time.Second)
	for range 14 {
		do(t, s, call{key: secret, header: http.Header{"X-Mock-Usage": {"300,700"}}})
		do(t, s, call{key: "sk-demo-pro", path: "/v1/embeddings"})
		do(t, s, call{key: "sk-demo-enterprise", path: "/v1/images/generations"})
	}
	do(t, s, call{key: secret, path: "/v1/audio/speech"})
	do(t, s, call{key: "sk-demo-pro", body: `{"model": "mock-1", "max_tokens": 99999999}`})
	do(t, s, call{})
	b.awaitText("#refusals", "Requests per minute")
	b.awaitText("#limits", "10 of 10 used")
	b.awaitText("#events", "create")
	b.awaitText("#totals", "Output tokens")
	b.pictures("operator-key")
	b.operate(s, "/dashboard", "#now .body")
	b.awaitText("#top", "Bob's robot")
	b.awaitText("#near", "Bob's robot")
	b.awaitText("#refusals", "equests per minute")
	b.pictures("operator-overview")
	b.operate(s, "/dashboard/keys", "main table")
	b.awaitText("main", "ACME")
	b.pictures("operator-keys")
	b.operate(s, "/dashboard/keys?q=nobody", "main")
	b.awaitText("main", "No key")
	b.pictures("operator-keys-empty")

	admin(t, s, "keys", "override", id, "--per", "hour", "--max", "100", "--algorithm", "sliding")
	b.operate(s, "/dashboard/keys/"+id, "#revoke")
	b.awaitText("#limits", "sliding hour")
	b.awaitText("#limits", "Becomes free little by little")
	b.do("ask to revoke", chromedp.Click("#revoke"), chromedp.WaitVisible("#revoke-dialog[open]"))
	b.save("operator-revoke")
	if r := do(t, s, call{key: secret, path: "/v1/limits", method: http.MethodGet}); r.StatusCode != http.StatusOK {
		t.Errorf("before it is confirmed: %s", r.Status)
	}
	b.do("revoke", chromedp.SendKeys("#reason", "left the company"), chromedp.SendKeys("#confirm", id), chromedp.Click("#really"), chromedp.WaitNotVisible("#revoke-dialog"))
	b.awaitText("#events", "left the company")
	if r := do(t, s, call{key: secret}); r.StatusCode != http.StatusUnauthorized || errorCode(t, r) != "revoked_api_key" {
		t.Errorf("after the revocation: %s %s", r.Status, r.body)
	}
	b.awaitText("#limits", "Key revoked")
	if text := b.text("#limits"); strings.Contains(text, "OK") || strings.Contains(text, "left") {
		t.Errorf("limits of a revoked key: %s", text)
	}
	b.save("operator-key-revoked")
	b.checkCookie("tiergate_operator", token)
	if hosts := b.hosts(); !slices.Equal(hosts, []string{s.Options.Operator}) {
		t.Errorf("asked %q, want %s alone", hosts, s.Options.Operator)
	}
}

// TestOperatorsDashboardWithoutStore: while the store does not answer, the overview says
// so in the place of what was so before, also to whoever opens it only then.
func TestOperatorsDashboardWithoutStore(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{Store: "redis"})
	b := browse(t)
	b.signInOperator(s)
	b.awaitText("#figures", "Answers")
	b.awaitText("#now .fresh", "Live, updated")
	b.awaitText("#standing .fresh", "Live, updated")

	kill(t, s.Redis)
	b.awaitText("#figures", "■ Does not answer")
	for _, section := range []string{"#now", "#refused", "#standing"} {
		b.awaitText(section+" .fresh", "Stopped at")
	}
	if text := b.text("#now"); strings.Contains(text, "/s\n") || strings.Contains(text, "Answers") {
		t.Errorf("without a store: %s", text)
	}
	b.pictures("operator-overview-away")
	b.operate(s, "/dashboard", "#now .body")
	b.awaitText("#figures", "■ Does not answer")
	for _, section := range []string{"#now", "#refused", "#standing"} {
		b.awaitText(section, "Not available while the store does not answer.")
	}
	b.awaitText("#notice", "The store does not answer")
	if text := b.text("main"); strings.Contains(text, "Loading") || strings.Contains(text, "Live") {
		t.Errorf("opened without a store: %s", text)
	}
	b.pictures("operator-overview-away-fresh")

	if err := s.StartRedis(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.awaitText("#figures", "● Answers")
	b.awaitText("#now .fresh", "Live, updated")
	b.awaitText("#minute-chart", "Admitted")
}
