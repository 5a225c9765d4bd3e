package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/config"
	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/web"
)

// createOffline makes an API key without a server. It prints the secret, which is kept
// nowhere, and the entry for the file of hashed keys.
func createOffline(f *keyFlags, options config.Options, env environment) error {
	options.Getenv = env.getenv
	loaded, _, err := load(options)
	if err != nil {
		return err
	}
	record := apikey.Record{Name: f.name, Tier: f.tier}
	if f.resources != "" {
		record.Resources = strings.Split(f.resources, ",")
	}
	if err := describe(&record, f.priority, f.expires, loaded.Reload); err != nil {
		return err
	}
	key := apikey.New()
	record.ID = apikey.NewID()
	if record.Hash, err = hashFor(key, f.pepper, loaded.Reload.Peppers); err != nil {
		return err
	}
	return printKey(env.stdout, key, record, f.asJSON)
}

// describe checks what was asked for against the configuration, so that the
// entry will be accepted, and completes the record.
func describe(r *apikey.Record, priority, expires string, c config.Reload) error {
	var faults usageError
	fault := func(field, format string, args ...any) {
		faults = append(faults, web.Fault{Field: field, Problem: fmt.Sprintf(format, args...)})
	}
	if err := apikey.CheckPublic(r.Name); err != nil {
		fault("--name", "%v", err)
	}
	if _, ok := c.Plans[r.Tier]; !ok {
		fault("--tier", "unknown tier %q: want one of %s", r.Tier, strings.Join(slices.Sorted(maps.Keys(c.Plans)), ", "))
	}
	for _, name := range r.Resources {
		if name != quota.DefaultResource && !slices.ContainsFunc(c.Resources, func(q quota.Resource) bool { return q.Name == name }) {
			fault("--resources", "%q is no resource of the configuration", name)
		}
	}
	var err error
	if priority != "" {
		if r.Priority, err = quota.ParsePriority(priority); err != nil {
			fault("--priority", "%v", err)
		}
	}
	if expires != "" {
		if r.Expires, err = time.Parse(time.RFC3339, instant(expires)); err != nil {
			fault("--expires", "%q: want a point in time such as 2027-01-31T00:00:00Z, or a date", expires)
		}
	}
	if len(faults) > 0 {
		return faults
	}
	return nil
}

func printKey(w io.Writer, key apikey.Key, record apikey.Record, asJSON bool) error {
	entry, err := config.FormatKey(record)
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(w, map[string]string{
			"key": key.Reveal(), "id": record.ID, "hash": record.Hash.String(), "tier": record.Tier, "yaml": entry,
		})
	}
	fmt.Fprintf(w, "The API key, shown this once and kept nowhere:\n\n  %s\n\nAdd under \"keys:\" in the file of hashed keys:\n\n%s", key.Reveal(), entry)
	return nil
}

// keysHash prints the hash of a key made elsewhere. The key comes from standard
// input, so that it is in no shell history and no list of processes.
func keysHash(_ context.Context, args []string, env environment) error {
	flags := flag.NewFlagSet("keys hash", flag.ContinueOnError)
	var options config.Options
	configFlags(flags, &options)
	pepper := flags.String("pepper", "", "hash with this pepper of the configuration")
	asJSON := flags.Bool("json", false, "print JSON")
	others, err := readArgs(flags, args, env)
	if err != nil {
		return err
	}
	if len(others) > 0 { // it is not repeated
		return usagef("keys hash takes flags only, and the key on standard input: whoever reads your terminal may know this one now")
	}
	line, err := bufio.NewReader(io.LimitReader(env.stdin, 2*apikey.MaxLen)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the key from standard input: %w", err)
	}
	key, err := apikey.ParseForeign(strings.TrimRight(line, "\r\n"))
	if err != nil {
		return fmt.Errorf("the text on standard input %w", err)
	}
	var peppers []apikey.Pepper
	if *pepper != "" {
		options.Getenv = env.getenv
		loaded, _, err := load(options)
		if err != nil {
			return err
		}
		peppers = loaded.Reload.Peppers
	}
	hash, err := hashFor(key, *pepper, peppers)
	if err != nil {
		return err
	}
	if *asJSON {
		return printJSON(env.stdout, map[string]string{"hash": hash.String()})
	}
	fmt.Fprintln(env.stdout, hash)
	return nil
}

func hashFor(key apikey.Key, pepper string, peppers []apikey.Pepper) (apikey.Hash, error) {
	if pepper == "" {
		return key.Hash(), nil
	}
	i := slices.IndexFunc(peppers, func(p apikey.Pepper) bool { return p.Name() == pepper })
	if i < 0 {
		return apikey.Hash{}, usagef("--pepper %q: the configuration has no pepper of this name under keys.peppers", pepper)
	}
	return key.HashWith(peppers[i]), nil
}
