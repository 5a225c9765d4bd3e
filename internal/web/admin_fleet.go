package web

import (
	"context"
	"math"
	"time"

	"github.com/tiergate/tiergate/internal/usage"
)

// Fleet is what the admin API shows of all keys and all instances together.
type Fleet interface {
	// Top returns the accounts with the most of something in the hour under way and so
	// many hours before it, 1 to 24: the first is the one with the most, at most so many.
	Top(ctx context.Context, by usage.Rank, hours, most int) ([]usage.Ranked, error)
	// Near returns the accounts that have lately used 80 % of a limit or more, the
	// nearest first.
	Near(ctx context.Context) ([]usage.Near, error)
	// Instances returns what every instance that lives says of itself.
	Instances(ctx context.Context) ([]usage.Instance, error)
}

// An InstanceList is all instances, and what they come to together.
type InstanceList struct {
	Now       int64          `json:"now"` // Unix seconds
	Sum       InstanceSum    `json:"sum"`
	Instances []InstanceView `json:"instances"`
}

// An InstanceSum is what the instances come to together.
type InstanceSum struct {
	Instances int                `json:"instances"`
	Failing   int                `json:"failing"` // those for which the store does not answer
	Rates     map[string]float64 `json:"rates"`   // decisions a second, by outcome
	P50       *float64           `json:"p50_ms"`  // the highest of any; null: nothing was decided
	P99       *float64           `json:"p99_ms"`
}

// An InstanceView is what one instance says of itself.
type InstanceView struct {
	ID         string             `json:"id"`
	Version    string             `json:"version"`
	Started    int64              `json:"started"` // Unix seconds
	Seen       int64              `json:"seen"`    // Unix seconds; when it said so
	Rates      map[string]float64 `json:"rates"`   // decisions a second, by outcome
	P50        *float64           `json:"p50_ms"`  // milliseconds; null: nothing was decided
	P99        *float64           `json:"p99_ms"`
	StoreError string             `json:"store_error,omitempty"` // without: the store answers it
	Keys       int                `json:"keys"`                  // that it knows
}

// instances answers with every instance.
func (a *Admin) instances(c *call) (any, error) {
	if err := c.query().end(); err != nil {
		return nil, err
	}
	all, err := a.fleet.Instances(c.Context())
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what and why, for the answer
	}
	list := InstanceList{
		Now: c.now.Unix(), Sum: InstanceSum{Instances: len(all), Rates: map[string]float64{}}, Instances: make([]InstanceView, len(all)),
	}
	for i := range all {
		list.Instances[i] = instanceView(&all[i])
		list.Sum.add(&list.Instances[i])
	}
	return list, nil
}

func instanceView(i *usage.Instance) InstanceView {
	v := InstanceView{
		ID: i.ID, Version: i.Version, Started: i.Started.Unix(), Seen: i.Seen.Unix(), Rates: map[string]float64{},
		P50: milliseconds(i.P50), P99: milliseconds(i.P99), StoreError: i.Store, Keys: i.Keys,
	}
	if i.Interval > 0 {
		for outcome, n := range i.Rates {
			v.Rates[outcome] = rounded(float64(n) / i.Interval.Seconds())
		}
	}
	return v
}

// add adds an instance.
func (s *InstanceSum) add(v *InstanceView) {
	if v.StoreError != "" {
		s.Failing++
	}
	for outcome, rate := range v.Rates {
		s.Rates[outcome] = rounded(s.Rates[outcome] + rate)
	}
	s.P50, s.P99 = higher(s.P50, v.P50), higher(s.P99, v.P99)
}

// milliseconds is a time, or nil of 0.
func milliseconds(d time.Duration) *float64 {
	if d == 0 {
		return nil
	}
	ms := rounded(float64(d) / float64(time.Millisecond))
	return &ms
}

func higher(a, b *float64) *float64 {
	if a == nil || (b != nil && *b > *a) {
		return b
	}
	return a
}

// rounded leaves three digits behind the point.
func rounded(x float64) float64 { return math.Round(1000*x) / 1000 }

// The usage of the whole fleet, in the shape of a key's.
type fleetView struct {
	Of     string       `json:"of,omitempty"` // resource, tier or priority; without: all together
	From   int64        `json:"from"`         // Unix seconds
	To     int64        `json:"to"`           // Unix seconds; the points begin before it
	Step   string       `json:"step"`
	Totals CountsView   `json:"totals"` // of all points
	Points []fleetPoint `json:"points"` // steps in which nothing was used are left out
}

type fleetPoint struct {
	Start int64  `json:"start"`           // Unix seconds
	Label string `json:"label,omitempty"` // of what it is; without: all together
	CountsView

	Peak PerMinuteView `json:"peak"` // the busiest minute
}

// fleetSeries answers with the usage of the whole fleet, for the parameters of a key's
// usage, but with of in the place of by.
func (a *Admin) fleetSeries(c *call) (any, error) {
	wanted, err := parseSeries(c.URL.RawQuery, c.now, "of", "resource", "tier", "priority")
	if err != nil {
		return nil, wrongParameter(err)
	}
	account := usage.FleetByResource
	switch wanted.by {
	case "tier":
		account = usage.FleetByTier
	case "priority":
		account = usage.FleetByPriority
	}
	points, err := a.usage.Series(c.Context(), account, wanted.Query)
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what and why, for the answer
	}
	of := wanted.view(points)
	view := fleetView{Of: wanted.by, From: of.From, To: of.To, Step: of.Step, Totals: of.Totals, Points: make([]fleetPoint, len(of.Points))}
	for i, p := range of.Points {
		view.Points[i] = fleetPoint{p.Start, p.Resource, p.CountsView, p.Peak}
	}
	return view, nil
}
