package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tiergate/tiergate/internal/envoyapi"
	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/web"
)

// An explainer asks the gate.
type explainer struct{ gate *envoyapi.Gate }

// Explain implements web.Explainer.
func (e explainer) Explain(ctx context.Context, q web.Question) web.Explained {
	return web.Explained(e.gate.Explain(ctx, envoyapi.Question(q)))
}

// explain says what a request with a key would get, and why.
func explain(ctx context.Context, args []string, env environment) error {
	flags := flag.NewFlagSet("explain", flag.ContinueOnError)
	var f adminFlags
	f.add(flags, env)
	flags.String("method", http.MethodPost, "the method of the request")
	flags.String("path", web.ExplainPath, "the `path` of the request")
	resource := flags.String("resource", "", "the `resource` that the route names in its context extensions")
	priority := flags.String("priority", "", "the `priority` that the client asks for in X-Request-Priority")
	flags.Int64("content-length", web.ExplainLength, "`bytes` of the body, of a POST, PUT or PATCH; -1: the request does not say")
	flags.Int64("max-tokens", 0, "the most output `tokens` that the body allows; without: it does not say")
	flags.Int64("choices", 1, "how many answers the body asks for")
	flags.String("model", "", "the model that the body asks for")
	flags.Bool("body-unread", false, "Envoy could not read the body whole")
	path, err := parseKey(flags, args, env, "/explain")
	if err != nil {
		return err
	}
	if err := noneEmpty(flags); err != nil {
		return err
	}
	return askFor(ctx, f, env, request{http.MethodPost, path, nil, asked(flags)}, func(w io.Writer, e web.Explanation) {
		printExplanation(w, e, *resource, *priority)
	})
}

// asked is what to ask of the admin API: what was given.
func asked(flags *flag.FlagSet) map[string]any {
	body := map[string]any{}
	flags.Visit(func(given *flag.Flag) {
		switch field := strings.ReplaceAll(given.Name, "-", "_"); given.Name {
		case "method", "path", "resource", "priority", "content-length", "max-tokens", "choices", "model", "body-unread":
			body[field] = given.Value.(flag.Getter).Get()                   //nolint:forcetypeassert // as all of package flag are
			if given.Name == "content-length" && body[field] == int64(-1) { // in chunks
				body[field] = nil
			}
		}
	})
	return body
}

// printExplanation prints one of a request whose route names a resource, or "", and whose
// client asks for a priority, or "".
func printExplanation(w io.Writer, e web.Explanation, named, asked string) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, value string) { fmt.Fprintf(table, "%s\t%s\n", name, value) }
	state := string(e.Key.State)
	if e.Key.State == web.KeyDisabled {
		state += ": a demo key, while allow_demo_keys is off"
	}
	if e.Key.Hidden {
		state += ", hidden: the file has a key of this ID or hash"
	}
	line("key", fmt.Sprintf("%s, tier %s, %s", e.Key.ID, e.Key.Tier, state))
	line("resource", e.Resource.Name+ruleText(e.Resource.Rule, named))
	line("priority", priorityText(e.Priority, asked))
	if t := e.Tokens; t != nil {
		line("tokens", fmt.Sprintf("%d input (%s), %d output (%s)%s", t.Input, sourceText(t.InputFrom), t.Output, sourceText(t.OutputFrom), weightText(t.Weight)))
	}
	if e.Degraded && e.Reason == "" {
		line("degraded", degradedText)
	}
	line("verdict", verdictText(e))
	_ = table.Flush() // as with any printing
	if len(e.Limits) > 0 {
		printDemands(w, e.Limits)
	}
	printResponse(w, e.Response)
}

func ruleText(rule, named string) string {
	text := ", by the path prefix " + rule
	switch rule {
	case "named":
		return ", which the route names"
	case "default":
		text = ": no path prefix matches"
	}
	if named != "" {
		text += "; the route names " + strconv.Quote(named) + ", which is not configured"
	}
	return text
}

func priorityText(p web.PriorityRule, asked string) string {
	text := numbered(p.Effective)
	switch {
	case p.Granted == 0:
		return text + ": no key is admitted"
	case p.Effective != p.Granted:
		return text + ", as asked for; the " + p.From + "'s is " + numbered(p.Granted)
	case asked != "":
		return text + ", the " + p.From + "'s; " + strconv.Quote(asked) + " is ignored: it names none that is lower"
	default:
		return text + ", the " + p.From + "'s"
	}
}

// numbered is a priority by number and name.
func numbered(priority int) string { return strconv.Itoa(priority) + " " + priorityName(priority) }

func sourceText(s quota.Source) string {
	switch s {
	case quota.ByNothing:
		return "no body"
	case quota.ByDeclaration:
		return "declared"
	case quota.ByHistory:
		return "learnt from the key's latest answers"
	case quota.ByDefault:
		return "the resource's default"
	case quota.ByMaximum:
		return "the resource's maximum"
	case quota.ByLength:
		return "by the body's length"
	}
	return string(s)
}

func weightText(weight float64) string {
	if weight == 1 {
		return ""
	}
	return fmt.Sprintf("; a token of the model counts %g", weight)
}

// verdictText says what becomes of the request, and why.
func verdictText(e web.Explanation) string {
	text := "admitted"
	if e.Response.Status != http.StatusOK {
		text = strings.TrimSpace(fmt.Sprintf("refused with %d %s", e.Response.Status, e.Code))
	}
	switch {
	case e.Reason != "":
		return text + ": " + e.Reason
	case e.RefusedBy == "":
		return text
	case e.Wait == 0:
		return text + " by " + e.RefusedBy + ": it can never pass"
	default:
		return fmt.Sprintf("%s by %s: it fits in %s", text, e.RefusedBy, time.Duration(e.Wait)*time.Millisecond)
	}
}

// printDemands lists the limits, as they are before the request.
func printDemands(w io.Writer, limits []web.DemandView) {
	fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "LIMIT\tWINDOW\tMAX\tUSED\tREMAINING\tASKED\tRESETS\tNOTE")
	for _, l := range limits {
		fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%s\t%d\t%s\t%s\n", l.Name, l.Per, orUnlimited(l.Limit), l.Used, orUnlimited(l.Remaining), l.Asks,
			timeText(time.Unix(l.Reset, 0), ""), noteText(l))
	}
	_ = table.Flush() // as with any printing
}

func orUnlimited(n *int64) string {
	if n == nil {
		return "unlimited"
	}
	return strconv.FormatInt(*n, 10)
}

func noteText(l web.DemandView) string {
	var notes []string
	if l.Refuses {
		notes = append(notes, "refuses")
	}
	if l.Override {
		notes = append(notes, "the key's own")
	}
	if l.Algorithm != "" {
		notes = append(notes, l.Algorithm)
	}
	cut := "estimate cut to the limit"
	if l.Name == quota.CapacityName {
		notes = append(notes, fmt.Sprintf("of %s in the pool of %s, up to the share of priority %s", l.Metric, l.Resource, priorityName(l.Priority)))
		cut = "cut to the share" // what is declared too
	} else {
		if l.Resource != "" {
			notes = append(notes, "of "+l.Resource+" only")
		}
		if l.Priority != 0 {
			notes = append(notes, "of priority "+priorityName(l.Priority)+" only")
		}
	}
	if l.Cut {
		notes = append(notes, cut)
	}
	return cmp.Or(strings.Join(notes, ", "), "-")
}

// printResponse prints what the client gets.
func printResponse(w io.Writer, r web.ResponseParts) {
	status := fmt.Sprintf("%d %s", r.Status, http.StatusText(r.Status))
	if r.Status == http.StatusOK {
		status = "The upstream's answer, with"
	}
	fmt.Fprintf(w, "\n%s\n", status)
	for _, h := range r.Headers {
		fmt.Fprintf(w, "%s: %s\n", h.Name, h.Value)
	}
	if r.Body != "" {
		fmt.Fprintf(w, "\n%s\n", r.Body)
	}
}
