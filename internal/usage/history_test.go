package usage

import (
	"strconv"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// TestHistory follows what is used, needs a few answers to begin, is not misled by
// a single one, and holds no more than it may.
func TestHistory(t *testing.T) {
	t.Parallel()
	h := NewHistory(100)
	for i := range historyEnough {
		if high := h.High("a", "chat"); high != quota.Unknown {
			t.Errorf("after %d answers: %d", i, high)
		}
		h.Add("a", "chat", 100)
	}
	within := func(what string, least, most int64) {
		t.Helper()
		if high := h.High("a", "chat"); high < least || high > most {
			t.Errorf("%s: %d, want %d to %d", what, high, least, most)
		}
	}
	within("always 100", 100, 125)
	for range 60 {
		h.Add("a", "chat", 100)
	}
	h.Add("a", "chat", 50_000)
	within("one of many is large", 100, 125)
	for range 10 {
		h.Add("a", "chat", 8000)
	}
	within("some are larger now", 8000, 10_000)
	for range 300 {
		h.Add("a", "chat", 20)
	}
	within("for long small ones", 20, 25)
	for range 10 {
		h.Add("a", "moderations", 0)
	}
	if high := h.High("a", "moderations"); high != 0 {
		t.Errorf("of answers without tokens: %d, want 0", high)
	}
	h.Add("a", "chat", 1<<62)
	h.Add("a", "chat", -1)
	for i := range 1000 {
		h.Add(strconv.Itoa(i), "chat", 1)
	}
	if len(h.seen) != 100 {
		t.Errorf("%d remembered, want 100", len(h.seen))
	}
	if h.High("a", "images") != quota.Unknown {
		t.Error("one resource is taken for another")
	}
}

// TestSteps have the lengths of their names, and are kept as long as the guides say.
func TestSteps(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		step         Step
		length, keep time.Duration
	}{
		"minute": {Minute, time.Minute, 3 * time.Hour},
		"hour":   {Hour, time.Hour, 8 * 24 * time.Hour},
		"day":    {Day, 24 * time.Hour, 400 * 24 * time.Hour},
	} {
		if step, err := ParseStep(name); err != nil || step != c.step || step.Length() != c.length || step.Keep() != c.keep {
			t.Errorf("%s is %s, of %s and kept for %s: %v", name, step, step.Length(), step.Keep(), err)
		}
	}
	if s, err := ParseStep("week"); err == nil {
		t.Errorf("week is %s", s)
	}
}
