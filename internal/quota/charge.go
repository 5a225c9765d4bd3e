package quota

import (
	"slices"
	"time"
)

// A Cost is what a request takes of each metric.
type Cost struct {
	Requests     int64
	Tokens       int64
	InputTokens  int64
	OutputTokens int64
}

// of returns the cost in one metric, between 0 and MaxCost.
func (c Cost) of(m Metric) int64 {
	var n int64
	switch m {
	case Requests:
		n = c.Requests
	case Tokens:
		n = c.Tokens
	case InputTokens:
		n = c.InputTokens
	case OutputTokens:
		n = c.OutputTokens
	}
	return min(max(n, 0), MaxCost)
}

// An Override replaces a limit of the key's tier, or adds one, until a moment.
type Override struct {
	Limit    Limit
	Until    time.Time // zero: without end
	Inherits bool      // counts as the limit that it replaces does, by which it may slide
}

// Algorithm returns the name of its own way to count; empty: it is that of the limit that it
// replaces, or fixed.
func (o Override) Algorithm() string {
	switch {
	case o.Inherits:
		return ""
	case o.Limit.Window.Sliding():
		return sliding
	default:
		return fixed
	}
}

// WithAlgorithm returns the override that counts in a way that Algorithm returns.
func (o Override) WithAlgorithm(s string) (Override, error) {
	var err error
	o.Limit.Window, err = o.Limit.Window.ParseAlgorithm(s)
	o.Inherits = s == ""
	return o, err
}

// A Request is a question to the Limiter.
type Request struct {
	Account   string // the key ID that the counts belong to
	Tier      *Plan
	Overrides []Override
	Limits    []Limit // of this request alone, in the place of those that have the same counters
	Resource  string
	Priority  Priority
	Pool      *Pool // of the resource; nil: it has none

	// Cost is what the request says of itself: over the whole of a limit, it can
	// never pass. Estimate is ours and comes on top; both together are cut to the
	// limit, so that a guess alone refuses nobody.
	Cost, Estimate Cost
	Credit         bool // gives Cost back instead of taking it

	ID       string        // see Order; without one it has no repeats
	Secret   func() string // makes that of the Order, where anything is to be kept; nil: nothing is
	Keep     time.Duration // see Order; where there is anything to settle
	Reserved bool          // what is taken is kept, though no limit is on tokens: it may be given back, or be settled twice
	Firm     bool          // see Order
}

// A Charge is what one limit is asked to give for one request.
type Charge struct {
	Limit    Limit
	Counter  string // names the counter within its account: metric/window@resource#priority
	Cost     int64  // 0 looks and takes nothing; negative gives back
	Declared int64  // of the cost, what the request says of itself
}

// tooLarge reports whether the charge could not be taken from an untouched limit.
// A limit of 0 requests is no matter of size: a smaller request does not fit either.
func (c Charge) tooLarge() bool {
	return c.Declared > c.Limit.Max && (c.Limit.Max > 0 || c.Limit.Metric != Requests)
}

// tooLargeOf returns the charge that could not be taken from an untouched limit; of several
// that of the lowest, requests and tokens apart: who asks for less than that has no further
// surprise.
func tooLargeOf(charges []Charge) (least Charge, found bool) {
	for _, c := range charges {
		if c.tooLarge() && (!found || (c.Limit.Metric == Requests) == (least.Limit.Metric == Requests) && c.Limit.Max < least.Limit.Max) {
			least, found = c, true
		}
	}
	return least, found
}

// Exceeds reports whether the charge does not fit on top of what is used, as Window.Weighed
// says. The function in Redis states the same comparison; the contract suite ties the two.
func (c Charge) Exceeds(used int64) bool { return c.Cost > 0 && used+c.Cost > c.Limit.Max }

// A Plan is a tier made ready for charging: which limits apply to each resource
// and priority is worked out once.
type Plan struct {
	Tier      Tier
	countBy   CountBy
	resources []string // DefaultResource first
	charges   map[selector][]Charge
}

type selector struct {
	resource string
	priority Priority
}

// NewPlan prepares a tier for the resources that the configuration knows.
// DefaultResource needs no mention.
func NewPlan(tier Tier, countBy CountBy, resources []Resource) *Plan {
	p := &Plan{Tier: tier, countBy: countBy, resources: []string{DefaultResource}, charges: map[selector][]Charge{}}
	for _, r := range resources {
		p.resources = append(p.resources, r.Name)
	}
	for _, name := range p.resources {
		for _, priority := range Priorities() {
			p.charges[selector{name, priority}] = p.applying(tier.Limits, name, priority)
		}
	}
	return p
}

// applying returns a charge without cost for each limit that applies to a
// resource and a priority. Where no limit counts all requests per minute, one that
// does and never refuses is added, so that Used is known of every request, also
// beside a limit of its resource or priority.
func (p *Plan) applying(limits []Limit, resource string, priority Priority) []Charge {
	var charges []Charge
	for i, l := range limits {
		if !applies(l, resource, priority) || p.replaced(limits, i, resource) {
			continue
		}
		charges = append(charges, Charge{Limit: l, Counter: p.counter(l, resource)})
	}
	all := Limit{Metric: Requests, Window: Minute, Max: NoMax}
	counter := p.counter(all, resource)
	if !slices.ContainsFunc(charges, func(c Charge) bool { return c.Counter == counter }) {
		charges = append(charges, Charge{Limit: all, Counter: counter})
	}
	return charges
}

func applies(l Limit, resource string, priority Priority) bool {
	return (l.Resource == "" || l.Resource == resource) && (l.Priority == 0 || l.Priority == priority)
}

// replaced reports whether limit i, which names no resource, shares its counter
// with one that does. That happens where counting is by key and resource; the
// one that names the resource then stands in for it.
func (p *Plan) replaced(limits []Limit, i int, resource string) bool {
	if p.countBy != ByKeyAndResource || limits[i].Resource != "" {
		return false
	}
	twin := limits[i]
	twin.Resource = resource
	for _, l := range limits {
		if l.sameCounter(twin) {
			return true
		}
	}
	return false
}

// replace puts limits in the place of those charges of a resource that have the same counters,
// which go on counting as they do, or beside them.
func (p *Plan) replace(charges []Charge, limits []Limit, resource string) []Charge {
	charges = slices.Clone(charges)
	for _, l := range limits {
		counter := p.counter(l, resource)
		i := slices.IndexFunc(charges, func(c Charge) bool { return c.Counter == counter })
		if i < 0 {
			charges = append(charges, Charge{Limit: l, Counter: counter})
		} else {
			charges[i].Limit.Max = l.Max
		}
	}
	return charges
}

// counter names the counter of a limit by what is counted and the window,
// never by the maximum or the place in the configuration, so that a changed
// tier takes effect at once and loses no count.
func (p *Plan) counter(l Limit, resource string) string {
	if p.countBy == ByKeyAndResource {
		l.Resource = resource
	}
	name := l.Metric.String() + "/" + l.Window.String()
	if l.Resource != "" {
		name += "@" + l.Resource
	}
	if l.Priority != 0 {
		name += "#" + l.Priority.Number()
	}
	return name
}

// charges works out what a request is to be charged at an instant.
func (r Request) charges(now time.Time) []Charge {
	templates, ok := r.Tier.charges[selector{r.Resource, r.Priority}]
	if len(r.Overrides) > 0 || !ok {
		templates = r.Tier.applying(overridden(r.Tier.Tier.Limits, r.Overrides, now), r.Resource, r.Priority)
	}
	if len(r.Limits) > 0 {
		templates = r.Tier.replace(templates, r.Limits, r.Resource)
	}
	charges := make([]Charge, 0, len(templates))
	for _, c := range templates {
		c.price(r)
		// Tokens that are not charged yet may be when the request is settled; a look
		// is to see everything.
		if c.Cost != 0 || c.Limit.shown() || c.Limit.Metric != Requests || r.Cost.Requests == 0 {
			charges = append(charges, c)
		}
	}
	return charges
}

// all is what charges works out, followed by what the request takes of its pool.
func (r Request) all(now time.Time) []Charge {
	charges := r.charges(now)
	if r.Pool != nil {
		charges = append(charges, r.Pool.price(r)...)
	}
	return charges
}

// price works out what the request costs by the charge's metric.
func (c *Charge) price(r Request) {
	c.Declared = r.Cost.of(c.Limit.Metric)
	c.Cost = min(c.Declared+r.Estimate.of(c.Limit.Metric), max(c.Limit.Max, c.Declared))
	switch {
	case r.Credit:
		c.Cost, c.Declared = -c.Declared, 0
	case c.Limit.Max == 0 && r.Cost.Requests > 0:
		c.Cost = max(c.Cost, 1) // a limit of 0 refuses whatever the cost
	}
}

// overridden returns the limits with those overrides applied that have not
// ended.
func overridden(limits []Limit, overrides []Override, now time.Time) []Limit {
	result := append([]Limit(nil), limits...)
	for _, o := range overrides {
		if !o.over(now) {
			result = put(result, o)
		}
	}
	return result
}

func (o Override) over(now time.Time) bool { return !o.Until.IsZero() && !now.Before(o.Until) }

func put(limits []Limit, o Override) []Limit {
	for i := range limits {
		if limits[i].sameCounter(o.Limit) {
			if o.Inherits {
				o.Limit.Window = limits[i].Window
			}
			limits[i] = o.Limit
			return limits
		}
	}
	return append(limits, o.Limit)
}
