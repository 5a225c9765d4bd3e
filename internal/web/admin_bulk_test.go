package web

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/usage"
)

// TestImport takes up keys by secret and by hash, all or none.
func TestImport(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	other := hashOf(t, "sk-by-hash").String()
	keys := `[{"id":"key_a","secret":"sk-imported","tier":"pro","expires":"2020-01-01T00:00:00Z"},{"secret":"sk-peppered","pepper":"p1","tier":"free"},{"hash":"` + other + `","tier":"free"}]`
	if dry := ok[Imported](f, "POST", "/keys/import", `{"dry_run":true,"keys":`+keys+`}`); dry.Count != 3 || !dry.DryRun || dry.IDs != nil {
		t.Errorf("%+v", dry)
	}
	if n := f.accounts.Keys.Stored.Directory().Len(); n != 0 {
		t.Fatalf("a dry run made %d keys", n)
	}
	in := ok[Imported](f, "POST", "/keys/import", `{"keys":`+keys+`}`)
	if len(in.IDs) != 3 || in.IDs[0] != "key_a" {
		t.Fatalf("%+v", in)
	}
	for i, secret := range []string{"sk-peppered", "sk-by-hash"} {
		if id, err := f.opens(secret); id != in.IDs[i+1] {
			t.Errorf("%s: %v", secret, err)
		}
	}
	if v := ok[KeyView](f, "GET", "/keys/key_a", ""); v.State != KeyExpired || !v.Created.Equal(noon) {
		t.Errorf("%+v", v)
	}
	if events := ok[AuditLog](f, "GET", "/audit", "").Events; len(events) != 3 || events[0].Action != "import" {
		t.Errorf("%+v", events)
	}

	new1, new2 := apikey.New().Hash().String(), apikey.New().Hash().String()
	body := `{"keys":[{"id":"key_a","secret":"sk-imported","tier":"free"},{"secret":"sk-in-file","tier":"free"},{"secret":"sk-7cha","tier":"free"},{"secret":"sk with spaces","tier":"free"},` +
		`{"tier":"free"},{"secret":"sk-one-of-two","hash":"` + new1 + `","tier":"free"},{"hash":"` + other + `","tier":"free"},{"hash":"sk-no-hash","tier":"free"},{"hash":"` + new1 + `","pepper":"p1","tier":"free"},` +
		`{"hash":"hmac-sha256:p9:` + strings.Repeat("0", 64) + `","tier":"free"},{"id":"key_x","hash":"` + new2 + `","tier":"free"},{"id":"key_x","hash":"` + new2 + `"},` +
		`{"hash":"` + apikey.New().Hash().String() + `","tier":"free","former":{"hash":7,"x":1}},null]}`
	cannot := "cannot be a key: want 8 to 512 visible ASCII characters without a comma and, after tg_live_, a right checksum"
	f.faults("POST", "/keys/import", body,
		"keys[0].id: there is a key key_a already: choose another", "keys[0].secret: key key_a has it already", "keys[1].secret: key key_file has it already",
		"keys[2].secret: "+cannot, "keys[3].secret: "+cannot, "keys[4].secret: missing, and the hash too: want one of the two",
		"keys[5].secret: a hash too: want one of the two", "keys[6].hash: key "+in.IDs[2]+" has it already",
		"keys[7].hash: want sha256:<64 hexadecimal digits> or hmac-sha256:<pepper>:<64 hexadecimal digits>",
		"keys[8].pepper: goes with a secret: the hash names its own", "keys[9].hash: names a pepper that the configuration does not have under keys.peppers",
		"keys[11].tier: missing: want one of enterprise, free, pro", "keys[11].id: keys[10] has it too", "keys[11].hash: keys[10] is the same key",
		"keys[12].former.hash: want a text", "keys[12].former.until: missing: want a point in time such as 2027-01-31T00:00:00Z", "keys[12].former.x: unknown field",
		"keys[13].secret: missing, and the hash too: want one of the two", "keys[13].tier: missing: want one of enterprise, free, pro")
	f.faults("POST", "/keys/import", `{"keys":[],"dry_run":1}`, "dry_run: want true or false", "keys: none: want 1 to 1000")
	f.faults("POST", "/keys/import", `{"keys":[`+strings.Repeat(`{"tier":"free"},`, 1000)+`{}]}`, "keys: 1001 of them: want at most 1000")
	if n := f.accounts.Keys.Stored.Directory().Len(); n != 3 {
		t.Errorf("%d keys, want 3", n)
	}

	// What this instance does not know yet, the store refuses.
	f.stored.Replace(nil)
	p := f.refused("POST", "/keys/import", `{"keys":[{"id":"key_n","hash":"`+new1+`","tier":"free"},{"id":"key_a","hash":"`+new2+`","tier":"free"}]}`, kindTaken, "key key_a: there is such a key already")
	if len(p.Errors) != 1 || p.Errors[0].Field != "keys[1]" {
		t.Errorf("%+v", p)
	}
	if _, err := f.keys.Read(t.Context(), "key_n"); err == nil {
		t.Error("half of an import was written")
	}
}

// TestExport: an import of it into an empty store makes the same keys.
func TestExport(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	var secrets []string
	for i := range 5 {
		secrets = append(secrets, ok[NewKey](f, "POST", "/keys", fmt.Sprintf(`{"id":"key_%d","tier":"pro","name":"N","owner":"O","priority":1,"resources":["chat"],`+
			`"overrides":[{"metric":"tokens","per":"month","max":5,"resource":"chat","priority":2,"until":"2027-01-01T00:00:00Z"}],"labels":{"a":"b"},"expires":"2027-01-01T00:00:00Z"}`, i)).Key)
	}
	secrets = append(secrets, ok[NewKey](f, "POST", "/keys/key_1/rotate", `{"pepper":"p1"}`).Key)
	ok[KeyView](f, "POST", "/keys/key_2/revoke", "")
	f.clock = f.clock.Add(time.Minute)
	whole := f.do("GET", "/keys/export?limit=1000", "").Body.String()
	var records []json.RawMessage
	for after := ""; ; {
		var part struct {
			Keys []json.RawMessage
			Next string
		}
		if err := json.Unmarshal(f.do("GET", "/keys/export?limit=2&after="+after, "").Body.Bytes(), &part); err != nil {
			t.Fatal(err)
		}
		records = append(records, part.Keys...)
		if after = part.Next; after == "" {
			break
		}
	}
	if len(records) != 5 {
		t.Fatalf("%d records, want 5: those of the file are not in it", len(records))
	}
	text, err := json.Marshal(map[string]any{"keys": records})
	if err != nil {
		t.Fatal(err)
	}
	g := newAdmin(t)
	ok[Imported](g, "POST", "/keys/import", string(text))
	if have := g.do("GET", "/keys/export?limit=1000", "").Body.String(); have != whole {
		t.Errorf("%s\nwant\n%s", have, whole)
	}
	for i, secret := range secrets {
		if _, err := g.opens(secret); (err == nil) != (i != 2) {
			t.Errorf("key %d: %v", i, err)
		}
	}
}

// TestAuditLog is read in parts.
func TestAuditLog(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	for i := range 5 {
		ok[NewKey](f, "POST", "/keys", fmt.Sprintf(`{"id":"key_%d","tier":"free"}`, i))
	}
	var told []string
	for before := ""; ; {
		log := ok[AuditLog](f, "GET", "/audit?limit=2&before="+before, "")
		for _, e := range log.Events {
			told = append(told, e.KeyID)
		}
		if before = log.Next; before == "" {
			break
		}
	}
	if fmt.Sprint(told) != "[key_4 key_3 key_2 key_1 key_0]" {
		t.Errorf("%s", told)
	}
	for _, before := range []string{"key_0", "-", "1-2-3", strings.Repeat("9", 21)} {
		f.faults("GET", "/audit?before="+before, "", "before: want what an earlier answer said under next")
	}
}

// TestTiers are those of the configuration in use.
func TestTiers(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	want := `{"tiers":[{"name":"enterprise","priority":4,"unlimited":true,"limits":[]},` +
		`{"name":"free","priority":1,"unlimited":false,"limits":[{"metric":"requests","per":"minute","max":10},{"metric":"requests","per":"minute","max":5,"resource":"images"}]},` +
		`{"name":"pro","priority":3,"unlimited":false,"limits":[{"metric":"requests","per":"minute","max":100}]}],"resources":["chat","default","images"],"peppers":["p1"]}` + "\n"
	if have := f.do("GET", "/tiers", "").Body.String(); have != want {
		t.Errorf("%s\nwant\n%s", have, want)
	}
}

// TestUsageWithoutARecord: what was counted for an ID is shown when its key has left the file,
// or where another filter says who asks; one of which nothing was counted is unknown.
func TestUsageWithoutARecord(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	secret := apikey.New().Reveal()
	refusals := []usage.Refusal{{At: noon, Resource: "chat", Limit: "requests_per_minute", Used: 10, Max: 10, Asked: 1, Wait: time.Second}}
	for _, id := range []string{"user-7", secret, "~tier"} {
		cells := []usage.Cell{{Minute: noon.Unix() / 60, Label: "chat", Counts: usage.Counts{Admitted: 3, InputTokens: 10, OutputTokens: 20}}}
		f.used(usage.Account{ID: id, Cells: cells, Refusals: refusals})
	}
	if s := ok[UsageView](f, "GET", "/keys/user-7/usage", ""); s.KeyID != "user-7" || s.Totals.Admitted != 3 || s.Totals.OutputTokens != 20 {
		t.Errorf("%+v", s)
	}
	if r := ok[RefusalsView](f, "GET", "/keys/user-7/refusals", ""); r.KeyID != "user-7" || len(r.Refusals) != 1 {
		t.Errorf("%+v", r)
	}
	for _, id := range []string{"user-8", secret, "~tier"} { // a secret is no ID: the store does not hear of it
		for _, path := range []string{"/usage", "/refusals"} {
			f.refused("GET", "/keys/"+id+path, "", kindNoKey, "no key has this ID")
		}
	}
	f.refused("GET", "/keys/user-7/limits", "", kindNoKey, "")
}

// TestUsageOfAKey: its series, its limits as they are now, and what was refused.
func TestUsageOfAKey(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	counted := usage.Counts{Admitted: 3, Refused: map[string]int64{"requests_per_minute": 2}, InputTokens: 10, OutputTokens: 20}
	f.used(usage.Account{
		ID: "key_file", LimitRequests: 10, Cells: []usage.Cell{{Minute: noon.Unix() / 60, Label: "chat", Counts: counted}},
		Refusals: []usage.Refusal{
			{At: noon.Add(-time.Second), Resource: "chat", Limit: "tokens_per_minute", Max: 10, Asked: 11, TooLarge: true},
			{At: noon.Add(-2 * time.Second), Resource: "chat", Limit: "requests_per_day", Asked: 1},
			{At: noon.Add(900 * time.Millisecond), Resource: "chat", Limit: "requests_per_minute", Used: 10, Max: 10, Asked: 1, Wait: 29200 * time.Millisecond},
		},
	})
	counts := `"requests":5,"admitted":3,"refused":{"requests_per_minute":2},"input_tokens":10,"output_tokens":20`
	for query, want := range map[string]string{
		"": `{"key_id":"key_file","from":1772280000,"to":1772370000,"step":"hour","totals":{` + counts + `},"points":[{"start":1772366400,` + counts +
			`,"peak":{"requests":3,"tokens":30},"limits":{"requests":10,"tokens":null}}]}`,
		"?by=resource&step=minute&from=2026-03-01T11:00:00Z&to=1772366430": `{"key_id":"key_file","from":1772362800,"to":1772366460,"step":"minute","totals":{` + counts +
			`},"points":[{"start":1772366400,"resource":"chat",` + counts + `,"peak":{"requests":3,"tokens":30}}]}`,
	} {
		if have := strings.TrimSpace(f.do("GET", "/keys/key_file/usage"+query, "").Body.String()); have != want {
			t.Errorf("%s: %s\nwant\n%s", query, have, want)
		}
	}
	f.faults("GET", "/keys/key_file/usage?step=week", "", "step: want minute, hour or day")
	f.faults("GET", "/keys/key_file/usage?to=-1", "", "to: want RFC 3339, such as 2026-03-01T12:00:00Z, or Unix seconds")
	f.faults("GET", "/keys/key_file/usage?by=tier", "", "by: want resource")
	f.faults("GET", "/keys/key_file/usage?colour=red", "", ": want from, to, step or by")
	f.refused("GET", "/keys/nobody/usage", "", kindNoKey, "")
	f.refused("GET", "/keys/~tier/usage", "", kindNoKey, "")

	want := `{"key_id":"key_file","refusals":[{"at":1772366430,"status":429,"resource":"chat","limit":"requests_per_minute","used":10,"max":10,"asked":1,"fits_at":1772366461},` +
		`{"at":1772366429,"status":413,"resource":"chat","limit":"tokens_per_minute","used":0,"max":10,"asked":11,"fits_at":null},` +
		`{"at":1772366428,"status":429,"resource":"chat","limit":"requests_per_day","used":0,"max":0,"asked":1,"fits_at":null}]}`
	if have := strings.TrimSpace(f.do("GET", "/keys/key_file/refusals", "").Body.String()); have != want {
		t.Errorf("%s\nwant\n%s", have, want)
	}

	_, err := f.limits.Decide(t.Context(), quota.Request{
		Account: "key_file", Tier: f.accounts.Plans["free"], Resource: "images", Priority: quota.Low, Cost: quota.Cost{Requests: 2},
	}, noon)
	if err != nil {
		t.Fatal(err)
	}
	want = `{"key_id":"key_file","name":"Of the file","tier":"free","priority":1,"resources":null,"now":1772366430,"limits":[` +
		`{"name":"requests_per_minute","metric":"requests","per":"minute","limit":10,"used":2,"remaining":8,"reset":1772366460},` +
		`{"name":"images_requests_per_minute","metric":"requests","per":"minute","resource":"images","limit":5,"used":2,"remaining":3,"reset":1772366460}]}`
	if have := strings.TrimSpace(f.do("GET", "/keys/key_file/limits", "").Body.String()); have != want {
		t.Errorf("%s\nwant\n%s", have, want)
	}
	f.stored.Apply([]apikey.Record{{ID: "key_gone", Hash: apikey.New().Hash(), Tier: "gold", Revision: 1}})
	if list := ok[KeyList](f, "GET", "/keys?tier=gold", ""); len(list.Keys) != 1 { // found, to give it another
		t.Errorf("keys of a tier that is gone: %+v", list)
	}
	f.refused("GET", "/keys/key_gone/limits", "", kindNoTier, "the configuration has no tier gold: add it, or give the key another")
	for _, path := range []string{"/limits", "/refusals"} {
		f.refused("GET", "/keys/nobody"+path, "", kindNoKey, "")
	}
}
