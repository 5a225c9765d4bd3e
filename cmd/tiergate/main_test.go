package main

import (
	"errors"
	"io"
	"strings"
	"testing"
)

// full is where nothing more can be written.
type full struct{}

var errFull = errors.New("no space left")

func (full) Write([]byte) (int, error) { return 0, errFull }

// TestLostOutputIsAnError: a key that is shown once, and that nobody sees, is no success.
func TestLostOutputIsAnError(t *testing.T) {
	t.Parallel()
	for _, line := range []string{"keys create --offline --config ../../config/tiergate.yaml --tier free", "keys hash", "keys hash --json", "version", "help", "config check --config ../../config/tiergate.yaml"} {
		env := environment{getenv: func(string) string { return "" }, stdin: strings.NewReader("a-foreign-secret"), stdout: full{}, stderr: io.Discard}
		if err := run(t.Context(), strings.Fields(line), env); !errors.Is(err, errFull) {
			t.Errorf("%s: %v: want it to fail", line, err)
		}
	}
}
