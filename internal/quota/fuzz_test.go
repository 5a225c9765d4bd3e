package quota

import (
	"strings"
	"testing"
)

// FuzzEffective looks for a wish that raises a priority, or that is none of those there
// are.
func FuzzEffective(f *testing.F) {
	f.Add(uint8(2), "4")
	f.Add(uint8(3), " LOW\t")
	f.Add(uint8(4), "1,4")
	f.Add(uint8(1), "ſow")
	f.Fuzz(func(t *testing.T, tier uint8, asked string) {
		granted := Low + Priority(tier)%Critical
		p := Effective(granted, asked)
		if p < Low || p > granted {
			t.Errorf("%q of priority %s gets %s", asked, granted, p)
		}
		if again := Effective(p, asked); again != p {
			t.Errorf("%q of priority %s gets %s, and then %s", asked, granted, p, again)
		}
		if parsed, err := ParsePriority(asked); err == nil && (parsed < Low || parsed > Critical) {
			t.Errorf("%q is %d", asked, parsed)
		}
	})
}

// FuzzParseWindow looks for a length that is another one when it is printed, or that no
// limit can have.
func FuzzParseWindow(f *testing.F) {
	for _, text := range []string{"month", "90s", "1h0m1s", "8784h", "0.5s", "-1s", "1000000000ns", "60000ms"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		w, err := ParseWindow(text)
		if err != nil {
			return
		}
		if again, err := ParseWindow(w.String()); err != nil || again != w {
			t.Errorf("%q is %d, printed %q, which is %d, %v", text, w, w, again, err)
		}
		if w != Month && (w < Second || w%Second != 0 || w > Window(maxWindow.Milliseconds())) {
			t.Errorf("%q is %d ms", text, w)
		}
		if strings.ContainsAny(w.String(), " /@#{}:") {
			t.Errorf("%q is printed %q, which cannot be part of a counter's name", text, w)
		}
	})
}

// FuzzReserve looks for a body, or a usage, whose cost is out of bounds.
func FuzzReserve(f *testing.F) {
	f.Add(int64(4), true, int64(1)<<62, int64(1)<<62, int64(-1), 1000.0)
	f.Add(int64(-1), false, int64(-1), int64(0), int64(7), 0.5)
	f.Fuzz(func(t *testing.T, bytes int64, read bool, declared, choices, learnt int64, weight float64) {
		if !(weight > 0 && weight <= MaxModelWeight) { // what configuration and tickets allow
			return
		}
		inBounds := func(what string, c Cost) {
			for _, n := range []int64{c.Tokens, c.InputTokens, c.OutputTokens} {
				if n < 0 || n > MaxCost {
					t.Errorf("%s is %+v", what, c)
				}
			}
		}
		rules := TokenRules{MaxInput: 128_000, Output: 1000, MaxOutput: 16_000}
		certain, estimate, source := Body{bytes, read, declared, choices, choices%2 == 0}.Reserve(rules, learnt, weight)
		inBounds("what is declared", certain)
		inBounds("what is estimated", estimate)
		if source == "" {
			t.Error("from nowhere")
		}
		// An upstream's numbers, as far as they are reported.
		used := Usage{max(bytes, Unknown), max(choices, Unknown), max(declared, Unknown), max(learnt, Unknown)}
		for _, n := range []*int64{&used.Input, &used.CachedInput, &used.Output, &used.Total} {
			*n = min(*n, 3*MaxCost)
		}
		cost := used.Cost(Weights{Model: weight, CachedInput: 0.1})
		cost.Tokens, cost.InputTokens, cost.OutputTokens = max(cost.Tokens, 0), max(cost.InputTokens, 0), max(cost.OutputTokens, 0)
		inBounds("what was used", cost)
	})
}
