package e2e

import (
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"testing"

	"github.com/tiergate/tiergate/internal/devstack"
)

// TestMakeTraffic: the sample traffic shows all that TierGate does: every tier,
// every resource, each priority and each kind of refusal; and its table says what
// TierGate counted.
func TestMakeTraffic(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{})
	const requests = 500
	flags := fmt.Sprintf("FLAGS=-address %s -rate 1000 -requests %d", s.API, requests)
	command := exec.CommandContext(t.Context(), "make", "traffic", flags)
	command.Dir = root
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	decided := func(parts ...string) int { return int(metric(t, s, "tiergate_decisions_total", parts...)) }
	for _, tier := range []string{"free", "basic", "pro", "enterprise"} {
		if decided(`outcome="allowed"`, `tier="`+tier+`"`) == 0 {
			t.Errorf("no request of the tier %s passed", tier)
		}
	}
	for _, resource := range []string{"chat", "images", "audio", "embeddings", "moderations", "files", "models"} {
		if decided(`outcome="allowed"`, `resource="`+resource+`"`) == 0 {
			t.Errorf("no request for %s passed", resource)
		}
	}
	for _, priority := range []string{"1", "2", "3", "4"} {
		if decided(`outcome="allowed"`, `priority="`+priority+`"`) == 0 {
			t.Errorf("no request of priority %s passed", priority)
		}
	}
	for _, limit := range []string{"requests_per_minute", "tokens_per_minute"} {
		if decided(`outcome="limited"`, `limit="`+limit+`"`) == 0 {
			t.Errorf("the limit %s refused no request", limit)
		}
	}
	for outcome, said := range map[string]int{
		"limited":         summary(t, out, `(?m)^ +all +\d+ +\d+ +(\d+) `),
		"too_large":       summary(t, out, `(?m)^ +all +\d+ +\d+ +\d+ +(\d+) `),
		"unauthenticated": summary(t, out, `(?m)^Other: (\d+)×401 `),
	} {
		if n := decided(`outcome="` + outcome + `"`); n == 0 || n != said {
			t.Errorf("%d requests are %s, the summary says %d", n, outcome, said)
		}
	}
	if n, said := decided(), summary(t, out, `(?m)^ +all +(\d+) `); n != requests || said != requests {
		t.Errorf("%d requests decided, the summary says %d, want %d", n, said, requests)
	}
	if summary(t, out, `left before their end: (\d+)`) == 0 {
		t.Error("no stream was left before its end")
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}

// summary returns the number that the expression finds.
func summary(t *testing.T, out []byte, expression string) int {
	t.Helper()
	found := regexp.MustCompile(expression).FindSubmatch(out)
	if found == nil {
		t.Fatalf("no %s in\n%s", expression, out)
	}
	n, err := strconv.Atoi(string(found[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
