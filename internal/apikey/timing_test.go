package apikey

import (
	"crypto/rand"
	"fmt"
	"slices"
	"testing"
	"time"
)

// TestLookupTime: a key that is on record, one that differs from such a key in its last or
// first character, and any other take the same time to look up, but for noise. What is
// compared is a hash, so it says nothing of how near a guess is.
func TestLookupTime(t *testing.T) {
	const keys, rounds = 100, 200
	pepper, err := NewPepper("p1", "a-pepper-of-at-least-sixteen-bytes")
	if err != nil {
		t.Fatal(err)
	}
	for scheme, hash := range map[string]func(Key) Hash{"sha256": Key.Hash, "hmac-sha256": func(k Key) Hash { return k.HashWith(pepper) }} {
		parse := func(text string) Key {
			key, err := Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			return key
		}
		kinds := []string{"known", "last differs", "first differs", "unknown"}
		asked := make([][]Key, len(kinds))
		records := make([]Record, keys)
		for i := range records {
			secret := rand.Text()
			for n, text := range []string{"k" + secret + "k", "k" + secret + "l", "l" + secret + "k", "m" + rand.Text() + "m"} {
				asked[n] = append(asked[n], parse(text))
			}
			records[i] = Record{ID: fmt.Sprint("key_", i), Hash: hash(asked[0][i]), Tier: "pro"}
		}
		directory, faults := NewDirectory(records, []Pepper{pepper})
		if len(faults) > 0 {
			t.Fatal(faults)
		}
		times := make([][]time.Duration, len(kinds))
		for round := range rounds {
			for i := range kinds {
				n := (i + round) % len(kinds) // none is always the first
				found := 0
				began := time.Now()
				for _, key := range asked[n] {
					if record, _ := directory.Lookup(key); record != nil {
						found++
					}
				}
				times[n] = append(times[n], time.Since(began)/keys)
				if want := map[bool]int{true: keys}[n == 0]; found != want {
					t.Fatalf("%s: %d found, want %d", kinds[n], found, want)
				}
			}
		}
		least := func(n int) time.Duration { return slices.Min(times[n]) } // the one that was disturbed least
		for n, kind := range kinds {
			ratio := float64(least(n)) / float64(least(len(kinds)-1))
			t.Logf("%s, %s: %s, %.2f of an unknown key's", scheme, kind, least(n), ratio)
			if ratio < 0.5 || ratio > 2 {
				t.Errorf("%s, %s: %.2f of the time of an unknown key: want about the same", scheme, kind, ratio)
			}
		}
	}
}
