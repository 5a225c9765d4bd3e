package main

import (
	"context"
	"fmt"
	"io"
)

// An output remembers the first error of writing, so that commands need not look at each:
// a key that is shown once, and that nobody sees, is no success.
type output struct {
	io.Writer

	err error
}

// Write implements io.Writer.
func (o *output) Write(text []byte) (int, error) {
	n, err := o.Writer.Write(text)
	if o.err == nil {
		o.err = err
	}
	return n, err //nolint:wrapcheck // it says what was tried
}

// lost returns why not all was written.
func (o *output) lost() error {
	if o.err == nil {
		return nil
	}
	return fmt.Errorf("print the answer: %w: what was asked for may have been done: look before you ask again", o.err)
}

// An input is read until ctx is done: an interrupt does not end the read of a terminal.
type input struct {
	ctx context.Context //nolint:containedctx // io.Reader knows none

	from io.Reader
}

// Read implements io.Reader.
func (i input) Read(into []byte) (int, error) {
	type result struct {
		n   int
		err error
	}
	text, read := make([]byte, len(into)), make(chan result, 1) // into may be gone when it is read
	go func() {
		n, err := i.from.Read(text)
		read <- result{n, err}
	}()
	select {
	case r := <-read:
		return copy(into, text[:r.n]), r.err
	case <-i.ctx.Done():
		return 0, context.Cause(i.ctx) //nolint:wrapcheck // readers say what was tried
	}
}
