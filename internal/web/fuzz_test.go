package web

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

// FuzzUsageQuery looks for parameters that panic, that ask for more than is kept, or
// that the error repeats.
func FuzzUsageQuery(f *testing.F) {
	f.Add("from=2026-03-01T11:00:00Z&to=1772370000&step=minute&by=resource")
	f.Add("from=0&to=253402300799&step=day")
	f.Add("step=canary&by=canary")
	f.Add("canary=1")
	f.Add("from=9999-12-31T23:59:59-23:59&to=253402300799")
	f.Add("to=%zz;a=b&from=1&from=2")
	f.Add("from=1772366400&to=1772366401&step=hour")
	f.Fuzz(func(t *testing.T, query string) {
		wanted, err := parseUsageRequest(query, noon)
		if err != nil {
			if strings.Contains(query, "canary") && strings.Contains(err.Error(), "canary") {
				t.Errorf("the error repeats the query: %v", err)
			}
			return
		}
		length := wanted.Step.Length()
		if wanted.From.After(wanted.To) || !wanted.From.Equal(wanted.From.Truncate(length)) || !wanted.To.Equal(wanted.To.Truncate(length)) {
			t.Errorf("%q is from %s to %s", query, wanted.From, wanted.To)
		}
		if oldest := noon.Add(-wanted.Step.Keep() - length); wanted.From.Before(oldest) || wanted.To.After(noon.Add(length)) || wanted.To.Sub(wanted.From) > wanted.Step.Keep()+2*length {
			t.Errorf("%q is from %s to %s", query, wanted.From, wanted.To)
		}
		if wanted.by != "" && wanted.by != "resource" {
			t.Errorf("%q is by %q", query, wanted.by)
		}
	})
}

// FuzzAdminQuery does so for the parameters of the admin API.
func FuzzAdminQuery(f *testing.F) {
	f.Add("metric=tokens&per=90s&resource=chat&priority=high&limit=1000")
	f.Add("limit=1&limit=2&metric=&per=month&x=")
	f.Add("limit=%2B5&priority=5")
	f.Fuzz(func(t *testing.T, query string) {
		c := &call{Request: &http.Request{URL: &url.URL{RawQuery: query}}, now: noon}
		q := c.query()
		if n := q.limit(); n < 1 || n > 1000 {
			t.Errorf("%q asks for %d", query, n)
		}
		l, err := c.overrideAsked()
		if err == nil && (l.Max != 0 || l.Validate() != nil || l.Priority > quota.Critical || l.Window == 0) {
			t.Errorf("%q asks for %+v", query, l)
		}
		var p *Problem
		if err != nil && (!errors.As(err, &p) || p.Status != http.StatusBadRequest || len(p.Errors) == 0) {
			t.Errorf("%q: %v", query, err)
		}
	})
}

// FuzzAdminBody looks for a body that panics, that makes a key which nobody could have
// asked for, or whose faults are without end or repeat a secret.
func FuzzAdminBody(f *testing.F) {
	f.Add(`{"tier":"free","name":"Ada","priority":2,"resources":["chat"],"labels":{"a":"b"},"expires":"2027-01-31T00:00:00Z"}`, "")
	f.Add(`{"keys":[{"id":"key_a","secret":"sk-canary-secret","tier":"pro","overrides":[{"metric":"tokens","per":"day","max":5,"until":null}]}],"dry_run":true}`, "sk-canary-secret")
	f.Add(`{"keys":[{"secret":["sk-canary-secret"],"hash":"sk-canary-secret","former":{"hash":"sk-canary-secret"}}]}`, "sk-canary-secret")
	f.Add(`{"tier":"free","tier":"pro","labels":null,"overrides":[{},null,[]]}`, "")
	f.Add(`{"tier":"free","overrides":[{"metric":"requests","per":"day","max":1e3,"priority":9}],"priority":256}`, "")
	f.Add(`{"tier":"free","overrides":[{"metric":"requests","per":"day","max":-5}]}`, "")
	pepper, err := apikey.NewPepper("p1", pepperSecret)
	if err != nil {
		f.Fatal(err)
	}
	accounts := &AdminAccounts{Keys: apikey.Keyring{File: &apikey.Directory{}}, Plans: plans(), Peppers: []apikey.Pepper{pepper}, Resources: []quota.Resource{{Name: "chat"}, {Name: "images"}}}
	f.Fuzz(func(t *testing.T, body, secret string) {
		c := &call{Request: &http.Request{URL: &url.URL{}}, now: noon, accounts: accounts, body: []byte(body)}
		o, err := newObject(c.body)
		if err != nil {
			tells(t, err, body, secret)
			return
		}
		records := []apikey.Record{}
		if _, several := o.fields["keys"]; several {
			for _, one := range o.objects("keys", 10) {
				r, _ := c.imported(one)
				records = append(records, r)
			}
		} else {
			var r apikey.Record
			accounts.describe(o, &r)
			r.Overrides, r.Hash = accounts.overrides(o), hashOfText("sk-a")
			records = append(records, r)
		}
		o.end()
		if err := o.err(); err != nil {
			tells(t, err, body, secret)
			return
		}
		for _, r := range records {
			sane(t, accounts, r)
		}
	})
}

func hashOfText(text string) apikey.Hash { return apikey.Redacting(text).Hash() }

// tells checks the problem that a body is answered with.
func tells(t *testing.T, err error, body, secret string) {
	t.Helper()
	var p *Problem
	if !errors.As(err, &p) || p.Status != http.StatusBadRequest || len(p.Errors) == 0 || len(p.Errors) > mostFaults {
		t.Fatalf("%q: %v", body, err)
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	// What stands in the place of a secret, and nowhere else.
	if strings.HasPrefix(secret, "sk-canary") && strings.Contains(body, `"`+secret+`"`) && !strings.ContainsAny(secret, `":\`) {
		for _, before := range []string{`"secret":`, `"secret":[`, `"hash":`} {
			body = strings.ReplaceAll(body, before+`"`+secret+`"`, "")
		}
		if !strings.Contains(body, secret) && strings.Contains(string(text), secret) {
			t.Errorf("the secret is told: %s", text)
		}
	}
}

// sane checks a record that was asked for.
func sane(t *testing.T, a *AdminAccounts, r apikey.Record) {
	t.Helper()
	if a.Plans[r.Tier] == nil || r.Priority > quota.Critical || (r.ID != "" && !apikey.ValidID(r.ID)) || len(r.Labels) > maxLabels || len(r.Overrides) > maxOverrides {
		t.Errorf("%+v", r)
	}
	for _, name := range r.Resources {
		if !a.offers(name) {
			t.Errorf("leave for %q", name)
		}
	}
	for _, o := range r.Overrides {
		if err := o.Limit.Validate(); err != nil || o.Limit.Priority > quota.Critical || (o.Limit.Resource != "" && !a.offers(o.Limit.Resource)) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatalf("%+v: %v", r, err)
	}
	var again apikey.Record
	if err := json.Unmarshal(text, &again); err != nil {
		t.Errorf("the store could not read %s: %v", text, err)
	}
}

// FuzzSession looks for a cookie that opens a session and was not signed.
func FuzzSession(f *testing.F) {
	s := newSessions("tiergate_session", dashboardPath, []byte(strings.Repeat("s", MinSessionSecret)))
	w := httptest.NewRecorder()
	if err := s.begin(w, httptest.NewRequest(http.MethodPost, "/", nil), keySession{"key_a", "x"}); err != nil {
		f.Fatal(err)
	}
	good := w.Result().Cookies()[0].Value
	f.Add("tiergate_session=" + good[:len(good)-1])
	f.Add("tiergate_session=; tiergate_session=a")
	f.Add("tiergate_operator=" + good)
	f.Fuzz(func(t *testing.T, header string) {
		r := &http.Request{Header: http.Header{"Cookie": {header}}}
		var session keySession
		if s.read(r, &session) && !strings.Contains(header, good) {
			t.Errorf("%q opens %+v", header, session)
		}
		if s.sent(r) && !strings.Contains(header, "tiergate_session") {
			t.Errorf("%q is a session", header)
		}
	})
}

// FuzzGrace looks for a time that a former secret must not work for.
func FuzzGrace(f *testing.F) {
	f.Add(`"24h"`)
	f.Add(`"-1s"`)
	f.Add(`"8784h0m0.5s"`)
	f.Add(`null`)
	f.Fuzz(func(t *testing.T, value string) {
		o, err := newObject([]byte(`{"grace":` + value + `}`))
		if err != nil {
			return
		}
		if grace := takeGrace(o); o.err() == nil && (grace < 0 || grace > longestGrace || grace%time.Second != 0) {
			t.Errorf("%s is %s", value, grace)
		}
	})
}
