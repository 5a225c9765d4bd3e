package main

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/tiergate/tiergate/internal/envoyapi"
)

// quietFor is how long the log does not tell again of what may happen to every request.
const quietFor = time.Minute

// seldom is true at the first time, and then once in a while. It is safe for concurrent use.
type seldom struct{ last atomic.Int64 } // Unix nanoseconds; 0: never

func (s *seldom) now(now time.Time) bool {
	last := s.last.Load()
	return (last == 0 || now.UnixNano()-last >= int64(quietFor)) && s.last.CompareAndSwap(last, now.UnixNano())
}

// refused writes the line of the decision log. Operators need to see the first of those
// that fail, which are no client's fault, without asking for every refusal.
func (o observer) refused(ctx context.Context, v *envoyapi.Verdict) {
	level := slog.LevelDebug
	if v.Outcome == envoyapi.Failed && !errors.Is(v.Err, context.Canceled) && o.failed.now(v.At) {
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
	if o.misnamed.now(v.At) {
		o.log.WarnContext(ctx, "a route or a descriptor names a resource that is not configured, and the path decides in its place: mend the name, or add it to resources",
			"resource", v.Misnamed, "used", v.Resource)
	}
}
