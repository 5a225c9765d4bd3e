package store

import (
	"math"
	"slices"
	"testing"

	"github.com/tiergate/tiergate/internal/quota"
)

// FuzzRecord looks for a reservation that is not what was packed.
func FuzzRecord(f *testing.F) {
	f.Add(int64(1772366430000000000), "key_a", "request", "secret", int64(quota.Minute), quota.NoMax, int64(7), int64(8), 3)
	f.Add(int64(1772366430000000000), "key_a", "request", "secret", int64(quota.Minute.Slide()), int64(9), int64(7), int64(8), 3)
	f.Add(int64(-1), "", "r", "\x00\xff", int64(quota.Month), int64(0), int64(math.MinInt64), int64(math.MaxInt64), 0)
	f.Fuzz(func(t *testing.T, at int64, account, request, secret string, window, most, cost, used int64, charges int) {
		names := []string{"requests/minute", "tokens/day@chat#4"}
		want := make([]reserved, min(max(charges, 0), 300))
		p := pack(nil, at, account, request, secret)
		for i := range want {
			name := i % len(names)
			want[i] = reserved{names[name], quota.Tokens, quota.Window(window), most, at / 1_000_000, cost, used + int64(i), 0}
			if want[i].window.Sliding() {
				want[i].before = used - cost
			}
			p = packCharge(p, uint32(name), want[i])
		}
		o := record{packed: packed(p)}.open()
		if o.at != at || !o.of(account, request) || o.secret != secret {
			t.Errorf("%+v", o)
		}
		var have []reserved
		for rest := o.charges; rest != ""; {
			have = append(have, rest.charge(names))
		}
		if !slices.Equal(have, want) {
			t.Errorf("%+v, want %+v", have, want)
		}
	})
}
