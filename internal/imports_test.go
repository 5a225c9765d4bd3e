// Package internal has no code, only the test of who may import whom.
package internal

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/tiergate/tiergate"

// arrows are the packages of ours that each package may import; see
// docs/decisions/layout.md. What is not listed is a program or a test.
func arrows() map[string][]string {
	return map[string][]string{
		"internal/quota":    {},
		"internal/apikey":   {"internal/quota"},
		"internal/store":    {"internal/quota", "internal/apikey"},
		"internal/config":   {"internal/quota", "internal/apikey"},
		"internal/envoyapi": {"internal/quota", "internal/apikey"},
		"internal/web":      {"internal/quota", "internal/apikey"},
		"internal/mockai":   {},
		"internal/devstack": {"internal/mockai"},
	}
}

// TestArrows fails when a package imports one that it must not know, or when a
// package is new and has no line in the table.
func TestArrows(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, module+"/internal/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		name := strings.TrimPrefix(words[0], module+"/")
		allowed, known := arrows()[name]
		if name == "internal/e2e" || name == module+"/internal" || name == "internal" { // tests only
			continue
		}
		if !known {
			t.Errorf("%s has no line in arrows", name)
		}
		seen++
		for _, imported := range words[1:] {
			ours, ok := strings.CutPrefix(imported, module+"/")
			if ok && !slices.Contains(allowed, ours) {
				t.Errorf("%s imports %s: want none of ours but %v", name, ours, allowed)
			}
			if name == "internal/quota" && strings.Contains(imported, ".") {
				t.Errorf("%s imports %s: want the standard library only", name, imported)
			}
		}
	}
	if seen != len(arrows()) {
		t.Errorf("%d packages found, %d listed", seen, len(arrows()))
	}
}
