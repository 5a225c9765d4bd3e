package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/config"
	"github.com/tiergate/tiergate/internal/web"
)

// The types of problems that are no answer of a server.
const (
	problemCommandLine = "urn:tiergate:problem:command-line"
	problemFailed      = "urn:tiergate:problem:failed"
)

// tell writes what went wrong: for people, or for programs in the shape of the admin API. A key that
// was given in the place of something else is not repeated.
func tell(w io.Writer, err error, asJSON bool) {
	var text bytes.Buffer
	if asJSON {
		_ = printJSON(&text, problemOf(err)) // nobody to tell of its error
	} else {
		fmt.Fprintln(&text, "tiergate: "+err.Error())
	}
	_, _ = io.WriteString(w, apikey.Redact(text.String())) // as above
}

// problemOf is an error for programs: the one that a server answered with, or one of ours. Where
// it is a list, it has the faults one by one, and its detail the first of them.
func problemOf(err error) *web.Problem {
	p := &web.Problem{Type: problemFailed, Title: "The command failed"}
	var (
		inner, detail string // what stands in the text for people, and what in its place
		line          usageError
		answered      *serverError
		file          config.Faults
	)
	switch {
	case errors.As(err, &line):
		p.Type, p.Title = problemCommandLine, "The command line is not valid"
		inner, detail = line.Error(), web.Summary(line)
		if len(line) > 1 {
			p.Errors = line
		}
	case errors.As(err, &answered):
		*p = web.Problem(*answered)
		inner, detail = answered.Error(), cmp.Or(p.Detail, p.Title)
	case errors.As(err, &file):
		for _, f := range file {
			p.Errors = append(p.Errors, web.Fault{Field: f.Place(), Problem: f.Problem})
		}
		inner, detail = file.Error(), web.Summary(p.Errors)
	}
	p.Detail = strings.ReplaceAll(strings.TrimSuffix(err.Error(), inner), "\n", " ") + detail
	return p
}
