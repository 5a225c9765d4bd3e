package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/tiergate/tiergate/internal/web"
)

// The types of problems that are no answer of a server.
const (
	problemCommandLine = "urn:tiergate:problem:command-line"
	problemFailed      = "urn:tiergate:problem:failed"
)

// tell writes what went wrong: for people, or for programs in the shape of the admin API.
func tell(w io.Writer, err error, asJSON bool) {
	if asJSON {
		_ = printJSON(w, problemOf(err)) // nobody to tell of its error
		return
	}
	fmt.Fprintln(w, "tiergate: "+err.Error())
}

// problemOf is an error for programs: the one that a server answered with, or one of ours.
func problemOf(err error) *web.Problem {
	p := &web.Problem{Type: problemFailed, Title: "The command failed", Detail: err.Error()}
	var answered *serverError
	switch {
	case errors.As(err, new(usageError)):
		p.Type, p.Title = problemCommandLine, "The command line is not valid"
	case errors.As(err, &answered):
		text := p.Detail
		*p = web.Problem(*answered)
		if text != answered.Error() { // how far an import got
			p.Detail = text
		}
	}
	return p
}
