package main

import (
	"context"
	"flag"
	"fmt"
	"runtime/debug"
)

// version prints what the build recorded of itself.
func version(_ context.Context, args []string, env environment) error {
	flags := flag.NewFlagSet("version", flag.ContinueOnError)
	asJSON := flags.Bool("json", false, "print JSON")
	if err := parse(flags, args, env); err != nil {
		return err
	}
	v := buildVersion()
	if *asJSON {
		return printJSON(env.stdout, v)
	}
	fmt.Fprintf(env.stdout, "tiergate %s (%s)\n", v["version"], v["go"])
	return nil
}

func buildVersion() map[string]string {
	v := map[string]string{"version": "unknown", "go": "unknown"}
	if info, ok := debug.ReadBuildInfo(); ok {
		v["version"], v["go"] = info.Main.Version, info.GoVersion
	}
	return v
}
