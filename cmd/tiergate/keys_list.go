package main

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"text/tabwriter"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/web"
)

// partSize is how much one answer may hold.
const partSize = 1000

// A part is an answer that may have more behind it.
type part struct {
	Keys   []json.RawMessage `json:"keys"`
	Events []json.RawMessage `json:"events"`
	Next   string            `json:"next"`
}

// walk asks for one part of a list after the other, and hands on what is in them.
func (c *adminClient) walk(ctx context.Context, l list, hand func(json.RawMessage) error) error {
	for n := 0; ; {
		size := partSize
		if l.most > 0 {
			size = min(size, l.most-n)
		}
		l.query.Set("limit", strconv.Itoa(size))
		answer, err := c.ask(ctx, l.method, l.path, l.query, nil)
		if err != nil {
			return err
		}
		p, err := into[part](answer)
		if err != nil {
			return err
		}
		for _, one := range append(p.Keys, p.Events...) {
			if err := hand(one); err != nil {
				return err
			}
			if n++; n == l.most {
				return nil
			}
		}
		if p.Next == "" {
			return nil
		}
		l.query.Set(l.next, p.Next)
	}
}

// keysList lists keys.
func keysList(ctx context.Context, args []string, env environment) error {
	flags := flag.NewFlagSet("keys list", flag.ContinueOnError)
	var f adminFlags
	f.add(flags, env)
	flags.String("tier", "", "only keys of this `tier`")
	flags.String("owner", "", "only keys of this `owner`")
	flags.String("q", "", "only keys with this `text` in their ID, name or owner")
	flags.String("state", "", "only keys in this `state`: active, revoked, expired or disabled")
	most := flags.Int("limit", 0, "how many at most; 0: all")
	if err := parse(flags, args, env); err != nil {
		return err
	}
	if err := noneEmpty(flags); err != nil {
		return err
	}
	query := parameters(flags, "tier", "owner", "q", "state")
	return listed(ctx, f, env, list{request{http.MethodGet, "/keys", query, nil}, "after", "keys", *most}, func(w io.Writer, keys []web.KeyView) {
		table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "ID\tNAME\tOWNER\tTIER\tSTATE\tSOURCE\tEXPIRES\tLAST USED")
		for _, k := range keys {
			state := string(k.State)
			if k.Hidden {
				state += ", hidden"
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", k.ID, cmp.Or(k.Name, "-"), cmp.Or(k.Owner, "-"), configured(k.Tier, k.NoTier), state, k.Source, timeText(k.Expires, "never"), lastUsed(k))
		}
		_ = table.Flush() // as with any printing
	})
}

// A list is what to ask for in parts.
type list struct {
	request

	next  string // the parameter that goes on
	field string // what it is called in an answer
	most  int    // 0: all
}

// listed asks for all parts of a list and prints it.
func listed[T any](ctx context.Context, f adminFlags, env environment, l list, layOut func(io.Writer, []T)) error {
	if l.most < 0 {
		return usagef("--limit %d: want 0 or more", l.most)
	}
	c, err := f.client(env)
	if err != nil {
		return err
	}
	all := []json.RawMessage{}
	err = c.walk(ctx, l, func(one json.RawMessage) error {
		all = append(all, one)
		return nil
	})
	if err != nil {
		return err
	}
	if f.asJSON {
		return printJSON(env.stdout, map[string]any{l.field: all})
	}
	values := make([]T, len(all))
	for i, one := range all {
		if values[i], err = into[T](one); err != nil {
			return err
		}
	}
	layOut(env.stdout, values)
	return nil
}

// audit lists what was done to keys.
func audit(ctx context.Context, args []string, env environment) error {
	flags := flag.NewFlagSet("audit", flag.ContinueOnError)
	var f adminFlags
	f.add(flags, env)
	flags.String("key", "", "only what was done to the key of this `ID`")
	most := flags.Int("limit", 100, "how many at most, the latest first; 0: all that are kept")
	if err := parse(flags, args, env); err != nil {
		return err
	}
	if err := noneEmpty(flags); err != nil {
		return err
	}
	query := parameters(flags, "key")
	if query.Has("key") {
		if _, err := keyPath(query.Get("key"), ""); err != nil {
			return err
		}
	}
	return listed(ctx, f, env, list{request{http.MethodGet, "/audit", query, nil}, "before", "events", *most}, func(w io.Writer, events []apikey.Event) {
		table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "AT\tBY\tACTION\tKEY\tDETAIL")
		for _, e := range events {
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", timeText(e.At, ""), e.By, e.Action, e.KeyID, e.Detail)
		}
		_ = table.Flush() // as with any printing
	})
}
