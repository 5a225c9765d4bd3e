package envoyapi

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/tiergate/tiergate/internal/quota"
)

// A notebook writes down what an Observer is told.
type notebook struct {
	mu    sync.Mutex
	lines []string
}

func (n *notebook) note(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lines = append(n.lines, fmt.Sprintf(format, args...))
}

func (n *notebook) Judged(_ context.Context, v Verdict, _ time.Duration) {
	n.note("%s %d × %s %s%s", v.Key.ID, v.Requests, v.Resource, v.Outcome, v.Label())
}

func (n *notebook) Settled(_ context.Context, r SettlementReport) {
	n.note("%s", r.Result)
}

func (n *notebook) Used(u Use) { n.note("%s %s %d + %d", u.Account, u.Resource, u.Input, u.Output) }

func (n *notebook) Invalid(_ context.Context, _ time.Time, problem string) { n.note("%s", problem) }

// TestWhatIsCounted: every request once, and the tokens that stay charged, of keys
// without limits too.
func TestWhatIsCounted(t *testing.T) {
	t.Parallel()
	g := newGate(t, func(s *Settings) { withTokens(s); s.Tokens.SettleByRateLimit = false })
	notes := &notebook{}
	g.observer = notes
	_, client := accessLog(t, g)
	expect := func(what string, want ...string) {
		t.Helper()
		if !slices.Equal(notes.lines, want) {
			t.Errorf("%s: %q, want %q", what, notes.lines, want)
		}
		notes.lines = nil
	}

	ticket := admit(t, g, declaring("100"))
	expect("admitted", "key_pro 1 × chat allowed")
	clean := entryOf(ticket, 200, viaUpstream, usageOf(7, 30))
	log(t, client, clean)
	log(t, client, clean)
	expect("settled, twice", "settled", "key_pro chat 7 + 30", "duplicate")

	log(t, client, entryOf(admit(t, g, declaring("100")), 200, viaUpstream, nil))
	expect("nothing reported", "key_pro 1 × chat allowed", "settled", "key_pro chat 10 + 100")
	log(t, client, entryOf(admit(t, g, declaring("100")), 200, "downstream_remote_disconnect", usageOf(3, 4)))
	expect("cut off", "key_pro 1 × chat allowed", "settled", "key_pro chat 10 + 100")

	ticket = admit(t, g, withoutLimits())
	clean = entryOf(ticket, 200, viaUpstream, usageOf(7, 30))
	log(t, client, clean)
	log(t, client, clean) // nobody remembers the first
	expect("without limits, twice", "key_enterprise 1 × chat allowed", "unreserved", "key_enterprise chat 7 + 30", "unreserved", "key_enterprise chat 7 + 30")
	for field, value := range map[int]string{1: "key_pro", 4: "images", 8: "999"} {
		forged := entryOf(ticket, 200, viaUpstream, usageOf(7, 30))
		forge(forged, field, value)
		log(t, client, forged)
	}
	log(t, client, entryOf("1:key_pro:::chat:declaration:1:1:100:100", 200, viaUpstream, usageOf(7, 30)))
	expect("forged", "invalid", "invalid", "invalid", "invalid")

	repeated := declaring("100")
	repeated.Attributes.Request.Http.Id = "same"
	admit(t, g, repeated)
	admit(t, g, repeated)
	expect("a repeat", "key_pro 1 × chat allowed", "key_pro 0 × chat allowed")
	if _, err := NewAuthz(g).Check(t.Context(), declaring("2000")); err != nil {
		t.Fatal(err)
	}
	expect("too large", "key_pro 1 × chat too_largetokens_per_minute")
}

// withoutLimits is a request of a key that has none.
func withoutLimits() *authv3.CheckRequest {
	r := declaring("100")
	r.Attributes.Request.Http.Headers["api-key"] = "sk-enterprise"
	return r
}

// TestTwoWaysCountOnce: where an answer is reported by the access log and by a call, its
// tokens are counted once, of keys without limits too.
func TestTwoWaysCountOnce(t *testing.T) {
	t.Parallel()
	g := newGate(t, withTokens)
	for key, request := range map[string]*authv3.CheckRequest{"key_pro": declaring("100"), "key_enterprise": withoutLimits()} {
		notes := &notebook{}
		g.observer = notes
		ticket := admit(t, g, request)
		for _, by := range SettlementWays() {
			a := answered{ticket: ticket, by: by, status: 200, details: viaUpstream, usage: quota.Usage{Input: 7, Output: 30, Total: 37}}
			if err := g.settle(t.Context(), g.settings.Load(), &a); err != nil {
				t.Fatal(err)
			}
		}
		if want := []string{key + " 1 × chat allowed", "settled", key + " chat 7 + 30", "duplicate"}; !slices.Equal(notes.lines, want) {
			t.Errorf("%q, want %q", notes.lines, want)
		}
	}
}

// TestTierThatIsGone: a key of the store may name a tier that the configuration has
// no more. Nothing panics, nobody passes.
func TestTierThatIsGone(t *testing.T) {
	t.Parallel()
	g := newGate(t, func(s *Settings) { delete(s.Plans, "pro") })
	a := check(t, g, "/v1/chat", map[string]string{"api-key": "sk-pro"})
	if a.status != 503 || a.headers["X-RateLimit-Limit"] != "0" {
		t.Errorf("%+v", a)
	}
	checkRefusal(t, "a tier that is gone", a, "limiter_unavailable")
	notes := &notebook{}
	g.observer = notes
	check(t, g, "/v1/chat", map[string]string{"api-key": "sk-pro"})
	if want := []string{"key_pro 1 × chat failed"}; !slices.Equal(notes.lines, want) {
		t.Errorf("%q, want %q", notes.lines, want)
	}
}
