package web

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/usage"
)

// keptUsage is what accounts have used, in memory.
type keptUsage struct {
	points  map[string]map[usage.Step][]usage.Point
	refused map[string][]usage.Refusal
	failure error
}

func (k keptUsage) Series(_ context.Context, account string, q usage.Query) ([]usage.Point, error) {
	var found []usage.Point
	for _, p := range k.points[account][q.Step] {
		if !p.Start.Before(q.From) && p.Start.Before(q.To) {
			found = append(found, p)
		}
	}
	return found, k.failure
}

func (k keptUsage) Refusals(_ context.Context, account string) ([]usage.Refusal, error) {
	return k.refused[account], k.failure
}

// someUsage is what key_a has used, and a little of key_b.
func someUsage() keptUsage {
	hour := noon.Truncate(time.Hour)
	return keptUsage{
		points: map[string]map[usage.Step][]usage.Point{
			"key_a": {usage.Hour: {
				{Start: hour, Counts: usage.Counts{Admitted: 5, Refused: map[string]int64{"requests_per_minute": 2, "forbidden": 1}, InputTokens: 70, OutputTokens: 30}, PeakRequests: 4, PeakTokens: 60, LimitRequests: 10},
				{Start: hour, Resource: "images", Counts: usage.Counts{Admitted: 1}, PeakRequests: 1},
				{Start: hour, Resource: "chat", Counts: usage.Counts{Admitted: 4, Refused: map[string]int64{"requests_per_minute": 2, "forbidden": 1}, InputTokens: 70, OutputTokens: 30}, PeakRequests: 3, PeakTokens: 60},
				{Start: hour.Add(-time.Hour), Counts: usage.Counts{Admitted: 1, Refused: map[string]int64{"requests_per_minute": 1}}, PeakRequests: 1, LimitRequests: 10, LimitTokens: 1000},
				{Start: hour.Add(-time.Hour), Resource: "chat", Counts: usage.Counts{Admitted: 1, Refused: map[string]int64{"requests_per_minute": 1}}, PeakRequests: 1},
				{Start: hour.Add(-48 * time.Hour), Counts: usage.Counts{Admitted: 99}},
			}},
			"key_b": {usage.Hour: {{Start: hour, Counts: usage.Counts{Admitted: 7777}}}},
		},
		refused: map[string][]usage.Refusal{
			"key_a": {
				{At: noon.Add(-time.Hour), Resource: "chat", Limit: "tokens_per_minute", Used: 3, Max: 1000, Asked: 2000, TooLarge: true},
				{At: noon, Resource: "chat", Limit: "requests_per_minute", Used: 10, Max: 10, Asked: 1, Wait: 29_500 * time.Millisecond},
			},
			"key_b": {{At: noon, Resource: "chat", Limit: "bees_per_minute"}},
		},
	}
}

// TestUsage shows a caller what its own key has used, with totals, all resources
// together or each.
func TestUsage(t *testing.T) {
	t.Parallel()
	c, _, _ := newCustomers(t, func() time.Time { return noon })
	c.kept = someUsage()
	const head = `{"key_id":"key_a","from":1772280000,"to":1772370000,"step":"hour",` +
		`"totals":{"requests":10,"admitted":6,"refused":{"forbidden":1,"requests_per_minute":3},"input_tokens":70,"output_tokens":30},"points":[`
	for path, want := range map[string]string{
		"/v1/usage": head +
			`{"start":1772362800,"requests":2,"admitted":1,"refused":{"requests_per_minute":1},"input_tokens":0,"output_tokens":0,"peak":{"requests":1,"tokens":0},"limits":{"requests":10,"tokens":1000}},` +
			`{"start":1772366400,"requests":8,"admitted":5,"refused":{"forbidden":1,"requests_per_minute":2},"input_tokens":70,"output_tokens":30,"peak":{"requests":4,"tokens":60},"limits":{"requests":10,"tokens":null}}]}`,
		"/v1/usage?by=resource": head +
			`{"start":1772362800,"resource":"chat","requests":2,"admitted":1,"refused":{"requests_per_minute":1},"input_tokens":0,"output_tokens":0,"peak":{"requests":1,"tokens":0}},` +
			`{"start":1772366400,"resource":"chat","requests":7,"admitted":4,"refused":{"forbidden":1,"requests_per_minute":2},"input_tokens":70,"output_tokens":30,"peak":{"requests":3,"tokens":60}},` +
			`{"start":1772366400,"resource":"images","requests":1,"admitted":1,"refused":{},"input_tokens":0,"output_tokens":0,"peak":{"requests":1,"tokens":0}}]}`,
		"/v1/usage?step=day": `{"key_id":"key_a","from":1769731200,"to":1772409600,"step":"day",` +
			`"totals":{"requests":0,"admitted":0,"refused":{},"input_tokens":0,"output_tokens":0},"points":[]}`,
	} {
		w := get(c, path, "X-Api-Key", "sk-a")
		if w.Code != http.StatusOK || w.Body.String() != want+"\n" || w.Header().Get("X-RateLimit-Limit") != "10" || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %v\n%s\nwant\n%s", path, w.Code, w.Header(), w.Body, want)
		}
	}
	if w := get(c, "/v1/usage", "X-Api-Key", "sk-b"); !strings.Contains(w.Body.String(), `"key_id":"key_b"`) || !strings.Contains(w.Body.String(), `"admitted":7777`) {
		t.Errorf("another key: %s", w.Body)
	}
	if w := get(c, "/v1/usage"); w.Code != http.StatusUnauthorized {
		t.Errorf("nobody: %d", w.Code)
	}
}

// TestUsageParameters: which time is asked for, in whole steps and cut to what there is.
func TestUsageParameters(t *testing.T) {
	t.Parallel()
	at := func(text string) time.Time {
		parsed, err := time.Parse(time.DateTime, text)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	for query, want := range map[string]usage.Query{
		"":                              {Step: usage.Hour, From: at("2026-02-28 12:00:00"), To: at("2026-03-01 13:00:00")},
		"step=minute":                   {Step: usage.Minute, From: at("2026-03-01 11:00:00"), To: at("2026-03-01 12:01:00")},
		"step=day":                      {Step: usage.Day, From: at("2026-01-30 00:00:00"), To: at("2026-03-02 00:00:00")},
		"from=0":                        {Step: usage.Hour, From: at("2026-02-21 12:00:00"), To: at("2026-03-01 13:00:00")},
		"from=0&step=minute":            {Step: usage.Minute, From: at("2026-03-01 09:00:00"), To: at("2026-03-01 12:01:00")},
		"from=0&to=1&step=day":          {Step: usage.Day, From: at("2025-01-25 00:00:00"), To: at("2025-01-25 00:00:00")},
		"from=0&step=day":               {Step: usage.Day, From: at("2025-01-25 00:00:00"), To: at("2026-03-02 00:00:00")},
		"from=1772359200&to=1772359201": {Step: usage.Hour, From: at("2026-03-01 10:00:00"), To: at("2026-03-01 11:00:00")},
		"from=2026-03-01T09:59:59Z&to=2026-03-01T12:00:00%2B01:00":      {Step: usage.Hour, From: at("2026-03-01 09:00:00"), To: at("2026-03-01 11:00:00")},
		"to=2026-03-01T00:00:00Z":                                       {Step: usage.Hour, From: at("2026-02-28 00:00:00"), To: at("2026-03-01 00:00:00")},
		"to=253402300799":                                               {Step: usage.Hour, From: at("2026-03-01 13:00:00"), To: at("2026-03-01 13:00:00")},
		"from=2026-03-01T11:00:00Z&to=9999-01-01T00:00:00Z&by=resource": {Step: usage.Hour, From: at("2026-03-01 11:00:00"), To: at("2026-03-01 13:00:00")},
	} {
		have, err := parseUsageRequest(query, noon)
		if err != nil || have.Query != want || (have.by == "resource") != strings.Contains(query, "by=") {
			t.Errorf("%s: %v %+v, want %+v", query, err, have, want)
		}
		if steps := have.To.Sub(have.From) / have.Step.Length(); steps > 1000 {
			t.Errorf("%s: %d steps", query, steps)
		}
	}
}

// TestWrongParameters are refused in the contract's shape, saying what is wanted and
// never what was sent.
func TestWrongParameters(t *testing.T) {
	t.Parallel()
	now := noon
	c, _, _ := newCustomers(t, func() time.Time { return now })
	for query, want := range map[string]string{
		"step=week":                 "Invalid query parameters: step: want minute, hour or day.",
		"step=":                     "Invalid query parameters: step: want minute, hour or day.",
		"by=rate_limit":             "Invalid query parameters: by: want resource.",
		"from=yesterday":            "Invalid query parameters: from: want RFC 3339, such as 2026-03-01T12:00:00Z, or Unix seconds.",
		"from=-1":                   "Invalid query parameters: from: want RFC 3339, such as 2026-03-01T12:00:00Z, or Unix seconds.",
		"to=99999999999999999":      "Invalid query parameters: to: want RFC 3339, such as 2026-03-01T12:00:00Z, or Unix seconds.",
		"from=200&to=100":           "Invalid query parameters: from: want a time before to, which is now if it is not given.",
		"from=200&to=200":           "Invalid query parameters: from: want a time before to, which is now if it is not given.",
		"from=2099-01-01T00:00:00Z": "Invalid query parameters: from: want a time before to, which is now if it is not given.",
		"step=day&step=hour":        "Invalid query parameters: step: want it once.",
		"rate_limit=1":              "Invalid query parameters: want from, to, step or by.",
		"from=%zz":                  "Invalid query parameters: they cannot be read; escape what stands after a =.",
	} {
		now = now.Add(time.Second) // a key may ask some times a second
		w := get(c, "/v1/usage?"+query, "X-Api-Key", "sk-a")
		for _, part := range []string{`"type": "invalid_request_error"`, `"code": "invalid_parameter"`, `"message": "` + want + `"`} {
			if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), part) || strings.Contains(w.Body.String(), "rate_limit") {
				t.Errorf("%s: %d %s, want %s", query, w.Code, w.Body, part)
			}
		}
		if h := w.Header(); h.Get("X-RateLimit-Limit") != "10" || h.Get("X-RateLimit-Remaining") != "10" || h.Get("X-Request-Priority") != "1" {
			t.Errorf("%s: %v: want how the key stands, as beside any other answer", query, h)
		}
	}
}

// TestUsageIsAway: the caller learns that it is, the log why.
func TestUsageIsAway(t *testing.T) {
	t.Parallel()
	c, _, _ := newCustomers(t, func() time.Time { return noon })
	var log strings.Builder
	c.log, c.kept = slog.New(slog.NewTextHandler(&log, nil)), keptUsage{failure: errors.New("dial 10.0.0.9: refused")}
	cookie := signedIn(t, c, "sk-a")
	for path, headers := range map[string][]string{
		"/v1/usage": {"X-Api-Key", "sk-a"}, "/dashboard/api/usage": {"Cookie", cookie}, "/dashboard/api/refusals": {"Cookie", cookie},
	} {
		w := get(c, path, headers...)
		if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "usage_unavailable") || strings.Contains(w.Body.String(), "10.0.0.9") || w.Header().Get("Retry-After") != "1" {
			t.Errorf("%s: %d %v %s", path, w.Code, w.Header(), w.Body)
		}
	}
	if n := strings.Count(log.String(), "dial 10.0.0.9: refused"); n != 3 || strings.Contains(log.String(), "sk-a") {
		t.Errorf("log: %s", log.String())
	}
}
