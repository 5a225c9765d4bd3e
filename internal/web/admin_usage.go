package web

import (
	"net/http"
	"strconv"
	"time"

	"github.com/tiergate/tiergate/internal/apierror"
	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/usage"
)

// The operators' view of what a key has used: that of the customers' GET /v1/usage.
type keySeries struct {
	KeyID  string     `json:"key_id"`
	From   int64      `json:"from"` // Unix seconds
	To     int64      `json:"to"`
	Step   string     `json:"step"`
	Totals keyCounts  `json:"totals"` // of all points
	Points []keyPoint `json:"points"` // steps in which nothing was used are left out
}

type keyCounts struct {
	Requests     int64            `json:"requests"` // admitted and refused
	Admitted     int64            `json:"admitted"`
	Refused      map[string]int64 `json:"refused"` // by reason
	InputTokens  int64            `json:"input_tokens"`
	OutputTokens int64            `json:"output_tokens"`
}

type keyPoint struct {
	Start    int64  `json:"start"` // Unix seconds
	Resource string `json:"resource,omitempty"`
	keyCounts

	Peak   perMinute  `json:"peak"`             // the busiest minute
	Limits *perMinute `json:"limits,omitempty"` // of all resources together; as they were then
}

// perMinute says something of one minute. Null: there was no limit, or none is known.
type perMinute struct {
	Requests *int64 `json:"requests"`
	Tokens   *int64 `json:"tokens"`
}

// series answers with the usage of a key.
func (a *Admin) series(c *call) (any, error) {
	q := c.query()
	wanted, byResource := c.seriesAsked(q)
	if err := q.end(); err != nil {
		return nil, err
	}
	r, err := c.record()
	if err != nil {
		return nil, err
	}
	points, err := a.usage.Series(c.Context(), r.ID, wanted)
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what and why, for the answer
	}
	s := keySeries{
		KeyID: r.ID, From: wanted.From.Unix(), To: wanted.To.Unix(), Step: wanted.Step.String(),
		Totals: keyCounts{Refused: map[string]int64{}}, Points: []keyPoint{},
	}
	for i := range points {
		if p := &points[i]; (p.Resource != "") == byResource {
			s.Points = append(s.Points, keyPointOf(p))
			s.Totals.add(p.Counts)
		}
	}
	return s, nil
}

func keyPointOf(p *usage.Point) keyPoint {
	v := keyPoint{
		Start: p.Start.Unix(), Resource: p.Resource, keyCounts: keyCounts{Refused: map[string]int64{}},
		Peak: perMinute{&p.PeakRequests, &p.PeakTokens},
	}
	v.add(p.Counts)
	if p.Resource == "" {
		v.Limits = &perMinute{orNull(p.LimitRequests), orNull(p.LimitTokens)}
	}
	return v
}

// add adds what more requests came to.
func (v *keyCounts) add(c usage.Counts) {
	v.Requests += c.Requests()
	v.Admitted += c.Admitted
	v.InputTokens += c.InputTokens
	v.OutputTokens += c.OutputTokens
	for reason, n := range c.Refused {
		v.Refused[reason] += n
	}
}

func orNull(n int64) *int64 {
	if n == 0 {
		return nil
	}
	return &n
}

// seriesAsked reads which points are wanted: without from and to the last hour by
// minute, the last day by hour, the last 30 days by day. It is cut to whole steps that
// are kept and have begun.
func (c *call) seriesAsked(q *query) (wanted usage.Query, byResource bool) {
	wanted = usage.Query{Step: usage.Hour, To: c.now}
	if text := q.text("step"); text != "" {
		step, err := usage.ParseStep(text)
		if err != nil {
			q.fault("step", "want minute, hour or day")
			step = usage.Hour
		}
		wanted.Step = step
	}
	usual := map[usage.Step]time.Duration{usage.Minute: time.Hour, usage.Hour: 24 * time.Hour, usage.Day: 30 * 24 * time.Hour}
	q.moment("to", &wanted.To)
	wanted.From = wanted.To.Add(-usual[wanted.Step])
	q.moment("from", &wanted.From)
	if !wanted.From.Before(wanted.To) {
		q.fault("from", "is not before to")
	}
	length := wanted.Step.Length()
	kept, end := c.now.Add(-wanted.Step.Keep()).Truncate(length), c.now.Truncate(length).Add(length)
	within := func(t time.Time) time.Time {
		if t.Before(kept) {
			return kept
		}
		if t.After(end) {
			return end
		}
		return t
	}
	wanted.From, wanted.To = within(wanted.From.Truncate(length)), within(wanted.To.Add(length-1).Truncate(length))
	by := q.text("by")
	if by != "" && by != "resource" {
		q.fault("by", "want resource")
	}
	return wanted, by == "resource"
}

// moment takes out a point in time, if it is there.
func (q *query) moment(name string, into *time.Time) {
	text := q.text(name)
	if text == "" {
		return
	}
	const latest = 253402300799 // the end of the year 9999
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && n >= 0 && n <= latest {
		*into = time.Unix(n, 0).UTC()
		return
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		q.fault(name, "want %s, or Unix seconds", pointInTime)
		return
	}
	*into = t.UTC()
}

// limits answers with every limit of a key, and what is used of it, in the shape of the
// customers' GET /v1/limits.
func (a *Admin) limits(c *call) (any, error) {
	if err := c.query().end(); err != nil {
		return nil, err
	}
	r, err := c.record()
	if err != nil {
		return nil, err
	}
	plan := c.accounts.Plans[r.Tier]
	if plan == nil {
		return nil, problem(kindNoTier, "the configuration has no tier "+r.Tier+": add it, or give the key another")
	}
	states, now, err := a.limiter.States(c.Context(), quota.Request{Account: r.ID, Tier: plan, Overrides: r.Overrides}, c.now)
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what and why, for the answer
	}
	view := limitsView{
		KeyID: r.ID, Name: r.Name, Tier: r.Tier, Priority: int(r.Granted(plan.Tier.Priority)), Now: now.Unix(), Limits: make([]limitView, len(states)),
	}
	for i, s := range states {
		view.Limits[i] = viewOf(s)
	}
	return view, nil
}

// The operators' view of a key's latest refused requests.
type keyRefusals struct {
	KeyID    string       `json:"key_id"`
	Refusals []keyRefusal `json:"refusals"` // the latest first
}

type keyRefusal struct {
	At       int64  `json:"at"`     // Unix seconds
	Status   int    `json:"status"` // 429, or 413 where the request is more than the whole limit
	Resource string `json:"resource"`
	Limit    string `json:"limit"` // the name of the limit that refused
	Used     int64  `json:"used"`  // of it, then
	Max      int64  `json:"max"`
	Asked    int64  `json:"asked"`   // what did not fit any more
	FitsAt   *int64 `json:"fits_at"` // Unix seconds; null: never
}

// refusals answers with the latest refusals of a key.
func (a *Admin) refusals(c *call) (any, error) {
	if err := c.query().end(); err != nil {
		return nil, err
	}
	r, err := c.record()
	if err != nil {
		return nil, err
	}
	refusals, err := a.usage.Refusals(c.Context(), r.ID)
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what and why, for the answer
	}
	view := keyRefusals{KeyID: r.ID, Refusals: []keyRefusal{}}
	for i := range refusals {
		view.Refusals = append(view.Refusals, keyRefusalOf(&refusals[i]))
	}
	return view, nil
}

func keyRefusalOf(r *usage.Refusal) keyRefusal {
	v := keyRefusal{
		At: r.At.Unix(), Status: http.StatusTooManyRequests, Resource: r.Resource, Limit: r.Limit, Used: r.Used, Max: r.Max, Asked: r.Asked,
	}
	if r.TooLarge {
		v.Status = http.StatusRequestEntityTooLarge
		return v
	}
	fits := r.At.Unix() + apierror.Up(r.Wait, time.Second)
	v.FitsAt = &fits
	return v
}
