package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// parse reads the flags of a command and refuses other arguments.
func parse(flags *flag.FlagSet, args []string, env environment) error {
	_, err := parseArgs(flags, args, env)
	return err
}

// parseArgs reads the flags of a command and its other arguments, which have these
// names, in any order. Those in brackets may be left out.
func parseArgs(flags *flag.FlagSet, args []string, env environment, names ...string) ([]string, error) {
	others, err := readArgs(flags, args, env, names...)
	switch {
	case err != nil:
		return nil, err
	case len(others) > len(names) && len(names) == 0:
		return nil, usagef("unexpected argument %q: %s takes flags only", others[0], flags.Name())
	case len(others) > len(names):
		return nil, usagef("unexpected argument %q: %s takes flags and %s", others[len(names)], flags.Name(), strings.Join(names, " "))
	case len(others) < len(names) && !strings.HasPrefix(names[len(others)], "["):
		return nil, usagef("no %s: want tiergate %s %s", names[len(others)], flags.Name(), strings.Join(names, " "))
	}
	return others, nil
}

// readArgs does the same, whatever number of other arguments there is.
func readArgs(flags *flag.FlagSet, args []string, env environment, names ...string) ([]string, error) {
	flags.SetOutput(io.Discard) // what is wrong is told once, by main
	if env.asksJSON != nil {
		*env.asksJSON = asksJSON(args, flags)
	}
	var others []string
	for {
		if err := flags.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				printHelp(env.stdout, flags, names)
				return nil, flag.ErrHelp
			}
			return nil, usagef("%s: tiergate %s --help lists the flags", flagFault(flags, err), flags.Name())
		}
		if flags.NArg() == 0 {
			return others, nil
		}
		others, args = append(others, flags.Arg(0)), flags.Args()[1:]
	}
}

// noneEmpty refuses flags that were given an empty value, as by a variable of a shell that is
// not set: what they narrow would hold for all.
func noneEmpty(flags *flag.FlagSet) (err error) {
	flags.Visit(func(f *flag.Flag) {
		if err == nil && f.Value.String() == "" {
			err = usagef("--%s is empty: give it a value, or leave it out", f.Name)
		}
	})
	return err
}

// firstGiven returns the first of these flags that was given, or "".
func firstGiven(flags *flag.FlagSet, names ...string) (first string) {
	flags.Visit(func(f *flag.Flag) {
		if first == "" && slices.Contains(names, f.Name) {
			first = f.Name
		}
	})
	return first
}

// parameters returns the values of these flags as parameters of a URL, those that were not given
// with their defaults. Flags without a value are left out.
func parameters(flags *flag.FlagSet, names ...string) url.Values {
	query := url.Values{}
	for _, name := range names {
		if value := flags.Lookup(name).Value.String(); value != "" {
			query.Set(name, value)
		}
	}
	return query
}

// The errors of package flag: it has no types for them.
var (
	flagUnknown = regexp.MustCompile(`^flag provided but not defined: -(.*)$`)
	flagBare    = regexp.MustCompile(`^flag needs an argument: -(.*)$`)
	flagWrong   = regexp.MustCompile(`(?s)^invalid (?:boolean )?value ("(?:[^"\\]|\\.)*") for (?:flag )?-([^:]*): `)
)

// flagFault says in our words what package flag finds wrong.
func flagFault(flags *flag.FlagSet, err error) string {
	text := err.Error()
	if m := flagUnknown.FindStringSubmatch(text); m != nil {
		return "unknown flag --" + m[1]
	}
	if m := flagBare.FindStringSubmatch(text); m != nil {
		return "--" + m[1] + ": want " + flagWants(flags.Lookup(m[1])) + " after it"
	}
	if m := flagWrong.FindStringSubmatch(text); m != nil {
		return "--" + m[2] + " " + m[1] + ": want " + flagWants(flags.Lookup(m[2]))
	}
	return text
}

// flagWants says what values a flag takes.
func flagWants(f *flag.Flag) string {
	if value, ok := f.Value.(flag.Getter); ok {
		switch value.Get().(type) {
		case bool:
			return "true or false"
		case int, int64:
			return "a whole number"
		case time.Duration:
			return "a duration such as 90s"
		}
	}
	return "a value"
}

// asksJSON reports whether a command line asks for JSON, also one that cannot be read. What
// stands behind one of the flags that take a value is that value; flags may be nil.
func asksJSON(args []string, flags *flag.FlagSet) (asked bool) {
	for i := 0; i < len(args); i++ {
		arg, value, given := strings.Cut(args[i], "=")
		name := strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-")
		switch {
		case name == arg:
		case name == "json":
			on, _ := strconv.ParseBool(value) // neither: the flag is refused
			asked = on || !given
		case !given && flags != nil && takesValue(flags.Lookup(name)):
			i++
		}
	}
	return asked
}

// takesValue reports whether a flag, unless it is nil, has a value behind it.
func takesValue(f *flag.Flag) bool {
	if f == nil {
		return false
	}
	either, ok := f.Value.(interface{ IsBoolFlag() bool })
	return !ok || !either.IsBoolFlag()
}

// printHelp says what a command does, and lists its flags.
func printHelp(w io.Writer, flags *flag.FlagSet, names []string) {
	fmt.Fprintf(w, "Usage: %s\n\n", strings.Join(append([]string{"tiergate", flags.Name(), "[flags]"}, names...), " "))
	for _, c := range commands() {
		if c.name == flags.Name() {
			fmt.Fprintf(w, "%s%s.\n", strings.ToUpper(c.summary[:1]), c.summary[1:])
		}
	}
	var list strings.Builder
	flags.SetOutput(&list)
	flags.PrintDefaults()
	fmt.Fprint(w, strings.ReplaceAll("\n"+list.String(), "\n  -", "\n  --"))
}

// sets collects repeated --set flags.
type sets []string

func (s *sets) String() string     { return strings.Join(*s, " ") }
func (s *sets) Set(v string) error { *s = append(*s, v); return nil }
