package envoyapi

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

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
	log(t, client, entryOf(admit(t, g, declaring("100")), 200, "downstream_remote_disconnect", usageOf(30, 140)))
	expect("cut off, and more", "key_pro 1 × chat allowed", "settled", "key_pro chat 30 + 140")
	for total, want := range map[float64]string{150: "key_pro chat 50 + 100", 90: "key_pro chat 0 + 100"} {
		log(t, client, entryOf(admit(t, g, declaring("100")), 200, viaUpstream, map[string]*structpb.Value{"total": structpb.NewNumberValue(total)}))
		expect("the total alone", "key_pro 1 × chat allowed", "settled", want)
	}

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

// TestUseOfWhatIsGivenBack: none, and none either of a request without a body, whose answer tells of
// another one.
func TestUseOfWhatIsGivenBack(t *testing.T) {
	t.Parallel()
	get := checkRequest("/v1/chat", map[string]string{"api-key": "sk-pro"})
	get.Attributes.Request.Http.Method = "GET"
	for name, c := range map[string]struct {
		request *authv3.CheckRequest
		status  uint32
		want    string
	}{
		"paid":           {declaring("100"), 200, "key_pro chat 7 + 30"},
		"given back":     {declaring("100"), 503, "key_pro chat 0 + 0"},
		"without a body": {get, 200, "key_pro chat 0 + 0"},
	} {
		g := newGate(t, func(s *Settings) { withTokens(s); s.Tokens.RefundStatuses, s.Tokens.RefundShare = []int{503}, 1000 })
		ticket := admit(t, g, c.request)
		notes := &notebook{}
		g.observer = notes
		_, client := accessLog(t, g)
		log(t, client, entryOf(ticket, c.status, viaUpstream, usageOf(7, 30)))
		if want := []string{"settled", c.want}; !slices.Equal(notes.lines, want) {
			t.Errorf("%s: %q, want %q", name, notes.lines, want)
		}
	}
}

// TestCallsThatTakeNothing: a look and hits that are given back are no requests, and have no answer
// to settle.
func TestCallsThatTakeNothing(t *testing.T) {
	t.Parallel()
	for name, d := range map[string]*ratelimitv3.RateLimitDescriptor{
		"a look":     {HitsAddend: wrapperspb.UInt64(0)},
		"given back": {HitsAddend: wrapperspb.UInt64(1), IsNegativeHits: true},
	} {
		for _, key := range []string{"sk-pro", "sk-enterprise"} {
			g := newGate(t, func(s *Settings) { withTokens(s); s.RateLimit.NegativeHits = true })
			admit(t, g, declaring("100"))
			notes := &notebook{}
			g.observer = notes
			d.Entries = []*ratelimitv3.RateLimitDescriptor_Entry{entry("api_key", key), entry("path", "/v1/chat"), entry("request.max_tokens", "7")}
			response, err := NewRateLimit(g).ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: "tiergate", Descriptors: []*ratelimitv3.RateLimitDescriptor{d}})
			if err != nil || response.GetDynamicMetadata() != nil {
				t.Errorf("%s: %v, %v: want no ticket", name, response, err)
			}
			if want := strings.Replace(key, "sk-", "key_", 1) + " 0 × chat allowed"; !slices.Equal(notes.lines, []string{want}) {
				t.Errorf("%s: %q, want %s", name, notes.lines, want)
			}
			if have := remaining(t, g); have != "890" { // whatever the request declares
				t.Errorf("%s: %s tokens remain, want 890", name, have)
			}
		}
	}
}

// TestTicketOfAnotherInstance: who shares the TicketKey knows the seal, and nobody else.
func TestTicketOfAnotherInstance(t *testing.T) {
	t.Parallel()
	shared := func(s *Settings) {
		s.Tokens.SettleByRateLimit, s.TicketKey = false, NewTicketKey([]byte("of the fleet"))
	}
	ticket := admit(t, newGate(t, shared), withoutLimits())
	for name, c := range map[string]struct {
		change func(*Settings)
		want   []string
	}{
		"the same": {shared, []string{"unreserved", "key_enterprise chat 7 + 30"}},
		"another":  {nil, []string{"invalid"}},
	} {
		g := newGate(t, c.change)
		notes := &notebook{}
		g.observer = notes
		_, client := accessLog(t, g)
		log(t, client, entryOf(ticket, 200, viaUpstream, usageOf(7, 30)))
		if !slices.Equal(notes.lines, c.want) {
			t.Errorf("%s: %q, want %q", name, notes.lines, c.want)
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
	g = newGate(t, withTokens)
	ticket := admit(t, g, declaring("100"))
	g.Use(func() *Settings { s := *g.settings.Load(); s.Plans = nil; return &s }())
	notes.lines, g.observer = nil, notes
	ended := answered{ticket: ticket, by: byRateLimit, status: 200, details: viaUpstream, usage: quota.Usage{Input: 7, Output: 30, Total: 37}}
	if err := g.settle(t.Context(), g.settings.Load(), &ended); err != nil {
		t.Fatal(err)
	}
	if want := []string{"settled", "key_pro chat 7 + 30"}; !slices.Equal(notes.lines, want) {
		t.Errorf("gone before the end of an answer: %q, want %q", notes.lines, want)
	}
}
