package store

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tiergate/tiergate/internal/usage"
)

// A sum is the text of a field of one label: admitted, input and output tokens, the
// busiest minute's requests and tokens, and pairs of a reason and how many it refused.
type sum struct {
	usage.Counts
	peakRequests, peakTokens int64
}

func parseSum(text string) (sum, error) {
	words := strings.Fields(text)
	if len(words) < 5 || len(words)%2 == 0 {
		return sum{}, fmt.Errorf("read the usage: %q is no sum", text)
	}
	var s sum
	if err := parseNumbers(words, &s.Admitted, &s.InputTokens, &s.OutputTokens, &s.peakRequests, &s.peakTokens); err != nil {
		return sum{}, err
	}
	for rest := words[5:]; len(rest) > 0; rest = rest[2:] {
		var n int64
		if err := parseNumbers(rest[1:], &n); err != nil {
			return sum{}, err
		}
		if s.Refused == nil {
			s.Refused = map[string]int64{}
		}
		s.Refused[rest[0]] = n
	}
	return s, nil
}

// String returns the text, the reasons in order.
func (s sum) String() string {
	words := []string{formatNumbers(s.Admitted, s.InputTokens, s.OutputTokens, s.peakRequests, s.peakTokens)}
	for _, reason := range sortedReasons(s.Refused) {
		words = append(words, reason, strconv.FormatInt(s.Refused[reason], 10))
	}
	return strings.Join(words, " ")
}

// A total is the text of a field of all labels together: the busiest minute's requests
// and tokens, and the limits of both per minute.
type total struct{ requests, tokens, limitRequests, limitTokens int64 }

func parseTotal(text string) (total, error) {
	var t total
	err := parseNumbers(strings.Fields(text), &t.requests, &t.tokens, &t.limitRequests, &t.limitTokens)
	return t, err
}

func (t total) String() string {
	return formatNumbers(t.requests, t.tokens, t.limitRequests, t.limitTokens)
}

func parseNumbers(words []string, to ...*int64) error {
	if len(words) < len(to) {
		return fmt.Errorf("read the usage: %q has fewer than %d numbers", words, len(to))
	}
	for i := range to {
		n, err := strconv.ParseInt(words[i], 10, 64)
		if err != nil {
			return fmt.Errorf("read the usage: %w", err)
		}
		*to[i] = n
	}
	return nil
}

func formatNumbers(numbers ...int64) string {
	words := make([]string, len(numbers))
	for i, n := range numbers {
		words[i] = strconv.FormatInt(n, 10)
	}
	return strings.Join(words, " ")
}

func sortedReasons(refused map[string]int64) []string {
	reasons := make([]string, 0, len(refused))
	for reason := range refused {
		reasons = append(reasons, reason)
	}
	slices.Sort(reasons)
	return reasons
}

// A series collects points out of blocks.
type series struct {
	query  usage.Query
	points map[pointKey]*usage.Point
}

type pointKey struct {
	start int64 // Unix seconds
	label string
}

func newSeries(q usage.Query) *series { return &series{q, map[pointKey]*usage.Point{}} }

// add reads one field of a block.
func (s *series) add(b block, number int64, name, text string) error {
	word, label, labelled := strings.Cut(name, " ")
	slot, err := strconv.ParseInt(word, 10, 64)
	if err != nil {
		return fmt.Errorf("read the usage: %q is no field of a block: %w", name, err)
	}
	start := b.start(number, slot)
	if start.Before(s.query.From) || !start.Before(s.query.To) {
		return nil
	}
	all := s.at(start, "")
	if !labelled {
		t, err := parseTotal(text)
		all.PeakRequests, all.PeakTokens, all.LimitRequests, all.LimitTokens = t.requests, t.tokens, t.limitRequests, t.limitTokens
		return err
	}
	v, err := parseSum(text)
	p := s.at(start, label)
	p.Counts, p.PeakRequests, p.PeakTokens = v.Counts, v.peakRequests, v.peakTokens
	all.Add(v.Counts)
	return err
}

func (s *series) at(start time.Time, label string) *usage.Point {
	k := pointKey{start.Unix(), label}
	if s.points[k] == nil {
		s.points[k] = &usage.Point{Start: start, Resource: label}
	}
	return s.points[k]
}

// sorted returns the points, by start and resource.
func (s *series) sorted() []usage.Point {
	points := make([]usage.Point, 0, len(s.points))
	for _, p := range s.points {
		points = append(points, *p)
	}
	slices.SortFunc(points, func(a, b usage.Point) int {
		return cmp.Or(a.Start.Compare(b.Start), strings.Compare(a.Resource, b.Resource))
	})
	return points
}
