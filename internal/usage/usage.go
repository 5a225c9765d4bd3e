package usage

import (
	"fmt"
	"time"
)

// A Step is the length of time that a Point is about.
type Step uint8

// The steps, and how long their points are kept.
const (
	Minute Step = iota + 1 // 3 hours
	Hour                   // 8 days
	Day                    // 400 days; UTC
)

// Steps lists every step.
func Steps() []Step { return []Step{Minute, Hour, Day} }

// ParseStep finds the step of a name: minute, hour or day.
func ParseStep(name string) (Step, error) {
	for _, s := range Steps() {
		if s.String() == name {
			return s, nil
		}
	}
	return 0, fmt.Errorf("unknown step %q: want minute, hour or day", name)
}

// String returns the step's name.
func (s Step) String() string { return [...]string{"", "minute", "hour", "day"}[s] }

// Length returns how long the step is.
func (s Step) Length() time.Duration {
	return [...]time.Duration{0, time.Minute, time.Hour, 24 * time.Hour}[s]
}

// Keep returns how long points are kept, at the least.
func (s Step) Keep() time.Duration {
	return [...]time.Duration{0, 3 * time.Hour, 8 * 24 * time.Hour, 400 * 24 * time.Hour}[s]
}

// Counts is what some requests came to.
type Counts struct {
	Admitted     int64
	Refused      map[string]int64 // by reason: the limit's name, or Forbidden, TooLarge, Failed, OtherReasons
	InputTokens  int64            // as they were counted against limits
	OutputTokens int64
}

// Requests is how many there were, admitted or not.
func (c Counts) Requests() int64 {
	n := c.Admitted
	for _, refused := range c.Refused {
		n += refused
	}
	return n
}

// Series that are nobody's: the whole fleet's requests by resource, by tier and by
// priority. They are read like an account's, and cannot be the ID of a key.
const (
	FleetByResource = "~resource"
	FleetByTier     = "~tier"
	FleetByPriority = "~priority"
	// Other takes the place of accounts beyond the bound; see Recorder.
	Other = "~other"
)

// A Point is what an account's requests came to in one step.
type Point struct {
	Start    time.Time
	Resource string // empty: all together; of a fleet's series, a tier's name or a priority's number
	Counts
	// The busiest minute in the step: admitted requests, and tokens settled. Only
	// points of all resources together also say what the limits per minute were then;
	// 0: none was known, or there was none.
	PeakRequests, PeakTokens   int64
	LimitRequests, LimitTokens int64
}

// A Refusal is one request that was refused with 429 or 413.
type Refusal struct {
	At       time.Time     `json:"at"` // by the clock that counted
	Resource string        `json:"resource"`
	Limit    string        `json:"limit"`     // the name of the limit that refused
	Used     int64         `json:"used"`      // of it, at that time; of a pool's 0, as the next two
	Max      int64         `json:"max"`       // of the limit
	Asked    int64         `json:"asked"`     // what did not fit any more
	Wait     time.Duration `json:"wait"`      // nanoseconds until it would have fitted; 0: never
	TooLarge bool          `json:"too_large"` // more than the whole limit: 413
}

// A Rank is what accounts are ranked by.
type Rank string

// The ranks.
const (
	ByRequests Rank = "requests"
	ByTokens   Rank = "tokens"
	ByRefusals Rank = "refused"
)

// Ranks lists every rank.
func Ranks() []Rank { return []Rank{ByRequests, ByTokens, ByRefusals} }

// A Ranked is an account's place.
type Ranked struct {
	Account string
	Count   int64
}

// A Near is an account that has used much of a limit lately.
type Near struct {
	Account string
	Limit   string  // the limit's name
	Share   float64 // used of its maximum, 0 to 1 and more
}

// An Instance is what one running TierGate tells of itself.
type Instance struct {
	ID       string           `json:"id"`
	Version  string           `json:"version"`
	Started  time.Time        `json:"started"`
	Seen     time.Time        `json:"seen"`     // when it told this
	Rates    map[string]int64 `json:"rates"`    // decisions by outcome in the last Interval
	Interval time.Duration    `json:"interval"` // nanoseconds
	P50      time.Duration    `json:"p50"`      // of decisions, in that interval; nanoseconds
	P99      time.Duration    `json:"p99"`
	Store    string           `json:"store"` // empty: it answers; else what it fails with
	Keys     int              `json:"keys"`
}

// A Query says which points are wanted: those of a step that begin in [From, To).
type Query struct {
	Step     Step
	From, To time.Time
}
