package web

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// What is asked about where a question does not say.
const (
	ExplainPath   = "/v1/chat/completions"
	ExplainLength = 1000 // bytes of the body of a POST, PUT or PATCH
)

// An Explainer says what a request would get, by the code that decides real ones, and
// takes nothing.
type Explainer interface {
	Explain(ctx context.Context, q Question) Explained
}

// A Question is about a request that nobody makes: what Envoy would tell of one.
type Question struct {
	KeyID         string
	Resource      string // that the route names
	Method, Path  string
	Priority      string            // the header, as clients send it
	ContentLength string            // likewise
	Body          map[string]string // what Envoy would read in it, by name
}

// Explained is the answer to a Question.
type Explained struct {
	Outcome  string
	Code     string // of the error that the client is told; empty: none
	Err      error  // why counting failed, or no key finds the record
	At       time.Time
	Resource string
	Rule     string         // the path prefix by which the resource was found, or "named" or "default"
	Granted  quota.Priority // that the key may use; 0: no key was admitted
	Priority quota.Priority

	// What is reserved in tokens; no sources: nothing was looked at.
	Input, Output         int64
	InputFrom, OutputFrom quota.Source
	Weight                float64

	Decision quota.Decision // zero where nothing was counted
	Demands  []quota.Demand

	Status  int
	Headers [][2]string
	Body    string
}

// An Explanation is what a request would get, and why, as JSON.
type Explanation struct {
	Key       KeyView       `json:"key"`
	Now       int64         `json:"now"` // Unix seconds
	Verdict   string        `json:"verdict"`
	Code      string        `json:"code,omitempty"`       // of the error that the client is told
	Reason    string        `json:"reason,omitempty"`     // for operators: why nothing could be counted, or no key finds the record
	RefusedBy string        `json:"refused_by,omitempty"` // the limit that keeps the request waiting longest
	Wait      int64         `json:"wait_ms,omitempty"`
	Degraded  bool          `json:"degraded"`
	Resource  ResourceRule  `json:"resource"`
	Priority  PriorityRule  `json:"priority"`
	Tokens    *Reserved     `json:"tokens"` // null: the request gets no further than its key
	Limits    []DemandView  `json:"limits"`
	Response  ResponseParts `json:"response"`
}

// A ResourceRule is a resource, and how it was found.
type ResourceRule struct {
	Name string `json:"name"`
	Rule string `json:"rule"` // named, default, or a path prefix
}

// A PriorityRule is the priority that a request gets, and that its key may use.
type PriorityRule struct {
	Effective int    `json:"effective"`
	Granted   int    `json:"granted,omitempty"`
	From      string `json:"from,omitempty"` // tier or key
}

// Reserved is what is reserved for a request in tokens, before it is cut to a limit.
type Reserved struct {
	Input      int64        `json:"input"`
	InputFrom  quota.Source `json:"input_from"`
	Output     int64        `json:"output"`
	OutputFrom quota.Source `json:"output_from"`
	Weight     float64      `json:"weight"` // what a token of the model counts
}

// A DemandView is a limit before the request, and what the request asks of it.
type DemandView struct {
	LimitView

	Asks     int64 `json:"asks"`
	Cut      bool  `json:"cut"`
	Refuses  bool  `json:"refuses"`
	Override bool  `json:"override"`
}

// ResponseParts are what the client gets.
type ResponseParts struct {
	Status  int          `json:"status"` // 200: that of the upstream
	Headers []HeaderView `json:"headers"`
	Body    string       `json:"body,omitempty"`
}

// A HeaderView is one header.
type HeaderView struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// explain answers what a request with a key would get.
func (a *Admin) explain(c *call) (any, error) {
	q, err := question(c.body)
	if err != nil {
		return nil, err
	}
	r, err := c.record()
	if err != nil {
		return nil, err
	}
	q.KeyID = r.ID
	e := a.explainer.Explain(c.Context(), q)
	view := e.view()
	view.Key = c.accounts.view(r, c.inFile(r.ID), c.now)
	switch {
	case e.Granted == 0:
	case r.Priority != 0:
		view.Priority.From = "key"
	default:
		view.Priority.From = "tier"
	}
	return view, nil
}

// question reads what to ask.
func question(body []byte) (Question, error) {
	o, err := newObject(body)
	if err != nil {
		return Question{}, err
	}
	q := Question{Method: http.MethodPost, Path: ExplainPath, Body: map[string]string{"read": "yes"}}
	take(o, "method", aText, &q.Method)
	if take(o, "path", aText, &q.Path) && !strings.HasPrefix(q.Path, "/") {
		o.fault("path", "want one that begins with /, such as %s", ExplainPath)
	}
	take(o, "resource", aText, &q.Resource)
	take(o, "priority", aText, &q.Priority)
	usual := ""
	switch q.Method {
	case http.MethodPost, http.MethodPut, http.MethodPatch:
		usual = strconv.Itoa(ExplainLength)
	}
	q.ContentLength = takeNumber(o, "content_length", 0, usual)
	most := takeNumber(o, "max_tokens", 1, "")
	q.Body["max_tokens"], q.Body["max_output_tokens"] = most, most // by whichever name the endpoint knows
	q.Body["n"] = takeNumber(o, "choices", 1, "")
	var model string
	take(o, "model", aText, &model)
	q.Body["model"] = model
	var unread bool
	if take(o, "body_unread", "true or false", &unread) && unread {
		q.Body["read"] = "no"
	}
	o.end()
	return q, o.err()
}

// takeNumber takes out a whole number as text; null is "".
func takeNumber(o *object, field string, least int64, otherwise string) string {
	var n *int64
	want := "a whole number, " + strconv.FormatInt(least, 10) + " or more"
	switch {
	case !take(o, field, want, &n):
		return otherwise
	case n == nil:
		return ""
	case *n < least:
		o.fault(field, "want %s", want)
	}
	return strconv.FormatInt(*n, 10)
}

func (e *Explained) view() Explanation {
	v := Explanation{
		Now: e.At.Unix(), Verdict: e.Outcome, Code: e.Code, Degraded: e.Decision.Degraded,
		Resource: ResourceRule{e.Resource, e.Rule}, Priority: PriorityRule{Effective: int(e.Priority), Granted: int(e.Granted)},
		Limits: make([]DemandView, len(e.Demands)), Response: ResponseParts{e.Status, make([]HeaderView, len(e.Headers)), e.Body},
	}
	if e.Err != nil {
		v.Reason = e.Err.Error()
	}
	if by := e.Decision.RefusedBy; by != (quota.Limit{}) {
		v.RefusedBy = by.Name()
		if !e.Decision.Never() {
			v.Wait = (e.Decision.Wait + time.Millisecond - 1).Milliseconds() // 0 is never
		}
	}
	if e.OutputFrom != "" {
		v.Tokens = &Reserved{e.Input, e.InputFrom, e.Output, e.OutputFrom, e.Weight}
	}
	for i, d := range e.Demands {
		v.Limits[i] = DemandView{viewOf(d.State), d.Asks, d.Cut, d.Refuses, d.Overridden}
	}
	for i, h := range e.Headers {
		v.Response.Headers[i] = HeaderView{h[0], h[1]}
	}
	return v
}
