package quota

import (
	"strconv"
	"strings"
)

// A Priority says how early a request is shed when capacity is short: the low
// first, the critical last.
type Priority uint8

// The priorities, with the numbers that clients see.
const (
	Low      Priority = 1
	Normal   Priority = 2
	High     Priority = 3
	Critical Priority = 4
)

// Priorities lists every priority, the lowest first.
func Priorities() []Priority { return []Priority{Low, Normal, High, Critical} }

// String returns the priority's name in lower case.
func (p Priority) String() string {
	switch p {
	case Low:
		return "low"
	case Normal:
		return "normal"
	case High:
		return "high"
	case Critical:
		return "critical"
	default:
		return "Priority(" + strconv.Itoa(int(p)) + ")"
	}
}

// Number returns "1" to "4", as in the X-Request-Priority header.
func (p Priority) Number() string { return strconv.Itoa(int(p)) }

// ParsePriority reads a priority's number or its name in any case.
func ParsePriority(s string) (Priority, error) {
	for _, p := range Priorities() {
		if s == p.Number() || strings.EqualFold(s, p.String()) {
			return p, nil
		}
	}
	return 0, unknown("priority", s, "1 to 4, or low, normal, high or critical")
}

// Effective returns the priority of a request: the one its key may use, or the
// one asked for where that is lower. What cannot be read is ignored, so a
// client can lower its priority and never raise it.
func Effective(granted Priority, asked string) Priority {
	if asked == "" {
		return granted
	}
	p, err := ParsePriority(strings.TrimSpace(asked))
	if err != nil || p > granted {
		return granted
	}
	return p
}
