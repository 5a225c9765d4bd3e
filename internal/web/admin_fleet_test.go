package web

import (
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/usage"
)

// TestInstances: rates are a second's, and the sum is of all; latencies are the slowest
// instance's, and null where nothing was decided.
func TestInstances(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	if w := f.do("GET", "/instances", ""); w.Body.String() != `{"now":1772366430,"sum":{"instances":0,"failing":0,"rates":{},"p50_ms":null,"p99_ms":null},"instances":[]}`+"\n" {
		t.Errorf("none: %d %s", w.Code, w.Body)
	}
	for _, i := range []usage.Instance{
		{
			ID: "a", Version: "v1", Started: noon.Add(-time.Hour), Seen: noon, Rates: map[string]int64{"allowed": 100, "limited": 1}, Interval: 3 * time.Second,
			P50: 300 * time.Microsecond, P99: 4 * time.Millisecond, Keys: 7,
		},
		{ID: "b", Started: noon, Seen: noon, Rates: map[string]int64{"allowed": 20}, Interval: 2 * time.Second, P50: 200 * time.Microsecond, P99: 1500 * time.Millisecond, Store: "no answer"},
		{ID: "c", Started: noon, Seen: noon, Rates: map[string]int64{"allowed": 1}},
	} {
		if err := f.kept.Tell(t.Context(), i); err != nil {
			t.Fatal(err)
		}
	}
	w := f.do("GET", "/instances", "")
	const want = `{"now":1772366430,"sum":{"instances":3,"failing":1,"rates":{"allowed":43.333,"limited":0.333},"p50_ms":0.3,"p99_ms":1500},"instances":[` +
		`{"id":"a","version":"v1","started":1772362830,"seen":1772366430,"rates":{"allowed":33.333,"limited":0.333},"p50_ms":0.3,"p99_ms":4,"keys":7},` +
		`{"id":"b","version":"","started":1772366430,"seen":1772366430,"rates":{"allowed":10},"p50_ms":0.2,"p99_ms":1500,"store_error":"no answer","keys":0},` +
		`{"id":"c","version":"","started":1772366430,"seen":1772366430,"rates":{},"p50_ms":null,"p99_ms":null,"keys":0}]}` + "\n"
	if w.Body.String() != want {
		t.Errorf("%d %s\nwant %s", w.Code, w.Body, want)
	}
}

// minute is so many requests admitted in a minute, some time ago, and one that was refused.
func minute(ago time.Duration, label string, admitted int64) usage.Cell {
	return usage.Cell{Minute: noon.Add(-ago).Unix() / 60, Label: label, Counts: usage.Counts{
		Admitted: admitted, Refused: map[string]int64{"requests_per_minute": 1}, InputTokens: 10 * admitted, OutputTokens: admitted,
	}}
}

// TestTopAndNear name the keys that stand out; of one that there is no more, the ID.
func TestTopAndNear(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	f.used(
		usage.Account{ID: "key_file", Cells: []usage.Cell{minute(0, "chat", 8)}, Near: usage.Near{Limit: "requests_per_minute", Share: 0.98765}},
		usage.Account{ID: "key_gone", Cells: []usage.Cell{minute(20*time.Hour, "chat", 30), minute(0, "chat", 2)}},
	)
	for path, want := range map[string]string{
		"/top":                             `{"by":"requests","hours":1,"keys":[{"key_id":"key_file","name":"Of the file","tier":"free","count":9},{"key_id":"key_gone","count":3}]}`,
		"/top?limit=1":                     `{"by":"requests","hours":1,"keys":[{"key_id":"key_file","name":"Of the file","tier":"free","count":9}]}`,
		"/top?by=refused&hours=24":         `{"by":"refused","hours":24,"keys":[{"key_id":"key_gone","count":2},{"key_id":"key_file","name":"Of the file","tier":"free","count":1}]}`,
		"/top?by=tokens&hours=23&limit=10": `{"by":"tokens","hours":23,"keys":[{"key_id":"key_gone","count":352},{"key_id":"key_file","name":"Of the file","tier":"free","count":88}]}`,
		"/near":                            `{"keys":[{"key_id":"key_file","name":"Of the file","tier":"free","limit":"requests_per_minute","share":0.988}]}`,
	} {
		if w := f.do("GET", path, ""); w.Body.String() != want+"\n" {
			t.Errorf("%s: %d %s\nwant %s", path, w.Code, w.Body, want)
		}
	}
	f.faults("GET", "/top?by=size&hours=0&limit=0&x=1", "", "by: want requests, tokens or refused", "hours: want 1 to 24", "limit: want 1 to 1000", "x: unknown parameter")
	f.faults("GET", "/top?hours=25", "", "hours: want 1 to 24")
	f.faults("GET", "/near?limit=5", "", "limit: unknown parameter")
	f.faults("GET", "/instances?limit=5", "", "limit: unknown parameter")
}

// TestFleetUsage: all together, or a point for each label, never both.
func TestFleetUsage(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	f.used(
		usage.Account{ID: usage.FleetByResource, Cells: []usage.Cell{minute(0, "chat", 5)}},
		usage.Account{ID: usage.FleetByTier, Cells: []usage.Cell{minute(0, "free", 5)}},
		usage.Account{ID: usage.FleetByPriority, Cells: []usage.Cell{minute(0, "1", 2), minute(0, "4", 3)}},
	)
	const (
		part = `"from":1772280000,"to":1772370000,"step":"hour","totals":{"requests":`
		five = `"requests":6,"admitted":5,"refused":{"requests_per_minute":1},"input_tokens":50,"output_tokens":5`
		all  = part + `6,"admitted":5,"refused":{"requests_per_minute":1},"input_tokens":50,"output_tokens":5},"points":[{"start":1772366400,`
		peak = `,"peak":{"requests":5,"tokens":55}}]}`
	)
	for path, want := range map[string]string{
		"/fleet/usage":             `{` + all + five + peak,
		"/fleet/usage?of=resource": `{"of":"resource",` + all + `"label":"chat",` + five + peak,
		"/fleet/usage?of=tier":     `{"of":"tier",` + all + `"label":"free",` + five + peak,
		"/fleet/usage?of=priority": `{"of":"priority",` + part + `7,"admitted":5,"refused":{"requests_per_minute":2},"input_tokens":50,"output_tokens":5},"points":[` +
			`{"start":1772366400,"label":"1","requests":3,"admitted":2,"refused":{"requests_per_minute":1},"input_tokens":20,"output_tokens":2,"peak":{"requests":2,"tokens":22}},` +
			`{"start":1772366400,"label":"4","requests":4,"admitted":3,"refused":{"requests_per_minute":1},"input_tokens":30,"output_tokens":3,"peak":{"requests":3,"tokens":33}}]}`,
	} {
		if w := f.do("GET", path, ""); w.Body.String() != want+"\n" {
			t.Errorf("%s: %d %s\nwant %s", path, w.Code, w.Body, want)
		}
	}
	f.faults("GET", "/fleet/usage?of=key", "", "of: want resource or tier or priority")
	f.faults("GET", "/fleet/usage?step=week", "", "step: want minute, hour or day")
	f.faults("GET", "/fleet/usage?by=resource", "", ": want from, to, step or of")
}

// TestFleetCannotBeRead is a problem of the store.
func TestFleetCannotBeRead(t *testing.T) {
	t.Parallel()
	f := newAdmin(t)
	f.file.Close()
	for _, path := range []string{"/top", "/near", "/fleet/usage"} {
		f.refused("GET", path, "", kindStoreAway, "")
	}
}
