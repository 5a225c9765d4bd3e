package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/usage"
)

// TestLifeOfAKey from its making to its end, as the edge, the list and the audit log see
// it; its secrets are shown once each and are nowhere else.
func TestLifeOfAKey(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	f.used(usage.Account{ID: "key_ada", Last: noon.Add(-time.Hour)})
	created := ok[NewKey](f, "POST", "/keys", `{"id":"key_ada","name":"Ada","owner":"ACME","tier":"free","priority":2,"resources":["chat"],`+
		`"overrides":[{"metric":"requests","per":"day","max":500,"until":"2026-04-01T00:00:00+02:00"}],"labels":{"team":"a"},"expires":"2027-01-31T00:00:00Z"}`)
	if id, err := f.opens(created.Key); id != "key_ada" {
		t.Fatalf("the new key: %v", err)
	}
	shown, _ := json.Marshal(ok[KeyView](f, "GET", "/keys/key_ada", ""))
	want := `{"id":"key_ada","name":"Ada","owner":"ACME","source":"store","state":"active","tier":"free","priority":2,"resources":["chat"],` +
		`"overrides":[{"metric":"requests","per":"day","max":500,"until":"2026-03-31T22:00:00Z"}],"labels":{"team":"a"},` +
		`"created":"2026-03-01T12:00:30Z","expires":"2027-01-31T00:00:00Z","last_used":"2026-03-01T11:00:30Z","revision":1}`
	if string(shown) != want {
		t.Errorf("%s\nwant\n%s", shown, want)
	}

	changed := ok[KeyView](f, "PATCH", "/keys/key_ada", `{"tier":"pro","name":null,"priority":null,"resources":null,"labels":{"team":null,"env":"test"},"expires":null}`)
	if changed.Tier != "pro" || changed.Name != "" || changed.Owner != "ACME" || changed.Priority != 0 || changed.Resources != nil ||
		fmt.Sprint(changed.Labels) != "map[env:test]" || !changed.Expires.IsZero() || changed.Revision != 2 {
		t.Errorf("%+v", changed)
	}
	if same := ok[KeyView](f, "PATCH", "/keys/key_ada", `{"tier":"pro","labels":{}}`); same.Revision != 2 {
		t.Errorf("a change of nothing: %+v", same)
	}

	rotated := ok[NewKey](f, "POST", "/keys/key_ada/rotate", `{"grace":"1h","pepper":"p1"}`)
	if rotated.Record.Pepper != "p1" || !rotated.Record.Former.Equal(noon.Add(time.Hour)) {
		t.Errorf("%+v", rotated.Record)
	}
	f.refused("POST", "/keys/key_ada/rotate", "", kindGrace, "until 2026-03-01T13:00:30Z: wait, or end both with a grace of 0s")
	for _, secret := range []string{created.Key, rotated.Key} {
		if id, err := f.opens(secret); id != "key_ada" {
			t.Errorf("in the grace: %v", err)
		}
	}
	f.clock = noon.Add(time.Hour)
	if _, err := f.opens(created.Key); !errors.Is(err, apikey.ErrRevoked) {
		t.Errorf("after the grace: %v", err)
	}
	again := ok[NewKey](f, "POST", "/keys/key_ada/rotate", "")
	if again.Record.Pepper != "p1" || !again.Record.Former.Equal(f.clock.Add(24*time.Hour)) {
		t.Errorf("by default: %+v", again.Record)
	}
	last := ok[NewKey](f, "POST", "/keys/key_ada/rotate", `{"grace":"0s","pepper":""}`)
	for _, secret := range []string{created.Key, rotated.Key, again.Key} {
		if _, err := f.opens(secret); err == nil {
			t.Error("a key from before a grace of 0s still works")
		}
	}
	if id, err := f.opens(last.Key); id != "key_ada" || last.Record.Pepper != "" {
		t.Errorf("the last key: %v", err)
	}

	if v := ok[KeyView](f, "POST", "/keys/key_ada/revoke", `{"reason":"leaked"}`); v.State != KeyRevoked || v.Unchanged {
		t.Errorf("%+v", v)
	}
	if _, err := f.opens(last.Key); !errors.Is(err, apikey.ErrRevoked) {
		t.Errorf("after its end: %v", err)
	}
	if v := ok[KeyView](f, "POST", "/keys/key_ada/revoke", `{"reason":"again"}`); v.Revision != 6 || !v.Unchanged {
		t.Errorf("a second end: %+v", v)
	}
	f.refused("PATCH", "/keys/key_ada", `{"name":"x"}`, kindRevoked, "key key_ada is revoked, for good: create another")
	f.refused("POST", "/keys/key_ada/rotate", "", kindRevoked, "")
	f.refused("POST", "/keys/key_ada/overrides", `{"metric":"requests","per":"day","max":1}`, kindRevoked, "")

	var told []string
	for _, e := range ok[AuditLog](f, "GET", "/audit?key=key_ada", "").Events {
		told = append(told, e.By+" "+e.Action+": "+e.Detail)
	}
	if want := []string{
		"loopback revoke: leaked",
		"loopback rotate: the former secret ends at once",
		"loopback rotate: the former secret works until 2026-03-02T13:00:30Z",
		"loopback rotate: the former secret works until 2026-03-01T13:00:30Z",
		"loopback change: tier: free → pro; name: Ada → none; priority: normal → the tier's; resources: chat → all; expires: 2027-01-31T00:00:00Z → never; labels changed",
		"loopback create: tier free",
	}; !slices.Equal(told, want) {
		t.Errorf("%s\nwant\n%s", strings.Join(told, "\n"), strings.Join(want, "\n"))
	}
	var everything strings.Builder
	for _, path := range []string{"/keys", "/keys/key_ada", "/audit", "/keys/export"} {
		everything.WriteString(f.do("GET", path, "").Body.String())
	}
	for _, secret := range []string{created.Key, rotated.Key, again.Key, last.Key} {
		if strings.Contains(everything.String(), secret) {
			t.Error("a secret is shown a second time")
		}
	}
}

// TestRevokeEndsTheFormerSecret: it opens nothing any more, is known as revoked, and is not
// shown to work.
func TestRevokeEndsTheFormerSecret(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	created := ok[NewKey](f, "POST", "/keys", `{"id":"key_ada","tier":"free"}`)
	if rotated := ok[NewKey](f, "POST", "/keys/key_ada/rotate", ""); rotated.Record.Former.IsZero() {
		t.Fatalf("no grace: %+v", rotated.Record)
	}
	if v := ok[KeyView](f, "POST", "/keys/key_ada/revoke", ""); !v.Former.IsZero() {
		t.Errorf("%+v", v)
	}
	if v := ok[KeyView](f, "GET", "/keys/key_ada", ""); !v.Former.IsZero() {
		t.Errorf("%+v", v)
	}
	if _, err := f.opens(created.Key); !errors.Is(err, apikey.ErrRevoked) {
		t.Errorf("the former secret: %v", err)
	}

	ok[Imported](f, "POST", "/keys/import", `{"keys":[{"id":"key_old","secret":"sk-of-old-times","tier":"free","revoked":true,
		"former":{"hash":"sha256:bad806c6c8c69b1f6b01ceb6a5e73aa533574416d19ca31381e1ff6525ecfaa8","until":"2031-01-31T00:00:00Z"}}]}`)
	if v := ok[KeyView](f, "GET", "/keys/key_old", ""); !v.Former.IsZero() {
		t.Errorf("imported: %+v", v)
	}
}

// TestFaultsOfAKey are all told at once, each with its field, and nothing is written.
func TestFaultsOfAKey(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	f.faults("POST", "/keys", `{}`, "tier: missing: want one of enterprise, free, pro")
	f.faults("POST", "/keys", `{"id":"key_file","pepper":"p9","tier":"gold","name":7,"owner":"a\nb","priority":5,"resources":["chat","chatt","chat"],`+
		`"labels":{"":"x","long":"`+strings.Repeat("x", 257)+`"},"expires":"2026-03-01T12:00:00Z","overrides":[{"metric":"wishes","per":"fortnight","max":1.5,"colour":1},`+
		`{"metric":"requests","per":"minute","max":1},{"metric":"requests","per":"minute","max":2,"resource":"video","priority":0},`+
		`{"metric":"requests","per":"minute","max":9223372036854775807,"algorithm":"sliding"},{"metric":"requests","per":"hour","max":1,"until":"2026-03-01T12:00:00Z"}],"secret":"sk-secret"}`,
		`id: the file of keys has a key key_file: choose another`,
		`pepper: the configuration has no pepper of this name under keys.peppers`,
		`tier: unknown tier "gold": want one of enterprise, free, pro`,
		`name: want a text`,
		`owner: has control characters: want a line of text`,
		`priority: want 1 (low), 2 (normal), 3 (high) or 4 (critical)`,
		`resources[1]: unknown resource "chatt": want one of chat, default, images`,
		`resources[2]: chat is named twice`,
		`labels: the name "": want 1 to 64 bytes without control characters`,
		`labels.long: has 257 bytes: want at most 256`,
		`expires: has passed: want a time to come; a key that is never to work need not be made`,
		`overrides[0].metric: unknown metric "wishes": want requests, tokens, input_tokens or output_tokens`,
		`overrides[0].per: unknown window "fortnight": want second, minute, hour, day, week, month or a duration such as 90s`,
		`overrides[0].max: want a whole number`,
		`overrides[0].colour: unknown field`,
		`overrides[2].resource: unknown resource "video": want one of chat, default, images`,
		`overrides[2].priority: want 1 (low), 2 (normal), 3 (high) or 4 (critical)`,
		`overrides[3].max: is out of range: want 0 to 1000000000000000`,
		`overrides[3].metric: a second override of requests_per_minute: remove one of them`,
		`overrides[4].until: has passed: want a time to come; an override that is over changes nothing`,
		`secret: unknown field`)
	for _, id := range []string{"a b", "-x", "export", "import", "tg_live_AAAAAAAA", strings.Repeat("x", 65)} {
		if w := f.do("POST", "/keys", fmt.Sprintf(`{"tier":"free","id":%q}`, id)); w.Code != 400 || !strings.Contains(w.Body.String(), `"field":"id"`) {
			t.Errorf("ID %q: %d %s", id, w.Code, w.Body)
		}
	}
	f.faults("POST", "/keys", `{"tier":"free","resources":[]}`, "resources: an empty list: name at least one, or say null for every resource")
	ok[NewKey](f, "POST", "/keys", `{"tier":"free","id":"key_ada"}`)
	f.faults("POST", "/keys", `{"tier":"free","id":"key_ada"}`, "id: there is a key key_ada already: choose another")
	f.faults("PATCH", "/keys/key_ada", `{"tier":null,"id":"x","overrides":[],"expires":"2026-03-01T12:00:30Z"}`,
		"tier: missing: want one of enterprise, free, pro", "expires: has passed: want a time to come; to end a key now, revoke it",
		"id: unknown field", "overrides: unknown field")
	f.faults("POST", "/keys/key_ada/rotate", `{"grace":"1500ms","pepper":"p9"}`,
		"grace: want a duration such as 24h, from 0s to 8784h, in whole seconds", "pepper: the configuration has no pepper of this name under keys.peppers")
	f.faults("POST", "/keys/key_ada/rotate", `{"grace":"8784h1s"}`, "grace: want a duration such as 24h, from 0s to 8784h, in whole seconds")
	f.faults("POST", "/keys/key_ada/rotate", `{"graze":"24h"}`, "graze: unknown field")
	f.faults("POST", "/keys/key_ada/revoke", `{"because":"x"}`, "because: unknown field")
	f.faults("POST", "/keys/key_ada/overrides", `{"metric":"requests","per":"hour","max":1,"till":"2026-04-01T00:00:00Z"}`, "till: unknown field")
	f.faults("POST", "/keys/key_ada/revoke", `{"reason":"a\u0000b"}`, "reason: has control characters: want a line of text")
	many := map[string]string{}
	for i := range maxLabels + 1 {
		many[jsonNumber(i)] = "x"
	}
	text, _ := json.Marshal(map[string]any{"labels": many})
	f.faults("PATCH", "/keys/key_ada", string(text), "labels: 33 of them: want at most 32")
	if events := ok[AuditLog](f, "GET", "/audit", "").Events; len(events) != 1 {
		t.Errorf("%v", events)
	}
}

// TestKeysOfTheFile are shown and not changed, and hide those of the store.
func TestKeysOfTheFile(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	f.stored.Apply([]apikey.Record{
		{ID: "key_file", Hash: hashOf(t, "sk-other"), Tier: "pro", Revision: 1},
		{ID: "key_twin", Hash: hashOf(t, "sk-in-file"), Tier: "pro", Revision: 1},
	})
	for path, body := range map[string]string{"": `{"name":"x"}`, "/revoke": "", "/rotate": "", "/overrides": `{"metric":"requests","per":"day","max":1}`} {
		method := "POST"
		if path == "" {
			method = "PATCH"
		}
		f.refused(method, "/keys/key_file"+path, body, kindInFile, "change key_file there")
		f.refused(method, "/keys/key_nobody"+path, body, kindNoKey, "no key has this ID")
	}
	var told []string
	for _, k := range ok[KeyList](f, "GET", "/keys", "").Keys {
		told = append(told, fmt.Sprintln(k.ID, k.Source, k.State, k.Hidden, k.Tier))
	}
	want := "key_demo file disabled false free\nkey_file file active false free\nkey_file store active true pro\nkey_twin store active true pro\n"
	if have := strings.Join(told, ""); have != want {
		t.Errorf("%s\nwant\n%s", have, want)
	}
	if v := ok[KeyView](f, "GET", "/keys/key_file", ""); v.Source != "file" || v.Name != "Of the file" {
		t.Errorf("%+v", v)
	}
	changed := *f.accounts
	changed.AllowDemoKeys = true
	f.Use(&changed)
	if v := ok[KeyView](f, "GET", "/keys/key_demo", ""); v.State != KeyActive || !v.Demo {
		t.Errorf("after a reload: %+v", v)
	}
}

// TestKeysWithoutTier: a key whose tier is not configured any more is shown as one.
func TestKeysWithoutTier(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	f.stored.Apply([]apikey.Record{
		{ID: "key_gone", Hash: hashOf(t, "sk-gone"), Tier: "gone", Revision: 1},
		{ID: "key_pro", Hash: hashOf(t, "sk-pro"), Tier: "pro", Revision: 1},
	})
	if v := ok[KeyView](f, "GET", "/keys/key_gone", ""); !v.NoTier || v.Tier != "gone" {
		t.Errorf("%+v", v)
	}
	if v := ok[KeyView](f, "GET", "/keys/key_pro", ""); v.NoTier {
		t.Errorf("%+v", v)
	}
}

// TestKeysWithoutPepper: a key whose pepper is not configured is shown as one, and so is a former secret
// while it would work.
func TestKeysWithoutPepper(t *testing.T) {
	t.Parallel()
	pepper, err := apikey.NewPepper("p1", "0123456789abcdef")
	if err != nil {
		t.Fatal(err)
	}
	f := newAdmin(t)
	f.stored.UsePeppers([]apikey.Pepper{pepper})
	hash := apikey.Redacting("sk-peppered").HashWith(pepper)
	rotated := func(id string, until time.Duration) apikey.Record {
		former := &apikey.Former{Hash: apikey.Redacting("sk-former-of-" + id).HashWith(pepper), Until: f.now().Add(until)}
		return apikey.Record{ID: id, Hash: apikey.Redacting("sk-of-" + id).Hash(), Former: former, Tier: "pro", Revision: 2}
	}
	f.stored.Apply([]apikey.Record{{ID: "key_peppered", Hash: hash, Tier: "pro", Revision: 1}, rotated("key_rotated", time.Hour), rotated("key_over", 0)})
	for _, gone := range []bool{false, true} {
		if gone {
			f.stored.UsePeppers(nil)
		}
		if v := ok[KeyView](f, "GET", "/keys/key_peppered", ""); v.NoPepper != gone || v.Pepper != "p1" {
			t.Errorf("gone %t: %+v", gone, v)
		}
		if v := ok[KeyView](f, "GET", "/keys/key_rotated", ""); v.NoPepper || v.Pepper != "" || v.NoFormerPepper != gone || v.FormerPepper != "p1" {
			t.Errorf("gone %t: %+v", gone, v)
		}
		if v := ok[KeyView](f, "GET", "/keys/key_over", ""); v.NoFormerPepper || v.FormerPepper != "" {
			t.Errorf("gone %t: %+v", gone, v)
		}
	}
}

// TestListOfKeys is filtered and in parts; walking the parts shows every key once,
// whatever their size.
func TestListOfKeys(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	if list := ok[KeyList](f, "GET", "/keys", ""); len(list.Keys) != 2 { // it is not kept for the next
		t.Errorf("%+v", list)
	}
	var records []apikey.Record
	for i := range 50 {
		r := apikey.Record{ID: fmt.Sprintf("key_%02d", i), Hash: apikey.New().Hash(), Tier: "free", Owner: "ACME", Revision: 1}
		switch i % 5 {
		case 0:
			r.Tier, r.Name = "pro", "The Fifth"
		case 1:
			r.Revoked = true
		case 2:
			r.Expires, r.Owner = noon, "Other"
		}
		records = append(records, r)
	}
	records = append(records, apikey.Record{ID: "key_file", Hash: apikey.New().Hash(), Tier: "free", Revision: 1})
	f.stored.Apply(records)
	for query, want := range map[string]int{
		"": 53, "tier=pro": 10, "owner=ACME": 40, "state=revoked": 10, "state=expired": 10, "state=active": 32, "state=disabled": 1, "q=fifth": 10, "q=KEY_4": 10,
		"tier=pro&q=key_0": 2, "owner=ACM": 0,
	} {
		for _, limit := range []int{1, 3, 7, 1000} {
			seen, after := 0, ""
			for range 60 {
				list := ok[KeyList](f, "GET", fmt.Sprintf("/keys?%s&limit=%d&after=%s", query, limit, after), "")
				seen += len(list.Keys)
				if after = list.Next; after == "" {
					break
				}
			}
			if seen != want {
				t.Errorf("%s by %d: %d keys, want %d", query, limit, seen, want)
			}
		}
	}
}

// TestOverrides are set and removed one by one.
func TestOverrides(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	ok[NewKey](f, "POST", "/keys", `{"tier":"free","id":"key_ada"}`)
	set := func(body string) string {
		text, _ := json.Marshal(ok[KeyView](f, "POST", "/keys/key_ada/overrides", body).Overrides)
		return string(text)
	}
	remove := func(query string) string {
		text, _ := json.Marshal(ok[KeyView](f, "DELETE", "/keys/key_ada/overrides?"+query, "").Overrides)
		return string(text)
	}
	minute := `{"metric":"requests","per":"minute","max":20}`
	slides := `{"metric":"requests","per":"minute","max":20,"algorithm":"sliding"}`
	fixed := `{"metric":"requests","per":"minute","max":20,"algorithm":"fixed"}`
	images := `{"metric":"requests","per":"minute","max":0,"resource":"images","priority":1,"until":"2026-04-01T00:00:00Z"}`
	for i, step := range []struct{ have, want string }{
		{set(`{"metric":"requests","per":"60s","max":10}`), `[{"metric":"requests","per":"minute","max":10}]`},
		{set(minute), "[" + minute + "]"},
		{set(minute), "[" + minute + "]"},
		{set(slides), "[" + slides + "]"},
		{set(fixed), "[" + fixed + "]"},
		{set(slides), "[" + slides + "]"},
		{remove("metric=requests&per=minute"), "null"},
		{set(`{"metric":"requests","per":"minute","max":20,"algorithm":null}`), "[" + minute + "]"},
		{set(images), "[" + minute + "," + images + "]"},
		{set(images), "[" + minute + "," + images + "]"},
		{remove("metric=requests&per=minute"), "[" + images + "]"},
		{remove("metric=requests&per=minute&resource=images"), "[" + images + "]"},
		{remove("metric=requests&per=minute&resource=images&priority=low"), "null"},
	} {
		if step.have != step.want {
			t.Errorf("step %d: %s, want %s", i, step.have, step.want)
		}
	}
	f.faults("POST", "/keys/key_ada/overrides", `{"until":"2026-03-01T00:00:00Z"}`,
		"metric: missing: want requests, tokens, input_tokens or output_tokens", "per: missing: want second, minute, hour, day, week, month or a duration such as 90s",
		"max: missing: want the most that is admitted in a window; 0 refuses everything", "until: has passed: want a time to come; to end an override now, remove it")
	f.faults("POST", "/keys/key_ada/overrides", `{"metric":"requests","per":"day","max":1,"algorithm":"leaky"}`, `algorithm: unknown algorithm "leaky": want fixed or sliding`)
	f.faults("DELETE", "/keys/key_ada/overrides?priority=9", "", "metric: want requests, tokens, input_tokens or output_tokens",
		"per: want second, minute, hour, day, week, month or a duration such as 90s", "priority: want 1 (low) to 4 (critical)")
	for i := range maxOverrides {
		set(fmt.Sprintf(`{"metric":"requests","per":"%ds","max":1}`, i+100))
	}
	f.faults("POST", "/keys/key_ada/overrides", minute, ": the key has 64 overrides: remove one first")
	if n := len(ok[AuditLog](f, "GET", "/audit?key=key_ada&limit=1000", "").Events); n != 1+10+maxOverrides {
		t.Errorf("%d events", n)
	}
}

// meddlesome is a store in which somebody else changes a key right after it was read.
type meddlesome struct {
	KeyStore

	times int
}

func (m *meddlesome) Read(ctx context.Context, id string) (apikey.Record, error) {
	r, err := m.KeyStore.Read(ctx, id)
	if err == nil && m.times > 0 {
		m.times--
		other := r
		other.Owner += "x"
		_, err = m.Write(ctx, []apikey.Change{{Record: other, Event: apikey.Event{Action: "change", KeyID: id}}})
	}
	return r, err
}

// TestChangesAtOnce lose nothing: each is made of what the other has left, or says that
// it was not made.
func TestChangesAtOnce(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	ok[NewKey](f, "POST", "/keys", `{"tier":"free","id":"key_ada"}`)
	store := &meddlesome{f.keys, changeTries - 1}
	f.keys = store
	if v := ok[KeyView](f, "PATCH", "/keys/key_ada", `{"name":"Ada"}`); v.Owner != "xxx" || v.Name != "Ada" || v.Revision != 5 {
		t.Errorf("%+v", v)
	}
	store.times = changeTries
	f.refused("PATCH", "/keys/key_ada", `{"name":"Eve"}`, kindConflict, "the key has been changed meanwhile: read it again")

	f.keys = store.KeyStore
	var wg sync.WaitGroup
	failed := make(chan int, 8)
	for i := range 8 {
		wg.Go(func() {
			w := f.do("PATCH", "/keys/key_ada", fmt.Sprintf(`{"labels":{"l%d":"x"}}`, i))
			if w.Code != 200 {
				failed <- w.Code
			}
		})
	}
	wg.Wait()
	close(failed)
	n := 0
	for code := range failed {
		if n++; code != 409 {
			t.Errorf("%d", code)
		}
	}
	if v := ok[KeyView](f, "GET", "/keys/key_ada", ""); len(v.Labels) != 8-n {
		t.Errorf("%d changes refused, %d labels", n, len(v.Labels))
	}
}
