package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"time"
)

// table is what "bench table" measures.
type table struct {
	bedOptions

	spread spread
	rounds int
	only   *regexp.Regexp // cases
	out    string         // file to write; empty: none
	envoy  bool
}

func tableCommand(ctx context.Context, flags *flag.FlagSet, stdout, stderr io.Writer) func() error {
	t := table{}
	flags.StringVar(&t.root, "root", "..", "`directory` of the project")
	flags.StringVar(&t.tiergate, "tiergate", "../bin/tiergate", "the built `program`")
	flags.StringVar(&t.ratelimit, "ratelimit", "../bin/ratelimit", "envoyproxy/ratelimit, the built `program`")
	flags.StringVar(&t.ratelimitCheck, "ratelimit-check", "../bin/ratelimit-check", "envoyproxy/ratelimit that serves Checks, the built `program`")
	flags.StringVar(&t.dir, "dir", "", "`directory` that keeps files and logs, made where it is not; default: one that is removed")
	flags.StringVar(&t.out, "out", "", "`file` to write, as Markdown; default: none")
	flags.IntVar(&t.keys, "keys", 1000, "keys that ask")
	flags.IntVar(&t.manyKeys, "many", 200_000, "keys that ask where many do")
	flags.IntVar(&t.rounds, "rounds", 5, "how often each case is run, the others in between")
	flags.DurationVar(&t.spread.duration, "duration", 700*time.Millisecond, "of a case in a round")
	flags.IntVar(&t.spread.inFlight, "in-flight", 64, "calls at a time")
	flags.IntVar(&t.spread.connections, "connections", 2, "connections")
	flags.Float64Var(&t.spread.zipf, "zipf", 0, "how unevenly keys ask, more than 1; 0: all as often")
	flags.BoolVar(&t.envoy, "envoy", true, "also measure the latency through Envoy")
	only := flags.String("only", "", "what has a name that matches this `expression`, such as 'redis, RLS'; default: all")
	return func() error {
		var err error
		if t.only, err = regexp.Compile(*only); err != nil {
			return fmt.Errorf("-only: %w", err)
		}
		return t.run(ctx, stdout, stderr)
	}
}

// check reports what there is nothing to measure with, before anything is started.
func (t *table) check() error {
	if t.keys < 1 || t.manyKeys < 1 || t.rounds < 1 || t.spread.inFlight < 1 || t.spread.connections < 1 || t.spread.duration <= 0 {
		return errors.New("want at least one key, round, call at a time and connection, and some time")
	}
	if err := checkZipf(t.spread.zipf); err != nil {
		return err
	}
	if names := t.names(); !slices.ContainsFunc(names, t.only.MatchString) {
		return fmt.Errorf("-only %q: want an expression that one of these matches: %q", t.only, names)
	}
	for _, program := range []string{t.tiergate, t.ratelimit, t.ratelimitCheck} {
		if _, err := os.Stat(program); err != nil {
			return fmt.Errorf("find what is to be measured: %w: make bench builds it", err)
		}
	}
	return nil
}

// names are those of all that -only chooses from.
func (t *table) names() []string {
	var all []string
	for _, c := range cases() {
		all = append(all, c.name)
	}
	all = append(all, flushName, manyName)
	if t.envoy {
		for _, chain := range chains() {
			all = append(all, chainName(chain))
		}
	}
	return all
}

// chains are those to measure.
func (t *table) chains() []string {
	return slices.DeleteFunc(chains(), func(chain string) bool { return !t.envoy || !t.only.MatchString(chainName(chain)) })
}

func (t *table) run(ctx context.Context, stdout, progress io.Writer) error {
	if err := t.check(); err != nil {
		return err
	}
	if t.dir == "" {
		dir, err := os.MkdirTemp("", "tiergate-bench-")
		if err != nil {
			return fmt.Errorf("make a directory: %w", err)
		}
		defer os.RemoveAll(dir)
		t.dir = dir
	}
	for _, path := range []*string{&t.dir, &t.tiergate, &t.ratelimit, &t.ratelimitCheck} { // servers run elsewhere
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return fmt.Errorf("find %s: %w", *path, err)
		}
		*path = absolute
	}
	err := os.MkdirAll(t.dir, 0o755)
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	if t.program == "" {
		if t.program, err = os.Executable(); err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
	}
	debug.SetGCPercent(generatorGC)
	r, err := t.all(ctx, progress)
	if err != nil {
		return err
	}
	text, err := t.report(ctx, r)
	if err != nil {
		return err
	}
	fmt.Fprint(stdout, text)
	if t.out == "" {
		return nil
	}
	if err := os.WriteFile(t.out, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// all starts what is measured, measures all that is wanted, and stops what it has started,
// however it ends. Where ctx is done before, the error is why.
func (t *table) all(ctx context.Context, progress io.Writer) (r results, err error) {
	b := &bed{dir: t.dir, program: t.program, targets: map[string]target{}}
	defer func() { err = errors.Join(err, b.stop()) }()
	defer func() {
		if err != nil && ctx.Err() != nil { // what fails then fails for that
			err = context.Cause(ctx)
		}
	}()
	if err := b.start(ctx, t.bedOptions); err != nil {
		return nil, err
	}
	if r, err = t.measure(ctx, b, progress); err != nil {
		return nil, err
	}
	if t.only.MatchString(manyName) {
		if err := t.many(ctx, b, r, progress); err != nil {
			return nil, err
		}
	}
	return r, t.envoys(ctx, b, r, progress)
}

// measure measures all cases, round by round.
func (t *table) measure(ctx context.Context, b *bed, progress io.Writer) (results, error) {
	r := results{}
	wanted := slices.DeleteFunc(cases(), func(c benchCase) bool { return !t.only.MatchString(c.name) })
	for round := range t.rounds {
		canned := 0.0
		for _, group := range groups(wanted) {
			all, err := b.measure(ctx, group, t.spread)
			if err != nil {
				return nil, err
			}
			for i, c := range group {
				f := all[i]
				if c.target == "canned" {
					canned = f[serverCPU]
				} else {
					f[cannedCPU] = canned
				}
				r[c.name] = append(r[c.name], f)
				fmt.Fprintf(progress, "round %d of %d: %s: %.0f requests/s, %.1f µs\n", round+1, t.rounds, c.name, f[perSecond], f[serverCPU])
			}
		}
		if round < flushRounds && t.only.MatchString(flushName) {
			f, err := b.measureFlush(ctx)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", flushName, err)
			}
			r[flushName] = append(r[flushName], f)
			fmt.Fprintf(progress, "round %d of %d: %s: %.1f µs, %.1f commands\n", round+1, t.rounds, flushName, f[redisCPU], f[commands])
		}
	}
	return r, nil
}
