package web

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tiergate/tiergate/internal/apierror"
	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/usage"
)

// Usage is what the API reads of what keys have used.
type Usage interface {
	// Series returns an account's points that a query asks for, in any order: those of
	// all resources together and those of each. Steps in which nothing was used have
	// none.
	Series(ctx context.Context, account string, q usage.Query) ([]usage.Point, error)
	// Refusals returns the latest requests of an account that were refused with 429 or
	// 413, in any order.
	Refusals(ctx context.Context, account string) ([]usage.Refusal, error)
}

// A UsageView is what a key has used, as JSON.
type UsageView struct {
	KeyID  string      `json:"key_id"`
	From   int64       `json:"from"` // Unix seconds
	To     int64       `json:"to"`   // Unix seconds; the points begin before it
	Step   string      `json:"step"`
	Totals CountsView  `json:"totals"` // of all points
	Points []PointView `json:"points"` // steps in which nothing was used are left out
}

// A CountsView is what some requests came to.
type CountsView struct {
	Requests     int64            `json:"requests"` // admitted and refused
	Admitted     int64            `json:"admitted"`
	Refused      map[string]int64 `json:"refused"` // by reason: the name of a limit, forbidden, too_large or failed; other beyond 16 of them
	InputTokens  int64            `json:"input_tokens"`
	OutputTokens int64            `json:"output_tokens"`
}

// A PointView is what the requests of one step came to.
type PointView struct {
	Start    int64  `json:"start"` // Unix seconds
	Resource string `json:"resource,omitempty"`
	CountsView

	Peak   PerMinuteView  `json:"peak"`             // the busiest minute
	Limits *PerMinuteView `json:"limits,omitempty"` // of all resources together; as they were then
}

// A PerMinuteView says something of one minute. Null: there was no limit, or none is known.
type PerMinuteView struct {
	Requests *int64 `json:"requests"`
	Tokens   *int64 `json:"tokens"`
}

// series answers GET /v1/usage with what the caller's key has used: from and to (RFC
// 3339 or Unix seconds), step=minute|hour|day, by=resource. Without them it is the last
// 24 hours by hour, or the last hour by minute, or the last 30 days by day. The answer
// says which time it is about, in whole steps: it is cut to what is kept and to the
// step that is under way. Steps in which nothing was used have no point.
func (c *Customers) series(w http.ResponseWriter, r *http.Request, a *Accounts, record *apikey.Record) {
	if _, ok := c.standing(w, r, a, record); !ok {
		return
	}
	wanted, err := parseUsageRequest(r.URL.RawQuery, c.now())
	if err != nil {
		refuse(w, http.StatusBadRequest, apierror.InvalidParameter(err))
		return
	}
	points, err := c.kept.Series(r.Context(), record.ID, wanted.Query)
	if err != nil {
		c.unreadable(w, r, err)
		return
	}
	view := wanted.view(points)
	view.KeyID = record.ID
	answer(w, http.StatusOK, view)
}

// unreadable answers and logs that usage cannot be read.
func (c *Customers) unreadable(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() == nil { // else the caller is gone
		c.log.ErrorContext(r.Context(), "cannot read usage", "error", err)
	}
	w.Header().Set("Retry-After", "1")
	refuse(w, http.StatusServiceUnavailable, apierror.UsageUnavailable)
}

// A usageRequest is what a caller wants to know.
type usageRequest struct {
	usage.Query

	by string // what there is a point for each of; empty: all together
}

// errParameters is the error of a URL whose parameters are not encoded as they have to be.
var errParameters = errors.New("they cannot be read; escape what stands after a =")

// parseUsageRequest reads the parameters of a request for the usage of a key at an
// instant. The error is for the caller, see apierror.InvalidParameter.
func parseUsageRequest(query string, now time.Time) (usageRequest, error) {
	return parseSeries(query, now, "by", "resource")
}

// parseSeries does the same for any series: the parameter by says what there is a point
// for each of, one of labels.
func parseSeries(query string, now time.Time, by string, labels ...string) (usageRequest, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return usageRequest{}, errParameters
	}
	for name, all := range values {
		switch name {
		case "from", "to", "step", by:
			if len(all) > 1 {
				return usageRequest{}, errors.New(name + ": want it once")
			}
		default:
			return usageRequest{}, errors.New("want from, to, step or " + by)
		}
	}
	wanted := usageRequest{Query: usage.Query{Step: usage.Hour}, by: values.Get(by)}
	if values.Has(by) && !slices.Contains(labels, wanted.by) {
		return usageRequest{}, errors.New(by + ": want " + strings.Join(labels, " or "))
	}
	if values.Has("step") {
		if wanted.Step, err = usage.ParseStep(values.Get("step")); err != nil {
			return usageRequest{}, errors.New("step: want minute, hour or day")
		}
	}
	wanted.To = now
	if values.Has("to") {
		if wanted.To, err = parseInstant(values.Get("to")); err != nil {
			return usageRequest{}, errors.New("to: " + err.Error())
		}
	}
	wanted.From = wanted.To.Add(-defaultSpan(wanted.Step))
	if values.Has("from") {
		if wanted.From, err = parseInstant(values.Get("from")); err != nil {
			return usageRequest{}, errors.New("from: " + err.Error())
		}
	}
	if !wanted.From.Before(wanted.To) {
		return usageRequest{}, errors.New("from: want a time before to, which is now if it is not given")
	}
	wanted.cut(now)
	return wanted, nil
}

// cut makes the time whole steps that are kept at an instant and have begun.
func (q *usageRequest) cut(now time.Time) {
	length := q.Step.Length()
	up := func(t time.Time) time.Time { return t.Add(length - 1).Truncate(length) }
	kept, end := now.Add(-q.Step.Keep()).Truncate(length), now.Truncate(length).Add(length)
	within := func(t time.Time) time.Time {
		if t.Before(kept) {
			return kept
		}
		if t.After(end) {
			return end
		}
		return t
	}
	q.From, q.To = within(q.From.Truncate(length)).UTC(), within(up(q.To)).UTC()
}

func defaultSpan(s usage.Step) time.Duration {
	switch s {
	case usage.Minute:
		return time.Hour
	case usage.Day:
		return 30 * 24 * time.Hour
	case usage.Hour:
		return 24 * time.Hour
	default:
		return 24 * time.Hour
	}
}

// lastInstant is the end of the year 9999, in Unix seconds.
const lastInstant = 253_402_300_799

func parseInstant(text string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	if seconds, err := strconv.ParseInt(text, 10, 64); err == nil && seconds >= 0 && seconds <= lastInstant {
		return time.Unix(seconds, 0), nil
	}
	return time.Time{}, errors.New("want RFC 3339, such as 2026-03-01T12:00:00Z, or Unix seconds")
}

// view chooses among the points and lays them out, the earliest first.
func (q *usageRequest) view(points []usage.Point) UsageView {
	v := UsageView{
		From: q.From.Unix(), To: q.To.Unix(), Step: q.Step.String(), Totals: CountsView{Refused: map[string]int64{}}, Points: []PointView{},
	}
	for i := range points {
		if p := &points[i]; (p.Resource != "") == (q.by != "") {
			v.Points = append(v.Points, viewOfPoint(p))
			v.Totals.add(p.Counts)
		}
	}
	slices.SortFunc(v.Points, func(a, b PointView) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.Resource, b.Resource))
	})
	return v
}

func viewOfPoint(p *usage.Point) PointView {
	v := PointView{
		Start: p.Start.Unix(), Resource: p.Resource, CountsView: CountsView{Refused: map[string]int64{}},
		Peak: PerMinuteView{&p.PeakRequests, &p.PeakTokens},
	}
	v.add(p.Counts)
	if p.Resource == "" {
		v.Limits = &PerMinuteView{known(p.LimitRequests), known(p.LimitTokens)}
	}
	return v
}

// add adds what more requests came to.
func (v *CountsView) add(c usage.Counts) {
	v.Requests += c.Requests()
	v.Admitted += c.Admitted
	v.InputTokens += c.InputTokens
	v.OutputTokens += c.OutputTokens
	for reason, n := range c.Refused {
		v.Refused[reason] += n
	}
}

// known is the number, or nil of 0.
func known(n int64) *int64 {
	if n == 0 {
		return nil
	}
	return &n
}
