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

// TestHelpIsNoError: who asks how to use it is told, and a wrong command line is an error.
func TestHelpIsNoError(t *testing.T) {
	t.Parallel()
	for line, good := range map[string]bool{"-h": true, "--help": true, "help": true, "run -h": true, "": false, "walk": false, "run fast": false} {
		var out strings.Builder
		err := run(t.Context(), strings.Fields(line), func(string) string { return "" }, &out, io.Discard)
		if (err == nil) != good || strings.Contains(out.String(), usage) != good {
			t.Errorf("%q: %v\n%s", line, err, out.String())
		}
	}
}
