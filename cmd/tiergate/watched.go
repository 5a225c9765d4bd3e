package main

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/store"
)

// watchedCounts returns what limits are counted in.
func (s *server) watchedCounts() quota.Counts {
	if s.stores.fallback != nil {
		return s.stores.fallback // which is watched by itself
	}
	return &watchedCounts{Counts: s.stores.counts, metrics: s.metrics, log: s.log}
}

// calm is how long a store must not have failed to count as back.
const calm = time.Second

// watchedCounts measures a store in memory and logs when it begins to fail, for want of
// room, and when that is over: a line each, however many requests it hits.
type watchedCounts struct {
	quota.Counts

	metrics    *metrics
	log        *slog.Logger
	lastFailed atomic.Int64 // Unix nanoseconds; 0: the store is fine
}

// Take implements quota.Counts.
func (w *watchedCounts) Take(ctx context.Context, o quota.Order) (quota.Taken, error) {
	began := time.Now()
	taken, err := w.Counts.Take(ctx, o)
	w.watch(ctx, store.CallTake, began, err)
	return taken, err
}

// Settle implements quota.Counts.
func (w *watchedCounts) Settle(ctx context.Context, s quota.Settlement) (quota.Outcome, error) {
	began := time.Now()
	outcome, err := w.Counts.Settle(ctx, s)
	w.watch(ctx, store.CallSettle, began, err)
	return outcome, err
}

func (w *watchedCounts) watch(ctx context.Context, call string, began time.Time, err error) {
	w.metrics.called(call, time.Since(began), nil)
	if err != nil {
		w.failed(ctx, err)
	} else if last := w.lastFailed.Load(); last != 0 && began.UnixNano()-last > int64(calm) && w.lastFailed.CompareAndSwap(last, 0) {
		w.log.InfoContext(ctx, "the store answers again")
	}
}

// called measures a call of the store.
func (m *metrics) called(call string, took time.Duration, err error) {
	m.storeTime[call].Observe(took.Seconds())
	if err != nil {
		m.storeErrors.WithLabelValues(reason(err)).Inc()
	}
}

func (w *watchedCounts) failed(ctx context.Context, err error) {
	why := reason(err)
	if ctx.Err() != nil { // the caller gave up, whatever the store would have said
		why = "canceled"
	}
	w.metrics.storeErrors.WithLabelValues(why).Inc()
	if why != "canceled" && w.lastFailed.Swap(time.Now().UnixNano()) == 0 {
		w.log.ErrorContext(ctx, "the store fails: requests are answered with 503 until it is back", "error", err)
	}
}

func reason(err error) string {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	default:
		return "other"
	}
}
