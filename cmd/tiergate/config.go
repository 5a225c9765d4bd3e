package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"time"

	"github.com/tiergate/tiergate/internal/config"
)

const defaultConfig = "config/tiergate.yaml"

// configFlags adds the flags that say which configuration to load.
func configFlags(flags *flag.FlagSet, o *config.Options) {
	flags.StringVar(&o.File, "config", defaultConfig, "the configuration `file`")
	flags.Var((*sets)(&o.Sets), "set", "replace a value of the file, as in `store.type=redis`; may be repeated")
}

// load reads a configuration for a command that needs a good one.
func load(o config.Options) (*config.Config, config.Sources, error) {
	c, sources, err := config.Load(o)
	if err != nil {
		return nil, nil, fmt.Errorf("the configuration cannot be used:\n%w", err)
	}
	return c, sources, nil
}

// configCheck reports every fault of a configuration.
func configCheck(_ context.Context, args []string, env environment) error {
	flags := flag.NewFlagSet("config check", flag.ContinueOnError)
	options := config.Options{Getenv: env.getenv, Now: time.Now}
	configFlags(flags, &options)
	asJSON := flags.Bool("json", false, "print JSON")
	flags.BoolVar(&options.WithoutSecrets, "without-secrets", false, "read no secret, certificate or private key that the file names, to check it where they are not")
	if err := parse(flags, args, env); err != nil {
		return err
	}
	c, _, err := config.Load(options)
	var faults, warnings config.Faults
	if err != nil && !errors.As(err, &faults) {
		return err
	}
	if err == nil {
		warnings = c.Warnings
	}
	if *asJSON {
		if err := printJSON(env.stdout, map[string]any{"ok": err == nil, "faults": append(config.Faults{}, faults...), "warnings": append(config.Faults{}, warnings...)}); err != nil {
			return err
		}
	} else if err != nil {
		fmt.Fprintln(env.stdout, err)
	}
	if err != nil {
		return fmt.Errorf("%s cannot be used; faults: %d", options.File, len(faults))
	}
	if !*asJSON {
		for _, w := range warnings {
			fmt.Fprintln(env.stdout, "warning: "+w.String())
		}
		fmt.Fprintf(env.stdout, "%s: ok: %s, %s, %s\n",
			options.File, counted(len(c.Reload.Plans), "tier"), counted(len(c.Reload.Resources), "resource"), counted(c.Reload.Directory.Len(), "key"))
	}
	return nil
}
