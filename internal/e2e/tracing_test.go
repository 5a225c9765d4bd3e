package e2e

import (
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/tiergate/tiergate/internal/devstack"
)

// tracedBy puts the guide's parts into the shipped Envoy file.
func tracedBy(t *testing.T, c *collector, percent string) func([]byte) []byte {
	t.Helper()
	host, port, err := net.SplitHostPort(c.address)
	if err != nil {
		t.Fatal(err)
	}
	cluster := strings.Replace(block(t, "yaml cluster collector"), "collector.example.com, port_value: 4317", host+", port_value: "+port, 1)
	part := mapping(t, strings.Replace(block(t, "yaml tracing"), "{value: 1}", "{value: "+percent+"}", 1))
	return func(file []byte) []byte {
		return edited(t, string(file), func(doc map[string]any) {
			prepend(t, doc, "clusters", cluster)
			walk(doc, func(_ string, list []any) []any {
				for _, entry := range list {
					if m, ok := entry.(map[string]any); ok && m["name"] == "envoy.filters.network.http_connection_manager" {
						m["typed_config"].(map[string]any)["tracing"] = part["tracing"]
					}
				}
				return list
			})
		})
	}
}

// traceTo are the settings that send traces to an address.
func traceTo(address, ratio string) []string {
	return []string{"tracing.endpoint=" + address, "tracing.insecure=true", "tracing.sample_ratio=" + ratio, "log.level=debug"}
}

// withOutcome finds spans of decisions.
func withOutcome(outcome string) func(span) bool {
	return func(s span) bool { return s.attributes["tiergate.outcome"] == outcome }
}

// TestTraces: TierGate's span of a decision is the child of Envoy's span of the call,
// and the parent of that of the store's; it says what was decided, and nothing that the
// client sent.
func TestTraces(t *testing.T) {
	both(t, func(t *testing.T, chain string) {
		c := collect(t, "")
		s := up(t, devstack.Options{Chain: chain, Store: "redis", EditEnvoy: tracedBy(t, c, "100"), Sets: traceTo(c.address, "0")})
		freshMinute(t, 10*time.Second)
		do(t, s, call{key: "sk-demo-pro"})
		for range 11 {
			do(t, s, call{key: "sk-demo-free", path: "/v1/images/generations"})
		}
		const canary = "sk-canary-77ad90"
		hostile := http.Header{
			"X-Api-Key": {canary}, "X-Request-Priority": {canary}, "X-Request-Id": {canary}, "User-Agent": {canary},
			"Traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}, "Tracestate": {"k=" + canary}, "Baggage": {"k=" + canary},
		}
		do(t, s, call{header: hostile, path: "/v1/" + canary + "?key=" + canary, body: `{"model": "` + canary + `"}`})
		var allowed, limited []span
		eventuallyWithin(t, 20*time.Second, "the spans of TierGate and of Envoy are there", func() bool {
			allowed, limited = c.find("tiergate", withOutcome("allowed")), c.find("tiergate", withOutcome("limited"))
			return len(allowed) == 11 && len(limited) == 1 && len(c.find("tiergate", withOutcome("unauthenticated"))) == 1 &&
				len(envoysParent(c, limited[0])) == 1
		})
		for _, s := range append(allowed, limited...) {
			if parents := envoysParent(c, s); len(parents) != 1 {
				t.Errorf("span %s of trace %s: Envoy's spans with that ID: %d, want 1", s.parent(), s.trace(), len(parents))
			}
			within := c.find("tiergate", func(o span) bool { return o.parent() == s.id() && o.trace() == s.trace() })
			if len(within) != 1 || within[0].GetName() != "store take" || within[0].GetEndTimeUnixNano() <= within[0].GetStartTimeUnixNano() {
				t.Errorf("within the decision: %v, want one call to the store", within)
			}
		}
		want := map[string]string{
			"tiergate.tier": "free", "tiergate.resource": "images", "tiergate.priority": "low", "tiergate.key_id": "key_demo_free", "tiergate.limit": "requests_per_minute",
		}
		for name, value := range want {
			if have := limited[0].attributes[name]; !strings.EqualFold(have, value) {
				t.Errorf("%s is %q, want %q", name, have, value)
			}
		}
		unknown := c.find("tiergate", withOutcome("unauthenticated"))[0]
		if unknown.trace() != "4bf92f3577b34da6a3ce929d0e0e4736" {
			t.Errorf("the client's trace is not continued: %s", unknown.trace())
		}
		log, err := os.ReadFile(s.LogFile("tiergate"))
		if err != nil {
			t.Fatal(err)
		}
		for where, text := range map[string]string{"spans": c.sent(), "log": string(log)} {
			for _, secret := range []string{canary, collectorSecret, brokenHeader} {
				if strings.Contains(text, secret) {
					t.Errorf("%q is in the %s", secret, where)
				}
			}
		}
		if c.admitted == 0 || !strings.Contains(string(log), "parse headers") {
			t.Errorf("%d exports had the header of the environment; or the log does not say that another cannot be read", c.admitted)
		}
	})
}

// envoysParent finds Envoy's span that is the parent of one.
func envoysParent(c *collector, s span) []span {
	return c.find("envoy", func(o span) bool { return o.id() == s.parent() && o.trace() == s.trace() })
}

// TestTraceSampling: Envoy's word holds, and the ratio where it says nothing. A stop
// sends what has not been sent.
func TestTraceSampling(t *testing.T) {
	t.Parallel()
	traced := http.Header{"Traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}}
	untraced := http.Header{"Traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"}}
	for name, c := range map[string]struct {
		percent, ratio string      // of Envoy, empty: it does not trace; of TierGate
		header         http.Header // of the client
		want           int
	}{
		"Envoy says no":                      {"0", "1", nil, 0},
		"Envoy says yes":                     {"100", "0", nil, 5},
		"Envoy does not say":                 {"", "1", nil, 5},
		"nobody says yes":                    {"", "0", nil, 0},
		"the client says yes":                {"0", "0", traced, 0},
		"the client asks Envoy for it":       {"0", "0", http.Header{"X-Client-Trace-Id": {"mine"}}, 0},
		"the client says no":                 {"100", "1", untraced, 0},
		"the client says yes, no Envoy does": {"", "0", traced, 0},
		"no collector is named":              {"", "", nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			collector := collect(t, "")
			o := devstack.Options{}
			if c.percent != "" {
				o.EditEnvoy = tracedBy(t, collector, c.percent)
			}
			if c.ratio != "" {
				o.Sets = traceTo(collector.address, c.ratio)
			}
			s := up(t, o)
			for range 5 {
				do(t, s, call{key: "sk-demo-pro", header: c.header})
			}
			if err := s.Server.Stop(10 * time.Second); err != nil {
				t.Error(err)
			}
			if n := len(collector.find("tiergate", withOutcome("allowed"))); n != c.want {
				t.Errorf("%d spans, want %d", n, c.want)
			}
			// Envoy has asked for the health too, and reported each answer by the access log.
			if n := len(collector.find("tiergate", func(s span) bool { return s.GetKind() == tracev1.Span_SPAN_KIND_SERVER })); n != c.want {
				t.Errorf("%d spans of all calls, want %d", n, c.want)
			}
		})
	}
}

// TestCollectorAway: requests do not notice, the log says it once, and what is missing is
// counted.
func TestCollectorAway(t *testing.T) {
	t.Parallel()
	address, err := devstack.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	s := up(t, devstack.Options{Sets: traceTo(address, "1")})
	lines := func(text string) int {
		log, err := os.ReadFile(s.LogFile("tiergate"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(log), text)
	}
	ask := func() {
		if r := do(t, s, call{key: "sk-demo-enterprise"}); r.StatusCode != http.StatusOK {
			t.Fatalf("%s %s", r.Status, r.body)
		}
	}
	asked := 0.0
	eventuallyWithin(t, 20*time.Second, "batches are dropped one after the other", func() bool {
		ask()
		asked++
		return lines("traces do not reach the collector") > 0 && metric(t, s, "tiergate_spans_dropped_total", `reason="collector"`) > asked/2
	})
	c := collect(t, address)
	eventuallyWithin(t, 30*time.Second, "spans arrive again", func() bool {
		ask()
		return len(c.find("tiergate", withOutcome("allowed"))) > 0 && lines("traces reach the collector again") == 1
	})
	if n := lines("traces do not reach the collector"); n != 1 {
		t.Errorf("the log says it %d times, want once", n)
	}
}
