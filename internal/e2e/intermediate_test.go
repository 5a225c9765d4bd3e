package e2e

import (
	"net/http"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
)

// TestIntermediateEntries: where Envoy is told to log before the end of an answer too, it is the end
// that settles.
func TestIntermediateEntries(t *testing.T) {
	t.Parallel()
	const log = "          access_log:\n"
	s := upTokens(t, devstack.Options{EditEnvoy: func(file []byte) []byte {
		return []byte(replaced(t, string(file), log, "          access_log_options: {access_log_flush_interval: 0.1s, flush_access_log_on_new_request: true}\n"+log))
	}})
	freshMinute(t, 15*time.Second)
	r := do(t, s, call{key: "sk-demo-pro", body: `{"max_tokens": 1000, "stream": true}`, header: http.Header{"X-Mock-Usage": {"3,4"}, "X-Mock-Delay": {"500ms"}}})
	if r.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", r.Status, r.body)
	}
	settlements := func(result string) float64 { return metric(t, s, "tiergate_settlements_total", `result="`+result+`"`) }
	eventually(t, "the settlement", func() bool { return settlements("settled") > 0 })
	if have := tokensUsed(t, s, "sk-demo-pro"); have != 7 || settlements("settled")+settlements("duplicate") != 1 {
		t.Errorf("%d tokens used, want 7; %v settled, %v duplicates", have, settlements("settled"), settlements("duplicate"))
	}
}
