// Package quota is TierGate's domain: tiers, limits, windows, resources,
// priorities, charges and decisions. It is pure: it has no clock and does no
// I/O; time is an argument and counting is behind the Counts interface.
//
// It does not know Envoy, HTTP, API keys, YAML or Redis.
//
// A request's way through the domain:
//
//	Body    ──▶ Reserve   what its answer may use             pure
//	Request ──▶ charges   one per limit that applies          pure
//	        ──▶ Counts    all are charged or none is; before  the only I/O
//	                      that the resource's Pool, if any
//	        ──▶ decide    counters become a Decision          pure
//	… answered:
//	Usage   ──▶ Cost      what it has really used             pure
//	        ──▶ Counts    the charges are corrected, once     the only I/O
package quota

import (
	"errors"
	"fmt"
	"math"
)

// A Metric is what a limit counts.
type Metric uint8

// The metrics.
const (
	Requests     Metric = iota + 1 // one for each request, however long its answer
	Tokens                         // input and output tokens together
	InputTokens                    // tokens of the prompt
	OutputTokens                   // tokens of the answer
)

// Metrics lists every metric.
func Metrics() []Metric { return []Metric{Requests, Tokens, InputTokens, OutputTokens} }

// String returns the name used in configuration and headers, such as
// "input_tokens".
func (m Metric) String() string {
	switch m {
	case Requests:
		return "requests"
	case Tokens:
		return "tokens"
	case InputTokens:
		return "input_tokens"
	case OutputTokens:
		return "output_tokens"
	default:
		return fmt.Sprintf("Metric(%d)", uint8(m))
	}
}

// unknown says that a text, which may be missing, is none of what is wanted.
func unknown(what, text, want string) error {
	if text == "" {
		return errors.New("missing: want " + want)
	}
	return fmt.Errorf("unknown %s %q: want %s", what, text, want)
}

// ParseMetric finds the metric of a name.
func ParseMetric(name string) (Metric, error) {
	for _, m := range Metrics() {
		if name == m.String() {
			return m, nil
		}
	}
	return 0, unknown("metric", name, "requests, tokens, input_tokens or output_tokens")
}

const (
	// NoMax is the maximum of a limit that only counts and never refuses.
	NoMax int64 = math.MaxInt64
	// MaxMax is the largest maximum a limit may have. Sums up to here are exact
	// in the floating-point numbers that Redis scripts compute with.
	MaxMax int64 = 1_000_000_000_000_000
	// MaxUsed is where counts stop growing: far above any maximum, and exact in the
	// numbers of a Redis script.
	MaxUsed int64 = 4 * MaxMax
	// MaxCost is the largest cost of a single charge; larger ones are cut to it.
	MaxCost int64 = 1_000_000_000
)

// A Limit is a maximum of a metric in a window. A limit with a Resource counts
// only the requests for that resource, a limit with a Priority only those of
// that priority; both are counted on their own, on top of the other limits.
type Limit struct {
	Metric   Metric
	Window   Window
	Max      int64    // 0 refuses every request; NoMax counts only
	Resource string   // empty: every resource
	Priority Priority // 0: every priority
	Pooled   bool     // of a Pool: what requests of the priority may use of it, with all others
}

// CapacityName is the name of every limit of a Pool.
const CapacityName = "capacity"

// Name returns the limit's name as clients and metrics see it, such as
// "requests_per_minute" or "images_requests_per_minute". How large a Pool is is nobody's
// business, nor what it counts: all its limits have one name.
func (l Limit) Name() string {
	if l.Pooled {
		return CapacityName
	}
	name := l.Metric.String() + "_per_" + l.Window.String()
	if l.Priority != 0 {
		name = l.Priority.String() + "_" + name
	}
	if l.Resource != "" {
		name = l.Resource + "_" + name
	}
	return name
}

// Validate reports what is wrong with the limit.
func (l Limit) Validate() error {
	if l.Max < 0 || (l.Max > MaxMax && l.Max != NoMax) {
		return fmt.Errorf("max %d is out of range: want 0 to %d", l.Max, MaxMax)
	}
	return nil
}

// sameCounter reports whether two limits count the same thing, in whatever way. Two such
// limits of one tier would contradict each other.
func (l Limit) sameCounter(o Limit) bool {
	return l.Metric == o.Metric && l.Window.Fixed() == o.Window.Fixed() && l.Resource == o.Resource && l.Priority == o.Priority && l.Pooled == o.Pooled
}

// shown reports whether the limit is one on requests per minute, which is what
// the X-RateLimit headers describe, of the key's own.
func (l Limit) shown() bool { return l.Metric == Requests && l.Window.Fixed() == Minute && !l.Pooled }

// CountBy says what the limits of a tier that name no resource are counted by.
type CountBy uint8

// The ways to count.
const (
	ByKey            CountBy = iota // per API key, over all resources together
	ByKeyAndResource                // per API key and resource
)

// ParseCountBy finds the way to count of a name: "key" or "key_and_resource".
func ParseCountBy(name string) (CountBy, error) {
	switch name {
	case "key":
		return ByKey, nil
	case "key_and_resource":
		return ByKeyAndResource, nil
	default:
		return 0, fmt.Errorf("unknown count_by %q: want key or key_and_resource", name)
	}
}

// A Resource is something the API offers, such as "chat".
type Resource struct {
	Name         string
	PathPrefixes []string // normalised, beginning with a slash; see envoyapi
}

// DefaultResource is the resource of requests that match no other.
const DefaultResource = "default"

// A Tier is a named set of limits.
type Tier struct {
	Name      string
	Priority  Priority
	Unlimited bool // said openly: no limit on requests per minute is needed
	Limits    []Limit
	OnFailure OnFailure
}

// OnFailure says what becomes of requests while the counts cannot be reached.
type OnFailure uint8

// The ways to go on.
const (
	Local OnFailure = iota // by this instance alone, with its share of every limit
	Deny                   // all are refused
	Allow                  // all are admitted
)

// String returns the name used in configuration and metrics.
func (f OnFailure) String() string { return [...]string{"local", "deny", "allow"}[f] }

// ParseOnFailure finds the way of a name.
func ParseOnFailure(name string) (OnFailure, error) {
	for _, f := range []OnFailure{Local, Deny, Allow} {
		if name == f.String() {
			return f, nil
		}
	}
	return 0, fmt.Errorf("unknown value %q: want local, deny or allow", name)
}

// Validate reports everything that is wrong with the tier, each fault with the
// index of the limit it is in, or -1.
func (t Tier) Validate() []LimitError {
	var faults []LimitError
	shown := false
	for i, l := range t.Limits {
		if err := l.Validate(); err != nil {
			faults = append(faults, LimitError{i, err})
		}
		for _, other := range t.Limits[:i] {
			if l.sameCounter(other) {
				faults = append(faults, LimitError{i, fmt.Errorf("a second limit %s: remove one of them", l.Name())})
			}
		}
		base := l.Resource == "" && l.Priority == 0
		shown = shown || (base && l.shown())
		if base && t.Unlimited {
			faults = append(faults, LimitError{
				i, fmt.Errorf("limit %s in a tier that says unlimited: true: remove one of the two, or name a resource", l.Name()),
			})
		}
	}
	if !shown && !t.Unlimited {
		faults = append(faults, LimitError{-1, errors.New(
			"no limit of requests per minute for all resources: add {metric: requests, per: minute, max: …} or say unlimited: true")})
	}
	return faults
}

// A LimitError is a fault of a tier: the limit's index and what is wrong.
type LimitError struct {
	Index int // of the limit in the tier; -1: the tier itself
	Err   error
}
