package main

import (
	"context"
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

// TestInterruptedInput: what waits for standard input ends with an interrupt.
func TestInterruptedInput(t *testing.T) {
	t.Parallel()
	for _, line := range []string{"keys hash", "keys import"} {
		ctx, interrupt := context.WithCancelCause(t.Context())
		stdin, terminal := io.Pipe()
		go func() {
			_, _ = terminal.Write([]byte("[")) // until it is read
			interrupt(errors.New("interrupted"))
		}()
		env := environment{getenv: func(string) string { return "" }, stdin: stdin, stdout: io.Discard, stderr: io.Discard}
		if err := run(ctx, strings.Fields(line), env); err == nil || !strings.Contains(err.Error(), "interrupted") {
			t.Errorf("%s: %v", line, err)
		}
		if err := terminal.Close(); err != nil {
			t.Error(err)
		}
	}
}
