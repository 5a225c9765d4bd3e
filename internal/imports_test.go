// Package internal has no code, only the test of who may import whom.
package internal

import (
	"go/parser"
	"go/token"
	"path/filepath"
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
		"internal/store":    {"internal/quota", "internal/apikey", "internal/usage"},
		"internal/config":   {"internal/quota", "internal/apikey"},
		"internal/apierror": {"internal/quota", "internal/apikey"},
		"internal/envoyapi": {"internal/quota", "internal/apikey", "internal/apierror"},
		"internal/usage":    {"internal/quota"},
		"internal/web":      {"internal/quota", "internal/apikey", "internal/apierror", "internal/usage"},
		"internal/mockai":   {},
		"internal/devstack": {"internal/mockai"},
		"internal/rpc":      {},
	}
}

// TestArrows fails when a package imports one that it must not know, or when a
// package is new and has no line in the table.
func TestArrows(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		name := "internal/" + filepath.Dir(file)
		seen[name] = true
		allowed, known := arrows()[name]
		if !known {
			t.Errorf("%s has no line in arrows", name)
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range parsed.Imports {
			imported := strings.Trim(spec.Path.Value, `"`)
			ours, ok := strings.CutPrefix(imported, module+"/")
			if ok && !slices.Contains(allowed, ours) {
				t.Errorf("%s imports %s: want none of ours but %v", file, ours, allowed)
			}
			if name == "internal/quota" && strings.Contains(imported, ".") {
				t.Errorf("%s imports %s: want the standard library only", file, imported)
			}
		}
	}
	if len(seen) != len(arrows()) {
		t.Errorf("%d packages found, %d listed", len(seen), len(arrows()))
	}
}
