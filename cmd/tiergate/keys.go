package main

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tiergate/tiergate/internal/config"
	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/web"
)

// keyFlags say what a key is to be.
type keyFlags struct {
	adminFlags

	tier, name, owner, priority, resources, expires, pepper string
	labels                                                  sets
}

func (f *keyFlags) add(flags *flag.FlagSet, env environment) {
	f.adminFlags.add(flags, env)
	flags.StringVar(&f.tier, "tier", "", "the key's `tier`, one of the configuration's")
	flags.StringVar(&f.name, "name", "", "whose key it is, for people")
	flags.StringVar(&f.owner, "owner", "", "whom it belongs to, for people")
	flags.StringVar(&f.priority, "priority", "", "instead of the tier's priority: 1 to 4, or low, normal, high, critical")
	flags.StringVar(&f.resources, "resources", "", "the only `resources` the key has leave for, as in chat,images")
	flags.StringVar(&f.expires, "expires", "", "the end of the key's life, "+aTime)
	flags.Var(&f.labels, "label", "a label of yours, as in `team=search`; may be repeated")
}

// body is what to ask of the admin API: what was given. An empty value takes away.
func (f *keyFlags) body(flags *flag.FlagSet) (map[string]any, error) {
	body := map[string]any{}
	orNull := func(field, value string) {
		if body[field] = value; value == "" {
			body[field] = nil
		}
	}
	var fault error
	flags.Visit(func(given *flag.Flag) {
		value := given.Value.String()
		switch given.Name {
		case "tier", "name", "owner", "pepper", "id":
			orNull(given.Name, value)
		case "expires":
			orNull(given.Name, instant(value))
		case "resources":
			if body["resources"] = strings.Split(value, ","); value == "" {
				body["resources"] = nil
			}
		case "priority":
			fault = setPriority(body, value)
		}
	})
	labels := map[string]any{}
	for _, label := range f.labels {
		name, value, ok := strings.Cut(label, "=")
		if !ok {
			return nil, usagef("--label %q: want name=value", label)
		}
		if labels[name] = value; value == "" {
			labels[name] = nil
		}
	}
	if len(labels) > 0 {
		body["labels"] = labels
	}
	return body, fault
}

func setPriority(body map[string]any, value string) error {
	if value == "" {
		body["priority"] = nil
		return nil
	}
	p, err := quota.ParsePriority(value)
	if err != nil {
		return usagef("--priority: %v", err)
	}
	body["priority"] = int(p)
	return nil
}

// aTime says in helps how to write a point in time.
const aTime = "as in 2027-01-31T12:00:00Z, or 2027-01-31 for the beginning of that day, UTC"

// instant is a point in time as the server reads it: of a plain date the beginning of the
// day, UTC. What is neither the server finds fault with.
func instant(text string) string {
	if day, err := time.Parse(time.DateOnly, text); err == nil {
		return day.Format(time.RFC3339)
	}
	return text
}

// keysCreate makes an API key at a server, or without one for the file of keys.
func keysCreate(ctx context.Context, args []string, env environment) error {
	flags := flag.NewFlagSet("keys create", flag.ContinueOnError)
	var f keyFlags
	f.add(flags, env)
	flags.String("id", "", "the key's public `ID`; without, one is made")
	flags.StringVar(&f.pepper, "pepper", "", "hash with this pepper of the configuration")
	offline := flags.Bool("offline", false, "ask no server: print the key and the entry to add to the file of keys for it")
	var options config.Options
	configFlags(flags, &options)
	if err := parse(flags, args, env); err != nil {
		return err
	}
	if err := offlineFlags(flags, *offline); err != nil {
		return err
	}
	if *offline {
		return createOffline(&f, options, env)
	}
	body, err := f.body(flags)
	if err != nil {
		return err
	}
	return askFor(ctx, f.adminFlags, env, request{http.MethodPost, "/keys", nil, body}, printNewKey)
}

// offlineFlags refuses flags that would be ignored.
func offlineFlags(flags *flag.FlagSet, offline bool) error {
	if online := firstGiven(flags, "server", "token-file", "id", "owner", "label"); offline && online != "" {
		return usagef("--%s does not go with --offline", online)
	}
	if local := firstGiven(flags, "config", "set"); !offline && local != "" {
		return usagef("--%s goes with --offline only: the server has its configuration", local)
	}
	return nil
}

// A request is what to ask of the admin API.
type request struct {
	method, path string
	query        url.Values
	body         any
}

// askFor asks and prints the answer.
func askFor[T any](ctx context.Context, f adminFlags, env environment, r request, layOut func(io.Writer, T)) error {
	c, err := f.client(env)
	if err != nil {
		return err
	}
	answer, err := c.ask(ctx, r.method, r.path, r.query, r.body)
	if err != nil {
		return err
	}
	return printAnswer(f, env, answer, layOut)
}

func printNewKey(w io.Writer, k web.NewKey) {
	fmt.Fprintf(w, "The API key, shown this once and kept nowhere:\n\n  %s\n\n", k.Key)
	printKeyView(w, k.Record)
}

// keysShow shows one key.
func keysShow(ctx context.Context, args []string, env environment) error {
	flags := flag.NewFlagSet("keys show", flag.ContinueOnError)
	var f adminFlags
	f.add(flags, env)
	path, err := parseKey(flags, args, env, "")
	if err != nil {
		return err
	}
	return askFor(ctx, f, env, request{http.MethodGet, path, nil, nil}, printKeyView)
}

func printKeyView(w io.Writer, k web.KeyView) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(field, value string) {
		if value != "" {
			fmt.Fprintf(table, "%s\t%s\n", field, value)
		}
	}
	source := map[bool]string{true: ", hidden by the file's"}[k.Hidden]
	line("id", k.ID)
	line("name", k.Name)
	line("owner", k.Owner)
	line("state", string(k.State))
	line("source", k.Source+source)
	line("tier", configured(k.Tier, k.NoTier))
	line("priority", priorityName(k.Priority))
	line("resources", cmp.Or(strings.Join(k.Resources, ", "), "all"))
	for _, o := range k.Overrides {
		line("override", overrideText(o))
	}
	for _, name := range slices.Sorted(maps.Keys(k.Labels)) {
		line("label", name+"="+k.Labels[name])
	}
	line("pepper", configured(k.Pepper, k.NoPepper))
	line("created", timeText(k.Created, ""))
	line("expires", timeText(k.Expires, "never"))
	line("former key", timeText(k.Former, ""))
	line("former pepper", configured(k.FormerPepper, k.NoFormerPepper))
	line("last used", lastUsed(k))
	if k.Revision > 0 {
		line("revision", strconv.FormatInt(k.Revision, 10))
	}
	_ = table.Flush() // as with any printing
}

// configured is the name of a tier or of a pepper, and that the configuration has none of that
// name where it is missing.
func configured(name string, missing bool) string {
	if missing {
		return name + " (not configured)"
	}
	return name
}

func priorityName(p int) string {
	if p == 0 {
		return "the tier's"
	}
	return quota.Priority(p).String() //nolint:gosec // 1 to 4, and printed only
}

func timeText(t time.Time, otherwise string) string {
	if t.IsZero() {
		return otherwise
	}
	return t.UTC().Format(time.RFC3339)
}

func lastUsed(k web.KeyView) string {
	var at *time.Time
	switch {
	case k.LastUsed == nil || json.Unmarshal(k.LastUsed, &at) != nil:
		return "unknown"
	case at == nil:
		return "never"
	default:
		return timeText(*at, "")
	}
}

func overrideText(o web.OverrideView) string {
	text := fmt.Sprintf("%d %s per %s", o.Max, o.Metric, o.Per)
	if o.Resource != "" {
		text += " of " + o.Resource
	}
	if o.Priority != 0 {
		text += " at priority " + priorityName(o.Priority)
	}
	if o.Algorithm != "" {
		text += ", " + o.Algorithm
	}
	if !o.Until.IsZero() {
		text += ", until " + timeText(o.Until, "")
	}
	return text
}
