package envoyapi

import (
	"context"
	"fmt"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// A Question is about a request that nobody makes. It has what Envoy would tell of one.
type Question struct {
	KeyID         string
	Resource      string            // that the route names
	Method, Path  string            // with query
	Priority      string            // asked for by the client; may be anything
	ContentLength string            // the header
	Body          map[string]string // facts by name, see RequestNamespace
}

// An Explanation is what a request would get, and why.
type Explanation struct {
	Outcome  string // see Outcome
	Code     string // of the error that the client is told; empty: none
	Err      error  // why counting failed, or no key finds the record
	At       time.Time
	Resource string
	Rule     string         // the path prefix by which the resource was found, or "named" or "default"
	Granted  quota.Priority // that the key may use; 0: no key was admitted
	Priority quota.Priority

	// What is reserved in tokens, before it is cut to a limit, and where that comes from;
	// "": nothing was looked at. Weight is what a token of the model counts.
	Input, Output         int64
	InputFrom, OutputFrom quota.Source
	Weight                float64

	Decision quota.Decision // zero where nothing was counted
	Demands  []quota.Demand

	Status  int         // 200 where the upstream answers
	Headers [][2]string // names and values that the client gets
	Body    string
}

// reasons are what is known of a request while it is decided.
type reasons struct {
	rule      string // by which the resource was found
	input     int64  // tokens reserved for the prompt
	inputFrom quota.Source
	ticket    ticket
	demands   []quota.Demand
}

// Explain says what a request would get that repeats no other. It takes nothing, and
// nobody is told of it: the same code decides as for a real one.
func (g *Gate) Explain(ctx context.Context, question Question) Explanation {
	s := g.settings.Load()
	var why reasons
	q := inquiry{
		resource: question.Resource, path: question.Path, priority: question.Priority, keyID: question.KeyID,
		hits: 1, look: true, tokens: quota.Unknown, reasons: &why,
	}
	q.body, q.model = readBody(question.Method, question.Path, question.ContentLength, func(name string) string { return question.Body[name] })
	v := Verdict{At: g.now()}
	g.consider(ctx, s, &q, &v)
	e := Explanation{
		Outcome: string(v.Outcome), Code: v.problem.Code, Err: v.Err, At: v.At, Resource: v.Resource, Rule: why.rule, Priority: v.Priority,
		Input: why.input, InputFrom: why.inputFrom, Output: why.ticket.output, OutputFrom: why.ticket.source, Weight: why.ticket.weight,
		Decision: v.Decision, Demands: why.demands, Status: v.status(),
	}
	if record := s.Keys.ByID(question.KeyID); record != nil && v.Key == nil {
		e.Err = s.Keys.Pepperless(record.Hash)
		if former := s.Keys.Former(record, s.AllowDemoKeys, v.At); e.Err != nil && former != nil {
			e.Err = fmt.Errorf("%w; a request with its former secret is decided as ever until %s", e.Err, former.Until.UTC().Format(time.RFC3339))
		}
	}
	if v.counted() {
		e.At = v.Decision.Now
	}
	if plan := s.Plans[v.Tier]; plan != nil {
		e.Granted = v.Key.Granted(plan.Tier.Priority)
	}
	for _, h := range v.response(s) {
		e.Headers = append(e.Headers, [2]string{h.name, h.value})
	}
	if v.Outcome != Allowed {
		e.Body = v.problem.Body()
	}
	return e
}
