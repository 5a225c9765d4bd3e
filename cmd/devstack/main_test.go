package main

import (
	"io"
	"strings"
	"testing"
)

// TestTyposAreToldFirst: before an Envoy is looked for, which may have to be installed.
func TestTyposAreToldFirst(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"CHAIN": `unknown chain "typo": want ext_authz, ratelimit or ai-protocol`,
		"STORE": `unknown store "typo": want memory or redis`,
	} {
		getenv := func(asked string) string {
			return map[string]string{name: "typo", "ENVOY": "/nowhere"}[asked]
		}
		if err := run(t.Context(), []string{"run"}, getenv, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
}
