package apikey

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// FuzzRecord looks for a stored record that panics, is not what it becomes when it is
// written again, grants what nothing grants, or whose fault repeats what stands in the
// place of a hash.
func FuzzRecord(f *testing.F) {
	hash := "sha256:" + strings.Repeat("0a", 32)
	f.Add(`{"id":"a","hash":"` + hash + `","tier":"free","priority":3,"resources":["chat"],"expires":"2027-01-01T00:00:00Z"}`)
	f.Add(`{"id":"a","hash":"` + hash + `","former":{"hash":"` + hash + `","until":"2026-03-01T12:00:00+01:00"},"labels":{"a":"b"}}`)
	f.Add(`{"id":"a","hash":"` + hash + `","overrides":[{"metric":"tokens","per":"90s","max":5,"priority":1,"until":"2026-03-01T12:00:00Z"}]}`)
	f.Add(`{"id":"a","hash":"` + hash + `","overrides":[{"metric":"tokens","per":"day","max":-5}]}`)
	f.Add(`{"id":"a","hash":"` + hash + `","overrides":[{"metric":"tokens","per":"month","max":5,"algorithm":"sliding"}]}`)
	f.Add(`{"id":"a","hash":"` + hash + `","overrides":[{"metric":"tokens","per":"day","max":5,"priority":200}]}`)
	f.Add(`{"id":"a","hash":"` + hash + `","priority":9}`)
	f.Add(`{"id":"a","hash":"sk-a-secret-in-the-wrong-place","former":{"hash":"sk-another-secret","until":"never"}}`)
	f.Add(`{"id":"a","Hash":"` + hash + `","hash":"md5:00","priority":256}`)
	f.Fuzz(func(t *testing.T, text string) {
		var r Record
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			repeatsNone(t, text, err)
			return
		}
		priorities := []quota.Priority{r.Priority}
		for _, o := range r.Overrides {
			priorities = append(priorities, o.Limit.Priority)
			if err := o.Limit.Validate(); err != nil {
				t.Errorf("%s: %v", text, err)
			}
		}
		if most := slices.Max(priorities); most > quota.Critical {
			t.Errorf("%s: priority %d", text, most)
		}
		first, err := json.Marshal(r)
		if err != nil {
			t.Fatalf("%s cannot be written again: %v", text, err)
		}
		var again Record
		if err := json.Unmarshal(first, &again); err != nil {
			t.Fatalf("%s cannot be read again: %v", first, err)
		}
		if second, err := json.Marshal(again); err != nil || string(second) != string(first) {
			t.Errorf("%s\nbecomes\n%s, %v", first, second, err)
		}
	})
}

// repeatsNone fails where an error has what stands in the place of a hash, unless it
// stands elsewhere too.
func repeatsNone(t *testing.T, text string, err error) {
	t.Helper()
	var loose struct {
		Hash   string
		Former struct{ Hash string }
	}
	if json.Unmarshal([]byte(text), &loose) != nil {
		return
	}
	for _, secret := range []string{loose.Hash, loose.Former.Hash} {
		if len(secret) > 8 && strings.Count(text, secret) == 1 && strings.Contains(err.Error(), secret) {
			t.Errorf("the error repeats it: %v", err)
		}
	}
}

// FuzzHash looks for a text that panics, is a hash and another one when it is printed,
// or is repeated by the error.
func FuzzHash(f *testing.F) {
	pepper, err := NewPepper("p1", "0123456789abcdef")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(keyOf("sk-a").Hash().String())
	f.Add(keyOf("sk-a").HashWith(pepper).String())
	f.Add("sk-canary-in-the-wrong-place")
	f.Add("sk:canary")
	f.Add("sha256:canary")
	f.Add("hmac-sha256:P 1:00")
	f.Add("sha256::" + strings.Repeat("0", 64))
	f.Fuzz(func(t *testing.T, text string) {
		h, err := ParseHash(text)
		if err != nil {
			if strings.Contains(text, "canary") && strings.Contains(err.Error(), "canary") {
				t.Errorf("the error repeats the text: %v", err)
			}
			return
		}
		again, err := ParseHash(h.String())
		if err != nil || again != h || !strings.EqualFold(h.String(), text) {
			t.Errorf("%q is %v, and that is %v, %v", text, h, again, err)
		}
		if h.Pepper() != "" && !pepperName.MatchString(h.Pepper()) {
			t.Errorf("%q has the pepper %q", text, h.Pepper())
		}
	})
}

// FuzzCredentials looks for a header whose credentials are not parts of it, or that finds
// somebody though it names two keys.
func FuzzCredentials(f *testing.F) {
	f.Add("Bearer sk-a", true)
	f.Add("bearer  sk-a ,Bearer sk-b", true)
	f.Add("Basic eDp5, Bearer sk-a", true)
	f.Add("sk-a,sk-a,\t,", false)
	f.Add("Bearer\tsk-a", true)
	f.Fuzz(func(t *testing.T, value string, authorization bool) {
		found := AppendCredentials([]string{"sk-other"}, value, authorization)
		if found[0] != "sk-other" {
			t.Fatalf("%q: %q", value, found)
		}
		for _, text := range found[1:] {
			if text == "" || text != strings.TrimSpace(text) || strings.Contains(text, ",") || !strings.Contains(value, text) {
				t.Errorf("%q has the credential %q", value, text)
			}
			if authorization && !strings.Contains(strings.ToLower(value), "bearer") {
				t.Errorf("%q has the credential %q", value, text)
			}
		}
		key, err := only(found)
		if len(found) > 1 && err == nil && slices.ContainsFunc(found, func(text string) bool { return text != "sk-other" }) {
			t.Errorf("%q beside another key is %s", value, key.Reveal())
		}
		if err != nil && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrSeveral) {
			t.Errorf("%q: %v", value, err)
		}
		empty := Keyring{File: &Directory{}}
		if r, err := empty.Authenticate(found, true, time.Unix(0, 0)); r != nil || err == nil {
			t.Errorf("%q finds %v in an empty directory", value, r)
		}
	})
}
