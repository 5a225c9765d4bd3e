package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/web"
)

// keyUsage shows what a key has used, what is used of its limits, or what was refused.
func keyUsage(ctx context.Context, args []string, env environment) error {
	flags := flag.NewFlagSet("usage", flag.ContinueOnError)
	var f adminFlags
	f.add(flags, env)
	flags.String("step", "hour", "how long each line is: minute, hour or day")
	flags.String("from", "", "the beginning, "+aTime+" (default an hour, a day or 30 days before the end)")
	flags.String("to", "", "the end, likewise (default now)")
	flags.String("by", "", "resource: show each resource on its own")
	limits := flags.Bool("limits", false, "show instead what is used of the key's limits now")
	refused := flags.Bool("refused", false, "show instead the latest requests that were refused")
	path, err := parseKey(flags, args, env, "")
	if err != nil {
		return err
	}
	if err := noneEmpty(flags); err != nil {
		return err
	}
	if *limits && *refused {
		return usagef("--limits and --refused: want one of the two")
	}
	if *limits || *refused {
		if more := firstGiven(flags, "step", "from", "to", "by"); more != "" {
			return usagef("--%s goes with neither --limits nor --refused", more)
		}
	}
	switch {
	case *limits:
		return askFor(ctx, f, env, request{http.MethodGet, path + "/limits", nil, nil}, printLimits)
	case *refused:
		return askFor(ctx, f, env, request{http.MethodGet, path + "/refusals", nil, nil}, printRefusals)
	default:
		query := parameters(flags, "step", "from", "to", "by")
		for _, end := range []string{"from", "to"} {
			if query.Has(end) {
				query.Set(end, instant(query.Get(end)))
			}
		}
		return askFor(ctx, f, env, request{http.MethodGet, path + "/usage", query, nil}, printSeries)
	}
}

func printSeries(w io.Writer, s web.UsageView) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, strings.ToUpper(s.Step)+" (UTC)\tRESOURCE\tADMITTED\tREFUSED\tINPUT TOKENS\tOUTPUT TOKENS\tBUSIEST MINUTE")
	row := func(at, resource string, c web.CountsView, peak string) {
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%d\t%d\t%s\n", at, resource, c.Admitted, refusedText(c.Refused), c.InputTokens, c.OutputTokens, peak)
	}
	for _, p := range s.Points {
		row(clock(p.Start), cmp.Or(p.Resource, "all"), p.CountsView, counted(number(p.Peak.Requests), "request")+", "+counted(number(p.Peak.Tokens), "token"))
	}
	row("total", "", s.Totals, "")
	_ = table.Flush()                                                                // as with any printing
	fmt.Fprintf(w, "The total is from %s to %s, UTC.\n", clock(s.From), clock(s.To)) // less than was asked for, where that is not kept
}

// number is what is pointed to; nothing is 0.
func number(n *int64) int64 {
	if n == nil {
		return 0
	}
	return *n
}

// counted is a number with the name of what it counts, as in "1 key" and "2 keys".
func counted[N int | int64](n N, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

func refusedText(refused map[string]int64) string {
	var n int64
	var reasons []string
	for _, reason := range slices.Sorted(maps.Keys(refused)) {
		n += refused[reason]
		reasons = append(reasons, fmt.Sprintf("%s %d", reason, refused[reason]))
	}
	if n == 0 {
		return "0"
	}
	return fmt.Sprintf("%d: %s", n, strings.Join(reasons, ", "))
}

// clock is a time in whole minutes, UTC.
func clock(seconds int64) string { return time.Unix(seconds, 0).UTC().Format("2006-01-02 15:04") }

// degradedText says of limits that Redis is away.
const degradedText = "Redis cannot be reached: this instance decides alone, and the limits are what it would admit"

func printLimits(w io.Writer, s web.LimitsView) {
	if s.Degraded {
		fmt.Fprintln(w, degradedText)
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "LIMIT\tUSED\tMAX\tRESET\tNOTE")
	for _, l := range s.Limits {
		fmt.Fprintf(table, "%s\t%d\t%s\t%s\t%s\n", l.Name, l.Used, orUnlimited(l.Limit), timeText(time.Unix(l.Reset, 0), ""), cmp.Or(l.Algorithm, "-"))
	}
	_ = table.Flush() // as with any printing
}

func printRefusals(w io.Writer, s web.RefusalsView) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "AT\tSTATUS\tRESOURCE\tLIMIT\tUSED\tMAX\tASKED\tFITS AT")
	for _, r := range s.Refusals {
		fits := "never"
		if r.FitsAt != nil {
			fits = timeText(time.Unix(*r.FitsAt, 0), "")
		}
		numbers := fmt.Sprintf("%d\t%d\t%d", r.Used, r.Max, r.Asked)
		if r.Limit == quota.CapacityName { // of a pool they are not kept
			numbers = "-\t-\t-"
		}
		fmt.Fprintf(table, "%s\t%d\t%s\t%s\t%s\t%s\n", timeText(time.Unix(r.At, 0), ""), r.Status, r.Resource, r.Limit, numbers, fits)
	}
	_ = table.Flush() // as with any printing
}
