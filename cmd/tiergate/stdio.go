package main

import (
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
