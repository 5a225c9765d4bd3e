package internal

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// TestSecurityNamesTests: SECURITY.md says what was tested, by tests that there are.
func TestSecurityNamesTests(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	var there []string
	for _, pattern := range []string{"*_test.go", "*/*_test.go", "../cmd/*/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range regexp.MustCompile(`(?m)^func ((Test|Fuzz)[A-Za-z0-9]+)`).FindAllStringSubmatch(string(content), -1) {
				there = append(there, f[1])
			}
		}
	}
	named := regexp.MustCompile("`((Test|Fuzz)[A-Za-z0-9]+)`").FindAllStringSubmatch(string(text), -1)
	if len(named) < 50 {
		t.Errorf("%d tests are named", len(named))
	}
	for _, n := range named {
		if !slices.Contains(there, n[1]) {
			t.Errorf("SECURITY.md names %s, which there is not", n[1])
		}
	}
}
