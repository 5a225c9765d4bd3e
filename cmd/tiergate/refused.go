package main

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/tiergate/tiergate/internal/envoyapi"
)

// quietFor is how long the log does not tell again of what may happen to every request.
const quietFor = time.Minute

// mostToldApart is how many names a seldom tells apart, which may be anything.
const mostToldApart = 16

// seldom is true for each name at the first time, and then once in a while. It is safe for
// concurrent use.
type seldom struct {
	mu   sync.Mutex
	last map[string]time.Time
}

func (s *seldom) now(name string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	quiet := func(last time.Time) bool { since := now.Sub(last); return 0 <= since && since < quietFor } // the clock may be set back
	last, told := s.last[name]
	if told && quiet(last) {
		return false
	}
	if !told && len(s.last) >= mostToldApart {
		maps.DeleteFunc(s.last, func(_ string, last time.Time) bool { return !quiet(last) })
		if len(s.last) >= mostToldApart {
			return false
		}
	}
	if s.last == nil {
		s.last = map[string]time.Time{}
	}
	s.last[strings.Clone(name)] = now
	return true
}

// refused writes the line of the decision log. Operators need to see the first of those
// that fail, which are no client's fault, without asking for every refusal.
func (o observer) refused(ctx context.Context, v *envoyapi.Verdict) {
	level := slog.LevelDebug
	if v.Outcome == envoyapi.Failed && !errors.Is(v.Err, context.Canceled) && o.failed.now(v.Tier, v.At) {
		level = slog.LevelWarn
	}
	if !o.log.Enabled(ctx, level) {
		return
	}
	id := ""
	if v.Key != nil {
		id = v.Key.ID
	}
	attributes := []slog.Attr{
		slog.String("outcome", string(v.Outcome)), slog.String("code", v.Code()), slog.String("limit", v.Label()), slog.String("key_id", id),
		slog.String("tier", v.Tier), slog.String("resource", v.Resource), slog.String("priority", v.Priority.String()),
		slog.Duration("wait", v.Decision.Wait),
	}
	if v.Err != nil {
		attributes = append(attributes, slog.Any("error", v.Err))
	}
	o.log.LogAttrs(ctx, level, "refused", attributes...)
}

// misnames tells of a resource that a route or a descriptor names and that is not
// configured: most likely it is mistyped, and the limits of another hold.
func (o observer) misnames(ctx context.Context, v *envoyapi.Verdict) {
	o.metrics.misnamed.Inc()
	if o.misnamed.now(v.Misnamed, v.At) {
		o.log.WarnContext(ctx, "a route or a descriptor names a resource that is not configured, and the path decides in its place: mend the name, or add it to resources",
			"resource", v.Misnamed, "used", v.Resource)
	}
}

// Invalid implements envoyapi.Observer. Envoy tells nobody why such a call failed.
func (o observer) Invalid(ctx context.Context, at time.Time, problem string) {
	o.metrics.invalid.Inc()
	if o.invalid.now(problem, at) {
		o.log.WarnContext(ctx, "a call of the rate limit service is answered with INVALID_ARGUMENT, and Envoy lets the request pass or not as failure_mode_deny says: mend its filter, or the setting",
			"error", problem)
	}
}
