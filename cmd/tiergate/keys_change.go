package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/web"
)

// keysChange changes what is known of a key: what is given. An empty value takes away.
func keysChange(ctx context.Context, args []string, env environment) error {
	flags := flag.NewFlagSet("keys change", flag.ContinueOnError)
	var f keyFlags
	f.add(flags, env)
	path, err := parseKey(flags, args, env, "")
	if err != nil {
		return err
	}
	body, err := f.body(flags)
	if err != nil {
		return err
	}
	if len(body) == 0 {
		return usagef("nothing to change: want --tier, --name, --owner, --priority, --resources, --expires or --label; an empty value takes away")
	}
	return askFor(ctx, f.adminFlags, env, request{http.MethodPatch, path, nil, body}, printChanged("All was so already: nothing is changed."))
}

// keysOverride gives a key a limit of its own, or takes it away.
func keysOverride(ctx context.Context, args []string, env environment) error {
	flags := flag.NewFlagSet("keys override", flag.ContinueOnError)
	var f adminFlags
	f.add(flags, env)
	metric := flags.String("metric", "requests", "what is counted: requests, tokens, input_tokens or output_tokens")
	per := flags.String("per", "minute", "the `window`: second, minute, hour, day, week, month or a duration such as 90s")
	resource := flags.String("resource", "", "count requests for this `resource` alone")
	priority := flags.String("priority", "", "count requests of this `priority` alone")
	limit := flags.String("max", "", "the most that is admitted in a window; 0 refuses everything")
	algorithm := flags.String("algorithm", "", "how it counts: fixed, or sliding (default as the tier's limit that it replaces)")
	until := flags.String("until", "", "the end of the override, "+aTime)
	remove := flags.Bool("remove", false, "take the limit away")
	path, err := parseKey(flags, args, env, "/overrides")
	if err != nil {
		return err
	}
	if err := noneEmpty(flags); err != nil {
		return err
	}
	if *remove {
		if *limit != "" || *until != "" || *algorithm != "" {
			return usagef("--remove takes none of --max, --algorithm and --until")
		}
		query := parameters(flags, "metric", "per", "resource", "priority")
		return askFor(ctx, f, env, request{http.MethodDelete, path, query, nil}, printChanged("The key has no such limit of its own: nothing is changed. This is the key:"))
	}
	most, err := strconv.ParseInt(*limit, 10, 64)
	if err != nil {
		return usagef("--max %q: want a whole number from 0 to %d, or --remove", *limit, quota.MaxMax)
	}
	body := map[string]any{"metric": *metric, "per": *per, "max": most}
	if err := setPriority(body, *priority); err != nil {
		return err
	}
	if *resource != "" {
		body["resource"] = *resource
	}
	if *algorithm != "" {
		body["algorithm"] = *algorithm
	}
	if *until != "" {
		body["until"] = instant(*until)
	}
	return askFor(ctx, f, env, request{http.MethodPost, path, nil, body}, printChanged("The key has this limit already: nothing is changed."))
}

// keysRotate gives a key another secret.
func keysRotate(ctx context.Context, args []string, env environment) error {
	flags := flag.NewFlagSet("keys rotate", flag.ContinueOnError)
	var f adminFlags
	f.add(flags, env)
	grace := flags.Duration("grace", 0, "how long the former key works; 0s ends it at once (default 24h)")
	pepper := flags.String("pepper", "", "hash with this pepper of the configuration, or with none where it is empty (default that of the former key)")
	path, err := parseKey(flags, args, env, "/rotate")
	if err != nil {
		return err
	}
	body := map[string]any{}
	flags.Visit(func(given *flag.Flag) {
		switch given.Name {
		case "grace":
			body["grace"] = grace.String()
		case "pepper":
			body["pepper"] = *pepper
		}
	})
	return askFor(ctx, f, env, request{http.MethodPost, path, nil, body}, printNewKey)
}

// keysRevoke ends a key for good.
func keysRevoke(ctx context.Context, args []string, env environment) error {
	flags := flag.NewFlagSet("keys revoke", flag.ContinueOnError)
	var f adminFlags
	f.add(flags, env)
	reason := flags.String("reason", "", "why, for the audit log")
	path, err := parseKey(flags, args, env, "/revoke")
	if err != nil {
		return err
	}
	body := map[string]any{}
	if *reason != "" {
		body["reason"] = *reason
	}
	return askFor(ctx, f, env, request{http.MethodPost, path, nil, body}, printChanged("The key was revoked already: nothing is changed, and the first reason stays (see tiergate audit --key KEY-ID)."))
}

// printChanged prints a key after a change, and before it a text where nothing was changed.
func printChanged(unchanged string) func(io.Writer, web.KeyView) {
	return func(w io.Writer, k web.KeyView) {
		if k.Unchanged {
			fmt.Fprintf(w, "%s\n\n", unchanged)
		}
		printKeyView(w, k)
	}
}
