package apikey

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

func directory(t *testing.T, records ...Record) *Directory {
	t.Helper()
	d, faults := NewDirectory(records, nil)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	return d
}

// TestFileBeforeStore: what the file says holds, by ID and by hash.
func TestFileBeforeStore(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	shared, hidden, own := New(), New(), New()
	k := Keyring{
		File:   directory(t, Record{ID: "a", Hash: shared.Hash(), Tier: "file"}, Record{ID: "b", Hash: New().Hash(), Tier: "file"}),
		Stored: NewStored(nil),
	}
	if _, err := k.Authenticate([]string{own.Reveal()}, false, now); !errors.Is(err, ErrUnread) {
		t.Errorf("before the store was read: %v", err)
	}
	if faults := k.Stored.Replace([]Record{
		{ID: "twin", Hash: shared.Hash(), Tier: "store", Revision: 1},
		{ID: "b", Hash: hidden.Hash(), Tier: "store", Revision: 1},
		{ID: "c", Hash: own.Hash(), Tier: "store", Revision: 1},
	}); len(faults) > 0 {
		t.Fatal(faults)
	}
	for name, c := range map[string]struct {
		key  Key
		id   string
		want error
	}{
		"same hash":         {shared, "a", nil},
		"same ID":           {hidden, "", ErrUnknown},
		"only in the store": {own, "c", nil},
	} {
		r, err := k.Authenticate([]string{c.key.Reveal()}, false, now)
		if !errors.Is(err, c.want) || (c.id == "") != (r == nil) || (r != nil && r.ID != c.id) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	if r := k.ByID("b"); r.Tier != "file" {
		t.Errorf("b is of tier %s", r.Tier)
	}
	if r := k.ByID("c"); r == nil || r.Tier != "store" || k.Twin(own.Hash()) != r || k.Twin(shared.Hash()).ID != "a" {
		t.Errorf("c is %+v", r)
	}
	if k.ByHash(hidden.Hash()) != nil || k.ByHash(own.Hash()).ID != "c" || k.Len() != 5 {
		t.Error("by hash, or the number of keys")
	}
}

// TestSchemesOfFileAndStore: a key is found by the schemes of either, whatever the other has.
func TestSchemesOfFileAndStore(t *testing.T) {
	t.Parallel()
	pepper, err := NewPepper("p1", "0123456789abcdef")
	if err != nil {
		t.Fatal(err)
	}
	plain, peppered := New(), New()
	a, b := Record{ID: "plain", Hash: plain.Hash()}, Record{ID: "peppered", Hash: peppered.HashWith(pepper)}
	for _, records := range [][2]Record{{a, b}, {b, a}} {
		file, faults := NewDirectory(records[:1], []Pepper{pepper})
		k := Keyring{File: file, Stored: NewStored([]Pepper{pepper})}
		if faults = append(faults, k.Stored.Apply(records[1:])...); len(faults) > 0 {
			t.Fatal(faults)
		}
		for id, key := range map[string]Key{"plain": plain, "peppered": peppered} {
			if r, _ := k.Lookup(key); r == nil || r.ID != id {
				t.Errorf("%s, with %s in the file: found %v", id, records[0].ID, r)
			}
		}
	}
}

// TestDemoKeys are unknown unless they are allowed; other keys do not depend on that.
func TestDemoKeys(t *testing.T) {
	t.Parallel()
	demo, own := New(), New()
	k := Keyring{File: directory(t, Record{ID: "demo", Hash: demo.Hash(), Demo: true}, Record{ID: "own", Hash: own.Hash()})}
	for _, allowed := range []bool{false, true} {
		if _, err := k.Authenticate([]string{own.Reveal()}, allowed, time.Time{}); err != nil {
			t.Errorf("demo keys allowed %t: another key: %v", allowed, err)
		}
		if _, err := k.Authenticate([]string{demo.Reveal()}, allowed, time.Time{}); errors.Is(err, ErrUnknown) == allowed {
			t.Errorf("demo keys allowed %t: one of them: %v", allowed, err)
		}
	}
}

// TestRotation: the former key works until its time is over, and is the same key.
func TestRotation(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	old, fresh := New(), New()
	record := Record{ID: "a", Hash: fresh.Hash(), Former: &Former{old.Hash(), now.Add(time.Hour)}}
	k := Keyring{File: directory(t, record)}
	for name, c := range map[string]struct {
		key  Key
		at   time.Time
		want error
	}{
		"new":        {fresh, now, nil},
		"old":        {old, now.Add(time.Hour - 1), nil},
		"old, over":  {old, now.Add(time.Hour), ErrRevoked},
		"new, later": {fresh, now.Add(time.Hour), nil},
	} {
		if r, err := k.Authenticate([]string{c.key.Reveal()}, false, c.at); !errors.Is(err, c.want) || r == nil || r.ID != "a" {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	before := New().Hash() // of a rotation before that
	for _, r := range []Record{record, {ID: "a", Hash: fresh.Hash()}} {
		if err := r.Opens(before, now); !errors.Is(err, ErrRevoked) {
			t.Errorf("a hash of neither: %v", err)
		}
	}
}

// TestDirectoriesNeverChange: With leaves the first as it is, forgets the hashes of a
// changed record, and knows an older revision for what it is.
func TestDirectoriesNeverChange(t *testing.T) {
	t.Parallel()
	var keys []Key
	var records []Record
	for i := range 1000 {
		keys = append(keys, New())
		records = append(records, Record{ID: fmt.Sprintf("key-%d", i), Hash: keys[i].Hash(), Revision: 2})
	}
	first := directory(t, records...)
	fresh := New()
	second, faults := first.With([]Record{
		{ID: "key-7", Hash: fresh.Hash(), Revision: 3}, {ID: "key-8", Hash: New().Hash(), Revision: 1}, {ID: "new", Hash: New().Hash(), Revision: 1},
	}, nil)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	found := func(d *Directory, k Key) string {
		if r, _ := d.Lookup(k); r != nil {
			return r.ID
		}
		return ""
	}
	if found(first, keys[7]) != "key-7" || found(first, fresh) != "" || first.Len() != 1000 {
		t.Error("the first has changed")
	}
	if found(second, keys[7]) != "" || found(second, fresh) != "key-7" || found(second, keys[8]) != "key-8" || second.Len() != 1001 {
		t.Error("the second is wrong")
	}
	if n := len(slices.Collect(second.All)); n != 1001 {
		t.Errorf("%d records", n)
	}
}

// TestFaultyRecordsHarmNobody: a hash that is another's, or whose pepper is missing,
// does not work; all others do. A pepper may come later.
func TestFaultyRecordsHarmNobody(t *testing.T) {
	t.Parallel()
	pepper, err := NewPepper("p1", "0123456789abcdef")
	if err != nil {
		t.Fatal(err)
	}
	a, b := New(), New()
	k := Keyring{File: directory(t), Stored: NewStored(nil)}
	faults := k.Stored.Replace([]Record{
		{ID: "a", Hash: a.Hash()}, {ID: "thief", Hash: a.Hash()}, {ID: "peppered", Hash: b.HashWith(pepper)},
	})
	if len(faults) != 2 || faults[0].Index != 1 || faults[1].Index != 2 || faults[0].ID != "thief" {
		t.Fatalf("faults %v", faults)
	}
	if r, _ := k.Lookup(a); r == nil || r.ID != "a" {
		t.Errorf("a is %+v", r)
	}
	if r, _ := k.Lookup(b); r != nil {
		t.Errorf("found without its pepper: %+v", r)
	}
	other, err := NewPepper("p1", "fedcba9876543210")
	if err != nil {
		t.Fatal(err)
	}
	k.Stored.UsePeppers([]Pepper{other})
	if r, _ := k.Lookup(b); r != nil {
		t.Errorf("found with another pepper of that name: %+v", r)
	}
	k.Stored.UsePeppers([]Pepper{pepper})
	if r, _ := k.Lookup(b); r == nil || r.ID != "peppered" {
		t.Errorf("with its pepper: %+v", r)
	}
	faults = k.Stored.UsePeppers(nil)
	if !slices.ContainsFunc(faults, func(f RecordError) bool { return f.ID == "peppered" }) {
		t.Errorf("its pepper is gone: %v", faults)
	}
}

// TestRecordsAsJSON come back as they were.
func TestRecordsAsJSON(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	want := Record{
		ID: "a", Name: "n", Owner: "o", Hash: New().Hash(), Former: &Former{New().Hash(), at}, Tier: "t", Priority: quota.High,
		Resources: []string{"chat"}, Labels: map[string]string{"k": "v"}, Created: at, Expires: at.Add(1e9), Revoked: true, Demo: true, Revision: 7,
		Overrides: []quota.Override{{Limit: quota.Limit{Metric: quota.Tokens, Window: 90 * quota.Second, Max: 5, Resource: "chat", Priority: quota.Low}, Until: at}, {Limit: quota.Limit{Metric: quota.Requests, Window: quota.Month.Slide(), Max: 7}}, {Limit: quota.Limit{Metric: quota.Requests, Window: quota.Day, Max: 9}, Inherits: true}},
	}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var have Record
	if err := json.Unmarshal(text, &have); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(have)
	if err != nil || string(again) != string(text) || !slices.Equal(have.Overrides, want.Overrides) || *have.Former != *want.Former || have.Hash != want.Hash {
		t.Errorf("%s\nbecomes\n%s, %v", text, again, err)
	}
	for _, bad := range []string{
		`{"hash":"md5:00"}`, `[]`,
		`{"hash":"` + want.Hash.String() + `","overrides":[{"metric":"x","per":"day","max":1}]}`,
		`{"hash":"` + want.Hash.String() + `","overrides":[{"metric":"requests","per":"x","max":1}]}`,
		`{"hash":"` + want.Hash.String() + `","overrides":[{"metric":"requests","per":"day","max":-1}]}`,
		`{"hash":"` + want.Hash.String() + `","overrides":[{"metric":"requests","per":"day","max":1,"algorithm":"leaky"}]}`,
		`{"hash":"` + want.Hash.String() + `","overrides":[{"metric":"requests","per":"day","max":1,"priority":5}]}`,
	} {
		if err := json.Unmarshal([]byte(bad), &have); err == nil {
			t.Errorf("%s is a record", bad)
		}
	}
}
