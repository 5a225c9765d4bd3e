package apikey

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

func TestNewKeysParse(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 1000 {
		key := New()
		text := key.Reveal()
		if parsed, err := Parse(text); err != nil || !parsed.Equal(key) {
			t.Fatalf("a new key does not parse: %v", err)
		}
		if seen[text] {
			t.Fatal("the same key twice")
		}
		seen[text] = true
		typo := []byte(text)
		typo[len(Prefix)+5] ^= 1
		if _, err := Parse(string(typo)); !errors.Is(err, ErrMalformed) {
			t.Fatal("a key with a wrong letter passes its checksum")
		}
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	const ours = "tg_live_ABCDEFGHIJKLMNOPQRSTUVWXYZ2qsaZ5" // as Python's zlib.crc32 says: keys that were handed out stay good
	for _, text := range []string{ours, "sk-demo-basic", "a", strings.Repeat("x", MaxLen), "~!#$%&'*+-./:;<=>?@[]^_`{|}"} {
		if _, err := Parse(text); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, text := range []string{
		"", " ", "a b", "a,b", "a\x00", "a\n", "é", "\xff\xfe", strings.Repeat("x", MaxLen+1), strings.Repeat("x", 100_000),
		"tg_live_", "tg_live_short", New().Reveal() + "x", New().Reveal()[:39],
	} {
		if _, err := Parse(text); !errors.Is(err, ErrMalformed) {
			t.Errorf("%.60q: %v: want ErrMalformed", text, err)
		}
	}
}

// TestParseForeign: what is taken up has at least 8 bytes, and the error says nothing of it.
func TestParseForeign(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{"canary78": true, "canary7": false, "": false, "canary 78": false, Prefix + "canary": false} {
		if k, err := ParseForeign(text); (err == nil) != want || (want && k.Reveal() != text) {
			t.Errorf("%q: %v", text, err)
		} else if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%q: the error repeats the text: %v", text, err)
		}
	}
}

// TestCredentials finds the texts of a header's value that may be keys.
func TestCredentials(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		value         string
		authorization bool
		want          []string
	}{
		{"sk-a", false, []string{"sk-a"}},
		{" sk-a ,, sk-b", false, []string{"sk-a", "sk-b"}},
		{"Bearer sk-a", false, []string{"Bearer sk-a"}},
		{"Bearer sk-a", true, []string{"sk-a"}},
		{"bearer   sk-a, Basic dXNlcjpwdw==, BEARER sk-b", true, []string{"sk-a", "sk-b"}},
		{"sk-a", true, nil},
		{"Bearer", true, nil},
		{"", true, nil},
	} {
		if found := AppendCredentials(nil, c.value, c.authorization); !slices.Equal(found, c.want) {
			t.Errorf("%q: %q, want %q", c.value, found, c.want)
		}
	}
	key := New()
	k := Keyring{File: directory(t, Record{ID: "a", Hash: key.Hash()})}
	for n, want := range map[int]error{0: ErrMissing, 1: nil, 16: nil, 17: ErrSeveral, 1000: ErrSeveral} {
		credentials := AppendCredentials(nil, strings.Repeat(key.Reveal()+",", n), false)
		if _, err := k.Authenticate(credentials, false, time.Time{}); !errors.Is(err, want) {
			t.Errorf("the same key %d times: %v, want %v", n, err, want)
		}
	}
}

// TestKeysRedactThemselves in every verb, in JSON and in logs, alone and inside
// other values, exported or not.
func TestKeysRedactThemselves(t *testing.T) {
	t.Parallel()
	const canary = "sk-canary-0123456789abcdef"
	key, err := Parse(canary)
	if err != nil {
		t.Fatal(err)
	}
	pepper, err := NewPepper("p1", canary)
	if err != nil {
		t.Fatal(err)
	}
	type holder struct {
		Key    Key
		hidden Key
		pepper Pepper
		list   []Key
	}
	held := holder{key, key, pepper, []Key{key}}
	directory, faults := NewDirectory([]Record{{ID: "a", Hash: key.HashWith(pepper)}}, []Pepper{pepper})
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	var out bytes.Buffer
	for _, value := range []any{key, &key, held, &held, pepper, []Key{key}, map[string]Key{"k": key}, directory, *directory} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T"} {
			fmt.Fprintf(&out, verb+"\n", value)
		}
		for _, log := range []*slog.Logger{slog.New(slog.NewJSONHandler(&out, nil)), slog.New(slog.NewTextHandler(&out, nil))} {
			log.Info("message", "value", value)
		}
		if text, err := json.Marshal(value); err == nil {
			out.Write(text)
		}
	}
	for _, form := range []string{canary, fmt.Sprintf("%x", canary), fmt.Sprintf("%X", canary)} {
		if strings.Contains(out.String(), form) {
			t.Errorf("the secret is in the output:\n%s", out.String())
		}
	}
}

func TestHashText(t *testing.T) {
	t.Parallel()
	key, _ := Parse("sk-demo-basic")
	pepper, err := NewPepper("p1", "0123456789abcdef")
	if err != nil {
		t.Fatal(err)
	}
	// As printed by sha256sum, and by openssl dgst -sha256 -hmac.
	for want, hash := range map[string]Hash{
		"sha256:c066eeaf121c4fcf0bef6613013e8bdc07de09099d85f3a7af775f5143ab5912":         key.Hash(),
		"hmac-sha256:p1:9d67ee6096865e10c90287249a6ee48c92969b0ef9676efec03873b104b19aa2": key.HashWith(pepper),
	} {
		if parsed, err := ParseHash(want); err != nil || parsed != hash || hash.String() != want {
			t.Errorf("%s: %v, %v", want, parsed, err)
		}
	}
	if key.HashWith(pepper).Pepper() != "p1" || key.Hash().Pepper() != "" {
		t.Error("the pepper's name is lost")
	}
	for _, text := range []string{
		"", "sha256", "sha256:", "sha256:abc", "md5:" + strings.Repeat("0", 64), strings.Repeat("0", 64),
		"sha256:" + strings.Repeat("g", 64), "sha256:" + strings.Repeat("0", 66), "hmac-sha256:" + strings.Repeat("0", 64),
		"hmac-sha256::" + strings.Repeat("0", 64), "hmac-sha256:P1:" + strings.Repeat("0", 64), "sk-secret:canary:x",
	} {
		if _, err := ParseHash(text); err == nil {
			t.Errorf("%q parses", text)
		} else if strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), "sk-secret") {
			t.Errorf("%q: the error repeats the text: %v", text, err)
		}
	}
}

func TestDirectoryFindsEveryScheme(t *testing.T) {
	t.Parallel()
	old, _ := NewPepper("old", "0123456789abcdef")
	fresh, _ := NewPepper("fresh", "fedcba9876543210")
	plain, first, second := New(), New(), New()
	directory, faults := NewDirectory([]Record{
		{ID: "plain", Hash: plain.Hash()}, {ID: "first", Hash: first.HashWith(old)}, {ID: "second", Hash: second.HashWith(fresh)},
	}, []Pepper{old, fresh})
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	for id, key := range map[string]Key{"plain": plain, "first": first, "second": second} {
		if r, _ := directory.Lookup(key); r == nil || r.ID != id || directory.ByID(id) != r {
			t.Errorf("%s: found %v", id, r)
		}
	}
	if r, _ := directory.Lookup(New()); r != nil {
		t.Errorf("an unknown key is %s", r.ID)
	}
	empty, _ := NewDirectory(nil, nil)
	if r, _ := empty.Lookup(plain); r != nil {
		t.Errorf("an empty directory knows %s", r.ID)
	}
}

// TestDirectoryTwins: of two IDs with the same hash each has its own record, which changes by
// itself, and a directory from before a change stays as it was.
func TestDirectoryTwins(t *testing.T) {
	t.Parallel()
	seen := map[uint32]string{}
	var ids []string // in pairs of the same hash
	for i := 0; len(ids) < 4; i++ {
		id := fmt.Sprint("key_", i)
		if other, twin := seen[hashOf(id)]; twin {
			ids = append(ids, other, id)
		}
		seen[hashOf(id)] = id
	}
	records := func(ids []string, tier string) (all []Record) {
		for _, id := range ids {
			all = append(all, Record{ID: id, Tier: tier, Hash: New().Hash()})
		}
		return all
	}
	want := func(name string, d *Directory, tiers ...string) {
		found := map[string]string{}
		for r := range d.All {
			found[r.ID] = r.Tier
		}
		if len(found) != len(tiers) || d.Len() != len(tiers) {
			t.Errorf("%s: %d records and %v: want %d", name, d.Len(), found, len(tiers))
		}
		for i, tier := range tiers {
			if r := d.ByID(ids[i]); r == nil || r.ID != ids[i] || r.Tier != tier || found[ids[i]] != tier {
				t.Errorf("%s: %s is %v: want tier %s", name, ids[i], r, tier)
			}
		}
		if r := d.ByID("another"); r != nil {
			t.Errorf("%s: another is %v", name, r)
		}
	}
	first, _ := NewDirectory(records(ids[:2], "a"), nil)
	second, _ := first.With(records(ids[1:], "b"), nil)
	third, _ := second.With(records(ids[:1], "c"), nil)
	want("first", first, "a", "a")
	want("second", second, "a", "b", "b", "b")
	want("third", third, "c", "b", "b", "b")
	if first.ByID(ids[3]) != nil {
		t.Error("the first knows what came later")
	}
}

// TestCheckID: what cannot be an ID is not repeated, for it may be a secret.
func TestCheckID(t *testing.T) {
	t.Parallel()
	const wrong = "want 1 to 64 letters, digits, - and _, the first a letter or a digit"
	for id, want := range map[string]string{
		"a": "", "Z": "", "0": "", "key_live-1": "", "a-": "", "a_": "", strings.Repeat("k", 64): "", "tg-live-a": "", "tg_live": "",
		"": wrong, "-a": wrong, "_a": wrong, strings.Repeat("k", 65): wrong, "a b": wrong, "a{b}": wrong, "a:b": wrong, "a.b": wrong,
		"é": wrong, "aé": wrong, "a\x00": wrong, "a\n": wrong, "a/": wrong, "a@": wrong, "a{": wrong, "a[": wrong, "a`": wrong,
		"sk-canary/": wrong, New().Reveal(): keyThere, "key_of_" + New().Reveal(): keyThere, Prefix + "canary/": keyThere,
	} {
		err := CheckID(id)
		if told(err) != want {
			t.Errorf("%q: %v, want %q", id, err, want)
		}
		if ValidID(id) != (err == nil) {
			t.Errorf("%q: valid: %v, and %v", id, ValidID(id), err)
		}
	}
}

// keyThere is what is said of a text that holds a key and is no place for one.
const keyThere = "has what looks like a key: others can see this, so it must hold no secret"

func told(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestCheckPublic finds keys in whatever stands around them, and in capitals or not.
func TestCheckPublic(t *testing.T) {
	t.Parallel()
	key := New().Reveal()
	for text, want := range map[string]string{
		"": "", "Ada": "", "live": "", "tg_live": "", "tg-live-a": "", "tglive_a": "", "tg live_a": "", "sk-made-elsewhere": "", "Ａda’s “key”": "", "\xff": "",
		Prefix: keyThere, Prefix + "1": keyThere, key: keyThere, key[:20]: keyThere, key + key: keyThere, " " + key + "\n": keyThere, "\ufeff" + key: keyThere,
		"Bearer " + key: keyThere, "Authorization: bearer " + key: keyThere, "key_of_" + key: keyThere, "é" + key + "é": keyThere, "\xff" + key: keyThere,
		strings.ToLower(key): keyThere, strings.ToUpper(key): keyThere, "Tg_Live_1": keyThere,
	} {
		if err := CheckPublic(text); told(err) != want {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// TestRedact takes out keys, with what follows in one word, and leaves the rest.
func TestRedact(t *testing.T) {
	t.Parallel()
	key := New().Reveal()
	const gone = Prefix + "…"
	for text, want := range map[string]string{
		"": "", "Ada": "Ada", "tg_live": "tg_live", Prefix: Prefix, Prefix + " 1": Prefix + " 1", "sk-made-elsewhere": "sk-made-elsewhere",
		key: gone, key[:9]: gone, key + key: gone, key + "-" + key: gone + "-" + gone, "open " + key + ": no such file": "open " + gone + ": no such file",
		"Bearer " + key: "Bearer " + gone, "of_" + key: "of_" + gone, `"` + key + `\n"`: `"` + gone + `\n"`,
		strings.ToLower(key): gone, strings.ToUpper(key) + ".": gone + ".",
	} {
		if have := Redact(text); have != want {
			t.Errorf("%q: %q, want %q", text, have, want)
		}
	}
}

func TestDirectoryFaults(t *testing.T) {
	t.Parallel()
	pepper, _ := NewPepper("p1", "0123456789abcdef")
	a, b, c := New(), New(), New()
	_, faults := NewDirectory([]Record{
		{ID: "a", Hash: a.Hash()}, {ID: "a", Hash: b.Hash()}, {ID: "c", Hash: a.Hash()}, {ID: "d", Hash: c.HashWith(pepper)},
	}, nil)
	want := []struct {
		index int
		field string
		text  string
	}{{1, "id", "names two keys"}, {2, "hash", "same hash"}, {3, "hash", `pepper "p1" is not configured`}}
	if len(faults) != len(want) {
		t.Fatalf("%v: want %d faults", faults, len(want))
	}
	for i, w := range want {
		if f := faults[i]; f.Index != w.index || f.Field != w.field || !strings.Contains(f.Err.Error(), w.text) {
			t.Errorf("%+v: want %+v", f, w)
		}
	}
}

func TestUsable(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		record Record
		want   error
	}{
		"plain":         {Record{}, nil},
		"expires later": {Record{Expires: now.Add(1)}, nil},
		"expires now":   {Record{Expires: now}, ErrExpired},
		"revoked":       {Record{Revoked: true}, ErrRevoked},
		"both":          {Record{Revoked: true, Expires: now.Add(-1)}, ErrRevoked},
	} {
		if err := c.record.Usable(now); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	for own, want := range map[quota.Priority]quota.Priority{0: quota.High, quota.Low: quota.Low, quota.Critical: quota.Critical} {
		if p := (&Record{Priority: own}).Granted(quota.High); p != want {
			t.Errorf("a key of priority %d in a tier of high priority has %s, want %s", own, p, want)
		}
	}
	r := Record{Resources: []string{"chat"}}
	if !r.MayUse("chat") || r.MayUse("images") || !(&Record{}).MayUse("images") {
		t.Error("leave for resources")
	}
}

func TestPepperFaults(t *testing.T) {
	t.Parallel()
	for _, c := range [][2]string{{"p1", "short"}, {"", "0123456789abcdef"}, {"P 1", "0123456789abcdef"}, {"a:b", "0123456789abcdef"}} {
		if _, err := NewPepper(c[0], c[1]); err == nil || strings.Contains(err.Error(), c[1]) || strings.Contains(err.Error(), "P 1") {
			t.Errorf("%q: %v", c[0], err)
		}
	}
}

// FuzzParse looks for a text that panics, or passes and should not.
func FuzzParse(f *testing.F) {
	f.Add("sk-demo-basic")
	f.Add(New().Reveal())
	f.Add("tg_live_")
	f.Fuzz(func(t *testing.T, text string) {
		key, err := Parse(text)
		if err == nil && (text == "" || len(text) > MaxLen || strings.ContainsAny(text, " ,\r\n\x00") || key.Reveal() != text) {
			t.Errorf("%q parses", text)
		}
		if h, err := ParseHash(text); err == nil && !strings.EqualFold(h.String(), text) {
			t.Errorf("the hash %q is printed as %q", text, h)
		}
	})
}
