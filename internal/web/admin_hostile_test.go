package web

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/tiergate/tiergate/internal/apikey"
)

// TestOnlyThisMachine without a token: not through a proxy, and not where others reach
// the listener.
func TestOnlyThisMachine(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	for what, change := range map[string]func(*http.Request){
		"another address of loopback": func(r *http.Request) { r.RemoteAddr = "127.0.0.6:50000" },
		"an empty X-Forwarded-For":    func(r *http.Request) { r.Header["X-Forwarded-For"] = []string{"", "192.0.2.1"} },
		"X-Forwarded-Proto":           func(r *http.Request) { r.Header.Set("X-Forwarded-Proto", "http") },
		"X-Envoy-…":                   func(r *http.Request) { r.Header.Set("X-Envoy-Expected-Rq-Timeout-Ms", "1") },
		"X-Request-Id":                func(r *http.Request) { r.Header.Set("X-Request-Id", "1") },
		"X-Real-Ip":                   func(r *http.Request) { r.Header.Set("X-Real-Ip", "") },
		"Via":                         func(r *http.Request) { r.Header.Set("Via", "") },
	} {
		r := local("GET", "/keys", "")
		change(r)
		if w := f.serve(r, ""); w.Code != http.StatusForbidden {
			t.Errorf("%s: %d", what, w.Code)
		}
	}
	if w := f.serve(local("GET", "/keys", ""), ""); w.Code != http.StatusOK {
		t.Errorf("this machine: %d", w.Code)
	}
	f.loopback = false
	if w := f.serve(local("GET", "/keys", ""), ""); w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "operator.address") {
		t.Errorf("a listener that others reach: %d %s", w.Code, w.Body)
	}
}

// TestFaultsAreBounded: an answer is not larger than what it answers, and says where it leaves
// faults out.
func TestFaultsAreBounded(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	many := func(n int, one func(i int) string) string {
		list := make([]string, n)
		for i := range list {
			list[i] = one(i)
		}
		return strings.Join(list, ",")
	}
	for what, c := range map[string][2]string{
		"resources": {"/keys", `{"tier":"free","resources":[` + many(100_000, func(int) string { return `""` }) + `]}`},
		"fields":    {"/keys", `{` + many(20_000, func(i int) string { return fmt.Sprintf(`"f%d":1`, i) }) + `}`},
		"entries":   {"/keys/import", `{"keys":[` + many(999, func(int) string { return `{}` }) + `]}`},
		"too many":  {"/keys/import", `{"keys":[` + many(200_000, func(int) string { return `{"x":{}}` }) + `]}`},
	} {
		w := f.serve(local("POST", c[0], c[1]), "")
		var p Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code != http.StatusBadRequest || len(p.Errors) == 0 || len(p.Errors) > mostFaults {
			t.Errorf("%s: %d, %d bytes, %d faults, %v", what, w.Code, w.Body.Len(), len(p.Errors), err)
			continue
		}
		const more = "these are not all: mend them, and look again"
		if last := p.Errors[len(p.Errors)-1]; len(p.Errors) > 1 && (last != Fault{"", more} || len(p.Errors) < mostFaults) {
			t.Errorf("%s: the last of the faults is %+v", what, last)
		}
	}
}

// TestNothingTwice: of a field that stands twice, one reader takes the first and another
// the last.
func TestNothingTwice(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	secret := apikey.New().Reveal()
	for body, field := range map[string]string{
		`{"tier":"free","tier":"enterprise"}`:                                                  "tier",
		`{"tier":"free","t\u0069er":"enterprise"}`:                                             "tier",
		`{"tier":"free","labels":{"a":"1","b":"2","a":"3"}}`:                                   "a",
		`{"tier":"free","overrides":[{"metric":"requests","per":"day","max":1,"max":100000}]}`: "max",
		`{"tier":"free","` + secret + `":1,"` + secret + `":2}`:                                apikey.Prefix + "…",
	} {
		w := f.do("POST", "/keys", body)
		var p Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code != http.StatusBadRequest || len(p.Errors) != 1 || p.Errors[0] != (Fault{field, "given twice"}) {
			t.Errorf("%s: %d %s", body, w.Code, w.Body)
		}
	}
	ok[NewKey](f, "POST", "/keys", `{"tier":"free","labels":{"tier":"a","name":"b"},"overrides":[{"metric":"requests","per":"day","max":1},{"metric":"tokens","per":"day","max":1}]}`)
}

// TestTextsAreNoSecrets: a key in the place of an ID or a name is refused wherever that can be
// given, and not repeated.
func TestTextsAreNoSecrets(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	secret := apikey.New().Reveal()
	letters := strings.ToLower(strings.TrimPrefix(secret, apikey.Prefix))
	ok[NewKey](f, "POST", "/keys", `{"id":"key_a","tier":"free"}`)
	const wrong = "has what looks like a key: others can see this, so it must hold no secret"
	for _, text := range []string{secret, "key_of_" + secret, "mine: " + secret, " Bearer " + secret + " ", strings.ToLower(secret), strings.ToUpper(secret), strings.Repeat(secret, 3)} {
		inPath := url.PathEscape(text)
		for _, c := range []struct {
			method, path, body string
			status             int
			want               string
		}{
			{"POST", "/keys", `{"tier":"free","id":"%s"}`, 400, "id: " + wrong},
			{"POST", "/keys", `{"tier":"free","name":"%s"}`, 400, "name: " + wrong},
			{"POST", "/keys", `{"tier":"free","owner":"%s"}`, 400, "owner: " + wrong},
			{"POST", "/keys", `{"tier":"free","labels":{"k":"%s"}}`, 400, "labels.k: " + wrong},
			{"POST", "/keys", `{"tier":"free","labels":{"%s":"v"}}`, 400, "labels: a name " + wrong},
			{"POST", "/keys", `{"tier":"free","labels":{"%s\u0007":"v"}}`, 400, "labels: a name " + wrong},
			{"POST", "/keys", `{"tier":"%s"}`, 400, "tier: unknown tier "},
			{"POST", "/keys", `{"tier":"free","pepper":"%s"}`, 400, "pepper: "},
			{"POST", "/keys", `{"tier":"free","resources":["%s"]}`, 400, "resources[0]: unknown resource "},
			{"POST", "/keys", `{"tier":"free","overrides":[{"max":1,"metric":"%[1]s","per":"%[1]s","resource":"%[1]s","algorithm":"%[1]s","%[1]s":1}]}`, 400, "overrides[0].metric: "},
			{"POST", "/keys", `{"tier":"free","%[1]s":1,"%[1]s":2}`, 400, "given twice"},
			{"POST", "/keys/import", `{"keys":[{"tier":"free","id":"%[1]s","secret":"%[1]s"}]}`, 400, "keys[0].id: " + wrong},
			{"POST", "/keys/import", `{"keys":[{"tier":"free","hash":"%s"}]}`, 400, "keys[0].hash: "},
			{"PATCH", "/keys/key_a", `{"name":"%s"}`, 400, "name: " + wrong},
			{"PATCH", "/keys/key_a", `{"owner":"%s"}`, 400, "owner: " + wrong},
			{"PATCH", "/keys/key_a", `{"labels":{"%s":"v"}}`, 400, "labels: a name " + wrong},
			{"POST", "/keys/key_a/revoke", `{"reason":"%s"}`, 400, "reason: " + wrong},
			{"POST", "/keys/key_a/rotate", `{"pepper":"%s"}`, 400, "pepper: "},
			{"GET", "/keys?q=" + url.QueryEscape(text), "", 400, "q: " + wrong},
			{"GET", "/keys?owner=" + url.QueryEscape(text), "", 400, "owner: " + wrong},
			{"GET", "/keys?tier=" + url.QueryEscape(text), "", 400, "tier: " + wrong},
			{"GET", "/keys?after=" + url.QueryEscape(text), "", 400, "after: " + wrong},
			{"GET", "/keys/export?after=" + url.QueryEscape(text), "", 400, "after: " + wrong},
			{"GET", "/audit?key=" + url.QueryEscape(text), "", 400, "key: " + wrong},
			{"GET", "/keys?" + url.QueryEscape(text) + "=1", "", 400, "unknown parameter"},
			{"GET", "/keys/" + inPath, "", 404, ""},
			{"PATCH", "/keys/" + inPath, `{"name":"Ada"}`, 404, ""},
			{"POST", "/keys/" + inPath + "/rotate", "", 404, ""},
			{"POST", "/keys/" + inPath + "/revoke", "", 404, ""},
			{"POST", "/keys/" + inPath + "/overrides", `{"metric":"requests","per":"day","max":1}`, 404, ""},
			{"DELETE", "/keys/" + inPath + "/overrides?metric=requests&per=day", "", 404, ""},
			{"GET", "/keys/" + inPath + "/usage", "", 404, ""},
			{"GET", "/keys/" + inPath + "/limits", "", 404, ""},
			{"GET", "/keys/" + inPath + "/refusals", "", 404, ""},
			{"POST", "/keys/" + inPath + "/explain", "", 404, ""},
		} {
			body := c.body
			if strings.Contains(body, "%") {
				body = fmt.Sprintf(body, text)
			}
			w := f.do(c.method, c.path, body)
			if answer := w.Body.String(); w.Code != c.status || !strings.Contains(answer, c.want) || strings.Contains(strings.ToLower(answer), letters) {
				t.Errorf("%s %s %s: %d %s: want %d, %q, and no key", c.method, c.path, body, w.Code, answer, c.status, c.want)
			}
		}
	}
}

// TestTextsShowWhatTheyAre: nothing in them changes how others are shown.
func TestTextsShowWhatTheyAre(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	ok[NewKey](f, "POST", "/keys", `{"id":"key_a","tier":"free"}`)
	for _, c := range [][3]string{
		{"POST", "/keys", `{"tier":"free","name":"a\u202eb"}`},
		{"PATCH", "/keys/key_a", `{"expires":"9999-12-31T23:59:59-23:59"}`},
		{"PATCH", "/keys/key_a", `{"expires":"0001-01-01T00:00:00Z"}`},
	} {
		if w := f.do(c[0], c[1], c[2]); w.Code != http.StatusBadRequest {
			t.Errorf("%v: %d %s", c, w.Code, w.Body)
		}
	}
}

// TestOneSecretIsOneKey, whatever it is hashed with.
func TestOneSecretIsOneKey(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	ok[Imported](f, "POST", "/keys/import", `{"keys":[{"id":"key_a","secret":"sk-imported-1","tier":"free"}]}`)
	digest := hashOf(t, "sk-imported-1").Digest()
	for what, body := range map[string]string{
		"a digest under another scheme": fmt.Sprintf(`{"keys":[{"hash":"hmac-sha256:p1:%x","tier":"free"}]}`, digest),
		"plain and with a pepper":       `{"keys":[{"secret":"sk-imported-2","tier":"free"},{"secret":"sk-imported-2","pepper":"p1","tier":"pro"}]}`,
		"with a pepper and plain":       `{"keys":[{"secret":"sk-imported-2","pepper":"p1","tier":"pro"},{"secret":"sk-imported-2","tier":"free"}]}`,
	} {
		if w := f.do("POST", "/keys/import", body); w.Code != http.StatusBadRequest {
			t.Errorf("%s: %d %s", what, w.Code, w.Body)
		}
	}
}

// TestHiddenKeysCanBeEnded: else one would open again when the file lets go its ID.
func TestHiddenKeysCanBeEnded(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	ok[NewKey](f, "POST", "/keys", `{"id":"key_a","tier":"free"}`)
	directory, _ := apikey.NewDirectory([]apikey.Record{{ID: "key_a", Hash: hashOf(t, "sk-of-the-file"), Tier: "free"}}, nil)
	accounts := *f.accounts
	accounts.Keys.File = directory
	f.Use(&accounts)
	if w := f.do("PATCH", "/keys/key_a", `{"tier":"pro"}`); w.Code != http.StatusConflict {
		t.Errorf("a change: %d", w.Code)
	}
	if w := f.do("POST", "/keys/key_a/revoke", `{}`); w.Code != http.StatusOK {
		t.Errorf("the end: %d %s", w.Code, w.Body)
	}
	if r := accounts.Keys.Stored.Directory().ByID("key_a"); !r.Revoked {
		t.Error("the hidden key is not revoked")
	}
}

// TestRotationsAtOnce: a rotation is not made of what another one has left, whose secret
// would be over when it is told.
func TestRotationsAtOnce(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	ok[NewKey](f, "POST", "/keys", `{"id":"key_a","tier":"free"}`)
	f.keys = &meddlesome{f.keys, 1}
	f.refused("POST", "/keys/key_a/rotate", `{"grace":"0s"}`, kindConflict, "the key has been changed meanwhile: read it again")
	ok[NewKey](f, "POST", "/keys/key_a/rotate", `{"grace":"0s"}`)
}

// TestParametersAreReadOrRefused: one that cannot be read, or that stands where a body is read or
// in a body where it is not, is no parameter left out, by which more would be done than was asked for.
func TestParametersAreReadOrRefused(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	f.faults("POST", "/keys/import?dry_run=true", `{"keys":[{"id":"a","secret":"a-foreign-secret","tier":"free"}]}`, "dry_run: unknown parameter")
	f.faults("POST", "/keys?id=a", `{"tier":"free"}`, "id: unknown parameter")
	if w := f.do("POST", "/keys", `{"id":"a","tier":"free"}`); w.Code != http.StatusCreated {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	for _, body := range []string{`{"metric":"requests","per":"minute","max":5}`, `{"metric":"requests","per":"minute","max":6,"resource":"images"}`} {
		if w := f.do("POST", "/keys/a/overrides", body); w.Code != http.StatusOK {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	}
	const unreadable = "parameters: they cannot be read; escape what stands after a ="
	for _, tail := range []string{"resource=im%ages", "resource=images;x", "resource=images;"} {
		f.faults("DELETE", "/keys/a/overrides?metric=requests&per=minute&"+tail, "", unreadable)
	}
	f.faults("GET", "/keys?owner=100%", "", unreadable)
	f.faults("DELETE", "/keys/a/overrides?metric=requests&per=minute", `{"resource":"images"}`, "resource: unknown field")
	f.faults("GET", "/keys", `{"owner":"ada"}`, "owner: unknown field")
	f.faults("POST", "/keys/a/rotate?grace=0s", "", "grace: unknown parameter")
	f.faults("POST", "/keys/a/revoke?reason=%", "", unreadable)
	f.faults("PATCH", "/keys/a?tier=pro", `{"name":"n"}`, "tier: unknown parameter")
	f.faults("POST", "/keys/a/explain?model=m", "", "model: unknown parameter")
	var k KeyView
	if err := json.Unmarshal(f.do("GET", "/keys/a", "").Body.Bytes(), &k); err != nil || k.Revision != 3 || len(k.Overrides) != 2 {
		t.Errorf("%+v %v: want the key as it was", k, err)
	}
}

// TestLabelNamesAreShown to whoever lists keys, as their values are: they hold no more.
func TestLabelNamesAreShown(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	f.faults("POST", "/keys", `{"tier":"free","labels":{"a\u202eb":"x"}}`, `labels: the name "a\u202eb": want 1 to 64 bytes without control characters`)
	long := strings.Repeat("x", maxLabelName)
	f.faults("POST", "/keys", `{"tier":"free","labels":{"`+long+`y":"x"}}`, fmt.Sprintf("labels: the name %q: want 1 to 64 bytes without control characters", short(long+"y")))
	ok[NewKey](f, "POST", "/keys", `{"tier":"free","id":"key_ada","labels":{"`+long+`":"x"}}`)
	for _, none := range []string{`null`, `{"` + long + `":null}`} {
		f.do("PATCH", "/keys/key_ada", `{"labels":{"`+long+`":"y"}}`)
		if v := ok[KeyView](f, "PATCH", "/keys/key_ada", `{"labels":`+none+`}`); v.Labels != nil {
			t.Errorf("%s: %v", none, v.Labels)
		}
	}
	f.faults("POST", "/keys", `{"tier":"free","labels":{"of tg_live_ABC":"x"}}`, "labels: a name has what looks like a key: others can see this, so it must hold no secret")
}
