// Command tiergate is a quota server that stands behind Envoy: it answers
// external authorization and rate limit calls for AI APIs. It is the only place
// that knows all parts of the program.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/tiergate/tiergate/internal/web"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		slackenTimers()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	asJSON := asksJSON(os.Args[1:], nil)
	env := environment{getenv: os.Getenv, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, asksJSON: &asJSON}
	err := run(ctx, os.Args[1:], env)
	stop()
	if err != nil {
		tell(os.Stderr, err, asJSON)
		if errors.As(err, new(usageError)) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

// An environment is what a command may touch besides its arguments.
type environment struct {
	getenv         func(string) string
	stdin          io.Reader
	stdout, stderr io.Writer

	// asksJSON is whether errors are for programs, as far as the command line is read. It may
	// be nil: the error is returned all the same.
	asksJSON *bool
}

// A usageError is a wrong command line. The program exits with 2 on it.
type usageError []web.Fault

// Error returns every fault on a line of its own.
func (e usageError) Error() string {
	lines := make([]string, len(e))
	for i, fault := range e {
		lines[i] = fault.String()
	}
	return strings.Join(lines, "\n")
}

func usagef(format string, args ...any) error {
	return usageError{{Problem: fmt.Sprintf(format, args...)}}
}

// A command is one of the program's subcommands.
type command struct {
	name    string
	summary string
	run     func(context.Context, []string, environment) error
}

func commands() []command {
	return []command{
		{"serve", "serve Envoy until interrupted", serve},
		{"config check", "report every fault of a configuration", configCheck},
		{"keys create", "make an API key; --offline: and the entry to add to the file for it", keysCreate},
		{"keys list", "list the API keys", keysList},
		{"keys show", "show what is known of a key", keysShow},
		{"keys change", "change what is known of a key; an empty value takes away", keysChange},
		{"keys override", "give a key a limit of its own, or take it away", keysOverride},
		{"keys rotate", "give a key another secret", keysRotate},
		{"keys revoke", "end a key for good", keysRevoke},
		{"keys import", "take up keys made elsewhere, or exported: JSON in FILE, or on standard input", keysImport},
		{"keys export", "print all keys of the store, as hashes: a line of JSON each", keysExport},
		{"keys hash", "print the hash of a key read from standard input", keysHash},
		{"audit", "list what was done to keys", audit},
		{"usage", "show what a key has used", keyUsage},
		{"explain", "say what a request with a key would get, and why, taking nothing", explain},
		{"health", "ask a running server whether it serves", health},
		{"version", "print the version", version},
	}
}

// run is the program. Its error is for people; main prints it.
func run(ctx context.Context, args []string, env environment) error {
	out := &output{Writer: env.stdout}
	env.stdin, env.stdout = input{ctx, env.stdin}, out
	if err := dispatch(ctx, args, env); err != nil && !errors.Is(err, flag.ErrHelp) {
		return err
	}
	return out.lost()
}

// dispatch runs the command that is named.
func dispatch(ctx context.Context, args []string, env environment) error {
	if len(args) > 1 && args[0] == "help" {
		args = append(args[1:len(args):len(args)], "--help")
	}
	for _, c := range commands() {
		words := strings.Fields(c.name)
		if len(args) >= len(words) && strings.Join(args[:len(words)], " ") == c.name {
			return c.run(ctx, args[len(words):], env)
		}
	}
	if len(args) > 0 && slices.Contains([]string{"-version", "--version"}, args[0]) {
		return version(ctx, args[1:], env)
	}
	help := func(n int) bool {
		return len(args) > n && slices.Contains([]string{"help", "-h", "-help", "--help"}, args[n])
	}
	group := ""
	if len(args) > 0 && slices.ContainsFunc(commands(), func(c command) bool { return strings.HasPrefix(c.name, args[0]+" ") }) {
		group = args[0] + " "
	}
	if help(0) || (group != "" && help(1)) {
		printUsage(env.stdout, group)
		return nil
	}
	if !asksJSON(args, nil) {
		printUsage(env.stderr, group)
	}
	if len(args) == 0 {
		return usagef("no command: tiergate help lists them")
	}
	words := args[:min(2, len(args))]
	if group == "" || (len(words) > 1 && strings.HasPrefix(words[1], "-")) {
		words = words[:1]
	}
	return usagef("unknown command %q: tiergate help lists them", strings.Join(words, " "))
}

// printUsage lists the commands whose names begin with a group's, as in "keys ", or all.
func printUsage(w io.Writer, group string) {
	fmt.Fprint(w, "TierGate: API quotas behind Envoy.\n\nUsage: tiergate COMMAND [flags]\n\n")
	for _, c := range commands() {
		if strings.HasPrefix(c.name, group) {
			fmt.Fprintf(w, "  %-13s %s\n", c.name, c.summary)
		}
	}
	fmt.Fprint(w, "\ntiergate COMMAND --help lists the flags of a command.\n"+
		"keys, audit, usage and explain ask a running server, named by --server or "+serverVariable+".\n")
}

// printJSON writes one JSON document.
func printJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return nil
}
